"""How good and how fast the lite XBind is.

    python -m benchmarks.xbind --data FOLDER [--count N] [--preset PRESET]

Objects are asked for by name, by the icon of a shape whose truth is known, and by a held-out clip of what such a thing
sounds like, where there is one; names of the training and held-out ones are apart. Beside the preview and the
optimisation with and without its parts stand the training shape that is nearest to what is asked for, and the true
shape, which says how much a judge can tell at all. The judge (``training/render_judge.py``) knows all shapes of both
tables by name, and no generator was trained with it. So it knows a training shape that is returned for a held-out name
by its own name; beside the rank among all names stands that among the names of the split alone, where this does not
count against it. Rows of the optimisation appear once the weights of ``view-diffusion`` are there. Writes
``benchmarks/results/xbind.json`` and prints its tables.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
import trimesh
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional as F

from app.settings import load_settings
from app.studio import build_manager
from benchmarks.report import save, table
from benchmarks.xbind_speed import speed
from models.bind import among_words
from models.manager import ModelManager
from models.nets.view_diffusion import MASK
from models.sounding_things import sounding_things
from pipelines.base import Runtime, precision
from pipelines.media import Mesh
from pipelines.spaces import words_vectors
from pipelines.xbind.optimisation import JUDGED, Refinement, grey_ball, has_surface, refined
from pipelines.xbind.phases import PHASES, PHASES_FROM_NOTHING, Phase
from pipelines.xbind.pipeline import REFINING, ShapeMaker, Wanted, XBindParams
from pipelines.xbind.prompts import Meaning
from pipelines.xbind.rendering import Framing, render
from pipelines.xbind.supervision import Supervision, Weights
from pipelines.xbind.surface import surface
from training.evaluator import sentence_table
from training.images import to_tensor
from training.pictures import data_folder
from training.render_judge import RenderJudge, load_render_judge, looked_at
from training.shape_generator import few
from training.shapes import Shape, Shapes, Split, load_shapes
from training.sounds import HELD_OUT, Sound, Sounds, load_sounds

SPLITS: tuple[Split, ...] = ("train", "heldout-name")
PARTS = ("words", "icons", "sounds", "speed")
QUERIES = PARTS[:3]
PRIOR = "view-diffusion"
SIDE = 128  # of outlines that are compared
RANK = 5
POINTS = 4096  # of a surface, for the distance between two


@dataclass(frozen=True)
class Query:
    """``condition`` (D,): what asks for it; ``truth`` (4, 64, 64, 64): a shape that it would be right to make."""

    name: str
    condition: Tensor
    truth: Tensor


@dataclass(frozen=True)
class Row:
    """``make``: from a query and its number, which is its seed, to a grid (4, R, R, R)."""

    title: str
    make: Callable[[Query, int], Tensor]


class Bench:
    """The models, the training shapes by what may ask for them, and the rows."""

    def __init__(self, manager: ModelManager, shapes: Shapes, stack: ExitStack, preset: str) -> None:
        self.runtime, self.shapes, self.steps = Runtime(manager), shapes, REFINING[preset]
        keys = ("picture-text", "sentence-encoder", "shape-autoencoder")
        self.space, self.encoder, self.autoencoder = (stack.enter_context(manager.lease(key)) for key in keys)
        self.maker = ShapeMaker(self.autoencoder, self.runtime)
        self.prior = stack.enter_context(manager.lease(PRIOR)) if is_there(manager, PRIOR) else None
        self.known = shapes.select("train")
        icons = torch.cat([self.icons(self.known[i : i + 32]) for i in range(0, len(self.known), 32)])
        self.asking = torch.stack([icons, self.words([item.name for item in self.known])])

    @torch.no_grad()
    def words(self, names: Sequence[str]) -> Tensor:
        """(N, D)."""
        with precision(self.runtime.models):
            sentences = [self.encoder.sentence_embeddings(list(names[i : i + 64])) for i in range(0, len(names), 64)]
            return F.normalize(self.space.embed_sentences(torch.cat(sentences)).float(), dim=1)

    @torch.no_grad()
    def icons(self, items: Sequence[Shape]) -> Tensor:
        """(N, D)."""
        with precision(self.runtime.models):
            return F.normalize(self.space.embed_pictures(to_tensor(np.stack([item.icon for item in items]))).float())

    @torch.no_grad()
    def sounds(self, items: Sequence[Sound], sounds: Sounds) -> Tensor:
        """(N, D)."""
        said = words_vectors("picture-text", sounding_things(), self.runtime)
        with self.runtime.lease("bind-audio") as ears, precision(self.runtime.models):
            heard = [ears.embed(sounds.waveforms([item]))[0].float() for item in items]
        return torch.stack([among_words(one, said)[0] for one in heard])

    def truth(self, item: Shape) -> Tensor:
        """(4, 64, 64, 64)."""
        return self.shapes.batch([item])[0]

    def rows(self) -> list[Row]:
        everything = Weights()
        rows = [
            Row("true shape", lambda query, _: query.truth),
            Row("nearest training shape", self._nearest),
            Row("preview", self._preview),
        ]
        ways = {
            "refined": everything,
            "refined, no similarity": replace(everything, similarity=0.0),
            "refined, no planar": replace(everything, planar=0.0),
            "refined, no stereoscopic": replace(everything, stereoscopic=0.0),
        }
        if self.prior is not None and any(self.steps):
            rows += [Row(title, partial(self._refined, weights)) for title, weights in ways.items()]
            rows.append(Row("refined from a ball", self._from_scratch))
        return rows

    def _nearest(self, query: Query, _: int) -> Tensor:
        return self.truth(self.known[int((self.asking @ query.condition).amax(0).argmax())])

    def _preview(self, query: Query, seed: int) -> Tensor:
        making = self.maker.make([Wanted(Meaning(query.condition, query.name), seed)], XBindParams())
        while True:
            try:
                next(making)
            except StopIteration as done:
                [latents] = done.value
                break
        with precision(self.runtime.models):
            grid: Tensor = self.autoencoder.grid(latents[None], self.autoencoder.config.size)[0].float().cpu()
        return grid

    def _refined(self, weights: Weights, query: Query, seed: int) -> Tensor:
        return self._optimised(self._preview(query, seed), weights, query, seed, PHASES)

    def _from_scratch(self, query: Query, seed: int) -> Tensor:
        ball = grey_ball(self.autoencoder.config.size)
        return self._optimised(ball, Weights(), query, seed, PHASES_FROM_NOTHING)

    def _optimised(
        self, start: Tensor, weights: Weights, query: Query, seed: int, phases: tuple[Phase, Phase, Phase]
    ) -> Tensor:
        if not has_surface(start) or self.prior is None:
            return start
        supervision = Supervision(self.prior, self.space, query.condition, weights, seed, self.runtime)
        may_stay = phases is not PHASES_FROM_NOTHING
        refinement = Refinement(start, supervision, seed, self.steps, phases=phases, may_stay=may_stay)
        for _ in refinement.run():
            pass
        return refined(start, refinement.addition)


def is_there(manager: ModelManager, key: str) -> bool:
    return key in manager.specs and not manager.specs[key].source.missing()


# ----------------------------------------------------------------------------------------------------------- measures


@dataclass(frozen=True)
class Jury:
    """The judge; ``names`` and what it expects of them, (K, 128); ``rivals`` (K,) bool: those of the split alone."""

    judge: RenderJudge
    names: list[str]
    expected: Tensor
    rivals: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, judge: RenderJudge, shapes: Shapes, split: Split) -> Self:
        names = sorted({item.name for item in shapes.items})
        of_split = {item.name for item in shapes.select(split)}
        rivals = torch.tensor([name in of_split for name in names])
        return cls(judge, names, judge.embed_names(sentence_table(names)), rivals)

    @torch.no_grad()
    def ranks(self, grid: Tensor, name: str) -> tuple[int, int]:
        """How many names, and how many of the split's, are likelier than the right one."""
        likeness = self.expected @ self.judge.embed_objects(looked_at(grid)[None])[0]
        likelier = likeness > likeness[self.names.index(name)]
        return int(likelier.sum()), int((likelier & self.rivals).sum())

    @torch.no_grad()
    def consistency(self, grid: Tensor) -> float:
        """The mean cosine between what the judge makes of single views, two by two; true shapes are no 1 either."""
        single = self.judge.embed_objects(looked_at(grid)[:, None])
        pairs = torch.triu_indices(len(single), len(single), 1)
        return float((single @ single.T)[pairs[0], pairs[1]].mean())


