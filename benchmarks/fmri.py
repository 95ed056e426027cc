"""How well the lite brain decoder tells what simulated brains (``sim-v1``) were shown, beside what it could and should.

    python -m benchmarks.fmri --data FOLDER [--parts subjects "new subject" names maps pictures]

All on held-out pictures of concepts that neither decoder nor subjects met in training, from one trial and from the mean
of three. Decoding partly inverts our own forward model: no figure can be compared with those of measured brains.

- ``subjects``: the shipped decoder, ridge regression, the decoder given each time the scan of another picture, chance.
- ``new subject``: an adapter to the frozen core, the same with its pictures shuffled, a decoder from scratch and ridge,
  by how many trials they are fitted on.
- ``names``: whether the right one of all concepts is the nearest, or among five, by words and by pictures.
- ``maps``: NeuroPictor's way beside STTM's. One decoder reads maps of all subjects' cortex, one more is refined for a
  subject and one for the new one, ridge regression reads the same maps, the shipped decoder has an adapter for each.
  Ridge of four thousand pixels takes minutes, so this is left out unless asked for.
- ``pictures``: painted from what was decoded, from what is true (the ceiling) and from other scans; about a second each
  and so left out unless asked for. Two-way identification is by the features of the evaluator, a network of our own
  that the simulator does not know.

Writes ``benchmarks/results/fmri.json`` and prints its tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn import functional as F

from app.settings import load_settings
from app.studio import build_manager
from benchmarks.report import save, table
from models.nets.brain_decoder import BrainDecoder, Decoded, load_brain_decoder
from models.nets.brain_measures import chance
from models.nets.map_decoder import MapDecoder, load_map_decoder
from pipelines.base import Runtime
from pipelines.crossflow.sampling import Painter
from pipelines.fmri.pipeline import FMRIParams, Reading, painted
from training.brain_concepts import concepts_of, load_words
from training.brain_decoder import (
    FEW_TRIALS,
    NEW_SUBJECT,
    REPEATS,
    SUBJECTS,
    Recording,
    World,
    compare,
    few_trials,
    other_rows,
    record,
    score,
    world_of,
)
from training.evaluator import Evaluator, load_evaluator
from training.images import to_tensor
from training.neuropictor import REFINING_STEPS, compare_routes, read_flat, refine, ridge_on_maps
from training.pictures import Pictures, data_folder, load_pictures, verify_checksums

WEIGHTS = Path("assets/weights/brain-decoder-lite")
OF_MAPS = Path("assets/weights/neuropictor-lite")
BY_DEFAULT = ("subjects", "new subject", "names")
PARTS = (*BY_DEFAULT, "maps", "pictures")
PAINTED = 60  # of the test pictures
FIRST = 5  # concepts that are named
Rows = list[dict[str, Any]]


# -------------------------------------------------------------------------------------------------- vectors and latents


def subjects(world: World, recordings: Sequence[Recording], decoder: BrainDecoder) -> Rows:
    """A row for each subject and way, then the means over the subjects, and what guesses would have."""
    found = compare(world, recordings, decoder)
    scores = {name: {way: row for way, row in ways.items() if way != "voxels"} for name, ways in found.items()}
    return with_means_and_chance(scores, list(scores), len(world.held_out["test"]))


def with_means_and_chance(
    found: Mapping[str, Mapping[str, Mapping[str, float]]], averaged: Sequence[str], count: int
) -> Rows:
    """``found``: by subject and way. Means over the subjects ``averaged`` of those ways that all of them have; chance
    among ``count`` pictures."""
    rows: Rows = [{"subject": name, "way": way, **row} for name, ways in found.items() for way, row in ways.items()]
    for way in found[averaged[0]]:
        if all(way in found[name] for name in averaged):
            rows.append({"subject": "mean", "way": way} | _mean([found[name][way] for name in averaged]))
    by_chance = {f"{key}_of_{repeats}": value for repeats in REPEATS for key, value in chance(count).items()}
    return [*rows, {"subject": "all", "way": "chance", **by_chance}]


def ceilings(recordings: Sequence[Recording]) -> Rows:
    """The mean share of a voxel's variance that the picture explains."""
    return [
        {"subject": recording.subject.name}
        | {f"noise_ceiling_of_{count}": float(recording.subject.noise_ceiling(count).mean()) for count in REPEATS}
        for recording in recordings
    ]


