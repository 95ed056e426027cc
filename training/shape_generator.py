"""Recipe of ``assets/weights/shape-generator-lite``: from a vector of CLIP-lite's space to the latents of a shape.

    python -m training.shape_generator --data FOLDER [--batch B] [--steps N] [--permissive-only]
                                       [--continue-from FOLDER]

Flow matching. Every shape and its mirror image is encoded once; each time one is met, its condition is the CLIP-lite
vector of its icon, of a rendered view of it, or of words for it, a little noisy, so that the generator forgives the
space's errors. Needs ``shape-autoencoder-lite``, ``picture-text-lite`` and ``text-encoder-lite``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from models.nets.shape_autoencoder import ShapeAutoencoder, load_shape_autoencoder
from models.nets.shape_generator import ShapeGenerator, ShapeGeneratorConfig, load_shape_generator, shifted
from models.picture_text import PictureText, load_picture_text
from pipelines.xbind.views import shaded
from training.bridges import vectors_of_space
from training.captions import with_article
from training.images import save_sheet, to_tensor
from training.loop import DEVICE, STATE, Metrics, Schedule, optimizer_groups, shuffled_batches, train
from training.picture_text import Phrases
from training.pictures import data_folder
from training.publish import write_sums
from training.shapes import Shape, Shapes, Split, key_of, load_shapes, shape_arguments
from training.sound_diffusion import NULL_SHARE, soften
from training.sounds import weights_name

SEED, BATCH, STEPS = 73, 64, 5700
NAME, AUTOENCODER = "shape-generator", "shape-autoencoder"
SPACE = "picture-text"
CONFIG = ShapeGeneratorConfig()
WEIGHTS = Path("assets/weights")
SPLITS: tuple[Split, Split] = ("train", "heldout-name")
AZIMUTHS, ELEVATION, SIDE = (-40.0, 0.0, 40.0), 20.0, 128  # of the views that are conditions
ICON_SHARE, VIEW_SHARE = 0.3, 0.3  # of the conditions; the others are words
MEASURED, NAMED = 80, 40  # of either split: shapes for the loss, and names to make something of
RANK = 5
SAMPLING_STEPS, GUIDANCE = 20, 3.0
JUDGED_AZIMUTHS = (-30.0, 30.0)  # of the views by which an object is recognised
SHOWN, SHOWN_AZIMUTHS = 12, (30.0, 120.0, 210.0)  # names on a sheet, and the views of each
T = TypeVar("T")


# -------------------------------------------------------------------------------------------------------- conditions


@dataclass(frozen=True)
class Examples:
    """N shapes of a split, each as it is and in a mirror.

    ``latents`` (2, N, 3, C, p, p); ``pictures`` (2, N, V, D), unit vectors of the icon and of the views in that order;
    ``words``: for each shape the vectors (W, D) of what it is called, the first two those of its name.
    """

    items: list[Shape]
    latents: Tensor
    pictures: Tensor
    words: list[Tensor]

    def draw(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Latents (B, 3, C, p, p) and conditions (B, D) for ``indices`` (B,) below 2 N; N and more are mirrored."""
        sides, rows = np.divmod(indices, len(self.items))
        conditions = [self._condition(int(side), int(row), rng) for side, row in zip(sides, rows, strict=True)]
        return self.latents[sides, rows], torch.stack(conditions)

    def _condition(self, side: int, row: int, rng: np.random.Generator) -> Tensor:
        pictures, kind = self.pictures[side, row], rng.random()
        if kind < ICON_SHARE:
            return pictures[0]
        if kind < ICON_SHARE + VIEW_SHARE:
            return pictures[rng.integers(1, len(pictures))]
        words = self.words[row]
        # A tag is another word for the thing at best, and often only says what it is used for.
        tagged = len(words) > 2 and rng.random() < 0.25
        return words[rng.integers(2, len(words)) if tagged else rng.integers(2)]


def phrases_for(item: Shape) -> list[str]:
    """What a shape is called: its name, the same with an article, other words."""
    name, *others = item.names
    return [name, with_article(name), *others]


@torch.no_grad()
def load_examples(shapes: Shapes, space: PictureText, autoencoder: Path) -> dict[Split, Examples]:
    """``autoencoder``: its weights."""
    phrases = Phrases(phrase for item in shapes.items for phrase in phrases_for(item))
    latents, pictures = latents_of(shapes, autoencoder), picture_vectors(shapes, space)
    examples: dict[Split, Examples] = {}
    for split in SPLITS:
        items = shapes.select(split)
        rows = [item.row for item in items]
        words = [space.embed_sentences(phrases.of(phrases_for(item))) for item in items]
        examples[split] = Examples(items, latents[:, rows], pictures[:, rows], words)
    return examples


