"""Recipe of ``assets/weights/crossflow-lite``: text variational encoder and DiMR backbone, trained jointly.

    python -m training.crossflow --data FOLDER [--batch B] [--encoder-steps N] [--steps N] [--continue-from FOLDER]

Loss as in the paper, flow matching + image-text contrastive + KL (sixth power), and one of ours: the mean of z0 is to
be a faint copy of the picture. Frozen: the sentence encoder and the image autoencoder, whose outputs are cached. The
image tower of the contrastive loss reads latents and is thrown away.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.autoencoder import ImageAutoencoder, load_autoencoder
from models.nets import flow_matching as fm
from models.nets.crossflow import FAINT, CrossFlow, CrossFlowConfig, StageConfig, load_crossflow
from models.text_encoder import TextEncoder, load_text_encoder
from pipelines.crossflow.styles import styled
from training.captions import Captioned, draw_caption, recoloured_pictures
from training.images import save_sheet, to_tensor
from training.loop import DEVICE, STATE, Metrics, Schedule, autocast, shuffled_batches, train
from training.muon import Muon
from training.pictures import Picture, Pictures, Split, data_folder, load_pictures, verify_checksums
from training.publish import checksum_of, publish_crossflow
from training.tables import add_continue_from

WEIGHTS = Path("assets/weights")
SEED, BATCH = 29, 768
# The text encoder learns alone first: a fifth of the cost, and the backbone then starts on latents that already tell
# captions apart (paper table 4e: a third fewer steps).
ENCODER_STEPS, STEPS = 600, 2900
# What a picture shows is decided at t = 0, where the flow has nothing but z0 to go by, and there the flow alone learns
# slowly: after 165,000 pictures one of the five nearest was right for 8 % of seen emoji captions. After as many,
# regression has 37 % of all seen captions there, in a fifth of the time, and the backbone is left with what it does
# well: to make a sharp picture of a faint one.
PICTURE_WEIGHT = 4.0
NULL_SHARE = 0.1
TIME_MEAN, TIME_DEVIATION = -1.0, 1.3
KL_WEIGHT = 40 / 2048
RECOLOURED_SHARE = 0.25
SPLITS: tuple[Split, ...] = ("train", "heldout-pair", "heldout-concept")
MEANS, SAMPLES = 192, {"train": 48, "heldout-pair": 12, "heldout-concept": 12}  # how many of each are evaluated
CONFIG = CrossFlowConfig(
    latent_channels=8,
    latent_size=16,
    tokens=24,
    text_width=384,
    compressed_width=512,
    encoder_layers=1,
    encoder_hidden=1024,
    encoder_heads=8,
    encoder_head="linear",
    stages=(
        StageConfig("transformer", 8, 384, 768, 9, heads=6),
        StageConfig("convnext", 16, 96, 192, 3),
    ),
)


class PictureTower(nn.Module):
    """Latents (B, C, 16, 16) -> (B, D) for the contrastive loss; plays the part of the paper's image encoder."""

    def __init__(self, config: CrossFlowConfig) -> None:
        super().__init__()
        channels = (config.latent_channels, 64, 128, 256)
        self.trunk = nn.Sequential()
        for before, after in pairwise(channels):
            self.trunk.extend([nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GELU()])
        self.fc1 = nn.Linear(1024, 512)
        self.norm = nn.LayerNorm(512)
        self.fc2 = nn.Linear(512, config.latent_elements)
        self.log_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.norm(nn.functional.gelu(self.fc1(self.trunk(latents).flatten(1))))
        embedding: Tensor = self.fc2(hidden)
        return embedding


class Trainee(nn.Module):
    def __init__(self, flow: CrossFlow) -> None:
        super().__init__()
        self.flow = flow
        self.tower = PictureTower(flow.config)


class CaptionStates:
    """Token states of captions, computed once each and kept in float16 where the encoder is."""

    def __init__(self, encoder: TextEncoder, tokens: int) -> None:
        self.encoder, self.tokens = encoder, tokens
        self.known: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        missing = sorted({caption for caption in captions if caption not in self.known})
        if missing:
            encoded = self.encoder.encode(missing, self.tokens)
            self.known |= {c: (s.half(), m) for c, s, m in zip(missing, encoded.states, encoded.mask, strict=True)}
        states, masks = zip(*(self.known[caption] for caption in captions), strict=True)
        with torch.autocast(states[0].device.type, enabled=False):  # it knows no float16 on a CPU
            return torch.stack(states).float(), torch.stack(masks)


