"""Recipe of ``assets/weights/evaluator``: the judge of generated pictures, independent of every generator.

    python -m training.evaluator --data FOLDER

A small residual network on 64x64 pictures and a projection of sentence embeddings meet in one 256-d space, trained to
pick a picture's concept among all concepts. It is never used in a generator's loss. It sees held-out concepts too (a
judge must know what they look like), but not the pictures that :func:`is_reserved` names: on those, real pictures give
the benchmark's ceiling.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import UserError
from models.packing import save_half
from models.text_encoder import load_text_encoder
from training.images import to_tensor
from training.loop import Metrics, Schedule, optimizer_groups, shuffled_batches, train
from training.pictures import Picture, Pictures, data_folder, load_pictures, verify_checksums
from training.publish import write_sums

WEIGHTS = Path("assets/weights")
CONFIG = "config.json"
SEED, BATCH, SIZE, WIDTHS = 31, 128, 64, (48, 96, 192, 256)
SIZES = {"size": SIZE, "widths": [*WIDTHS], "features": 256}  # what the config says


class ResidualBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Evaluator(nn.Module):
    """Pictures and sentence embeddings in one space of 256-d unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        widths = (WIDTHS[0], *WIDTHS)
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, 2, 1)
        self.blocks = nn.Sequential(
            *(ResidualBlock(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(zip(widths, WIDTHS, strict=False)))
        )
        self.picture = nn.Linear(WIDTHS[-1], 256)
        self.text = nn.Sequential(nn.Linear(384, 512), nn.GELU(), nn.Linear(512, 256))
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    def features(self, pictures: Tensor) -> Tensor:
        """(B, 3, 128, 128) in [-1, 1] -> (B, 256), the space of the Frechet distance."""
        small = F.interpolate(pictures, (SIZE, SIZE), mode="area").contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.blocks(self.stem(small)).mean((2, 3)))

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        return F.normalize(self.picture(self.features(pictures)).float(), dim=-1)

    def embed_concepts(self, sentence_embeddings: Tensor) -> Tensor:
        """(N, 384) -> (N, 256)."""
        return F.normalize(self.text(sentence_embeddings).float(), dim=-1)


def is_reserved(item: Picture) -> bool:
    """A tenth of the pictures, which the evaluator never sees: prompts and ceiling of the benchmarks."""
    key = f"{item.concept}|{item.style}|{item.row}|evaluator"
    return hashlib.sha256(key.encode()).digest()[0] < 26


def all_concepts(pictures: Pictures) -> list[str]:
    return sorted({item.concept for item in pictures.items if not item.is_flag})


def augment(pictures: Tensor) -> Tensor:
    """Random crop, blur, brightness and noise of (B, 3, H, W): what a generator gets wrong must not fool the judge."""
    count = len(pictures)
    scale, shift = 1 + 0.15 * (torch.rand(count) - 0.6), 0.12 * (torch.rand(count, 2) - 0.5)
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = scale
    affine[:, :, 2] = shift
    grid = F.affine_grid(affine, list(pictures.shape), align_corners=False)
    moved = 1 + F.grid_sample(pictures - 1, grid, align_corners=False)
    blurred = F.interpolate(F.avg_pool2d(moved, 4), pictures.shape[-2:], mode="bilinear")
    sharp = (torch.rand(count) < 0.7).view(-1, 1, 1, 1)
    moved = torch.where(sharp, moved, blurred)
    gain = 1 + 0.2 * (torch.rand(count, 3, 1, 1) - 0.5)
    return (1 + (moved - 1) * gain + 0.05 * torch.rand(count, 1, 1, 1) * torch.randn_like(moved)).clamp(-1, 1)


def retrieval(model: Evaluator, pictures: Tensor, concepts: Tensor, answers: Tensor) -> tuple[float, float]:
    """Share of ``pictures`` whose concept (index into ``concepts``) is the nearest, and among the five nearest."""
    ranked = (model.embed_pictures(pictures) @ concepts.T).topk(5).indices
    hits = ranked == answers[:, None]
    return hits[:, 0].float().mean().item(), hits.any(1).float().mean().item()


def sentence_table(concepts: list[str]) -> Tensor:
    """(N, 384) sentence embeddings."""
    encoder = load_text_encoder(WEIGHTS / "text-encoder-lite")
    return torch.cat([encoder.sentence_embeddings(concepts[i : i + 128]) for i in range(0, len(concepts), 128)])


def load_evaluator(folder: Path = WEIGHTS / "evaluator") -> Evaluator:
    """Raises :class:`UserError` for a folder of another model, or of one of other sizes."""
    if not (folder / CONFIG).is_file() or json.loads((folder / CONFIG).read_text()) != SIZES:
        raise UserError(f"'{folder}' is no judge of pictures of these sizes.", "Run 'python -m training.evaluator'.")
    model = Evaluator()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of the picture tables")
    parser.add_argument("--steps", type=int, default=900)
    arguments = parser.parse_args()
    folder = data_folder(arguments.data)
    verify_checksums(folder)
    pictures = load_pictures(folder)
    concepts = all_concepts(pictures)
    number = {concept: i for i, concept in enumerate(concepts)}
    items = [item for item in pictures.items if not item.is_flag and not is_reserved(item)]
    reserved = [item for item in pictures.items if not item.is_flag and is_reserved(item)]
    sentences = sentence_table(concepts)
    torch.manual_seed(SEED)
    model = Evaluator()

    def loss_of(indices: np.ndarray, _: int) -> tuple[Tensor, Metrics]:
        chosen = [items[i] for i in indices]
        pixels = augment(to_tensor(pictures.pixels[[item.row for item in chosen]]))
        table = model.embed_concepts(sentences)
        logits = model.log_scale.exp().clamp(max=60) * model.embed_pictures(pixels) @ table.T
        answers = torch.tensor([number[item.concept] for item in chosen])
        return F.cross_entropy(logits, answers, label_smoothing=0.05), {
            "accuracy": (logits.argmax(1) == answers).float().mean()
        }

    def evaluate(_: int) -> Metrics:
        pixels = to_tensor(pictures.pixels[[item.row for item in reserved]])
        answers = torch.tensor([number[item.concept] for item in reserved])
        top1, top5 = retrieval(model, pixels, model.embed_concepts(sentences), answers)
        return {"reserved_top1": top1, "reserved_top5": top5}

    weights = train(
        "evaluator",
        model,
        [torch.optim.AdamW(optimizer_groups(model, 2e-3, 0.05))],
        Schedule(arguments.steps, warmup=50, cooldown=0.6),
        lambda step: shuffled_batches(len(items), BATCH, SEED, step),
        loss_of,
        evaluate,
        seed=SEED,
        ema_decay=0.99,
        evaluate_every=275,
    )
    target = WEIGHTS / "evaluator"
    target.mkdir(parents=True, exist_ok=True)
    save_half(weights, target / "model.safetensors")
    (target / CONFIG).write_text(json.dumps(SIZES) + "\n")
    write_sums(target)


if __name__ == "__main__":
    main()
