"""The precisions that weights may be held in, by growing loss of quality."""

from __future__ import annotations

from typing import Literal

Precision = Literal["float32", "float16", "bfloat16", "int8", "nf4"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "bfloat16", "int8", "nf4")
