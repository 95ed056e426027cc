"""Recipe of ``assets/weights/audio-autoencoder-lite``: diffusers' AutoencoderTiny, log-mels to latents and back.

    python -m training.audio_autoencoder --data FOLDER

256 frames of 64 bands (4.096 s) become 8 channels of 64x16, the shape of AudioLDM's latents. Loss: L1 and squared error
of the log-mels, L1 of their differences in time and in frequency (crisp onsets and overtones), a pull of the latents
towards zero, because the decoder cuts them off at 3. It sees noisy latents, as a generator's are. Trained on random two
seconds of clips, some of them mixed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from models.mel import LITE_MEL, log_mel
from models.nets.audio_autoencoder import AudioAutoencoder
from training.loop import STATE, Metrics, Schedule, optimizer_groups, shuffled_batches, train
from training.pictures import data_folder
from training.publish import write_sums
from training.sound_measures import mel_error, save_spectrograms
from training.sounds import HELD_OUT, Sound, Sounds, augment, load_sounds, sound_arguments, weights_name

SEED, BATCH, STEPS = 41, 16, 3600
CROP = LITE_MEL.samples(128)
CONFIG = {
    "in_channels": 1,
    "out_channels": 1,
    "encoder_block_out_channels": (48, 48, 48),
    "decoder_block_out_channels": (48, 48, 48),
    "num_encoder_blocks": (0, 1, 3),
    "num_decoder_blocks": (3, 2, 0),
    "latent_channels": 8,
}


def autoencoder_loss(model: AutoencoderTiny, mels: Tensor) -> tuple[Tensor, Metrics]:
    """``mels``: standardised log-mels (B, F, M)."""
    spectrograms = mels[:, None]
    latents = model.encode(spectrograms).latents
    noise_level = 0.15 * torch.rand(len(latents), 1, 1, 1)
    decoded = model.decode(latents + noise_level * torch.randn_like(latents)).sample.float()
    difference = decoded - spectrograms
    reconstruction = difference.abs().mean() + 0.5 * difference.square().mean()
    edges = difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
    power = latents.float().square().mean()
    loss = reconstruction + 0.25 * edges + 1e-2 * power
    return loss, {
        "reconstruction": reconstruction,
        "mel_error_db": mel_error(decoded[:, 0].detach(), mels, LITE_MEL).mean(),
        "latent_power": power,
    }


def evaluate(model: AutoencoderTiny, sounds: Sounds, name: str, step: int) -> Metrics:
    """Mean error in decibels on held-out clips of either kind, and a sheet of ten, each beside its reconstruction."""
    autoencoder = AudioAutoencoder(model, LITE_MEL)
    metrics: Metrics = {}
    for split in HELD_OUT:
        items = sounds.select(split)
        mels = log_mel(sounds.waveforms(items[:: max(1, len(items) // 128)]), LITE_MEL)
        decoded = torch.cat([autoencoder.decode(autoencoder.encode(part)) for part in mels.split(32)])
        metrics[f"{split}_error_db"] = mel_error(decoded, mels, LITE_MEL).mean()
        pairs = torch.stack([mels[:10], decoded[:10]], 1).flatten(0, 1)
        save_spectrograms(pairs, LITE_MEL, STATE / name / f"{split}-step{step}.png", columns=4)
    return metrics


@torch.no_grad()
def publish(model: AutoencoderTiny, sounds: Sounds, items: list[Sound], folder: Path) -> None:
    """Set scale and shift so that the latents of ``items`` have mean 0 and deviation 1; save float16."""
    mels = (log_mel(sounds.waveforms(items[i : i + 32]), LITE_MEL) for i in range(0, len(items), 32))
    latents = torch.cat([model.encode(part[:, None]).latents for part in mels])
    model.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))
    model.to(torch.float16).save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["block_out_channels"]  # diffusers writes it, and warns of it when it reads it
    path.write_text(json.dumps(config, indent=2) + "\n")
    LITE_MEL.save(folder)
    write_sums(folder)
    print("latents: deviation per channel", [round(value, 2) for value in latents.std((0, 2, 3)).tolist()])


def main() -> None:
    arguments = sound_arguments(__doc__, STEPS).parse_args()
    sounds = load_sounds(data_folder(arguments.data))
    items = sounds.select("train", permissive_only=arguments.permissive_only)
    name = weights_name("audio-autoencoder", arguments.permissive_only)
    torch.manual_seed(SEED)
    model = AutoencoderTiny(**CONFIG).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(optimizer_groups(model, 2e-3, 1e-4), betas=(0.9, 0.99))

    def loss_of(indices: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        crops = sounds.crops([items[i] for i in indices], CROP, np.random.default_rng((SEED, step)))
        return autoencoder_loss(model, log_mel(augment(crops, 0.3, -20, 0), LITE_MEL))

    weights = train(
        name,
        model,
        [optimizer],
        Schedule(arguments.steps, warmup=100, cooldown=0.5),
        lambda step: shuffled_batches(len(items), BATCH, SEED, step),
        loss_of,
        lambda step: evaluate(model, sounds, name, step),
        seed=SEED,
        ema_decay=0.998,
        evaluate_every=600,
    )
    model.load_state_dict(weights)
    publish(model.eval(), sounds, items[::8], Path("assets/weights") / f"{name}-lite")


if __name__ == "__main__":
    main()
