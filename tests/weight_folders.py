"""Folders of weights, and what a source says of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models import sources
from models.errors import UserError
from models.sources import Source


def resolve(source: Source) -> sources.Files:
    return source.resolve(lambda fraction, message: None)


def weights_in(folder: Path) -> Path:
    """A folder of two files and their sums."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file({"w": torch.arange(100.0)}, folder / "model.safetensors")
    write_sums(folder)
    return folder


def write_sums(folder: Path) -> None:
    paths = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    (folder / "SHA256SUMS").write_text("".join(lines))


def refusal(source: Source) -> UserError:
    with pytest.raises(UserError) as caught:
        resolve(source)
    return caught.value
