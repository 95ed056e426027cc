"""Recipe of ``assets/weights/view-diffusion-lite``: what named shapes look like from anywhere, as thumbnails.

    python -m training.view_diffusion --data FOLDER [--batch B] [--steps N] [--permissive-only]
                                      [--continue-from FOLDER]

Every shape is seen once from a score of cameras by the very renderer of XBind's optimisation, and those views are kept.
Each time a shape is met, in a mirror or not, one of its views is asked for: by a condition (its icon, a view, words for
it), by another of its views, or by nothing, which guidance leads away from. Needs ``picture-text-lite`` and
``text-encoder-lite``.

Shapes: N training or held-out shapes, V views of each, S side of a view in pixels, D dimensions of a condition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.nets.view_diffusion import (
    COLORS,
    MASK,
    NORMALS,
    Given,
    ViewDiffusion,
    ViewDiffusionConfig,
    load_view_diffusion,
    mixed,
    velocity_of,
)
from models.picture_text import PictureText, load_picture_text
from pipelines.xbind import rendering
from pipelines.xbind.optimisation import HIGHEST, LOWEST
from pipelines.xbind.rendering import Cameras, Framing, render
from pipelines.xbind.supervision import PLANAR_GUIDANCE, REFERENCE, STEREOSCOPIC_GUIDANCE
from training.images import save_sheet
from training.loop import DEVICE, STATE, Metrics, Schedule, optimizer_groups, shuffled_batches, train
from training.picture_text import Phrases, cached
from training.pictures import data_folder
from training.publish import write_sums
from training.shape_generator import SPACE, SPLITS, WEIGHTS, Examples, few, phrases_for, picture_vectors
from training.shapes import Shape, Shapes, Split, load_shapes, shape_arguments
from training.sound_diffusion import soften
from training.sounds import weights_name

SEED, BATCH, STEPS = 79, 32, 9000
NAME = "view-diffusion"
CONFIG = ViewDiffusionConfig()
VIEWS = 20  # of a shape
PLANAR, STEREOSCOPIC = 0.45, 0.45  # shares of a batch; the others are given nothing
FIRST_SHARE = 0.5  # of the references: the camera that the optimisation draws its own from
MEASURED, SAMPLED, SHOWN = 64, 32, 12  # shapes of either split: for the loss, for the outlines, on the sheet
SAMPLING_STEPS = 12


# -------------------------------------------------------------------------------------------------------------- views


@dataclass(frozen=True)
class Views:
    """``packed`` (N, V, 7, S, S) uint8, of shapes seen from ``azimuths`` and ``elevations`` (N, V) in radians."""

    packed: Tensor
    azimuths: Tensor
    elevations: Tensor

    def of(self, rows: Tensor, numbers: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views (B, 7, S, S) by shape and number (B,), as they are or in a mirror, with their angles (B,) both."""
        views = self.packed[rows, numbers].float() / 127.5 - 1
        views = torch.where(mirrored[:, None, None, None], in_mirror(views), views)
        azimuths = self.azimuths[rows, numbers]
        return views, torch.where(mirrored, -azimuths, azimuths), self.elevations[rows, numbers]

    def select(self, rows: Sequence[int]) -> Views:
        chosen = list(rows)
        return Views(self.packed[chosen], self.azimuths[chosen], self.elevations[chosen])


def in_mirror(views: Tensor) -> Tensor:
    """(B, 7, S, S) of the mirror image of an object, from the mirror image of the camera."""
    flipped = views.flip(-1)
    flipped[:, NORMALS.start] *= -1  # what faced right faces left
    return flipped


def load_views(shapes: Shapes) -> Views:
    """Of all shapes; rendered once and cached."""
    cameras = [cameras_of(item.row) for item in shapes.items]
    settings = (CONFIG.side, VIEWS, rendering.PLACES, rendering.SHARPEST, rendering.NEGLIGIBLE, LOWEST, HIGHEST)
    content = b"".join(item.mask + item.rgb for item in shapes.items) + repr(settings).encode()

    def make() -> Tensor:
        return torch.stack(
            [pack(views_of(shapes, item, seen)) for item, seen in zip(shapes.items, cameras, strict=True)]
        )

    packed = cached(STATE / "cache" / f"shape-views-{hashlib.sha256(content).hexdigest()[:12]}.pt", make)
    azimuths, elevations = (
        torch.stack([getattr(seen, name) for seen in cameras]) for name in ("azimuths", "elevations")
    )
    return Views(packed, azimuths, elevations)


