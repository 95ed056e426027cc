"""How an artifact names the models that made it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelRecord:
    """``checksum``: sha256 over the model's files; ``precision``: what it computed in, such as ``"bfloat16"``."""

    key: str
    checksum: str
    precision: str