def outline_overlap(grid: Tensor, truth: Tensor) -> float:
    """Intersection over union of the outlines from four sides, framed alike."""
    framing = Framing.of(truth[0])
    one, other = (render(each, JUDGED, framing, SIDE)[:, MASK] > 0 for each in (grid, truth))
    return float((one & other).sum() / (one | other).sum().clamp(min=1))


def distance(mesh: Mesh, truth: Mesh) -> float:
    """Chamfer: the mean distance from each surface to the other, both ways added, with the longest sides at 1."""
    points = [
        trimesh.sample.sample_surface(trimesh.Trimesh(one.vertices, one.faces, process=False), POINTS, seed=0)[0]
        for one in (mesh, truth)
    ]
    return float(cKDTree(points[0]).query(points[1])[0].mean() + cKDTree(points[1]).query(points[0])[0].mean())


def is_one_piece(mesh: Mesh) -> bool:
    """As a program that merges equal vertices loads it."""
    loaded = trimesh.Trimesh(mesh.vertices, mesh.faces, process=True)
    return bool(loaded.is_watertight) and loaded.body_count == 1


def mean(values: Sequence[float]) -> float | None:
    """None of none: no object had a surface."""
    return float(np.mean(values)) if values else None


def measure(row: Row, asked: Sequence[Query], jury: Jury) -> dict[str, Any]:
    """What the objects of a row are worth. Those without a surface count as recognised last, and as no piece."""
    ranks: list[tuple[int, int]] = []
    whole: list[bool] = []
    overlaps: list[float] = []
    distances: list[float] = []
    consistencies: list[float] = []
    seconds: list[float] = []
    for number, query in enumerate(asked):
        started = time.perf_counter()
        grid = row.make(query, number)
        seconds.append(time.perf_counter() - started)
        if not has_surface(grid):
            ranks.append((len(jury.names), int(jury.rivals.sum())))
            whole.append(False)
            continue
        ranks.append(jury.ranks(grid, query.name))
        consistencies.append(jury.consistency(grid))
        overlaps.append(outline_overlap(grid, query.truth))
        mesh, true = (surface(each, XBindParams().num_faces, 1.0) for each in (grid, query.truth))
        distances.append(distance(mesh, true))
        whole.append(is_one_piece(mesh))
    among_all, among_rivals = np.array(ranks).T
    hits = among_all < RANK
    return {
        "row": row.title,
        "objects": len(asked),
        "r_precision": float((among_all == 0).mean()),
        "top5": float(hits.mean()),
        "top5_error": float(hits.std() / max(1, len(hits) - 1) ** 0.5),
        "chance_top5": RANK / len(jury.names),
        "split_r_precision": float((among_rivals == 0).mean()),
        "split_top5": float((among_rivals < RANK).mean()),
        "split_chance_top5": min(1.0, RANK / int(jury.rivals.sum())),
        "consistency": mean(consistencies),
        "outline_iou": mean(overlaps),
        "chamfer": mean(distances),
        "one_piece": float(np.mean(whole)),
        "seconds": float(np.median(seconds)),
    }


