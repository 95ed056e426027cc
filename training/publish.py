"""Writes finished weights to ``assets/weights/<name>/`` in the on-disk format of the published checkpoints.

Each folder ends with ``SHA256SUMS`` over its files, which the app verifies at load. Model cards are written by hand.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from models.nets.crossflow import CrossFlow
from training.images import to_tensor
from training.pictures import Pictures

SUMS = "SHA256SUMS"


def write_sums(folder: Path) -> None:
    """The sums file, in ``sha256sum``'s format, of everything that a model is built from."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in {".json", ".safetensors", ".txt"})
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines))


def checksum_of(folder: Path) -> str:
    """One checksum for the whole folder."""
    return hashlib.sha256((folder / SUMS).read_bytes()).hexdigest()


@torch.no_grad()
def publish_autoencoder(model: AutoencoderTiny, pictures: Pictures, folder: Path) -> None:
    """Set scale and shift so that the training latents have mean 0 and deviation 1; save float16."""
    rows = [item.row for item in pictures.select("train")][::8]
    parts = [model.encode(to_tensor(pictures.pixels[rows[i : i + 32]])).latents for i in range(0, len(rows), 32)]
    latents = torch.cat(parts)
    model.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))
    model.to(torch.float16).save_pretrained(folder)
    _drop_from_config(folder / "config.json", "block_out_channels")
    write_sums(folder)
    print("latents: deviation per channel", [round(value, 2) for value in latents.std((0, 2, 3)).tolist()])


def _drop_from_config(path: Path, name: str) -> None:
    """Remove an entry that diffusers writes and then warns of when it reads it."""
    config = json.loads(path.read_text())
    config.pop(name)
    path.write_text(json.dumps(config, indent=2) + "\n")


def publish_crossflow(model: CrossFlow, folder: Path) -> None:
    model.save_pretrained(folder)
    write_sums(folder)
