"""Recipe of ``assets/examples``: a few things to try, besides words.

    python -m training.examples --data FOLDER

- ``pictures``: of things that sound, Noto Emoji (Apache-2.0).
- ``scans``: simulated ones, each with the picture that it answers to: Noto Emoji from end to end of the test of
  ``training.brain_decoder``, none chosen by what is decoded of it. Each was seen three times by another subject, in a
  session that the decoder has not met: it brings offsets and gains of its own.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
from PIL import Image

from training.brain_decoder import HELD_OUT_REPEATS, World, load_world, record
from training.brain_simulator import VOXELS, simulate, write_scan
from training.pictures import Pictures, data_folder, load_pictures

SEED, SCANS, STYLE = 89, 6, "emoji"  # the style that Noto Emoji have in the tables
SOUNDING = ("dog", "rooster", "bell", "drum", "violin", "locomotive")
EXAMPLES = Path("assets/examples")


def write_pictures(pictures: Pictures, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = {item.concept: item.row for item in reversed(pictures.items) if item.style == STYLE}
    for concept in SOUNDING:
        if concept in rows:
            Image.fromarray(pictures.pixels[rows[concept]]).save(folder / f"{concept}.png")


def write_scans(world: World, pictures: Pictures, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in world.held_out["test"] if pictures.items[row].style == STYLE]
    rows = rows[:: max(1, len(rows) // SCANS)][:SCANS]
    for name, row in zip(VOXELS, rows, strict=False):
        recording = record(world, name)
        trials = simulate(recording.subject, world.features, np.array([row]), HELD_OUT_REPEATS, SEED)
        path = folder / f"{name}-{re.sub('[^a-z]+', '-', pictures.items[row].concept)}.npz"
        write_scan(path, recording.subject, trials, SEED, among=recording.trials)
        Image.fromarray(pictures.pixels[row]).save(path.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of the picture tables")
    folder = data_folder(parser.parse_args().data)
    pictures = load_pictures(folder)
    write_pictures(pictures, EXAMPLES / "pictures")
    write_scans(load_world(folder), pictures, EXAMPLES / "scans")


if __name__ == "__main__":
    main()
