"""Recipe of ``assets/weights/shape-autoencoder-lite``: coloured distance grids to the latents of a tri-plane and back.

    python -m training.shape_autoencoder --data FOLDER [--batch B] [--steps N] [--permissive-only]
                                         [--continue-from FOLDER]

Loss, at 4096 points of each shape, half of them at its surface: L1 of the signed distance, heavier at the surface, L1
and squared error of colours and colour differences there, a pull of the latents towards zero. The decoder sees noisy
latents, as a generator's are. Shapes are turned by quarters about the vertical, mirrored, and a quarter of them have
their colour channels swapped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from models.nets.shape_autoencoder import TRUNCATION, ShapeAutoencoder, ShapeAutoencoderConfig, load_shape_autoencoder
from pipelines.xbind.views import shaded
from training.autoencoder import with_chroma
from training.images import save_sheet
from training.loop import DEVICE, STATE, Metrics, Schedule, shuffled_batches, train
from training.muon import Muon
from training.pictures import data_folder
from training.publish import write_sums
from training.shapes import Shape, Shapes, Split, load_shapes, shape_arguments, unpack
from training.sounds import weights_name

SEED, BATCH, STEPS = 71, 32, 1600
NAME = "shape-autoencoder"
CONFIG = ShapeAutoencoderConfig()
POINTS = 4096
NEAR = 1 / TRUNCATION  # a voxel: what is nearer is at the surface
SPLITS: tuple[Split, Split] = ("train", "heldout-name")
MEASURED = 80  # shapes of either split
SHOWN = 8


# ------------------------------------------------------------------------------------------------------------- loss


def augment(grids: Tensor) -> Tensor:
    """Grids (B, 4, S, S, S) of any type, turned and mirrored at random, a quarter of them in other colours. Exact."""
    count = len(grids)
    turns, mirrored, swapped = torch.randint(4, (count,)), torch.rand(count) < 0.5, torch.rand(count) < 0.25
    changed = []
    for index, grid in enumerate(grids):
        turned = torch.rot90(grid, int(turns[index]), (1, 3))
        if mirrored[index]:
            turned = turned.flip(1)
        if swapped[index]:
            turned = turned[[0, *(1 + torch.randperm(3)).tolist()]]
        changed.append(turned)
    return torch.stack(changed)


def draw_points(grids: Tensor, count: int) -> Tensor:
    """(B, count, 3) in [-1, 1]: the first half in voxels at the surface of each of (B, 4, S, S, S), the rest anywhere.

    Raises :class:`ValueError` if a grid has no surface.
    """
    size, near = grids.shape[-1], count // 2
    surface = (grids[:, 0].abs() < NEAR).flatten(1)
    counts = surface.sum(1)
    if not counts.all():
        raise ValueError("a grid has no surface")
    device = grids.device
    chosen = (torch.rand(len(grids), near, device=device) * counts[:, None]).long() + (counts.cumsum(0) - counts)[
        :, None
    ]
    voxels = surface.nonzero()[chosen, 1]
    corners = torch.stack([voxels // size**2, voxels // size % size, voxels % size], -1)
    at_surface = (corners + torch.rand(corners.shape, device=device)) / size * 2 - 1
    return torch.cat([at_surface, torch.rand(len(grids), count - near, 3, device=device) * 2 - 1], 1)


def values_at(grids: Tensor, points: Tensor) -> Tensor:
    """(B, 4, S, S, S) read at points (B, N, 3), trilinearly: (B, N, 4)."""
    places = points.flip(-1)[:, None, None]
    return F.grid_sample(grids, places, padding_mode="border", align_corners=False)[:, :, 0, 0].transpose(1, 2)


def autoencoder_loss(model: ShapeAutoencoder, grids: Tensor) -> tuple[Tensor, Metrics]:
    """``grids``: (B, 4, S, S, S)."""
    points = draw_points(grids, POINTS)
    wanted = values_at(grids, points)
    latents = model.encode(grids)
    noise_level = 0.3 * torch.rand(len(latents), 1, 1, 1, 1, device=latents.device)
    decoded = model.query(model.planes(latents + noise_level * torch.randn_like(latents)), points)
    near = wanted[..., 0].abs() < NEAR
    distance = ((decoded - wanted)[..., 0].abs() * (1 + 3 * near)).mean()
    off = with_chroma((decoded - wanted)[..., 1:][near])
    color = off.abs().mean() + off.square().mean()
    power = latents.square().mean()
    loss = distance + 0.5 * color + 1e-3 * power
    return loss, {
        "distance": distance,
        "color": color,
        "chroma": off[:, 3:].abs().mean(),
        "sign": ((decoded[..., 0] < 0) == (wanted[..., 0] < 0))[near].float().mean(),
        "latent_power": power,
    }


# ----------------------------------------------------------------------------------------------------- measurements


def agreement(decoded: Tensor, true: Tensor) -> Tensor:
    """How well one grid (4, S, S, S) gives back another: (3,) intersection over union of the insides, and at the
    surface the share of voxels on the right side of it and the mean absolute error of the colours."""
    inside, truly = decoded[0] < 0, true[0] < 0
    near = true[0].abs() < NEAR
    union = (inside | truly).sum().clamp(min=1)
    error = (decoded[1:] - true[1:]).abs().mean(0)[near].mean()
    return torch.stack([(inside & truly).sum() / union, (inside == truly)[near].float().mean(), error])


def evaluate(model: ShapeAutoencoder, shapes: Shapes, sheet: Path) -> Metrics:
    """The mean :func:`agreement` on shapes of either split, and a sheet of eight held-out ones: true above decoded."""
    metrics: Metrics = {}
    for split in SPLITS:
        items = shapes.select(split)
        measured = items[:: max(1, len(items) // MEASURED)]
        means = torch.stack([agreement(*reconstructed(model, shapes, item)) for item in measured]).mean(0)
        names = ("iou", "surface_sign", "surface_color_error")
        metrics |= {f"{split}_{name}": value for name, value in zip(names, means, strict=True)}
    held_out = shapes.select("heldout-name")
    shown = [reconstructed(model, shapes, item) for item in held_out[:: max(1, len(held_out) // SHOWN)][:SHOWN]]
    grids = [true for _, true in shown] + [decoded for decoded, _ in shown]
    pictures = torch.stack([shaded(grid, 30, 20, 128) for grid in grids]).permute(0, 3, 1, 2)
    save_sheet(pictures / 127.5 - 1, sheet, columns=len(shown))
    return metrics


def reconstructed(model: ShapeAutoencoder, shapes: Shapes, item: Shape) -> tuple[Tensor, Tensor]:
    """A shape's grid (4, S, S, S) after the autoencoder and before."""
    true = shapes.batch([item])
    return model.grid(model.encode(true.to(DEVICE)), true.shape[-1])[0].cpu(), true[0]


