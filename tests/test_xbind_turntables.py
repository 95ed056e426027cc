"""The page of turntables: which names are on it, and that all of them are."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import xbind_turntables
from benchmarks.xbind_turntables import COLUMNS, SIDE, first_by_hash
from tests.test_shape_generator_recipe import NAMES, write_chairs
from tests.tiny_shapes import shape_manager
from training import shapes
from training.shapes import load_shapes, split_of


def test_the_page_has_an_object_for_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_chairs(tmp_path)
    shutil.copy(tmp_path / shapes.TABLE, tmp_path / shapes.SHARE_ALIKE_TABLE)
    (tmp_path / "models").mkdir()
    manager = shape_manager(tmp_path / "models")
    monkeypatch.setattr(shapes, "STATE", tmp_path / "state")
    for name, value in {"KNOWN": 3, "HELD_OUT": 1, "build_manager": lambda settings: manager}.items():
        monkeypatch.setattr(xbind_turntables, name, value)
    monkeypatch.setattr(sys, "argv", ["page", "--data", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    xbind_turntables.main()
    pixels = np.asarray(Image.open(tmp_path / "docs/xbind.png").convert("RGB"))
    width, height = (pixels.shape[1] - 8) // COLUMNS, (pixels.shape[0] - 8) // 2
    for index in range(4):
        row, column = divmod(index, COLUMNS)
        views = pixels[8 + row * height :, 8 + column * width :][:SIDE, : 4 * SIDE]
        assert all((views[:, i * SIDE : (i + 1) * SIDE] < 200).any() for i in range(4)), index
    assert (pixels[8 + height :, 8 + width :] == 255).all()  # no fifth

    table = load_shapes(tmp_path)
    known = first_by_hash(table, "train", 3)
    assert len(set(known)) == 3 and all(split_of(name) == "train" for name in known)
    assert first_by_hash(table, "train", 2) == known[:2] and {name.lower() for name in NAMES} >= set(known)