def cached_latents(autoencoder: ImageAutoencoder, pixels: np.ndarray, path: Path) -> Tensor:
    """Latents of ``pixels`` (N, 128, 128, 3), from ``path`` if it is there; (N, C, 16, 16) float16."""
    if path.exists():
        stored: Tensor = torch.load(path, weights_only=True)
        return stored
    with autocast(DEVICE):
        parts = [
            autoencoder.encode(to_tensor(pixels[i : i + 64]).to(DEVICE)).half().cpu() for i in range(0, len(pixels), 64)
        ]
    latents = torch.cat(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(latents, path)
    return latents


def crossflow_loss(
    model: Trainee, latents: Tensor, states: Tensor, mask: Tensor, same: Tensor, encoder_only: bool = False
) -> tuple[Tensor, Metrics]:
    """One batch: ``latents`` (B, C, H, W), ``states`` (B, L, d), ``mask`` (B, L), ``same`` (B, B)."""
    count = len(latents)
    mean, log_variance = model.flow.encode_text(states, mask)
    source = fm.sample_source(mean, log_variance, torch.randn_like(mean))
    scale = model.tower.log_scale.exp().clamp(max=100)
    contrastive = fm.contrastive_loss(model.tower(latents), source.flatten(1), scale, same)
    kl = fm.kl_loss(mean, log_variance).mean()
    picture = (mean - FAINT * latents).square().mean()
    encoder_loss = contrastive + KL_WEIGHT * kl + PICTURE_WEIGHT * picture
    metrics: Metrics = {
        "contrastive": contrastive,
        "picture": picture,
        "kl": kl,
        "mean_deviation": mean.std(),
        "sigma": (0.5 * log_variance).exp().mean(),
    }
    if encoder_only:
        return encoder_loss, metrics
    t = torch.sigmoid(TIME_MEAN + TIME_DEVIATION * torch.randn(count, device=latents.device))
    null = torch.rand(count, device=latents.device) < NULL_SHARE
    if null.sum() < 2:
        null = torch.zeros_like(null)
    target = fm.exchange_null_targets(latents, null)
    predictions = model.flow(fm.interpolate(source, target, t), t, null)
    velocity = fm.velocity_target(source, target)
    flow = fm.flow_matching_loss(predictions, velocity).mean()
    metrics |= {"flow": flow, "flow_finest": (predictions[-1] - velocity).square().mean()}
    return flow + encoder_loss, metrics


def optimizers_of(model: Trainee, lr: float) -> list[Optimizer]:
    """Muon for the matrices inside blocks and layers, AdamW for the rest (arXiv 2502.16982: equal update sizes)."""
    inside = [
        parameter
        for name, parameter in model.flow.named_parameters()
        if parameter.ndim == 2
        and any(part in name for part in (".blocks.", ".layers.", ".reduction_layers.", "skip_denses"))
    ]
    chosen = set(map(id, inside))
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    muon = Muon([{"params": inside, "peak_lr": lr}], lr=lr, weight_decay=0.02)
    adamw = torch.optim.AdamW([{"params": rest, "peak_lr": lr}], lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [muon, adamw]


@torch.no_grad()
def sample_captions(
    flow: CrossFlow, states: CaptionStates, captions: Sequence[str], *, steps: int, guidance_scale: float, seed: int
) -> Tensor:
    """Latents (B, C, H, W) of ``captions``, drawn with one noise per caption from ``seed``."""
    mean, log_variance = flow.encode_text(*states(captions))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed)).to(mean.device)
    return fm.euler_sample(flow, fm.sample_source(mean, log_variance, noise), steps, guidance_scale)


def small(pictures: Tensor) -> Tensor:
    """(B, 3, 128, 128) -> (B, 768): 16x16, by which pictures are compared here."""
    return nn.functional.avg_pool2d(pictures, 8).flatten(1)