def cameras_of(row: int) -> Cameras:
    """The optimisation's reference, then evenly around from a beginning of the shape's own, at heights of its own."""
    rng = np.random.default_rng((SEED, row))
    azimuths = 2 * np.pi * (rng.random() + np.arange(VIEWS - 1) / (VIEWS - 1))
    elevations = np.radians(rng.uniform(LOWEST, HIGHEST, VIEWS - 1))
    others = (torch.from_numpy(values).float() for values in (azimuths, elevations))
    first = (REFERENCE.azimuths, REFERENCE.elevations)
    return Cameras(*(torch.cat(pair) for pair in zip(first, others, strict=True)))


@torch.no_grad()
def views_of(shapes: Shapes, item: Shape, cameras: Cameras) -> Tensor:
    """(V, 7, S, S) on the CPU."""
    [grid] = shapes.batch([item]).to(DEVICE)
    on_device = Cameras(cameras.azimuths.to(DEVICE), cameras.elevations.to(DEVICE))
    return render(grid, on_device, Framing.of(grid[0]), CONFIG.side).cpu()


def pack(views: Tensor) -> Tensor:
    """[-1, 1] as uint8."""
    return views.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


# -------------------------------------------------------------------------------------------------------------- loss


@dataclass(frozen=True)
class SeenExamples:
    """The shapes of a split: their views, and what conditions may stand for them."""

    views: Views
    conditions: Examples

    def draw(self, model: ViewDiffusion, indices: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Given]:
        """Views (B, 7, S, S) of shapes ``indices`` (B,) below 2 N, of which N and more are mirrored, and what is given
        of each: a softened condition, another view, or nothing."""
        count = len(indices)
        sides, rows = (torch.from_numpy(part) for part in np.divmod(indices, len(self.conditions.items)))
        _, vectors = self.conditions.draw(indices, rng)
        asked, other = (torch.from_numpy(rng.integers(VIEWS, size=count)) for _ in range(2))
        other[torch.from_numpy(rng.random(count) < FIRST_SHARE)] = 0
        views, *angles = self.views.of(rows, asked, sides > 0)
        references, *of_references = self.views.of(rows, other, sides > 0)
        kinds = torch.from_numpy(np.searchsorted((PLANAR, PLANAR + STEREOSCOPIC), rng.random(count), "right"))
        azimuths, elevations, *of_references = (value.to(DEVICE) for value in (*angles, *of_references))
        given = chosen(
            kinds.to(DEVICE),
            (
                model.planar(soften(vectors.to(DEVICE)), azimuths, elevations),
                model.stereoscopic(references.to(DEVICE), (of_references[0], of_references[1]), azimuths, elevations),
                model.free(azimuths, elevations),
            ),
        )
        return views.to(DEVICE), given


def chosen(kinds: Tensor, parts: Sequence[Given]) -> Given:
    """For each of the views the part whose number ``kinds`` (B,) says."""
    each = torch.arange(len(kinds), device=kinds.device)
    return Given(
        torch.stack([part.conditions for part in parts])[kinds, each],
        torch.stack([part.cameras for part in parts])[kinds, each],
        torch.stack([part.references for part in parts])[kinds, each],
    )