def new_subject(world: World, recording: Recording, decoder: BrainDecoder, counts: Sequence[int]) -> Rows:
    rows: Rows = []
    for name, row in few_trials(world, recording, decoder, counts).items():
        way, count = name.rsplit(", ", 1)
        rows.append({"trials": int(count), "way": way, **row})
    return rows


# ----------------------------------------------------------------------------------------------------------------- maps


def maps(world: World, adapters: BrainDecoder, decoder: MapDecoder, steps: int) -> Rows:
    """All subjects, the new one last; means over those that both decoders have met. ``steps``: of refining."""
    known, new = [record(world, name) for name in SUBJECTS], record(world, NEW_SUBJECT)
    refined = {one.subject.name: refine(decoder, world, one, steps) for one in (known[0], new)}
    found = compare_routes(world, [*known, new], adapters, decoder, refined)
    ridge = ridge_on_maps(world, known)
    for recording in (*known, new):
        found[recording.subject.name]["maps, ridge"] = score(world, recording, read_flat(ridge, recording))
    return with_means_and_chance(found, list(SUBJECTS), len(world.held_out["test"]))


# ---------------------------------------------------------------------------------------------------------------- names


def names(
    world: World,
    recordings: Sequence[Recording],
    decoder: BrainDecoder,
    words: Tensor,
    answers: Tensor,
    shown: Tensor,
) -> Rows:
    """``answers`` (N,): which of the decoder's concepts each test picture shows, and whether a training picture has
    ``shown`` it too, (N,) bool; ``words`` (C, 256): what the concepts are called, in the same space. The shares of
    right names, the mean over the subjects, and those of the true vectors."""
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "words": lambda vectors: vectors @ F.normalize(words, dim=1).T,
        "pictures": decoder.likeness,
    }
    rows: Rows = []
    for way, near in ways.items():
        for count in REPEATS:
            shares = [
                _named(near(decoder.decode(r.subject.name, r.held_out["test"][count]).semantic), answers, shown)
                for r in recordings
            ]
            rows.append({"by": way, "of": f"{count} trials"} | _mean(shares))
        of_true = _named(near(world.semantic[world.held_out["test"]]), answers, shown)
        rows.append({"by": way, "of": "true vectors"} | of_true)
    return rows


def _named(near: Tensor, answers: Tensor, shown: Tensor) -> dict[str, float]:
    nearer = (near > near.gather(1, answers[:, None])).sum(1)
    of_all = {f"top{first}": float((nearer < first).float().mean()) for first in (1, FIRST)}
    of_shown = {f"top{first}_of_shown": float((nearer[shown] < first).float().mean()) for first in (1, FIRST)}
    return of_all | of_shown


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


# ------------------------------------------------------------------------------------------------------------- pictures


def pictures_of(
    world: World, recording: Recording, decoder: BrainDecoder, pixels: np.ndarray, painter: Painter, judge: Evaluator
) -> Rows:
    """``pixels`` (N, 128, 128, 3) uint8: the first test pictures."""
    rows = world.held_out["test"]
    values = recording.held_out["test"][max(REPEATS)]
    decoded = decoder.decode(recording.subject.name, values)
    other = torch.from_numpy(other_rows(len(rows)))
    found: Rows = []
    for way, seen in (
        ("decoded", decoded),
        ("ceiling", Decoded(world.semantic[rows], world.low_level[rows])),
        ("shuffled", Decoded(decoded.semantic[other], decoded.low_level[other])),
    ):
        made = np.stack(
            [_paint(Decoded(*(p[i : i + 1] for p in seen)), decoder, painter, i) for i in range(len(pixels))]
        )
        found.append({"way": way, "pictures": len(made), **likeness(made, pixels, judge)})
    return found


