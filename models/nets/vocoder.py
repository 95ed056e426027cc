"""Vocoders: mel spectrograms to waveforms.

- :class:`IstftVocoder`, ours: a network at the rate of frames predicts magnitude and phase of every bin, and the
  inverse transform does the rest (Vocos, arXiv 2306.00814): on a CPU far cheaper than transposed convolutions.
- :class:`HifiGanVocoder`: transformers' SpeechT5HifiGan, the class and the parameter names that AudioLDM ships.

Both turn standardised log-mels (B, F, M) of their ``mel`` into (B, F * hop) samples.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SpeechT5HifiGan

from models.errors import UserError
from models.mel import MelConfig, load_mel_config, magnitudes_of, mel_filters
from models.packing import save_half

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class VocoderConfig:
    """``width`` of a frame inside the network, ``hidden`` width of a block's two layers, number of ``blocks``."""

    width: int
    hidden: int
    blocks: int


class ConvNextBlock(nn.Module):
    """A depthwise convolution over seven frames, then two layers within each, scaled by ``gamma``."""

    def __init__(self, width: int, hidden: int, gamma: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.reduce = nn.Linear(hidden, width)
        self.gamma = nn.Parameter(torch.full((width,), gamma))

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, width) -> (B, F, width)."""
        y = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        y = self.reduce(F.gelu(self.expand(self.norm(y))))
        return cast(Tensor, x + self.gamma * y)


class IstftVocoder(nn.Module):
    """Corrects the magnitudes that the mel bands suggest, and finds the phases. ``mel`` says what it listens to.

    Beside the paper's head, magnitudes start from the bands' envelope, and phases from a pulse in the middle of the
    frame (at its edges the window is zero), so that an untrained network already has about the right loudness.
    """

    def __init__(self, config: VocoderConfig, mel: MelConfig) -> None:
        super().__init__()
        self.config = config
        self.mel = mel
        self.embed = nn.Conv1d(mel.bands, config.width, 7, padding=3)
        self.norm = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(
            ConvNextBlock(config.width, config.hidden, 1 / config.blocks) for _ in range(config.blocks)
        )
        self.final_norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, mel.fft_size + 2)
        self.apply(_initialise)

    def forward(self, mels: Tensor) -> Tensor:
        """Raises :class:`ValueError` for other bands or no frame."""
        _require(mels, self.mel)
        x = self.norm(self.embed(mels.transpose(1, 2)).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        head = self.head(self.final_norm(x))
        with torch.autocast(mels.device.type, enabled=False):
            correction, phases = head.float().chunk(2, -1)
            magnitudes = self._envelope(mels) * correction.clamp(max=5).exp()
            middle = torch.pi * torch.arange(phases.shape[2], device=mels.device)
            bins = torch.polar(magnitudes, phases + middle).transpose(1, 2)
            window = torch.hann_window(self.mel.fft_size, device=mels.device)
            samples = self.mel.samples(mels.shape[1])
            return torch.istft(bins, self.mel.fft_size, self.mel.hop, window=window, length=samples)

    def _envelope(self, mels: Tensor) -> Tensor:
        """(B, F, M) -> (B, F, bins): from one band's mean magnitude to the next one's."""
        filters = mel_filters(self.mel).to(mels.device)
        in_band = magnitudes_of(mels.float(), self.mel) / filters.sum(0)
        shares = filters / filters.sum(1, keepdim=True).clamp(min=1e-8)
        return in_band @ shares.T

    def save_pretrained(self, folder: Path) -> None:
        """``config.json``, ``mel.json`` and ``model.safetensors`` in float16."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(
            json.dumps({"_class_name": "IstftVocoder", **asdict(self.config)}, indent=2) + "\n"
        )
        self.mel.save(folder)
        save_half(self.state_dict(), folder / WEIGHTS)


class HifiGanVocoder(nn.Module):
    """AudioLDM's vocoder class behind the same call.

    Raises :class:`UserError` if the network was made for spectrograms other than ``mel``.
    """

    def __init__(self, model: SpeechT5HifiGan, mel: MelConfig) -> None:
        super().__init__()
        config = model.config
        found = (config.model_in_dim, prod(config.upsample_rates), config.sampling_rate)
        expected = (mel.bands, mel.hop, mel.sample_rate)
        if found != expected:
            raise UserError(
                f"The vocoder's bands, hop and sample rate are {found}, and its spectrograms have {expected}.",
                "Take vocoder and autoencoder from the same model.",
            )
        self.model = model
        self.mel = mel

    def forward(self, mels: Tensor) -> Tensor:
        """Raises :class:`ValueError` for other bands or no frame."""
        _require(mels, self.mel)
        waveforms = cast(Tensor, self.model(mels))
        return waveforms[:, : self.mel.samples(mels.shape[1])]  # uneven kernels and rates leave a few more at the end


def _require(mels: Tensor, config: MelConfig) -> None:
    if mels.ndim != 3 or mels.shape[2] != config.bands or not mels.shape[1]:
        raise ValueError(f"expected (B, F, {config.bands}) with F > 0, not {tuple(mels.shape)}")


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(cast(Tensor, module.bias))


def load_vocoder(folder: Path) -> IstftVocoder | HifiGanVocoder:
    """A folder of either kind, float32 on the CPU. Raises :class:`UserError` if it holds something else."""
    values: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    mel = load_mel_config(folder)
    if "SpeechT5HifiGan" in values.get("architectures", ()):  # its model_type has changed since AudioLDM
        model = SpeechT5HifiGan.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        return HifiGanVocoder(model.eval(), mel)
    if values.pop("_class_name", None) != "IstftVocoder":
        raise UserError(f"The weights in '{folder}' are no vocoder.", "It must be IstftVocoder or SpeechT5HifiGan.")
    vocoder = IstftVocoder(VocoderConfig(**values), mel)
    vocoder.load_state_dict(load_file(folder / WEIGHTS))
    return vocoder.eval()
