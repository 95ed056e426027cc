"""The one definition of a mel spectrogram: what every sound model here hears, writes or voices.

AudioLDM's choices (fact sheet ``v2a_mapper.md``): magnitudes of a centred, reflected short-time Fourier transform with
a periodic Hann window; Slaney's mel scale and area-normalised triangles, as librosa's; natural logarithm above a floor.
One wrong item makes a vocoder of another definition speak noise, so a definition is stored beside every weight.

Shapes: B sounds, N samples, F frames, M bands.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

FILE = "mel.json"


@dataclass(frozen=True)
class MelConfig:
    """``sample_rate``, ``lowest`` and ``highest`` in Hz; ``fft_size`` (also the window) and ``hop`` in samples.

    ``floor``: the smallest magnitude that is told from silence. ``mean`` and ``deviation`` of the logarithm bring
    spectrograms to about zero mean and unit deviation; 0 and 1 leave them as they are.
    """

    sample_rate: int
    fft_size: int
    hop: int
    bands: int
    lowest: float
    highest: float
    floor: float
    mean: float
    deviation: float

    @property
    def silence(self) -> float:
        """What a silent frame's bands are: no spectrogram goes below it."""
        return (math.log(self.floor) - self.mean) / self.deviation

    @property
    def shortest(self) -> int:
        """Samples that a sound has at least: less cannot be reflected at its ends."""
        return self.fft_size // 2 + 1

    def frames(self, samples: int) -> int:
        return samples // self.hop

    def samples(self, frames: int) -> int:
        return frames * self.hop

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")


# Mean and deviation are those of the sounding frames of the training clips, rounded.
LITE_MEL = MelConfig(16_000, 1024, 256, 64, 0.0, 8000.0, 1e-5, -4.6, 2.8)
AUDIOLDM_MEL = MelConfig(16_000, 1024, 160, 64, 0.0, 8000.0, 1e-5, 0.0, 1.0)


def load_mel_config(folder: Path) -> MelConfig:
    """The definition stored in a folder of weights; AudioLDM's own folders, which store none, have AudioLDM's."""
    path = folder / FILE
    return MelConfig(**json.loads(path.read_text())) if path.exists() else AUDIOLDM_MEL


def log_mel(waveforms: Tensor, config: MelConfig) -> Tensor:
    """(B, N) in [-1, 1] -> (B, N // hop, M) float32, standardised; differentiable; float32 under autocast too.

    Raises :class:`ValueError` for other shapes and for fewer than ``config.shortest`` samples.
    """
    if waveforms.ndim != 2 or waveforms.shape[1] < config.shortest:
        raise ValueError(f"expected (B, N) with N >= {config.shortest}, not {tuple(waveforms.shape)}")
    with torch.autocast(waveforms.device.type, enabled=False):
        frames = config.frames(waveforms.shape[1])
        magnitudes = spectrum(waveforms, config.fft_size, config.hop).abs()[..., :frames]
        mels = magnitudes.transpose(1, 2) @ mel_filters(config).to(waveforms.device)
        return (mels.clamp(min=config.floor).log() - config.mean) / config.deviation


def spectrum(waveforms: Tensor, fft_size: int, hop: int) -> Tensor:
    """The short-time Fourier transform that all measures share: (B, N) -> complex (B, fft_size // 2 + 1, 1 + N // hop).

    Centred, reflected at the ends, with a periodic Hann window as long as the transform.
    """
    window = torch.hann_window(fft_size, device=waveforms.device)
    return torch.stft(waveforms.float(), fft_size, hop, window=window, return_complex=True, pad_mode="reflect")


def magnitudes_of(mels: Tensor, config: MelConfig) -> Tensor:
    """Standardised log-mels (..., M) back to mel magnitudes, at least ``floor``."""
    return (mels * config.deviation + config.mean).exp().clamp(min=config.floor)


@lru_cache
def mel_filters(config: MelConfig) -> Tensor:
    """(fft_size // 2 + 1, M): triangles that overlap by half on Slaney's mel scale, each with an area of one per Hz."""
    frequencies = torch.linspace(0, config.sample_rate / 2, config.fft_size // 2 + 1, dtype=torch.float64)
    lowest, highest = _to_mel(config.lowest), _to_mel(config.highest)
    edges = _to_hertz(torch.linspace(lowest, highest, config.bands + 2, dtype=torch.float64))
    rising = (frequencies[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies[:, None]) / (edges[2:] - edges[1:-1])
    triangles = F.relu(torch.minimum(rising, falling))
    return (triangles * 2 / (edges[2:] - edges[:-2])).float()


# Slaney's scale: 3 mel for 200 Hz up to 1 kHz, above it 27 mel for a factor of 6.4.
_KNEE_HERTZ, _KNEE_MEL, _MEL_PER_LOG = 1000.0, 15.0, 27 / math.log(6.4)


def _to_mel(hertz: float) -> float:
    if hertz < _KNEE_HERTZ:
        return hertz * 3 / 200
    return _KNEE_MEL + math.log(hertz / _KNEE_HERTZ) * _MEL_PER_LOG


def _to_hertz(mel: Tensor) -> Tensor:
    return torch.where(mel < _KNEE_MEL, mel * 200 / 3, _KNEE_HERTZ * ((mel - _KNEE_MEL) / _MEL_PER_LOG).exp())
