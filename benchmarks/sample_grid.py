"""The 6x6 grid of the README, nothing picked by hand: every n-th reserved caption of each split, seed 0.

python -m benchmarks.sample_grid --data FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import PIL.Image
from PIL import ImageDraw, ImageFont

from app.settings import Settings
from app.studio import build_manager
from benchmarks.crossflow import generate, spread
from pipelines.crossflow.sampling import to_pixels
from training.evaluator import is_reserved
from training.pictures import data_folder, load_pictures

TARGET = Path("assets/samples/crossflow.png")
SIDE, LABEL, COLUMNS = 128, 18, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of the picture tables")
    arguments = parser.parse_args()
    pictures = load_pictures(data_folder(arguments.data))
    chosen = [
        item
        for split, count in (("train", 24), ("heldout-pair", 6), ("heldout-concept", 6))
        for item in spread([item for item in pictures.select(split) if is_reserved(item)], count)  # type: ignore[arg-type]
    ]
    painted = to_pixels(
        generate(build_manager(Settings(profile="lite")), [(item.concept, item.style) for item in chosen])
    )
    sheet = PIL.Image.new("RGB", (COLUMNS * (SIDE + 8) + 8, COLUMNS * (SIDE + LABEL + 8) + 8), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for index, (item, pixels) in enumerate(zip(chosen, painted, strict=True)):
        row, column = divmod(index, COLUMNS)
        x, y = 8 + column * (SIDE + 8), 8 + row * (SIDE + LABEL + 8)
        sheet.paste(PIL.Image.fromarray(pixels), (x, y))
        draw.text((x + 2, y + SIDE + 2), f"{item.concept[:17]}, {item.style}", fill="black", font=font)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
