"""What the recipes of the bridges share: pairs, losses, measures, and the vectors of the frozen spaces.

A bridge learns from pairs of unit vectors alone; the spaces they come from are never loaded while it trains. A target
(a sound; a picture) may have several sources (pictures that show it; captions), and each time it is met, one is drawn.

Shapes: N targets, S sources, D dimensions, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.bridges import TIMES, Bridge, DiffusionBridge, MeanShift, RegressionBridge
from models.picture_text import load_picture_text
from training.images import to_tensor
from training.loop import STATE, Metrics, Schedule, optimizer_groups, shuffled_batches, train
from training.picture_text import cached
from training.pictures import Pictures
from training.publish import checksum_of

SEED, BATCH = 53, 256
REGRESSION_STEPS = 1000
NULL_SHARE = 0.1
BEST_OF = 4
Kinds = Sequence[Sequence[int]]
Answer = Callable[[Tensor, Sequence[int]], Tensor]  # vectors (B, D) and a seed each -> (B, D)


# ------------------------------------------------------------------------------------------------------------ pairs


@dataclass(frozen=True)
class Pairs:
    """``targets`` (N, D); ``sources`` (S, D), of which ``kinds[i]`` are the rows that may stand for target i, apart for
    each kind of source (kinds are drawn alike); ``classes`` (N,): the number of each target's class."""

    sources: Tensor
    targets: Tensor
    kinds: Sequence[Kinds]
    classes: Tensor

    def draw(self, indices: np.ndarray, seed: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The targets of ``indices`` (B,) and a source for each, (B, D) both; the same for the same ``seed``."""
        rng = np.random.default_rng(seed)
        rows = []
        for index in indices.tolist():
            kind = self.kinds[index][int(rng.integers(len(self.kinds[index])))]
            rows.append(kind[int(rng.integers(len(kind)))])
        return self.sources[rows], self.targets[indices]

    def all(self) -> tuple[Tensor, Tensor]:
        """Every target once, with the same source at every call."""
        return self.draw(np.arange(len(self.targets)), (SEED,))


@dataclass(frozen=True)
class Task:
    """What a bridge learns from, what it is judged on (by the name of the split), and the classes' ``means`` (K, D).

    ``one_space``: whether sources and targets live in one space, so that nearness to a source means something.
    """

    train: Pairs
    held_out: Mapping[str, Pairs]
    means: Tensor
    one_space: bool

    def measure(self, answer: Answer) -> Metrics:
        """:func:`measure` of what ``answer`` makes of each split's sources; a target's index is its seed."""
        return self._measure(lambda pairs: answer(pairs.all()[0], range(len(pairs.targets))))

    def ceiling(self) -> Metrics:
        """The same of the true targets."""
        return self._measure(lambda pairs: pairs.targets)

    def _measure(self, make: Callable[[Pairs], Tensor]) -> Metrics:
        metrics: Metrics = {}
        for split, pairs in self.held_out.items():
            made = make(pairs)
            found = measure(made, pairs.targets, pairs.classes, self.means)
            if self.one_space:
                found["cosine_to_source"] = cosine(made, pairs.all()[0])
            metrics |= {f"{split}_{name}": value for name, value in found.items()}
        return metrics


def make_task(
    sources: Tensor,
    targets: Tensor,
    kinds: Sequence[Kinds],
    labels: Sequence[str],
    splits: Sequence[str],
    *,
    one_space: bool,
) -> Task:
    """``kinds`` (see :class:`Pairs`), ``labels`` (the class) and ``splits`` ("train" or a held-out one) of each target.

    A target without a source is in no pair, and a split of less than two pairs, which have no distribution, is left
    out. A class's mean is that of its training targets, or of all if it has none.
    """
    names = sorted(set(labels))
    number = {name: index for index, name in enumerate(names)}
    classes = torch.tensor([number[label] for label in labels])

    def pairs_of(split: str) -> Pairs:
        rows = [row for row, found in enumerate(splits) if found == split and kinds[row]]
        return Pairs(sources, targets[rows], [kinds[row] for row in rows], classes[rows])

    in_training = torch.tensor([split == "train" for split in splits])
    of_training = _sums(targets[in_training], classes[in_training], len(names))
    of_all = _sums(targets, classes, len(names))
    known = torch.bincount(classes[in_training], minlength=len(names)) > 0
    means = F.normalize(torch.where(known[:, None], of_training, of_all), dim=-1)
    held_out = {split: pairs_of(split) for split in dict.fromkeys(splits) if split != "train"}
    measurable = {split: pairs for split, pairs in held_out.items() if len(pairs.targets) > 1}
    return Task(pairs_of("train"), measurable, means, one_space)


def _sums(targets: Tensor, classes: Tensor, count: int) -> Tensor:
    return torch.zeros(count, targets.shape[1]).index_add_(0, classes, targets)


# ----------------------------------------------------------------------------------------------------- frozen spaces


def vectors_of_space(name: str, weights: Path, count: int, batches: Callable[[], Iterator[Tensor]]) -> Tensor:
    """(count, D) float32: all ``batches``, or what they were when these ``weights`` were last asked for as many."""

    @torch.no_grad()
    def make() -> Tensor:
        return torch.cat(list(batches()))

    return cached(STATE / "cache" / f"{name}-{checksum_of(weights)[:12]}-{count}.pt", make)


def picture_vectors(pictures: Pictures, weights: Path) -> Tensor:
    """The CLIP-lite vector of every picture, in their order, (len(pictures.items), D)."""

    def batches() -> Iterator[Tensor]:
        model = load_picture_text(weights)
        for start in range(0, len(pictures.items), 64):
            yield model.embed_pictures(to_tensor(pictures.pixels[start : start + 64]))

    return vectors_of_space("picture-vectors", weights, len(pictures.items), batches)


# ------------------------------------------------------------------------------------------------------------ losses


def diffusion_loss(bridge: DiffusionBridge, sources: Tensor, targets: Tensor) -> tuple[Tensor, Metrics]:
    """Squared error of the target predicted from a noisy one (unCLIP, arXiv 2204.06125, section 2.2); a tenth of the
    conditions are dropped, for guidance."""
    count = len(targets)
    times = torch.randint(TIMES, (count,))
    noisy = bridge.add_noise(targets, times, torch.randn_like(targets))
    guess = bridge.predict(noisy, times, sources, torch.rand(count) < NULL_SHARE)
    return F.mse_loss(guess, targets * bridge.scale), {"cosine": cosine(guess, targets)}


def regression_loss(bridge: RegressionBridge, sources: Tensor, targets: Tensor) -> tuple[Tensor, Metrics]:
    guess = bridge.predict(sources)
    return F.mse_loss(guess, targets * bridge.scale), {"cosine": cosine(guess, targets)}


# ---------------------------------------------------------------------------------------------------------- measures


def measure(made: Tensor, true: Tensor, classes: Tensor, means: Tensor) -> Metrics:
    """Of vectors ``made`` (N, D) for the ``true`` ones: their clouds' Frechet distance times 100, the mean cosine, and
    how often the right one of the class ``means`` (K, D) is the nearest. In float64, which autocast leaves alone."""
    nearest = (made.double() @ means.double().T).argmax(1)
    return {
        "frechet_x100": 100 * frechet_distance(made, true),
        "cosine": cosine(made, true),
        "nearest_class": (nearest == classes).double().mean(),
    }


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The mean over rows of (N, D)."""
    return F.cosine_similarity(a.detach().double(), b.double(), dim=-1).mean()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between Gaussians fitted to two sets of vectors (N, D), N > 1."""
    (mean_a, covariance_a), (mean_b, covariance_b) = ((x.double().mean(0), torch.cov(x.double().T)) for x in (a, b))
    values, directions = torch.linalg.eigh(covariance_a)
    root = directions @ torch.diag(values.clamp(min=0).sqrt()) @ directions.T
    cross = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * cross)


# ---------------------------------------------------------------------------------------------------------- training


def train_diffusion(name: str, task: Task, steps: int, guidance: float = 1.0) -> DiffusionBridge:
    """The sheets' small prior: 3.5 M parameters at 256 dimensions; the library's weight decay and clipping."""
    torch.manual_seed(SEED)
    width = task.train.targets.shape[1]
    bridge = DiffusionBridge(width, heads=4, layers=4, one_space=task.one_space, guidance=guidance)
    _train(name, bridge, lambda sources, targets: diffusion_loss(bridge, sources, targets), task, steps, 3e-4)
    return bridge


def train_regression(name: str, task: Task, steps: int) -> RegressionBridge:
    torch.manual_seed(SEED)
    width = task.train.targets.shape[1]
    bridge = RegressionBridge(width, hidden=4 * width)
    _train(name, bridge, lambda sources, targets: regression_loss(bridge, sources, targets), task, steps, 1e-3)
    return bridge


def _train(
    name: str,
    bridge: Bridge,
    loss_of: Callable[[Tensor, Tensor], tuple[Tensor, Metrics]],
    task: Task,
    steps: int,
    rate: float,
) -> None:
    weights = train(
        name,
        bridge,
        [torch.optim.AdamW(optimizer_groups(bridge, rate, 0.06))],
        Schedule(steps, warmup=50, cooldown=0.5),
        lambda step: shuffled_batches(len(task.train.targets), BATCH, SEED, step),
        lambda indices, step: loss_of(*task.train.draw(indices, (SEED, step))),
        lambda _: task.measure(bridge),
        seed=SEED,
        clip=0.5,
        evaluate_every=500,
    )
    bridge.load_state_dict(weights)
    bridge.eval()


@torch.no_grad()
def compare(name: str, task: Task, diffusion: DiffusionBridge, regression: RegressionBridge) -> dict[str, Metrics]:
    """Every bridge's measures on what was held out, beside no bridge and the true targets (the ceiling); printed, and
    written to ``training/state/NAME/comparison.json``."""
    answers: dict[str, Answer] = {
        "no bridge": lambda vectors, _: vectors,
        "mean shift": MeanShift.between(*task.train.all()),
        "regression": regression,
        "diffusion": diffusion,
    }
    if diffusion.guidance != 1:
        answers["diffusion, guidance 1"] = lambda vectors, seeds: diffusion(vectors, seeds, guidance=1)
    if task.one_space:
        answers[f"diffusion, best of {BEST_OF}"] = lambda vectors, seeds: diffusion(vectors, seeds, best_of=BEST_OF)
    rows = {row: task.measure(answer) for row, answer in answers.items()}
    rows["true"] = task.ceiling()
    numbers = {row: {key: round(float(value), 5) for key, value in found.items()} for row, found in rows.items()}
    folder = STATE / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(numbers, indent=2) + "\n")
    for row, found in numbers.items():
        print(f"{row}: " + " ".join(f"{key} {value:g}" for key, value in found.items()), flush=True)
    return rows
