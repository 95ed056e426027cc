"""What the sound recipes and benchmarks measure by, and Griffin-Lim, which every trained vocoder has to beat.

Shapes: B sounds, N samples, F frames, M bands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.mel import MelConfig, magnitudes_of, mel_filters, spectrum
from training.images import save_sheet

FFT_SIZES = (512, 1024, 2048)
# A full-scale sine reaches 128 to 512: below about -108 dB nothing is told from silence.
QUIETEST = 1e-3
DECIBELS = 20 / math.log(10)


def stft_distance(made: Tensor, real: Tensor, fft_sizes: Sequence[int] = FFT_SIZES) -> Tensor:
    """Multi-resolution STFT distance of (B, N) waveforms, (B,) (Parallel WaveGAN, arXiv 1910.11480).

    Mean over the resolutions of spectral convergence (relative error of the magnitudes) + mean absolute difference of
    their natural logarithms.
    """
    return torch.stack([_distance(made, real, size) for size in fft_sizes]).mean(0)


def _distance(made: Tensor, real: Tensor, fft_size: int) -> Tensor:
    a, b = (spectrum(waveforms, fft_size, fft_size // 4).abs() for waveforms in (made, real))
    # The norm of a silent clip would make its convergence endless; 1 is that of a sine at about -70 dB.
    convergence = (a - b).norm(dim=(1, 2)) / b.norm(dim=(1, 2)).clamp(min=1)
    logarithms = (a.clamp(min=QUIETEST).log() - b.clamp(min=QUIETEST).log()).abs().mean((1, 2))
    return convergence + logarithms


def mel_error(made: Tensor, real: Tensor, config: MelConfig) -> Tensor:
    """Mean absolute difference in decibels of standardised log-mels (B, F, M) in the frames that sound, (B,)."""
    sounding = (real.amax(2) > config.silence + 1e-3).float()
    difference = (made - real).abs().mean(2) * config.deviation * DECIBELS
    return (difference * sounding).sum(1) / sounding.sum(1).clamp(min=1)


def linear_magnitudes(mels: Tensor, config: MelConfig, updates: int = 50) -> Tensor:
    """Standardised log-mels (B, F, M) -> magnitudes (B, fft_size // 2 + 1, F), by non-negative least squares.

    Multiplicative updates: no result is negative, and 50 come nearer than the pseudo-inverse (``v2a_mapper.md`` 8).
    """
    filters = mel_filters(config)
    wanted = magnitudes_of(mels, config) @ filters.T
    gram = filters @ filters.T
    linear = torch.ones_like(wanted) * wanted.mean()
    for _ in range(updates):
        linear = linear * wanted / (linear @ gram).clamp(min=1e-12)
    return linear.transpose(1, 2)


@torch.no_grad()
def griffin_lim(mels: Tensor, config: MelConfig, iterations: int = 32, momentum: float = 0.99) -> Tensor:
    """Standardised log-mels (B, F, M) -> (B, F * hop) waveforms by the fast variant (Perraudin et al., 2013)."""
    magnitudes = linear_magnitudes(mels.float(), config)
    frames = mels.shape[1]
    angles = 2 * math.pi * torch.rand(magnitudes.shape, generator=torch.Generator().manual_seed(0))
    phases = torch.polar(torch.ones_like(angles), angles)
    before = torch.zeros_like(phases)
    for _ in range(iterations):
        rebuilt = spectrum(_voice(magnitudes * phases, config), config.fft_size, config.hop)[..., :frames]
        faster = rebuilt - momentum / (1 + momentum) * before
        phases = faster / faster.abs().clamp(min=1e-16)
        before = rebuilt
    return _voice(magnitudes * phases, config)


@torch.no_grad()
def with_phases_of(waveforms: Tensor, mels: Tensor, config: MelConfig) -> Tensor:
    """What Griffin-Lim would make of (B, F, M) if it knew the phases of (B, F * hop) ``waveforms``: what is still wrong
    then, the bands do not tell."""
    phases = spectrum(waveforms, config.fft_size, config.hop)[..., : mels.shape[1]].angle()
    return _voice(torch.polar(linear_magnitudes(mels.float(), config), phases), config)


def _voice(bins: Tensor, config: MelConfig) -> Tensor:
    """(B, bins, F) -> (B, F * hop)."""
    window, samples = torch.hann_window(config.fft_size), config.samples(bins.shape[2])
    return torch.istft(bins, config.fft_size, config.hop, window=window, length=samples)


def save_spectrograms(mels: Tensor, config: MelConfig, path: Path, columns: int) -> None:
    """Write standardised log-mels (B, F, M) as grey pictures on one PNG: time to the right, low bands below."""
    low, high = config.silence, (math.log(10) - config.mean) / config.deviation
    grey = ((mels - low) / (high - low) * 2 - 1).transpose(1, 2).flip(1)
    save_sheet(grey[:, None].expand(-1, 3, -1, -1), path, columns)
