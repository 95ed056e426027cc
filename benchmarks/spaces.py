"""How well the two lite spaces find what belongs together, and what the bridges do to the gap between their clouds.

    python -m benchmarks.spaces --data FOLDER [--parts "picture recall" "sound recall" gaps photographs]

All on held-out items: pictures of CLIP-lite, clips of CLAP-lite, the words of both, and the pairs of the bridges. A gap
is the distance between the means of two clouds, and the accuracy of a linear probe that tells their members apart (0.5
is chance); Frechet distances are multiplied by 100. Writes ``benchmarks/results/spaces.json`` and prints its tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.controller import wilson
from benchmarks.crossflow import spread
from benchmarks.report import save, table
from models.bridges import Bridge, DiffusionBridge, load_bridge
from models.picture_text import load_picture_text
from models.sound_text import load_sound_text
from pipelines.clipsonic.pipeline import BEST_OF
from training import mapper, text_prior
from training.bridges import Task, cosine, frechet_distance, picture_vectors
from training.evaluator import all_concepts
from training.mapper import sound_vectors
from training.picture_text import HELD_OUT, Phrases
from training.pictures import Picture, Pictures, data_folder, load_pictures
from training.publish import SUMS
from training.sound_text import RANKS, retrieval
from training.sounds import HELD_OUT as HELD_OUT_SOUNDS
from training.sounds import load_sounds

WEIGHTS = Path("assets/weights")
PHOTOGRAPHS, NAMED = 50, 5
RIDGE = 0.1  # of the probe, a share of its data's variance
Rows = list[dict[str, Any]]


# ----------------------------------------------------------------------------------------------------------- measures


def recall_rows(space: str, medium: str, split: str, items: Tensor, answers: Tensor, texts: Tensor) -> Rows:
    """Recall at 1, 5 and 10 in both directions: ``items`` (N, D) among all ``texts`` (K, D), of which ``answers`` (N,)
    are theirs, and the texts of these items among the items."""
    found = retrieval(items, texts, answers)
    directions = [
        (f"{medium} to text", "sound_to_text", len(items), len(texts)),
        (f"text to {medium}", "text_to_sound", len(answers.unique()), len(items)),
    ]
    return [
        {"space": space, "direction": direction, "split": split, "asked": asked, "among": among}
        | {f"r{rank}": float(found[f"{key}_r{rank}"]) for rank in RANKS}
        for direction, key, asked, among in directions
    ]


def mean_gap(a: Tensor, b: Tensor) -> float:
    """Between the means of two clouds of unit vectors (N, D), (M, D)."""
    return float((a.double().mean(0) - b.double().mean(0)).norm())


def probe_accuracy(a: Tensor, b: Tensor) -> float:
    """How often a linear probe, fitted by least squares to every other row of (N, D) and (M, D), tells whose the other
    rows are; both clouds count alike. About 0.5 if they are the same, near 1 across a modality gap."""
    seen, unseen = ([F.pad(x.double()[start::2], (0, 1), value=1.0) for x in (a, b)] for start in (0, 1))
    gram = torch.stack([x.T @ x / len(x) for x in seen]).sum(0)
    aim = seen[0].mean(0) - seen[1].mean(0)
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(aim), dtype=torch.float64)
    weights = torch.linalg.solve(gram + ridge, aim)
    right = [(unseen[0] @ weights > 0).double().mean(), (unseen[1] @ weights < 0).double().mean()]
    return float(sum(right) / 2)


def named_within(items: Tensor, texts: Tensor, answers: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Which of ``items`` (N, D) have their answer among the ``first`` nearest ``texts`` (K, D): (N,) bool, and these
    nearest ones, (N, first)."""
    nearest = (items @ texts.T).topk(min(first, len(texts)), 1).indices
    return (nearest == answers[:, None]).any(1), nearest


# -------------------------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class PictureSpace:
    """All ``pictures`` as ``vectors`` (N, D) of CLIP-lite, and the words of all ``concepts`` as ``texts`` (K, D)."""

    pictures: Pictures
    vectors: Tensor
    concepts: list[str]
    texts: Tensor

    def of(self, items: Sequence[Picture]) -> tuple[Tensor, Tensor]:
        """The vectors (n, D) of these pictures, and which concept each shows, (n,)."""
        number = {concept: index for index, concept in enumerate(self.concepts)}
        return self.vectors[[item.row for item in items]], torch.tensor([number[item.concept] for item in items])


@torch.no_grad()
def load_picture_space(folder: Path) -> PictureSpace:
    weights = WEIGHTS / "picture-text-lite"
    pictures = load_pictures(folder)
    concepts = all_concepts(pictures)
    texts = load_picture_text(weights).embed_sentences(Phrases(concepts).of(concepts))
    return PictureSpace(pictures, picture_vectors(pictures, weights), concepts, texts)


def picture_recall(folder: Path) -> Rows:
    space = load_picture_space(folder)
    return [
        row
        for split in HELD_OUT
        if (items := space.pictures.select(split))
        for row in recall_rows("CLIP-lite", "picture", split, *space.of(items), space.texts)
    ]


