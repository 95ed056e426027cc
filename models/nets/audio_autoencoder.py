"""Sound autoencoders: mel spectrograms to latents and back, in diffusers' classes at both sizes.

A spectrogram is a picture of one channel, time downwards, as in AudioLDM.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from models.errors import UserError
from models.mel import MelConfig, load_mel_config

CLASSES = {"AutoencoderTiny": AutoencoderTiny, "AutoencoderKL": AutoencoderKL}


class AudioAutoencoder(nn.Module):
    """``encode`` and ``decode`` between log-mels of ``mel`` and latents of about zero mean and unit deviation.

    ``factor``: frames, and bands, to one latent.
    """

    def __init__(self, model: AutoencoderTiny | AutoencoderKL, mel: MelConfig) -> None:
        super().__init__()
        self.model = model
        self.mel = mel
        tiny = isinstance(model, AutoencoderTiny)
        widths = model.config.encoder_block_out_channels if tiny else model.config.block_out_channels
        self.factor = 2 ** (len(widths) - 1)
        self.scale: float = model.config.scaling_factor
        self.shift: float = model.config.shift_factor or 0.0

    @torch.no_grad()
    def encode(self, mels: Tensor) -> Tensor:
        """Standardised log-mels (B, F, M) -> latents (B, C, F / factor, M / factor).

        Raises :class:`ValueError` for other bands and for frames that are no multiple of ``factor``.
        """
        if mels.ndim != 3 or mels.shape[2] != self.mel.bands or not mels.shape[1] or mels.shape[1] % self.factor:
            raise ValueError(
                f"expected (B, F, {self.mel.bands}) with F a multiple of {self.factor}, not {tuple(mels.shape)}"
            )
        encoded = self.model.encode(mels[:, None])
        latents = encoded.latents if isinstance(self.model, AutoencoderTiny) else encoded.latent_dist.mode()
        return (latents.float() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, f, m) -> standardised log-mels (B, f * factor, m * factor), nowhere below silence."""
        decoded = self.model.decode(latents / self.scale + self.shift).sample
        return decoded[:, 0].float().clamp(min=self.mel.silence)


def load_audio_autoencoder(folder: Path) -> AudioAutoencoder:
    """A diffusers folder of AutoencoderTiny or AutoencoderKL kind, ours or AudioLDM's; float32 on the CPU.

    Raises :class:`UserError` if it holds something else.
    """
    kind = json.loads((folder / "config.json").read_text()).get("_class_name")
    if kind not in CLASSES:
        raise UserError(f"The weights in '{folder}' are no sound autoencoder.", f"It must be {' or '.join(CLASSES)}.")
    model = CLASSES[kind].from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True).eval()
    if model.config.in_channels != 1:
        raise UserError(
            f"The autoencoder in '{folder}' reads pictures of {model.config.in_channels} channels.",
            "A sound autoencoder reads one.",
        )
    return AudioAutoencoder(model, load_mel_config(folder))
