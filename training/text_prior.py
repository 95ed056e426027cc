"""Recipe of ``assets/weights/clipsonic-prior-lite`` and ``clipsonic-mean-shift-lite``: from words to what is seen.

    python -m training.text_prior --data FOLDER

CLIPSonic's diffusion prior (arXiv 2306.09635): from the CLIP-lite vector of a caption to that of a picture with this
caption. Only captioned pictures are needed, never a sound, so that the sound model behind it hears words without ever
having been trained on any. The mean shift is the control; a regression is trained beside it to be compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.bridges import MeanShift
from models.picture_text import load_picture_text
from training.bridges import (
    REGRESSION_STEPS,
    SEED,
    Kinds,
    Task,
    compare,
    make_task,
    picture_vectors,
    train_diffusion,
    train_regression,
)
from training.picture_text import Phrases, draw_phrase
from training.pictures import Picture, data_folder, load_pictures, verify_checksums
from training.publish import write_sums

STEPS = 4500
CAPTIONS = 4  # of each picture
NAME = "clipsonic-prior"
WEIGHTS = Path("assets/weights")


def captions_of(items: Sequence[Picture]) -> tuple[list[str], list[Kinds]]:
    """All captions, each once, and each picture's rows among them: what CLIP-lite was trained to call it."""
    rows: dict[str, int] = {}
    kinds: list[Kinds] = []
    for item in items:
        rng = np.random.default_rng((SEED, item.row))
        drawn = [draw_phrase(item, rng) for _ in range(CAPTIONS)]
        kinds.append([[rows.setdefault(caption, len(rows)) for caption in drawn]])
    return list(rows), kinds


@torch.no_grad()
def caption_vectors(captions: Sequence[str], weights: Path) -> Tensor:
    """The CLIP-lite vector of every caption, (len(captions), D)."""
    return load_picture_text(weights).embed_sentences(Phrases(captions).of(captions))


def load_task(folder: Path) -> Task:
    """The captioned pictures of the tables in ``folder``, flags left out, as vectors of the trained space."""
    verify_checksums(folder)
    pictures = load_pictures(folder)
    items = pictures.select("train", "heldout-pair", "heldout-concept")
    captions, kinds = captions_of(items)
    space = WEIGHTS / "picture-text-lite"
    return make_task(
        caption_vectors(captions, space),
        picture_vectors(pictures, space)[[item.row for item in items]],
        kinds,
        [item.concept for item in items],
        [item.split for item in items],
        one_space=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of the picture tables")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    task = load_task(data_folder(arguments.data))
    print(f"{len(task.train.targets)} pictures with {len(task.train.sources)} captions", flush=True)
    regression = train_regression(f"{NAME}-regression", task, min(REGRESSION_STEPS, arguments.steps))
    diffusion = train_diffusion(NAME, task, arguments.steps)
    compare(NAME, task, diffusion, regression)
    shift = MeanShift.between(*task.train.all())
    for folder, bridge in ((WEIGHTS / f"{NAME}-lite", diffusion), (WEIGHTS / "clipsonic-mean-shift-lite", shift)):
        bridge.save_pretrained(folder)
        write_sums(folder)


if __name__ == "__main__":
    main()
