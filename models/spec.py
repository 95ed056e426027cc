"""What is known of a model before it is loaded: where its weights are, how it is built, how big it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Literal

from models.checksums import files_in
from models.precision import Precision
from models.sources import Source

Profile = Literal["lite", "full"]
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class ModelSpec:
    """``load`` builds the model from a folder of files, in float32 on the CPU; ``licence`` is that of the weights.

    ``bytes``: what it will take in memory in float32, as far as can be told before it is loaded; ``restricted``: the
    licence allows some uses only, so the user is asked before the weights are fetched; ``skeleton``: the same object
    with its modules on the meta device, for models so large that their quantized weights are worth keeping;
    ``lossless``: the smallest precision that costs this model no visible quality (``benchmarks/quantization.py``);
    ``note``: what else people should know of it where models are listed.
    """

    key: str
    profile: Profile
    source: Source
    load: Callable[[Path], object]
    licence: str
    bytes: int
    restricted: bool = False
    skeleton: Callable[[Path], object] | None = None
    lossless: Precision = "float32"
    note: str = ""


@cache  # two keys of one model are known by their equal ``load``
def imported_later(module: str, name: str) -> Callable[..., object]:
    """The function ``name`` of ``module``, imported at the first call: transformers and diffusers take seconds."""

    def call(*arguments: object, **named: object) -> object:
        function: Callable[..., object] = getattr(import_module(module), name)
        return function(*arguments, **named)

    return call


def bytes_in_memory(folder: Path) -> int:
    """Bytes of the tensors in the folder and its folders held in float32, from the files' headers; 0 without any."""
    files = [folder / name for name in files_in(folder)]
    stored = sum(path.stat().st_size for path in files if path.suffix in (".pth", ".bin"))
    return stored + FLOAT32_BYTES * sum(_elements(path) for path in files if path.suffix == ".safetensors")


def _elements(path: Path) -> int:
    """Tensor elements in a safetensors file; a damaged header counts as nothing, because the load will report it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return 0
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return 0
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
