"""Recipe of ``assets/weights/render-judge``: the judge of generated objects, independent of every generator.

    python -m training.render_judge --data FOLDER [--steps N] [--permissive-only] [--continue-from FOLDER]

A small residual network sees an object from one to four sides, by the renderer that XBind's benchmark looks at its
results with, and meets the sentence embedding of its name in one space. It is never used in a loss or a condition of
another model. It sees held-out names too (a judge must know what they look like); kept from it are a fifth of the views
of every shape, a band of turned hues, and whole shapes of names that have others (:func:`reserved_rows`). Half of what
it sees went through the shape autoencoder with noisy latents, so that it can read what generators make. Needs
``shape-autoencoder-lite`` and ``text-encoder-lite``.

Shapes: N shapes, V views of each, S side of a view in pixels, B objects, K names.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import UserError
from models.nets.shape_autoencoder import ShapeAutoencoder, load_shape_autoencoder
from models.nets.view_diffusion import COLORS
from models.packing import save_half
from pipelines.xbind.optimisation import JUDGED, has_surface
from pipelines.xbind.rendering import Framing, lit, render
from training.evaluator import ResidualBlock, sentence_table
from training.loop import STATE, Metrics, Schedule, autocast, optimizer_groups, shuffled_batches, train
from training.picture_text import cached
from training.pictures import data_folder
from training.publish import checksum_of, write_sums
from training.shapes import Shape, Shapes, load_shapes, shape_arguments
from training.sounds import weights_name
from training.view_diffusion import CONFIG as VIEWS_CONFIG
from training.view_diffusion import VIEWS, cameras_of, in_mirror, load_views, pack

SEED, BATCH, STEPS = 83, 32, 1200
NAME, AUTOENCODER = "render-judge", "shape-autoencoder"
WEIGHTS = Path("assets/weights")
CONFIG, FILE = "config.json", "model.safetensors"
WIDTHS, SPACE = (32, 64, 96, 128), 128
SIDE = VIEWS_CONFIG.side  # of a view: those of the recipe of XBind's prior are used once more
DESIGN = {"side": SIDE, "widths": list(WIDTHS), "space": SPACE}  # what weights have to be of
SEEN = 4  # views of an object
HELD_OUT_VIEWS = tuple(range(4, VIEWS, 5))  # of every shape: spread around it, never trained on
HELD_OUT_HUE, BAND = 90.0, 15.0  # degrees: hues turned by this, or less than the band from it, are not trained on
NOISIEST = 0.5  # deviation of what is added to latents, whose own is 1
ALIKE = 3  # shapes of a name, of which the last is reserved


class RenderJudge(nn.Module):
    """Objects from several sides and sentence embeddings in one space of unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        steps = zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, 2, 1)
        self.blocks = nn.Sequential(*(ResidualBlock(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(steps)))
        self.dropout = nn.Dropout(0.2)
        self.object = nn.Linear(2 * WIDTHS[-1], SPACE)
        self.text = nn.Sequential(nn.Linear(384, 256), nn.GELU(), nn.Linear(256, SPACE))
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    def embed_objects(self, views: Tensor) -> Tensor:
        """(B, V, 3, S, S) in [-1, 1], lit, any V and in any order -> (B, 128)."""
        pictures = views.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        seen = self.blocks(self.stem(pictures)).mean((2, 3)).unflatten(0, views.shape[:2])
        whole = torch.cat([seen.mean(1), seen.amax(1)], 1)  # as in MVCNN (arXiv 1505.00880), and the mean beside it
        return F.normalize(self.object(self.dropout(whole)).float(), dim=-1)

    def embed_names(self, sentence_embeddings: Tensor) -> Tensor:
        """(K, 384) -> (K, 128)."""
        return F.normalize(self.text(sentence_embeddings).float(), dim=-1)

    def save_pretrained(self, folder: Path) -> None:
        """``config.json`` and ``model.safetensors`` in float16."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(DESIGN) + "\n")
        save_half(self.state_dict(), folder / FILE)


def load_render_judge(folder: Path = WEIGHTS / NAME) -> RenderJudge:
    """As :meth:`RenderJudge.save_pretrained` writes it, in float32. Raises :class:`UserError` if no such is there."""
    hint = "Train it with 'python -m training.render_judge'."
    if not (folder / FILE).is_file():
        raise UserError(f"The judge of objects is missing: '{folder}'.", hint)
    if json.loads((folder / CONFIG).read_text()) != DESIGN:
        raise UserError(f"The judge of objects in '{folder}' is of another design.", hint)
    model = RenderJudge()
    model.load_state_dict(load_file(folder / FILE))
    return model.eval()


@torch.no_grad()
def looked_at(grid: Tensor) -> Tensor:
    """An object, a grid (4, R, R, R) that has a surface, as a benchmark shows it to the judge: (4, 3, S, S)."""
    return lit(render(grid, JUDGED, Framing.of(grid[0]), SIDE))


# --------------------------------------------------------------------------------------------- what is seen, what never


def reserved_rows(items: Sequence[Shape]) -> set[int]:
    """The last shape of every name that has at least three: whether others of the same name are known is seen there."""
    rows = defaultdict(list)
    for item in items:
        rows[item.name].append(item.row)
    return {of_name[-1] for of_name in rows.values() if len(of_name) >= ALIKE}


def all_views(shapes: Shapes, folder: Path) -> Tensor:
    """(2, N, V, 7, S, S) uint8: of the shapes, and of what the autoencoder in ``folder`` makes of their noisy latents,
    from where :func:`training.view_diffusion.cameras_of` says; cached."""
    true = load_views(shapes).packed
    key = hashlib.sha256(repr((checksum_of(folder), NOISIEST, SEED, true.shape)).encode())
    for item in shapes.items:
        key.update(item.mask + item.rgb)

    def make() -> Tensor:
        model = load_shape_autoencoder(folder)
        return torch.stack([pack(smoothed_views(model, shapes, item)) for item in shapes.items])

    return torch.stack([true, cached(STATE / "cache" / f"smoothed-views-{key.hexdigest()[:12]}.pt", make)])


@torch.no_grad()
def smoothed_views(model: ShapeAutoencoder, shapes: Shapes, item: Shape) -> Tensor:
    """(V, 7, S, S)."""
    true = shapes.batch([item])
    with autocast(true.device):
        latents = model.encode(true)
    chance = torch.Generator().manual_seed(SEED * 1_000_003 + item.row)
    level = NOISIEST * torch.rand((), generator=chance)
    with autocast(true.device):
        [made] = model.grid(latents + level * torch.randn(latents.shape, generator=chance), model.config.size)
    grid = made.float() if has_surface(made) else true[0]  # what the noise left nothing of is shown as it was
    return render(grid, cameras_of(item.row), Framing.of(grid[0]), SIDE)


def turned(views: Tensor, degrees: Tensor) -> Tensor:
    """(B, V, 7, S, S) with the hues of each object turned by ``degrees`` (B,); white and greys stay."""
    radians = degrees * (math.pi / 180)
    axis = torch.full((3,), 1 / math.sqrt(3))
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    cos, sin = radians.cos()[:, None, None], radians.sin()[:, None, None]
    matrices = cos * torch.eye(3) + sin * across + (1 - cos) * torch.outer(axis, axis)  # Rodrigues' formula
    colors = torch.einsum("bij,bvjhw->bvihw", matrices, views[:, :, COLORS])
    return torch.cat([colors.clamp(-1, 1), views[:, :, COLORS.stop :]], 2)


def augment(pictures: Tensor) -> Tensor:
    """(B, V, 3, S, S), lit: moved, scaled, some blurred, lighter or darker, noisy, each object in its own way."""
    count, seen = pictures.shape[:2]
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = 0.9 + 0.35 * torch.rand(count)
    affine[:, :, 2] = 0.2 * (torch.rand(count, 2) - 0.5)
    flat = pictures.flatten(0, 1)
    grid = F.affine_grid(affine.repeat_interleave(seen, 0), list(flat.shape), align_corners=False)
    moved = 1 + F.grid_sample(flat - 1, grid, align_corners=False)
    blurred = F.interpolate(F.avg_pool2d(moved, 2), flat.shape[-2:], mode="bilinear")

    def each(values: Tensor) -> Tensor:
        return values.repeat_interleave(seen).view(-1, 1, 1, 1)

    moved = torch.where(each(torch.rand(count) < 0.3), blurred, moved)
    gain, noise = each(0.85 + 0.3 * torch.rand(count)), each(0.06 * torch.rand(count))
    return (1 + (moved - 1) * gain + noise * torch.randn_like(moved)).clamp(-1, 1).unflatten(0, (count, seen))


def draw(packed: Tensor, rows: Tensor, rng: np.random.Generator) -> Tensor:
    """Of the shapes ``rows`` (B,) of (2, N, V, 7, S, S) four views each that are no held-out ones, half of them
    smoothed, half mirrored, half with turned hues: (B, 4, 3, S, S) in [-1, 1]."""
    count = len(rows)
    allowed = np.setdiff1d(np.arange(VIEWS), HELD_OUT_VIEWS)
    numbers = torch.from_numpy(np.stack([rng.permutation(allowed)[:SEEN] for _ in range(count)]))
    versions = torch.from_numpy(rng.integers(2, size=count))
    views = packed[versions[:, None], rows[:, None], numbers].float() / 127.5 - 1
    mirrored = torch.from_numpy(rng.random(count) < 0.5)
    views = torch.where(mirrored.view(-1, 1, 1, 1, 1), in_mirror(views.flatten(0, 1)).view_as(views), views)
    hues = HELD_OUT_HUE + BAND + (360 - 2 * BAND) * torch.from_numpy(rng.random(count)).float()
    views = turned(views, torch.where(torch.from_numpy(rng.random(count) < 0.5), hues, 0.0))
    return augment(lit(views.flatten(0, 1)).unflatten(0, (count, SEEN)))


def kept_from_it(packed: Tensor, rows: Tensor, hue: float = 0.0) -> Tensor:
    """The held-out views of the shapes ``rows`` (B,) of (N, V, 7, S, S): (B, 4, 3, S, S)."""
    views = packed[rows[:, None], torch.tensor(HELD_OUT_VIEWS)].float() / 127.5 - 1
    return lit(turned(views, torch.full((len(rows),), hue)).flatten(0, 1)).unflatten(0, views.shape[:2])


# ------------------------------------------------------------------------------------------------ measures and training


def ranks(model: RenderJudge, views: Tensor, names: Tensor, answers: Tensor) -> Tensor:
    """How many of ``names`` (K, 128) are likelier than the right one, ``answers`` (B,), for (B, V, 3, S, S): (B,)."""
    likeness = torch.cat([model.embed_objects(part) for part in views.split(64)]) @ names.T
    return (likeness > likeness.gather(1, answers[:, None])).sum(1)


class Evaluation:
    """Share of shapes whose name is the likeliest of all, and among the five likeliest, by views kept from the judge:

    ``views``, of shapes that it knows; ``hues``, the same with their hues turned as never in training; ``smoothed``,
    of what the autoencoder made of them; ``objects``, of shapes that it never saw, of names that it knows.
    """

    def __init__(self, model: RenderJudge, packed: Tensor, answers: Tensor, reserved: set[int], names: Tensor) -> None:
        self.model, self.packed, self.answers, self.names = model, packed, answers, names
        self.known = torch.tensor([row for row in range(len(answers)) if row not in reserved])
        self.reserved = torch.tensor(sorted(reserved))

    def __call__(self, _: int) -> Metrics:
        table = self.model.embed_names(self.names)
        true, smoothed = self.packed
        asked = {"views": (true, self.known, 0.0), "hues": (true, self.known, HELD_OUT_HUE)}
        asked |= {"smoothed": (smoothed, self.known, 0.0), "objects": (true, self.reserved, 0.0)}
        metrics: Metrics = {}
        for title, (packed, rows, hue) in asked.items():
            if len(rows):
                found = ranks(self.model, kept_from_it(packed, rows, hue), table, self.answers[rows])
                metrics |= {f"{title}_top{first}": (found < first).float().mean() for first in (1, 5)}
        return metrics


def main() -> None:
    arguments = shape_arguments(__doc__, STEPS).parse_args()
    only = arguments.permissive_only
    name = weights_name(NAME, only)
    shapes = load_shapes(data_folder(arguments.data), share_alike=not only)
    packed = all_views(shapes, WEIGHTS / f"{weights_name(AUTOENCODER, only)}-lite")
    reserved = reserved_rows(shapes.items)
    names = sorted({item.name for item in shapes.items})
    answers = torch.tensor([names.index(item.name) for item in shapes.items])
    rows = torch.tensor([item.row for item in shapes.items if item.row not in reserved])
    sentences = sentence_table(names)
    print(f"{len(rows)} shapes of {len(names)} names, {len(reserved)} reserved", flush=True)
    torch.manual_seed(SEED)
    model = load_render_judge(arguments.continue_from) if arguments.continue_from else RenderJudge()

    def loss_of(indices: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        chosen = rows[torch.from_numpy(indices)]
        views = draw(packed, chosen, np.random.default_rng((SEED, step)))[:, : 1 + step % SEEN]
        likeness = model.embed_objects(views) @ model.embed_names(sentences).T
        logits = model.log_scale.exp().clamp(max=60) * likeness
        right = (logits.argmax(1) == answers[chosen]).float().mean()
        return F.cross_entropy(logits, answers[chosen], label_smoothing=0.1), {"accuracy": right}

    weights = train(
        name,
        model,
        [torch.optim.AdamW(optimizer_groups(model, 2e-3, 0.05))],
        Schedule(arguments.steps, warmup=100, cooldown=0.6),
        lambda step: shuffled_batches(len(rows), min(BATCH, len(rows)), SEED, step),
        loss_of,
        Evaluation(model, packed, answers, reserved, sentences),
        seed=SEED,
        ema_decay=0.99,
        evaluate_every=250,
    )
    model.load_state_dict(weights)
    model.save_pretrained(WEIGHTS / name)
    write_sums(WEIGHTS / name)


if __name__ == "__main__":
    main()
