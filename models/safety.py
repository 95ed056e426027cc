"""Refuses weights that could run somebody's code on being read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePath
from pickle import UnpicklingError

from models.errors import UserError

PICKLES = (".pkl", ".pickle")
CHECKPOINTS = (".bin", ".ckpt", ".pt", ".pth")  # pickles too, but of tensors only if torch finds nothing else in them
SAFE_INSTEAD = "Take the same weights as .safetensors."


def refuse_names(names: Iterable[str]) -> None:
    """Raises :class:`UserError` for a file whose ending alone says that it runs code."""
    for name in names:
        ending = PurePath(name).suffix.lower()
        if ending == ".py":
            raise UserError(
                f"'{name}' is a program, and the code that comes with weights is never run here.",
                "Remove it, if the weights work without.",
            )
        if ending in PICKLES:
            raise UserError(f"'{name}' is a pickle, which could run anybody's code on being read.", SAFE_INSTEAD)


def refuse_code(folder: Path, names: Iterable[str]) -> None:
    """Raises :class:`UserError` for a file of ``names`` in ``folder`` that is, holds or asks for code, or is damaged.

    A checkpoint of torch passes if ``torch.load`` reads it with ``weights_only``.
    """
    names = tuple(names)
    refuse_names(names)
    for name in names:
        path = folder / name
        if path.suffix.lower() in CHECKPOINTS:
            seen = path.stat()
            _refuse_checkpoint(path, seen.st_size, seen.st_mtime_ns)
        elif name.endswith("config.json"):
            _refuse_remote_code(path)


@lru_cache(maxsize=256)  # a refusal is not remembered, so another file in its place is seen
def _refuse_checkpoint(path: Path, size: int, changed: int) -> None:
    import torch

    try:
        torch.load(path, map_location="meta", weights_only=True)  # reads the structure, not the tensors
    except UnpicklingError as error:
        raise UserError(
            f"'{path.name}' holds more than tensors, and could run anybody's code on being read.", SAFE_INSTEAD
        ) from error
    except Exception as error:  # rubbish raises whatever its bytes happen to ask for
        raise UserError(
            f"'{path.name}' is damaged, or no file of torch's.", f"Get it again from where it came. {SAFE_INSTEAD}"
        ) from error


def _refuse_remote_code(path: Path) -> None:
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path.name}' is damaged: it is not JSON.", "Get it again from where it came.") from error
    if isinstance(config, dict) and "auto_map" in config:
        raise UserError(
            f"'{path.name}' asks for code that comes with the weights ('auto_map'), and that is never run here.",
            "Use a model that needs no code of its own, or remove the entry, if the weights work without.",
        )
