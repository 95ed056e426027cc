"""Recipe of ``assets/examples/scans``: simulated scans to try, each with the picture that it answers to.

    python -m training.brain_examples --data FOLDER

The pictures are the first of the test of ``training.brain_decoder`` that are Noto Emoji (Apache-2.0), so they may ship;
none was chosen by what is decoded of it. Each was seen three times by another subject, in a session that the decoder
has not met: it brings offsets and gains of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from training.brain_decoder import HELD_OUT_REPEATS, load_world, record
from training.brain_simulator import VOXELS, simulate, write_scan
from training.pictures import data_folder, load_pictures

SEED, COUNT, STYLE = 89, 6, "noto"
EXAMPLES = Path("assets/examples/scans")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of the picture tables")
    folder = data_folder(parser.parse_args().data)
    world, pictures = load_world(folder), load_pictures(folder)
    rows = [row for row in world.held_out["test"] if pictures.items[row].style == STYLE][:COUNT]
    EXAMPLES.mkdir(parents=True, exist_ok=True)
    for name, row in zip(VOXELS, rows, strict=False):
        recording = record(world, name)
        trials = simulate(recording.subject, world.features, np.array([row]), HELD_OUT_REPEATS, SEED)
        path = EXAMPLES / f"{name}-{pictures.items[row].concept.replace(' ', '-')}.npz"
        write_scan(path, recording.subject, trials, SEED, among=recording.trials)
        Image.fromarray(pictures.pixels[row]).save(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