def velocity_errors(model: ViewDiffusion, views: Tensor, given: Given, times: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the predicted velocity of each view, (B,)."""
    predicted = model(mixed(views, noise, times), times, given)
    return (predicted - velocity_of(views, noise, times)).square().mean((1, 2, 3))


def spread_times(count: int, offset: Tensor) -> Tensor:
    """(count,) times evenly in [0, 1], moved by ``offset`` in [0, 1): less varied than free draws."""
    return (torch.arange(count) + offset) / count


def diffusion_loss(model: ViewDiffusion, views: Tensor, given: Given) -> tuple[Tensor, Metrics]:
    times = spread_times(len(views), torch.rand(())).to(views.device)
    return velocity_errors(model, views, given, times, torch.randn_like(views)).mean(), {}


# ------------------------------------------------------------------------------------------------------- measurements


class Evaluation:
    """Measures on names of the training and on held-out names.

    - ``planar``, ``stereoscopic``, ``free``: the loss at fixed times and noise, by what is given.
    - ``planar_iou``, ``stereoscopic_iou``: how far the outline of a sampled view agrees with the true one, given the
      icon, and given the first view. ``copied_iou``: of that first view itself, as if nothing had turned.

    Each call also writes a sheet for either split: the first view, the true other one, and both samples of that.
    """

    def __init__(self, model: ViewDiffusion, examples: dict[Split, SeenExamples], folder: Path) -> None:
        """``folder``: of the sheets."""
        self.model, self.examples, self.folder = model, examples, folder

    def __call__(self, step: int) -> Metrics:
        metrics: Metrics = {}
        for split, part in self.examples.items():
            found = self._losses(part) | self._outlines(part, split, step)
            metrics |= {f"{split}_{name}": value for name, value in found.items()}
        return metrics

    def _given(self, part: SeenExamples, rows: list[int]) -> tuple[Tensor, Tensor, dict[str, Given]]:
        """The first view of each, one from somewhere else, and ways to ask for the latter."""
        index = torch.tensor(rows)
        plain = torch.zeros(len(rows), dtype=torch.bool)
        first, *of_first = self._moved(part.views.of(index, torch.zeros_like(index), plain))
        views, azimuths, elevations = self._moved(part.views.of(index, 1 + index % (VIEWS - 1), plain))
        icons = part.conditions.pictures[0, rows, 0].to(DEVICE)
        given = {
            "planar": self.model.planar(icons, azimuths, elevations),
            "stereoscopic": self.model.stereoscopic(first, (of_first[0], of_first[1]), azimuths, elevations),
            "free": self.model.free(azimuths, elevations),
        }
        return first, views, given

    def _moved(self, values: Sequence[Tensor]) -> list[Tensor]:
        return [value.to(DEVICE) for value in values]

    def _losses(self, part: SeenExamples) -> Metrics:
        rows = few(range(len(part.conditions.items)), MEASURED)
        _, views, given = self._given(part, rows)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(views.shape, generator=generator).to(DEVICE)
        order = torch.randperm(len(rows), generator=generator)
        times = spread_times(len(rows), torch.tensor(0.5))[order].to(DEVICE)
        return {name: velocity_errors(self.model, views, one, times, noise).mean() for name, one in given.items()}

    def _outlines(self, part: SeenExamples, split: Split, step: int) -> Metrics:
        rows = few(range(len(part.conditions.items)), SAMPLED)
        first, views, given = self._given(part, rows)
        made = {
            name: self.model.sample(given[name], given["free"], SAMPLING_STEPS, guidance, range(len(rows)))
            for name, guidance in (("planar", PLANAR_GUIDANCE), ("stereoscopic", STEREOSCOPIC_GUIDANCE))
        }
        columns = torch.stack([first, views, made["stereoscopic"], made["planar"]], 1)[:SHOWN, :, COLORS]
        save_sheet(columns.flatten(0, 1).cpu(), self.folder / f"{split}-step{step}.png", columns=8)
        return {f"{name}_iou": overlap(one, views) for name, one in {**made, "copied": first}.items()}


def overlap(views: Tensor, others: Tensor) -> Tensor:
    """The mean intersection over union of the outlines of views (B, 7, S, S), two by two."""
    one, other = views[:, MASK] > 0, others[:, MASK] > 0
    return ((one & other).sum((1, 2, 3)) / (one | other).sum((1, 2, 3)).clamp(min=1)).mean()


@torch.no_grad()
def load_examples(shapes: Shapes, space: PictureText) -> dict[Split, SeenExamples]:
    phrases = Phrases(phrase for item in shapes.items for phrase in phrases_for(item))
    views, pictures = load_views(shapes), picture_vectors(shapes, space)
    examples: dict[Split, SeenExamples] = {}
    for split in SPLITS:
        items = shapes.select(split)
        rows = [item.row for item in items]
        words = [space.embed_sentences(phrases.of(phrases_for(item))) for item in items]
        no_latents = torch.empty(2, len(items), 0)  # of shapes, which the conditions otherwise come with
        examples[split] = SeenExamples(views.select(rows), Examples(items, no_latents, pictures[:, rows], words))
    return examples


def main() -> None:
    arguments = shape_arguments(__doc__, STEPS, BATCH).parse_args()
    name = weights_name(NAME, arguments.permissive_only)
    shapes = load_shapes(data_folder(arguments.data), share_alike=not arguments.permissive_only)
    examples = load_examples(shapes, load_picture_text(WEIGHTS / f"{SPACE}-lite"))
    known = examples["train"]
    torch.manual_seed(SEED)
    model = load_view_diffusion(arguments.continue_from) if arguments.continue_from else ViewDiffusion(CONFIG)
    model.to(DEVICE)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss_of(indices: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        return diffusion_loss(model, *known.draw(model, indices, np.random.default_rng((SEED, step))))

    weights = train(
        name,
        model,
        [torch.optim.AdamW(optimizer_groups(model, 6e-4, 0.01), betas=(0.9, 0.99))],
        Schedule(arguments.steps, warmup=200, cooldown=0.5),
        lambda step: shuffled_batches(2 * len(known.conditions.items), arguments.batch, SEED, step),
        loss_of,
        Evaluation(model, examples, STATE / name),
        seed=SEED,
        ema_decay=0.999,
        evaluate_every=1500,
    )
    model.load_state_dict(weights)
    target = WEIGHTS / f"{name}-lite"
    model.save_pretrained(target)
    write_sums(target)


if __name__ == "__main__":
    main()
