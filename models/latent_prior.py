"""Diffusion models of pictures, in an autoencoder's latents, as priors of what an object looks like.

By diffusers' parts. What two published ones have in common, Stable unCLIP (``models/stable_unclip.py``) and Zero-1-to-3
(``models/zero123.py``): estimates of the clean latents with classifier-free guidance, for the optimisation, and
sampling. Gradients go through :meth:`LatentPrior.encode` to pictures; networks are asked without.

Shapes: B pictures, s a side of latents, S = s times the autoencoder's factor a side of pictures.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from models.ddim import clean_and_noise, mixed, noise_levels
from models.errors import UserError
from models.pretrained import read_config

STANDARD = ("image_mean", "image_std")


@dataclass(frozen=True)
class Asked:
    """What B pictures are asked for by: ``states`` (B, T, C) that the network attends to; ``labels`` (B, L), joined to
    the embedding of the time; ``beside`` (B, 4, s, s), latents beside the noisy ones."""

    states: Tensor
    labels: Tensor | None = None
    beside: Tensor | None = None

    def and_(self, other: Asked) -> Asked:
        """One after the other, along B; of one kind."""
        pairs = (self.states, other.states), (self.labels, other.labels), (self.beside, other.beside)
        states, labels, beside = (None if one is None else torch.cat([one, cast(Tensor, two)]) for one, two in pairs)
        assert states is not None
        return Asked(states, labels, beside)

    def times(self, count: int) -> Asked:
        """One, for ``count`` pictures."""
        labels, beside = (
            None if one is None else one.expand(count, *one.shape[1:]) for one in (self.labels, self.beside)
        )
        return Asked(self.states.expand(count, *self.states.shape[1:]), labels, beside)

    def __getitem__(self, part: slice) -> Asked:
        """Some of the pictures."""
        labels, beside = (None if one is None else one[part] for one in (self.labels, self.beside))
        return Asked(self.states[part], labels, beside)


class LatentPrior(nn.Module, ABC):
    """``unet`` predicts what ``schedule`` says of latents of ``vae``."""

    def __init__(self, unet: UNet2DConditionModel, vae: AutoencoderKL, schedule: DDIMScheduler) -> None:
        super().__init__()
        self.unet = unet
        self.vae = vae
        self.schedule = schedule
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.channels: int = vae.config.latent_channels
        self.latent_side: int = unet.config.sample_size  # at training

    def encode(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [-1, 1] -> latents (B, 4, s, s) float32; gradients go back."""
        found = self.vae.encode(pixels).latent_dist.mode()
        return cast(Tensor, found.float() * self.vae.config.scaling_factor)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, 4, s, s) -> pictures (B, 3, S, S) float32 in [-1, 1]."""
        seen = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return cast(Tensor, seen.float().clamp(-1, 1))

    def share(self, time: float) -> float:
        """Of signal power (alpha bar) at a time from 0, clean, to 1, noise."""
        return float(self.schedule.alphas_cumprod[self._timestep(time)])

    @torch.no_grad()
    def estimate(self, noisy: Tensor, time: float, asked: Asked, free: Asked, guidance: float) -> tuple[Tensor, Tensor]:
        """The clean latents of ``noisy`` (B, 4, s, s) at a time in [0, 1], and their noise, as ``asked``; ``free`` is
        what guidance leads away from, and 1 means none (arXiv 2207.12598)."""
        return self._estimate(noisy, self._timestep(time), self.share(time), asked, free, guidance)

    @torch.no_grad()
    def sample(
        self, asked: Asked, free: Asked, steps: int, guidance: float, seeds: Sequence[int], side: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """By DDIM, one seed each: after every step the present estimate of the clean latents and the latents,
        (B, 4, side, side) both. A picture depends on what is asked and its seed alone: noise is drawn on the CPU."""
        timesteps, shares = noise_levels(self.schedule, steps)
        shape = (self.channels, side, side)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        latents = torch.stack(noise).to(asked.states.device)
        for step, timestep in enumerate(timesteps.tolist()):
            clean, rest = self._estimate(latents, timestep, shares[step], asked, free, guidance)
            latents = mixed(clean, rest, shares[step + 1])
            yield clean, latents

    def _estimate(
        self, noisy: Tensor, timestep: int, share: float, asked: Asked, free: Asked, guidance: float
    ) -> tuple[Tensor, Tensor]:
        both = asked if guidance == 1 else free.and_(asked)
        copies = len(both.states) // len(noisy)
        given = noisy.repeat(copies, 1, 1, 1)
        if both.beside is not None:
            given = torch.cat([given, both.beside], 1)
        predicted = self.unet(given, timestep, both.states, class_labels=both.labels).sample.float()
        if guidance != 1:
            without, conditional = predicted.chunk(2)
            predicted = without + guidance * (conditional - without)
        return clean_and_noise(self.schedule, noisy, predicted, share)

    def _timestep(self, time: float) -> int:
        count: int = self.schedule.config.num_train_timesteps
        return min(max(int(time * count), 0), count - 1)


def standardised(pixels: Tensor, side: int, reading: dict[str, Any]) -> Tensor:
    """Square pictures (B, 3, S, S) in [-1, 1] as a CLIP sees them, (B, 3, side, side); gradients go back.

    ``reading``: its ``preprocessor_config.json``. Raises :class:`ValueError` for what is not square.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] != pixels.shape[3]:
        raise ValueError(f"expected (B, 3, S, S), not {tuple(pixels.shape)}")
    seen = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
    mean, deviation = (pixels.new_tensor(reading[key])[:, None, None] for key in STANDARD)
    return (seen / 2 + 0.5 - mean) / deviation


def load_schedule(folder: Path) -> DDIMScheduler:
    """Whatever sampler a schedule was saved for, its noise levels are what counts.

    Raises :class:`UserError` if networks are to predict something else than noise or velocity.
    """
    schedule = DDIMScheduler.from_config(read_config(folder / "scheduler_config.json"))
    if schedule.config.prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(
            f"The schedule in '{folder}' is of another kind than these models have.",
            "It must predict epsilon or v_prediction.",
        )
    return schedule


def read_reading(folder: Path) -> dict[str, Any]:
    """How a CLIP sees pictures. Raises :class:`UserError` if the file lacks the colours' mean or deviation."""
    path = folder / "preprocessor_config.json"
    reading = read_config(path)
    if any(key not in reading for key in STANDARD):
        raise UserError(f"'{path}' does not say what mean and deviation colours have.", "Fetch the model again.")
    return reading


def require_index(folder: Path, names: Sequence[str], title: str, hint: str) -> None:
    """Raises :class:`UserError` unless the folder's ``model_index.json`` is of one of these pipelines."""
    if read_config(folder / "model_index.json").get("_class_name") not in names:
        raise UserError(f"The weights in '{folder}' are no {title}.", hint)
