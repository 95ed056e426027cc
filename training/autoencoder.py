"""Recipe of ``assets/weights/autoencoder-lite``: diffusers' AutoencoderTiny, 128x128 RGB to 8 channels at 16x16.

    python -m training.autoencoder --data FOLDER

Loss: L1 and squared error on pixels and colour differences, L1 on horizontal and vertical differences (crisp edges), a
weak pull of the latents towards unit power, and scale equivariance (decoding pooled latents must give the pooled
picture, EQ-VAE, arXiv 2502.09509), because CrossFlow's coarse stage predicts pooled latents. The decoder sees noisy
latents, as a generator's are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional as F

from training.images import save_sheet, to_tensor
from training.loop import STATE, Metrics, Schedule, optimizer_groups, shuffled_batches, train
from training.pictures import Pictures, data_folder, load_pictures, verify_checksums
from training.publish import publish_autoencoder

SEED, BATCH = 11, 16
CONFIG = {
    "encoder_block_out_channels": (48, 48, 48, 48),
    "decoder_block_out_channels": (48, 48, 48, 48),
    "num_encoder_blocks": (0, 1, 2, 3),
    "num_decoder_blocks": (3, 3, 1, 0),
    "latent_channels": 8,
}


def augment(pixels: Tensor) -> Tensor:
    """Mirror half of the pictures; permute the colour channels of a sixth, so that every hue is met."""
    mirrored = torch.rand(len(pixels)) < 0.5
    pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
    for index in torch.nonzero(torch.rand(len(pixels)) < 0.17).flatten():
        pixels[index] = pixels[index, torch.randperm(3)]
    return pixels.contiguous(memory_format=torch.channels_last)


def differences(pixels: Tensor) -> tuple[Tensor, Tensor]:
    return pixels[..., 1:] - pixels[..., :-1], pixels[..., 1:, :] - pixels[..., :-1, :]


def with_chroma(pixels: Tensor) -> Tensor:
    """RGB and its two colour differences. Without them training settles in a grey optimum of L1."""
    red, green, blue = pixels.unbind(1)
    return torch.stack([red, green, blue, red - green, blue - green], 1)


def reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    difference = with_chroma(decoded - pixels)
    edges = sum(
        (F.l1_loss(a, b) for a, b in zip(differences(decoded), differences(pixels), strict=True)), torch.zeros(())
    )
    return difference.abs().mean() + difference.square().mean() + 0.5 * edges


def autoencoder_loss(model: AutoencoderTiny, pixels: Tensor) -> tuple[Tensor, Metrics]:
    latents = model.encode(pixels).latents
    noise_level = 0.15 * torch.rand(len(latents), 1, 1, 1)
    decoded = model.decode(latents + noise_level * torch.randn_like(latents)).sample.float()
    half = len(pixels) // 2
    pooled = model.decode(F.avg_pool2d(latents[:half], 2)).sample.float()
    reconstruction = reconstruction_loss(decoded, pixels)
    equivariance = F.l1_loss(pooled, F.avg_pool2d(pixels[:half], 2))
    power = latents.float().square().mean()
    loss = reconstruction + 0.25 * equivariance + 1e-3 * power
    chroma = with_chroma(decoded - pixels)[:, 3:].abs().mean()
    return loss, {
        "reconstruction": reconstruction,
        "chroma_error": chroma,
        "equivariance": equivariance,
        "latent_power": power,
    }


def psnr(decoded: Tensor, pixels: Tensor) -> Tensor:
    """Per-picture peak signal-to-noise ratio in dB of (B, 3, H, W) in [-1, 1]."""
    error = (decoded.clamp(-1, 1) - pixels).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / error.clamp_min(1e-8))


@torch.no_grad()
def reconstruct(model: AutoencoderTiny, pixels: Tensor) -> Tensor:
    return torch.cat([model.decode(model.encode(part).latents).sample.float() for part in pixels.split(32)])


def evaluate(model: AutoencoderTiny, pictures: Pictures, step: int) -> Metrics:
    held_out = pictures.select("heldout-concept")
    rows = [item.row for item in held_out][:: max(1, len(held_out) // 256)]
    pixels = to_tensor(pictures.pixels[rows])
    decoded = reconstruct(model, pixels)
    save_sheet(
        torch.stack([pixels[:40], decoded[:40]], 1).flatten(0, 1), STATE / "autoencoder" / f"step{step}.png", columns=10
    )
    values = psnr(decoded, pixels)
    return {"heldout_psnr": values.mean(), "heldout_psnr_p10": values.quantile(0.1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of the picture tables")
    parser.add_argument("--steps", type=int, default=3600)
    arguments = parser.parse_args()
    folder = data_folder(arguments.data)
    verify_checksums(folder)
    pictures = load_pictures(folder)
    rows = np.array([item.row for item in pictures.select("train", "heldout-pair", flags=True)])
    torch.manual_seed(SEED)
    model = AutoencoderTiny(**CONFIG).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(optimizer_groups(model, 2e-3, 1e-4), betas=(0.9, 0.99))
    weights = train(
        "autoencoder",
        model,
        [optimizer],
        Schedule(arguments.steps, warmup=100, cooldown=0.5),
        lambda step: shuffled_batches(len(rows), BATCH, SEED, step),
        lambda indices, _: autoencoder_loss(model, augment(to_tensor(pictures.pixels[rows[indices]]))),
        lambda step: evaluate(model, pictures, step),
        seed=SEED,
        ema_decay=0.998,
        evaluate_every=600,
    )
    model.load_state_dict(weights)
    publish_autoencoder(model.eval(), pictures, Path("assets/weights/autoencoder-lite"))


if __name__ == "__main__":
    main()