def latents_of(shapes: Shapes, weights: Path) -> Tensor:
    """(2, N, 3, C, p, p): all shapes, then all in a mirror."""

    def batches() -> Iterator[Tensor]:
        model = load_shape_autoencoder(weights).to(DEVICE)
        for axes in ((), (2,)):
            for start in range(0, len(shapes.items), 16):
                yield model.encode(shapes.batch(shapes.items[start : start + 16]).flip(axes).to(DEVICE)).cpu()

    name = f"shape-latents-{key_of(item.mask + item.rgb for item in shapes.items)}"
    return vectors_of_space(name, weights, 2 * len(shapes.items), batches).unflatten(0, (2, -1))


def picture_vectors(shapes: Shapes, space: PictureText) -> Tensor:
    """(2, N, V, D): of the icon and the views of all shapes, then of the same pictures in a mirror."""
    views = 1 + len(AZIMUTHS)

    def batches() -> Iterator[Tensor]:
        for item in shapes.items:
            [grid] = shapes.batch([item])
            seen = [shaded(grid, azimuth, ELEVATION, SIDE).numpy() for azimuth in AZIMUTHS]
            pictures = to_tensor(np.stack([item.icon, *seen]))
            yield space.embed_pictures(torch.cat([pictures, pictures.flip(3)]))

    count = 2 * views * len(shapes.items)
    key = key_of(item.mask + item.rgb + item.icon.tobytes() for item in shapes.items)
    name = "-".join([f"shape-pictures-{key}", *(f"{azimuth:g}" for azimuth in AZIMUTHS)])
    vectors = vectors_of_space(name, WEIGHTS / f"{SPACE}-lite", count, batches)
    return vectors.unflatten(0, (-1, 2, views)).transpose(0, 1)


# -------------------------------------------------------------------------------------------------------------- loss


