"""Recipe of ``assets/known-pictures``: a small gallery in which what was decoded of a brain is looked up.

    python -m training.known_pictures --data FOLDER

Noto Emoji (Apache-2.0), one a concept, of the pictures that no model here has learnt from: also those that the shipped
simulated scans answer to. Needs ``picture-text-lite``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.picture_text import load_picture_text
from pipelines.fmri.known_pictures import FOLDER, SHEET, SIDE, TABLE
from training.examples import STYLE
from training.images import to_tensor
from training.pictures import Picture, Pictures, data_folder, load_pictures

WEIGHTS = Path("assets/weights")
ACROSS, QUALITY, AT_ONCE = 16, 80, 32


def chosen(pictures: Pictures) -> list[Picture]:
    """In the order of their concepts."""
    found = {item.concept: item for item in pictures.select("heldout-pair", "heldout-concept") if item.style == STYLE}
    return [found[concept] for concept in sorted(found)]


def contact_sheet(pixels: np.ndarray) -> Image.Image:
    """(N, H, W, 3) as small pictures row by row, the last row filled up with white."""
    sheet = Image.new("RGB", (ACROSS * SIDE, -(-len(pixels) // ACROSS) * SIDE), "white")
    for number, picture in enumerate(pixels):
        small = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(small, (number % ACROSS * SIDE, number // ACROSS * SIDE))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the picture tables")
    pictures = load_pictures(data_folder(parser.parse_args().data))
    items = chosen(pictures)
    pixels = pictures.pixels[[item.row for item in items]]
    space = load_picture_text(WEIGHTS / "picture-text-lite")
    with torch.no_grad():
        vectors = torch.cat(
            [space.embed_pictures(to_tensor(part)) for part in np.array_split(pixels, len(pixels) // AT_ONCE)]
        )
    FOLDER.mkdir(parents=True, exist_ok=True)
    contact_sheet(pixels).save(FOLDER / SHEET, quality=QUALITY, method=6)
    names = np.array([item.concept for item in items])
    np.savez_compressed(FOLDER / TABLE, names=names, vectors=vectors.half().numpy())


if __name__ == "__main__":
    main()