@torch.no_grad()
def sound_recall(folder: Path) -> Rows:
    weights = WEIGHTS / "sound-text-lite"
    sounds = load_sounds(folder)
    classes = sorted({item.name for item in sounds.items})
    number = {name: index for index, name in enumerate(classes)}
    texts = load_sound_text(weights).embed_sentences(Phrases(classes).of(classes))
    vectors = sound_vectors(sounds, weights)
    found: Rows = []
    for split in HELD_OUT_SOUNDS:
        items = sounds.select(split)
        if items:
            answers = torch.tensor([number[item.name] for item in items])
            found += recall_rows("CLAP-lite", "sound", split, vectors[[item.row for item in items]], answers, texts)
    return found


def photographs(folder: Path) -> dict[str, Any]:
    """The share of held-out photographs (:data:`PHOTOGRAPHS` of them, spread evenly, and all) whose concept is among
    the five nearest of all concepts, with its 95 % interval; and what each of the fewer was called."""
    space = load_picture_space(folder)
    photos = [item for item in space.pictures.select(*HELD_OUT) if item.style == "photo"]
    if not photos:
        raise SystemExit("The tables hold out no photograph: build them as training/README.md says.")
    found: dict[str, Any] = {"concepts": len(space.concepts)}
    for name, items in (("some", spread(photos, PHOTOGRAPHS)), ("all", photos)):
        vectors, answers = space.of(items)
        right, nearest = named_within(vectors, space.texts, answers, NAMED)
        hits = int(right.sum())
        found[name] = {
            "photographs": len(items),
            "named": hits,
            "share": [hits / len(items), *wilson(hits, len(items))],
        }
        if name == "some":
            found["called"] = {
                f"{item.concept} ({item.row})": ", ".join(space.concepts[i] for i in row)
                for item, row in zip(items, nearest.tolist(), strict=True)
            }
    return found


# Each bridge's task, its sources and targets, and the bridges that answer it.
TASKS: tuple[tuple[str, Callable[[Path], Task], tuple[str, ...]], ...] = (
    ("picture to sound", lambda folder: mapper.load_task(folder, False), ("v2a-mapper", "v2a-regression")),
    ("text to picture", text_prior.load_task, ("clipsonic-prior", "clipsonic-mean-shift")),
)


def gaps(folder: Path) -> Rows:
    """Of the held-out sources of each bridge from their targets: before it, and after each."""
    found: Rows = []
    for name, load_task, bridges in TASKS:
        pairs = [pairs.all() for pairs in load_task(folder).held_out.values()]
        sources, targets = (torch.cat(part) for part in zip(*pairs, strict=True))
        made = {"no bridge": sources}
        made |= {bridge: crossed(load_bridge(WEIGHTS / f"{bridge}-lite"), sources) for bridge in bridges}
        found += [{"from": name, "bridge": bridge, **gap_of(vectors, targets)} for bridge, vectors in made.items()]
    return found


def gap_of(made: Tensor, targets: Tensor) -> dict[str, Any]:
    """Of (N, D) from (N, D), pair by pair."""
    return {
        "pairs": len(made),
        "mean_gap": mean_gap(made, targets),
        "probe_accuracy": probe_accuracy(made, targets),
        "frechet_x100": 100 * frechet_distance(made, targets),
        "cosine": float(cosine(made, targets)),
    }


def crossed(bridge: Bridge, sources: Tensor) -> Tensor:
    """(N, D) through the bridge as the pipelines use it, each with a seed of its own."""
    seeds = range(len(sources))
    if isinstance(bridge, DiffusionBridge) and bridge.one_space:
        return bridge(sources, seeds, best_of=BEST_OF)
    return bridge(sources, seeds)


# --------------------------------------------------------------------------------------------------------------- main

SPACES = ("picture-text", "sound-text", "text-encoder")
PARTS: dict[str, tuple[tuple[str, ...], Callable[[Path], Any]]] = {
    "picture recall": (("picture-text", "text-encoder"), picture_recall),
    "sound recall": (("sound-text", "text-encoder"), sound_recall),
    "gaps": ((*SPACES, *(bridge for _, _, bridges in TASKS for bridge in bridges)), gaps),
    "photographs": (("picture-text", "text-encoder"), photographs),
}


def missing(names: Sequence[str]) -> list[str]:
    """Those of ``names`` without trained weights."""
    return [name for name in names if not (WEIGHTS / f"{name}-lite" / SUMS).is_file()]


def possible(parts: Sequence[str]) -> list[str]:
    """The parts whose weights are there; says in one line which are not, and what is left out for it."""
    left_out = {part: missing(PARTS[part][0]) for part in parts}
    absent = sorted({name for names in left_out.values() for name in names})
    if absent:
        titles = ", ".join(part for part, names in left_out.items() if names)
        print(f"Missing weights: {', '.join(absent)}. Left out: {titles}.", flush=True)
    return [part for part in parts if not left_out[part]]


def show(part: str, found: Any) -> str:
    rows = found if isinstance(found, list) else [found["some"], found["all"]]
    return f"{part}\n{table(list(rows[0]), [list(row.values()) for row in rows])}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the tables of sounds and pictures")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    folder = data_folder(arguments.data)
    for part in possible(arguments.parts):
        found = PARTS[part][1](folder)
        save("spaces", {part: found})
        print(show(part, found), flush=True)


if __name__ == "__main__":
    main()