def flow_errors(model: ShapeGenerator, latents: Tensor, conditions: Tensor, times: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the predicted velocity of each shape, (B,)."""
    share = times[:, None, None, None, None]
    noisy = torch.lerp(noise, latents, share)
    return (model(noisy, times, conditions) - (latents - noise)).square().mean((1, 2, 3, 4))


def spread_times(count: int, offset: Tensor) -> Tensor:
    """(count,) times, logit-normal (arXiv 2403.03206, section 3.1) and then moved towards the noise as in sampling.

    Most lie where the velocity is hardest to tell: near t = 0 it is a mean of all shapes less the noise, near t = 1 the
    shape less what is left of the noise. Evenly over the distribution, moved by ``offset`` in [0, 1), which varies less
    from batch to batch than free draws.
    """
    levels = ((torch.arange(count) + offset) / count).clamp(1e-4, 1 - 1e-4)
    return shifted(torch.special.ndtri(levels).sigmoid())


def flow_loss(model: ShapeGenerator, latents: Tensor, conditions: Tensor) -> tuple[Tensor, Metrics]:
    """Softened ``conditions`` (B, D), a tenth of them replaced by the null condition."""
    null = torch.rand(len(conditions), 1, device=conditions.device) < NULL_SHARE
    given = torch.where(null, model.null_condition, soften(conditions))
    times = spread_times(len(latents), torch.rand(())).to(latents.device)
    return flow_errors(model, latents, given, times, torch.randn_like(latents)).mean(), {}


# ------------------------------------------------------------------------------------------------------- measurements


class Evaluation:
    """Measures on names of the training and on held-out names.

    - ``velocity``: the loss at fixed times and noise, given the icon.
    - ``generated``: of what is made of a name alone, how often the name is among the five nearest of all names by the
      CLIP-lite vector of two rendered views. ``retrieved``: the same of the training shape with a condition nearest to
      the name; ``real``: of a shape that has the name. Both are decoded from latents too, and measured once.

    Each call also writes a sheet for either split: names, and three views of what was made of each.
    """

    def __init__(
        self,
        model: ShapeGenerator,
        autoencoder: ShapeAutoencoder,
        space: PictureText,
        examples: dict[Split, Examples],
        folder: Path,
    ) -> None:
        """``folder``: of the sheets."""
        self.folder = folder
        self.model, self.autoencoder, self.space, self.examples = model, autoencoder, space, examples
        vectors = {
            item.name: words[0]
            for part in examples.values()
            for item, words in zip(part.items, part.words, strict=True)
        }
        self.names = sorted(vectors)
        self.texts = torch.stack([vectors[name] for name in self.names])
        self.asked = {split: few(sorted({item.name for item in part.items}), NAMED) for split, part in examples.items()}
        self.known: Metrics = {}
        for split in SPLITS:
            for way, latents in (("retrieved", self._retrieved(split)), ("real", self._real(split))):
                self.known[f"{split}_{way}"] = self._named(self._grids(latents), self.asked[split])

    def __call__(self, step: int) -> Metrics:
        metrics: Metrics = {}
        for split, part in self.examples.items():
            metrics[f"{split}_velocity"] = self._velocity(part)
            asked = self.asked[split]
            latents = self.model.sample(self._vectors(asked).to(DEVICE), SAMPLING_STEPS, GUIDANCE, range(len(asked)))
            grids = self._grids(latents)
            metrics[f"{split}_generated"] = self._named(grids, asked)
            shown = few(range(len(asked)), SHOWN)
            path = self.folder / f"{split}-step{step}.png"
            save_objects([grids[i] for i in shown], [asked[i] for i in shown], path)
        return metrics | self.known

    def _velocity(self, part: Examples) -> Tensor:
        rows = few(range(len(part.items)), MEASURED)
        generator = torch.Generator().manual_seed(0)
        latents, conditions = part.latents[0, rows], part.pictures[0, rows, 0]
        noise = torch.randn(latents.shape, generator=generator)
        times = spread_times(len(rows), torch.tensor(0.5))[torch.randperm(len(rows), generator=generator)]
        columns = zip(*(values.to(DEVICE).split(BATCH) for values in (latents, conditions, times, noise)), strict=True)
        return torch.cat([flow_errors(self.model, *values) for values in columns]).mean()

    def _vectors(self, names: Sequence[str]) -> Tensor:
        return self.texts[[self.names.index(name) for name in names]]

    def _retrieved(self, split: Split) -> Tensor:
        known = self.examples["train"]
        own = [torch.cat([pictures, words]) for pictures, words in zip(known.pictures[0], known.words, strict=True)]
        nearest = torch.stack([(self._vectors(self.asked[split]) @ vectors.T).amax(1) for vectors in own]).argmax(0)
        return known.latents[0, nearest]

    def _real(self, split: Split) -> Tensor:
        part = self.examples[split]
        first = {item.name: row for row, item in reversed(list(enumerate(part.items)))}
        return part.latents[0, [first[name] for name in self.asked[split]]]

    def _grids(self, latents: Tensor) -> list[Tensor]:
        size = self.autoencoder.config.size
        return [self.autoencoder.grid(one[None].to(DEVICE), size)[0].float().cpu() for one in latents]

    @torch.no_grad()
    def _named(self, grids: Sequence[Tensor], names: Sequence[str]) -> Tensor:
        """The share of objects (4, S, S, S) whose own of ``names`` is among the five nearest of all."""
        hits = []
        for grid, name in zip(grids, names, strict=True):
            views = np.stack([shaded(grid, azimuth, ELEVATION, SIDE).numpy() for azimuth in JUDGED_AZIMUTHS])
            vector = F.normalize(self.space.embed_pictures(to_tensor(views)).mean(0), dim=-1)
            nearest = (self.texts @ vector).topk(min(RANK, len(self.names))).indices.tolist()
            hits.append(name in [self.names[i] for i in nearest])
        return torch.tensor(hits).float().mean()


def few(values: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of them, from end to end."""
    return list(values)[:: max(1, -(-len(values) // most))]


def save_objects(grids: Sequence[Tensor], names: Sequence[str], path: Path) -> None:
    """A row for each object (4, S, S, S): its name, then its views."""
    tiles = []
    for grid, name in zip(grids, names, strict=True):
        label = Image.new("RGB", (SIDE, SIDE), "white")
        ImageDraw.Draw(label).text((4, SIDE // 2), name.replace(" ", "\n"), "black", ImageFont.load_default(12), "lm")
        tiles.append(np.asarray(label))
        tiles += [shaded(grid, azimuth, ELEVATION, SIDE).numpy() for azimuth in SHOWN_AZIMUTHS]
    save_sheet(to_tensor(np.stack(tiles)), path, columns=1 + len(SHOWN_AZIMUTHS))


def main() -> None:
    arguments = shape_arguments(__doc__, STEPS, BATCH).parse_args()
    name = weights_name(NAME, arguments.permissive_only)
    shapes = load_shapes(data_folder(arguments.data), share_alike=not arguments.permissive_only)
    space = load_picture_text(WEIGHTS / f"{SPACE}-lite")
    of_shapes = WEIGHTS / f"{weights_name(AUTOENCODER, arguments.permissive_only)}-lite"
    examples = load_examples(shapes, space, of_shapes)
    known = examples["train"]
    torch.manual_seed(SEED)
    model = load_shape_generator(arguments.continue_from) if arguments.continue_from else ShapeGenerator(CONFIG)
    model.to(DEVICE)
    autoencoder = load_shape_autoencoder(of_shapes).to(DEVICE)
    evaluation = Evaluation(model, autoencoder, space, examples, STATE / name)
    print(" ".join(f"{metric} {float(value):.3f}" for metric, value in evaluation.known.items()), flush=True)

    def loss_of(indices: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        latents, conditions = known.draw(indices, np.random.default_rng((SEED, step)))
        return flow_loss(model, latents.to(DEVICE), conditions.to(DEVICE))

    weights = train(
        name,
        model,
        [torch.optim.AdamW(optimizer_groups(model, 5e-4, 0.01), betas=(0.9, 0.99))],
        Schedule(arguments.steps, warmup=100, cooldown=0.5),
        lambda step: shuffled_batches(2 * len(known.items), arguments.batch, SEED, step),
        loss_of,
        evaluation,
        seed=SEED,
        ema_decay=0.998,
        evaluate_every=1900,
    )
    model.load_state_dict(weights)
    target = WEIGHTS / f"{name}-lite"
    model.save_pretrained(target)
    write_sums(target)


if __name__ == "__main__":
    main()