def optimizers_of(model: ShapeAutoencoder) -> list[Optimizer]:
    """Muon for the matrices of the transformers' blocks, AdamW for the rest."""
    inside = [value for name, value in model.named_parameters() if ".blocks." in name and value.ndim == 2]
    chosen = set(map(id, inside))
    rest = [value for value in model.parameters() if id(value) not in chosen]
    muon = Muon([{"params": inside, "peak_lr": 2e-3}], lr=2e-3, weight_decay=0.02)
    return [muon, torch.optim.AdamW([{"params": rest, "peak_lr": 1e-3}], lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)]


@torch.no_grad()
def publish(model: ShapeAutoencoder, shapes: Shapes, folder: Path) -> None:
    """Set scale and shift so that the latents of the training shapes have mean 0 and deviation 1; save float16."""
    items = shapes.select("train")
    parts = [model.encode(shapes.batch(items[i : i + BATCH]).to(DEVICE)) for i in range(0, len(items), BATCH)]
    deviations, means = torch.std_mean(torch.cat(parts), (0, 1, 3, 4))
    model.shift.copy_(means)
    model.scale.copy_(1 / deviations)
    model.save_pretrained(folder)
    write_sums(folder)
    print("latents: deviation per channel", [round(value, 2) for value in deviations.tolist()])


def begun(folder: Path) -> ShapeAutoencoder:
    """Published weights with the latents as the training has them: their scale is measured again at the end."""
    model = load_shape_autoencoder(folder)
    model.shift.zero_()
    model.scale.fill_(1)
    return model


def main() -> None:
    arguments = shape_arguments(__doc__, STEPS, BATCH).parse_args()
    name = weights_name(NAME, arguments.permissive_only)
    shapes = load_shapes(data_folder(arguments.data), share_alike=not arguments.permissive_only)
    rows = torch.tensor([item.row for item in shapes.select("train")])
    torch.manual_seed(SEED)
    model = (begun(arguments.continue_from) if arguments.continue_from else ShapeAutoencoder(CONFIG)).to(DEVICE)

    def loss_of(indices: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        return autoencoder_loss(model, unpack(augment(shapes.grids[rows[indices]].to(DEVICE))))

    weights = train(
        name,
        model,
        optimizers_of(model),
        Schedule(arguments.steps, warmup=30, cooldown=0.5),
        lambda step: shuffled_batches(len(rows), arguments.batch, SEED, step),
        loss_of,
        lambda step: evaluate(model, shapes, STATE / name / f"step{step}.png"),
        seed=SEED,
        ema_decay=0.998,
        log_every=25,
        evaluate_every=400,
    )
    model.load_state_dict(weights)
    publish(model.eval(), shapes, Path("assets/weights") / f"{name}-lite")


if __name__ == "__main__":
    main()
