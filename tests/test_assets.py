"""What ships under ``assets/``: sizes, checksums, model cards, and that the autoencoder really reconstructs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from PIL import ImageDraw

from models.autoencoder import load_autoencoder

ASSETS = Path(__file__).parent.parent / "assets"
FOLDERS = sorted(path for path in (ASSETS / "weights").iterdir() if path.is_dir())
MEGABYTE = 2**20


def test_sizes_stay_within_what_a_clone_should_carry() -> None:
    sizes = [path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()]
    assert max(sizes) <= 50 * MEGABYTE and sum(sizes) <= 200 * MEGABYTE


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_weight_has_a_card_and_true_checksums(folder: Path) -> None:
    card = (folder / "MODEL_CARD.md").read_text()
    for word in ("Licence", "Limits"):
        assert word in card
    if folder.name != "text-encoder-lite":  # the one that we did not train
        for word in ("Data", "Steps", "Metrics", "training/"):
            assert word in card
    listed = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {path.name for path in folder.iterdir() if path.suffix in {".json", ".safetensors", ".txt"}}
    assert listed.keys() == files
    for name, expected in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected, name


def drawing(colour: str) -> np.ndarray:
    """A face that is in no picture set: a disc, two eyes and a mouth."""
    sheet = PIL.Image.new("RGB", (256, 256), "white")
    pen = ImageDraw.Draw(sheet)
    pen.ellipse((30, 30, 226, 226), fill=colour, outline="black", width=6)
    pen.ellipse((80, 90, 104, 120), fill="black")
    pen.ellipse((150, 90, 174, 120), fill="black")
    pen.arc((80, 110, 176, 190), 20, 160, fill="black", width=8)
    return np.asarray(sheet.resize((128, 128), PIL.Image.Resampling.LANCZOS))


@pytest.mark.parametrize("colour", ["gold", "royalblue", "seagreen", "purple", "crimson"])
def test_the_autoencoder_keeps_shapes_and_colours(colour: str) -> None:
    autoencoder = load_autoencoder(ASSETS / "weights" / "autoencoder-lite")
    pixels = torch.from_numpy(drawing(colour).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    latents = autoencoder.encode(pixels)
    decoded = autoencoder.decode(latents)
    assert latents.shape == (1, 8, 16, 16)
    psnr = 10 * torch.log10(4 / (decoded - pixels).square().mean())
    assert psnr > 24
    inside = (slice(None), slice(None), slice(70, 78), slice(40, 90))
    assert (decoded[inside].mean((0, 2, 3)) - pixels[inside].mean((0, 2, 3))).abs().max() < 0.15