def _paint(seen: Decoded, decoder: BrainDecoder, painter: Painter, seed: int) -> np.ndarray:
    [[concept]] = decoder.nearest(seen.semantic, 1)
    reading = Reading(concept.sentence, seen.semantic[0], seen.low_level, "", "")
    steps = painted(reading, FMRIParams(seed=seed), painter)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            picture: np.ndarray = end.value[0]
            return picture


@torch.no_grad()
def likeness(made: np.ndarray, true: np.ndarray, judge: Evaluator) -> dict[str, float]:
    """Of pictures (N, H, W, 3) uint8: Pearson's correlation of pixels and SSIM in grey, means over pairs; and how often
    a picture's features correlate better with those of its own than with those of another."""
    flat = [torch.from_numpy(one).flatten(1).double() for one in (made, true)]
    a, b = (part - part.mean(1, keepdim=True) for part in flat)
    grey = [one.astype(float) @ (0.299, 0.587, 0.114) for one in (made, true)]
    ssim = [structural_similarity(*pair, data_range=255) for pair in zip(*grey, strict=True)]
    features = [judge.features(to_tensor(one.copy())).double().flatten(1) for one in (made, true)]
    near = (
        F.normalize(features[0] - features[1].mean(0), dim=1) @ F.normalize(features[1] - features[1].mean(0), dim=1).T
    )
    nearer = (near < near.diagonal()[:, None]).double().sum(1) / (len(near) - 1)
    return {
        "pixel_r": float(F.cosine_similarity(a, b, dim=1).mean()),
        "ssim": float(np.mean(ssim)),
        "two_way": float(nearer.mean()),
    }


# ----------------------------------------------------------------------------------------------------------------- main


def measured(part: str, world: World, pictures: Pictures, decoder: BrainDecoder) -> dict[str, Rows]:
    if part == "new subject":
        return {part: new_subject(world, record(world, NEW_SUBJECT), decoder, FEW_TRIALS)}
    if part == "maps":
        return {part: maps(world, decoder, load_map_decoder(OF_MAPS), REFINING_STEPS)}
    test = world.held_out["test"]
    recordings = [record(world, name) for name in SUBJECTS]
    if part == "subjects":
        return {part: subjects(world, recordings, decoder), "noise ceilings": ceilings(recordings)}
    if part == "names":
        concepts = concepts_of(pictures)
        names_of_test = [pictures.items[row].concept for row in test]
        answers = torch.tensor([concepts.index(name) for name in names_of_test])
        trained = {item.concept for item in pictures.select("train")}
        shown = torch.tensor([name in trained for name in names_of_test])
        return {part: names(world, recordings, decoder, load_words(concepts), answers, shown)}
    manager = build_manager(load_settings(profile="lite"))
    with ExitStack() as stack:
        painter = Painter.lease(Runtime(manager), stack)
        true = pictures.pixels[test[:PAINTED]]
        return {part: pictures_of(world, recordings[0], decoder, true, painter, load_evaluator())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the picture tables")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=BY_DEFAULT)
    arguments = parser.parse_args()
    folder = data_folder(arguments.data)
    verify_checksums(folder)
    pictures = load_pictures(folder)
    world, decoder = world_of(pictures), load_brain_decoder(WEIGHTS)
    for part in arguments.parts:
        found = measured(part, world, pictures, decoder)
        save("fmri", found)
        for title, rows in found.items():
            print(f"{title}\n{table(list(rows[0]), [list(row.values()) for row in rows])}\n", flush=True)


if __name__ == "__main__":
    main()
