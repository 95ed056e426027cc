"""The judge of pictures: whose weights it takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from models.errors import UserError
from training.evaluator import CONFIG, load_evaluator

SHIPPED = Path("assets/weights/evaluator")


def test_only_weights_of_its_own_sizes_are_taken(tmp_path: Path) -> None:
    assert not load_evaluator(SHIPPED).training
    shutil.copytree(SHIPPED, tmp_path / "evaluator")
    (tmp_path / "evaluator" / CONFIG).write_text(
        json.dumps({"size": 32, "widths": [48, 96, 192, 256], "features": 256})
    )
    for folder in (tmp_path / "evaluator", tmp_path / "nowhere"):
        with pytest.raises(UserError, match="no judge of pictures of these sizes"):
            load_evaluator(folder)
