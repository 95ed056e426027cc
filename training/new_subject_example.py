"""Recipe of ``assets/examples/new-subject``: what there is to try an adapter on, of a brain that the decoder never met.

    python -m training.new_subject_example --data FOLDER

The simulator's S8 has seen 150 training pictures, Noto Emoji (Apache-2.0), once each: their scans, and the pictures in
a zip archive, each called by its number. A scan of one held-out picture, seen three times, is there to decode then.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from training.brain_decoder import HELD_OUT_REPEATS, NEW_SUBJECT, held_out_rows
from training.brain_features import make_features
from training.brain_simulator import make_subject, simulate, write_scan
from training.bridges import picture_vectors
from training.examples import EXAMPLES, STYLE
from training.pictures import data_folder, load_pictures

WEIGHTS = Path("assets/weights")
FOLDER = EXAMPLES / "new-subject"
SEED, PAIRS, QUALITY = 97, 150, 82
UNSEEN = "cherries"


def write_pictures(path: Path, pixels: np.ndarray, numbers: np.ndarray) -> None:
    """(N, H, W, 3) as ``NUMBER.webp`` each; the same bytes every time."""
    with zipfile.ZipFile(path, "w") as archive:
        for picture, number in zip(pixels, numbers, strict=True):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "WEBP", quality=QUALITY, method=6)
            archive.writestr(zipfile.ZipInfo(f"{number}.webp"), file.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the picture tables")
    pictures = load_pictures(data_folder(parser.parse_args().data))
    training = pictures.select("train")
    vectors = picture_vectors(pictures, WEIGHTS / "picture-text-lite")
    features = make_features(vectors, pictures.pixels, np.array([item.row for item in training]))
    first = {item.concept: item.row for item in reversed(training) if item.style == STYLE}
    rows = np.sort(np.random.default_rng(SEED).permutation(sorted(first.values()))[:PAIRS])
    unseen = next(row for row in held_out_rows(pictures)["test"] if pictures.items[row].concept == UNSEEN)
    subject = make_subject(NEW_SUBJECT, features)
    repeats = np.repeat([1, HELD_OUT_REPEATS], [PAIRS, 1])
    trials = simulate(subject, features, np.append(rows, unseen), repeats, SEED)
    learnt = trials.select(np.isin(trials.image_id, rows))
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_scan(FOLDER / f"{NEW_SUBJECT}.npz", subject, learnt, SEED)
    write_pictures(FOLDER / f"{NEW_SUBJECT}-pictures.zip", pictures.pixels[rows], rows)
    shown = trials.select(trials.image_id == unseen)
    write_scan(FOLDER / f"{NEW_SUBJECT}-{UNSEEN}.npz", subject, shown, SEED, among=learnt)
    Image.fromarray(pictures.pixels[unseen]).save(FOLDER / f"{NEW_SUBJECT}-{UNSEEN}.png")


if __name__ == "__main__":
    main()