def queries(bench: Bench, split: Split, by: str, count: int, sounds: Sounds | None = None) -> list[Query]:
    """One for each of ``count`` names, spread over the split; if ``sounds`` are asked by, of those that sound."""
    first = {item.name: item for item in reversed(bench.shapes.select(split))}
    clips = {item.name: item for item in sounds.select(*HELD_OUT)} if sounds else {}
    names = [name for name in sorted(first) if by != "sounds" or name.lower() in clips]
    items = [first[name] for name in few(names, count)]
    if not items:
        return []
    if by == "sounds" and sounds:
        vectors = bench.sounds([clips[item.name.lower()] for item in items], sounds)
    else:
        vectors = bench.words([item.name for item in items]) if by == "words" else bench.icons(items)
    return [Query(item.name, vector, bench.truth(item)) for item, vector in zip(items, vectors, strict=True)]


def compare(
    bench: Bench, judge: RenderJudge, by: str, count: int, sounds: Sounds | None = None
) -> list[dict[str, Any]]:
    found = []
    for split in SPLITS:
        jury, asked = Jury.of(judge, bench.shapes, split), queries(bench, split, by, count, sounds)
        for row in bench.rows() if asked else ():
            found.append({"split": split, **measure(row, asked, jury)})
            print(found[-1], flush=True)
    return found


def peak_memory_mb() -> float:
    """Of the whole process since it began, the table of shapes (0.8 GB) with it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of both tables of shapes")
    parser.add_argument("--count", type=int, default=40, help="objects of a split")
    parser.add_argument("--preset", choices=REFINING, default="fine", help="of the optimisation; preview: without it")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    manager = build_manager(load_settings(profile="lite"))
    shapes, judge = load_shapes(data_folder(arguments.data), share_alike=True), load_render_judge()
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        bench = Bench(manager, shapes, stack, arguments.preset)
        for by in QUERIES:
            if by in arguments.parts:
                sounds = load_sounds(data_folder(arguments.data)) if by == "sounds" else None
                results[f"{by}, {arguments.preset}"] = compare(bench, judge, by, arguments.count, sounds)
        if "speed" in arguments.parts and bench.prior is not None:
            [query] = queries(bench, "train", "icons", 1)
            results["speed"] = speed(bench.prior, query.truth, query.condition)
    results[f"memory, {arguments.preset}"] = [{"parts": " ".join(arguments.parts), "peak_mb": peak_memory_mb()}]
    save("xbind", results)
    for rows in results.values():
        print(table(list(rows[0]), [list(row.values()) for row in rows]), "\n")


if __name__ == "__main__":
    main()