class Evaluation:
    """For captions of each split: what the mean of z0 shows and, once the backbone learns, samples, also on a sheet.

    Measured by how often one of the five nearest training pictures is of the caption's concept.
    """

    def __init__(
        self, model: Trainee, pictures: Pictures, states: CaptionStates, autoencoder: ImageAutoencoder
    ) -> None:
        self.model, self.states, self.autoencoder = model, states, autoencoder
        rng = np.random.default_rng(SEED)
        items = {split: pictures.select(split) for split in SPLITS}
        self.items = {split: [some[i] for i in rng.permutation(len(some))[:MEANS]] for split, some in items.items()}
        pixels = pictures.pixels[[item.row for item in items["train"]]]
        self.known = torch.cat([small(to_tensor(pixels[i : i + 512])) for i in range(0, len(pixels), 512)])
        self.concepts = [item.concept for item in items["train"]]

    def __call__(self, step: int, sampled: bool) -> Metrics:
        metrics: Metrics = {
            f"{split}_mean_top5": self._top5(items, self._means(items)) for split, items in self.items.items()
        }
        if sampled:
            first = {split: items[: SAMPLES[split]] for split, items in self.items.items()}
            made = {split: self._samples(items) for split, items in first.items()}
            save_sheet(torch.cat(list(made.values())), STATE / "crossflow" / f"step{step}.png", columns=12)
            metrics |= {f"{split}_top5": self._top5(items, made[split]) for split, items in first.items()}
        return metrics

    def _means(self, items: Sequence[Picture]) -> Tensor:
        mean, _ = self.model.flow.encode_text(*self.states(_captions(items)))
        return self._decoded(mean.float() / FAINT)

    def _samples(self, items: Sequence[Picture]) -> Tensor:
        captions = _captions(items)
        return self._decoded(
            sample_captions(self.model.flow, self.states, captions, steps=16, guidance_scale=1.5, seed=SEED)
        )

    def _decoded(self, latents: Tensor) -> Tensor:
        return torch.cat([self.autoencoder.decode(part) for part in latents.split(24)]).float()

    def _top5(self, items: Sequence[Picture], shown: Tensor) -> float:
        nearest = torch.cdist(small(shown.cpu()), self.known).topk(5, largest=False).indices.tolist()
        found = [item.concept in [self.concepts[i] for i in five] for item, five in zip(items, nearest, strict=True)]
        return float(np.mean(found))


def _captions(items: Sequence[Picture]) -> list[str]:
    return [styled(item.concept, item.style) for item in items]


def training_pictures(pictures: Pictures) -> tuple[np.ndarray, list[Captioned], list[Captioned]]:
    """Pixels of all pictures and recoloured copies; the original training items; the recoloured items."""
    originals = [Captioned(item.row, item.concept, item.style, item.synonyms) for item in pictures.select("train")]
    recoloured_pixels, recoloured = recoloured_pictures(pictures)
    return np.concatenate([pictures.pixels, recoloured_pixels]), originals, recoloured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of the picture tables")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--encoder-steps", type=int, default=ENCODER_STEPS, help="of the steps, the text encoder alone")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--lr", type=float, default=2e-3, help="1.5e-3 for batches of 192")
    arguments = add_continue_from(parser).parse_args()
    folder = data_folder(arguments.data)
    verify_checksums(folder)
    pictures = load_pictures(folder)
    autoencoder = load_autoencoder(WEIGHTS / "autoencoder-lite").to(DEVICE)
    states = CaptionStates(load_text_encoder(WEIGHTS / "text-encoder-lite").to(DEVICE), CONFIG.tokens)
    pixels, originals, recoloured = training_pictures(pictures)
    cache = STATE / "cache" / f"latents-{checksum_of(WEIGHTS / 'autoencoder-lite')[:12]}-{len(pixels)}.pt"
    latents = cached_latents(autoencoder, pixels, cache).to(DEVICE)
    print(f"{len(originals)} training pictures, {len(recoloured)} recoloured", flush=True)

    torch.manual_seed(SEED)
    model = Trainee(CrossFlow(CONFIG))
    if arguments.continue_from:
        model.flow.load_state_dict(load_crossflow(arguments.continue_from).state_dict())
    model.to(DEVICE)
    evaluation = Evaluation(model, pictures, states, autoencoder)

    def loss_of(indices: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        rng = np.random.default_rng((SEED, step))
        items = [
            recoloured[rng.integers(len(recoloured))] if rng.random() < RECOLOURED_SHARE else originals[i]
            for i in indices
        ]
        captions = [draw_caption(item, rng) for item in items]
        _, which = np.unique(captions, return_inverse=True)
        same = torch.from_numpy(which[:, None] == which[None, :]).to(DEVICE)
        chosen = latents[[item.row for item in items]].float()
        return crossflow_loss(model, chosen, *states(captions), same, encoder_only=step < arguments.encoder_steps)

    weights = train(
        "crossflow",
        model,
        optimizers_of(model, arguments.lr),
        Schedule(arguments.steps, warmup=60, cooldown=0.4),
        lambda step: shuffled_batches(len(originals), arguments.batch, SEED, step),
        loss_of,
        lambda step: evaluation(step, sampled=step > arguments.encoder_steps),
        seed=SEED,
        ema_decay=0.996,
        log_every=20,
        evaluate_every=500,
    )
    model.load_state_dict(weights)
    publish_crossflow(model.flow, WEIGHTS / "crossflow-lite")


if __name__ == "__main__":
    main()
