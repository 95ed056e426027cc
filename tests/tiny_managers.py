"""Managers on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from models.accounts import Candidate
from models.manager import ModelManager
from models.spec import ModelSpec
from tests.tiny_models import UNIT

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def manager_on(device: torch.device, budget: int, *specs: ModelSpec, **options: Any) -> ModelManager:
    return ModelManager({spec.key: spec for spec in specs}, device, budget * UNIT, **options)


def oldest(candidates: Sequence[Candidate], need: int, expected: Sequence[str]) -> list[Candidate]:
    """A rule whose choice does not hang on measured seconds."""
    ordered = sorted(candidates, key=lambda item: item.last_used)
    count = next(n for n in range(len(ordered) + 1) if sum(item.bytes for item in ordered[:n]) >= need)
    return ordered[:count]
