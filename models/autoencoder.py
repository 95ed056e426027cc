"""Image autoencoders: pixels to latents and back, in diffusers' classes at both sizes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

CLASSES = {"AutoencoderTiny": AutoencoderTiny, "AutoencoderKL": AutoencoderKL}
# CrossFlow's released models were trained on Stable Diffusion latents times this, not on 0.18215 (fact sheet 1.1).
CROSSFLOW_SD_SCALE = 0.23010


class ImageAutoencoder(nn.Module):
    """``encode`` and ``decode`` between RGB in [-1, 1] and latents of about zero mean and unit deviation."""

    def __init__(self, model: AutoencoderTiny | AutoencoderKL, scale: float, shift: float) -> None:
        super().__init__()
        self.model = model
        self.scale = scale
        self.shift = shift

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> latents (B, C, h, w)."""
        encoded = self.model.encode(pixels)
        latents = encoded.latents if isinstance(self.model, AutoencoderTiny) else encoded.latent_dist.mode()
        return (latents.float() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> (B, 3, H, W), clamped to [-1, 1]."""
        decoded = self.model.decode(latents / self.scale + self.shift).sample
        return decoded.float().clamp(-1, 1)


def load_autoencoder(folder: Path) -> ImageAutoencoder:
    """A diffusers folder of AutoencoderTiny or AutoencoderKL kind; float32 on the CPU."""
    kind = json.loads((folder / "config.json").read_text())["_class_name"]
    model = CLASSES[kind].from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True).eval()
    if isinstance(model, AutoencoderKL):
        return ImageAutoencoder(model, CROSSFLOW_SD_SCALE, 0.0)
    return ImageAutoencoder(model, model.config.scaling_factor, model.config.shift_factor)
