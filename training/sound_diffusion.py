"""What the two sound diffusion recipes share: the network, the loss, clips made new each time, and the measures.

``training.sound_generator`` conditions it on the sound itself, ``training.picture_sound`` on a picture of what sounds.
Latents and vectors are made on the fly by the frozen models, since every clip is changed before it is heard: that costs
a fifth of a step.

Shapes: B sounds, N samples, D dimensions of a condition, latents (B, 8, 64, 16).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn import functional as F

from models.mel import LITE_MEL, log_mel
from models.nets.audio_autoencoder import load_audio_autoencoder
from models.sound_generator import SoundGenerator
from models.sound_text import load_sound_text
from training.loop import DEVICE, STATE, Metrics, Schedule, optimizer_groups, shuffled_batches, train
from training.publish import write_sums
from training.sound_measures import save_spectrograms
from training.sounds import HELD_OUT, SAMPLES, Sound, Sounds, at_length, to_waveforms, weights_name

WEIGHTS = Path("assets/weights")
CONDITION_WIDTH = 256
# The fact sheets' small network (v2a_mapper.md and clipsonic.md, section 8), with AudioLDM's way to take a condition.
CONFIG = {
    "sample_size": (64, 16),
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": (64, 128, 192),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": (64, 128, 192),  # as AudioLDM's: without states to attend to, it is self-attention
    "attention_head_dim": (2, 4, 6),  # diffusers' name for the number of heads
    "class_embed_type": "simple_projection",
    "projection_class_embeddings_input_dim": CONDITION_WIDTH,
    "class_embeddings_concat": True,
}
TRAINING_STEPS = 1000
SCHEDULE = {
    "num_train_timesteps": TRAINING_STEPS,
    "beta_schedule": "squaredcos_cap_v2",
    "rescale_betas_zero_snr": True,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
NULL_SHARE = 0.1
SOFTENING = (0.1, 0.3)  # total norm of the noise on a condition, which makes the generator forgive a mapper
PEAK = 0.89  # of every clip of the table
MEASURED, SHOWN = 96, 12  # clips of either kind, at most: for the loss, and to be generated
STEPS, GUIDANCE = 20, 2.5  # of the generated ones


def new_generator() -> SoundGenerator:
    """An untrained one; its null condition begins at zero and is learned."""
    unet = UNet2DConditionModel(**CONFIG)
    return SoundGenerator(unet, DDIMScheduler(**SCHEDULE), torch.zeros(CONDITION_WIDTH), *unet.config.sample_size)


class Listener:
    """The frozen autoencoder and CLAP-lite, trained on the same choice of clips."""

    def __init__(self, permissive_only: bool) -> None:
        self.autoencoder = load_audio_autoencoder(
            WEIGHTS / f"{weights_name('audio-autoencoder', permissive_only)}-lite"
        )
        self.space = load_sound_text(WEIGHTS / f"{weights_name('sound-text', permissive_only)}-lite")
        self.autoencoder.to(DEVICE).model.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
        self.space.to(DEVICE)

    @torch.no_grad()
    def hear(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """(B, SAMPLES) -> latents (B, 8, 64, 16) and unit vectors (B, D) of the very same sounds."""
        mels = log_mel(waveforms.to(DEVICE), LITE_MEL)
        return self.autoencoder.encode(mels), self.space.embed_sounds(mels)


def shifted(sounds: Sounds, items: list[Sound], rng: np.random.Generator) -> Tensor:
    """(B, SAMPLES): clips at their one length; a loop begins anywhere, anything else at its beginning."""
    clips = []
    for item in items:
        clip = sounds.clips[item.row]
        clips.append(at_length(np.roll(clip, rng.integers(len(clip))) if item.loop else clip, SAMPLES, item.loop))
    return to_waveforms(clips)


def mix(waveforms: Tensor, chosen: Tensor, decibels: Tensor) -> Tensor:
    """Each ``chosen`` (B,) of (B, N) with its predecessor in the batch, ``decibels`` (B,) louder; all at one peak."""
    level = torch.where(chosen, 10 ** (decibels / 20), 0.0)[:, None]
    both = waveforms + level * waveforms.roll(1, 0)
    return both * PEAK / both.abs().amax(1, keepdim=True).clamp(min=1e-3)


def soften(conditions: Tensor) -> Tensor:
    """Unit vectors (B, D) with Gaussian noise of total norm 0.1 to 0.3, unit vectors again."""
    lowest, highest = SOFTENING
    level = lowest + (highest - lowest) * torch.rand(len(conditions), 1, device=conditions.device)
    noise = level / conditions.shape[1] ** 0.5 * torch.randn_like(conditions)
    return F.normalize(conditions + noise, dim=1)


def velocity_errors(
    model: SoundGenerator, latents: Tensor, conditions: Tensor, timesteps: Tensor, noise: Tensor
) -> Tensor:
    """Mean squared error of the predicted velocity of each sound, (B,) (arXiv 2202.00512; SNR + 1 weighting)."""
    noisy = model.scheduler.add_noise(latents, noise, timesteps)
    wanted = model.scheduler.get_velocity(latents, noise, timesteps)
    return (model(noisy, timesteps, conditions) - wanted).square().mean((1, 2, 3))


def spread_timesteps(count: int, offset: Tensor) -> Tensor:
    """(count,) steps evenly over the training schedule, moved by ``offset`` in [0, 1): less varied than free draws."""
    steps = (torch.arange(count) + offset) / count * TRAINING_STEPS
    return steps.long().clamp(max=TRAINING_STEPS - 1)  # an offset just below 1 is rounded up to it


def diffusion_loss(model: SoundGenerator, latents: Tensor, conditions: Tensor) -> tuple[Tensor, Metrics]:
    """Softened ``conditions`` (B, D), a tenth of them replaced by the null condition."""
    null = torch.rand(len(conditions), 1, device=conditions.device) < NULL_SHARE
    given = torch.where(null, model.null_condition, soften(conditions))
    timesteps = spread_timesteps(len(latents), torch.rand(len(latents))).to(latents.device)
    return velocity_errors(model, latents, given, timesteps, torch.randn_like(latents)).mean(), {}


class Evaluation:
    """Measures on held-out files of known classes, and on held-out classes.

    - ``velocity``: the loss at fixed noise and given condition.
    - ``relevance``: mean cosine between CLAP-lite's vector of a generated sound and that of the real clip;
      ``relevance_other``: the same with other clips (chance); ``relevance_ceiling``: of the real clip's latents.

    Each call also writes a sheet: every real spectrogram with the generated one to its right.
    """

    def __init__(
        self,
        model: SoundGenerator,
        listener: Listener,
        sounds: Sounds,
        name: str,
        condition_of: Callable[[list[Sound], Tensor], Tensor],
    ) -> None:
        """``condition_of`` clips and their CLAP-lite vectors gives the conditions, (B, D)."""
        self.model, self.listener, self.name = model, listener, name
        self.parts: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for split in HELD_OUT:
            held_out = sounds.select(split)
            items = held_out[:: -(-len(held_out) // MEASURED)]
            heard = [listener.hear(sounds.waveforms(items[i : i + 32])) for i in range(0, len(items), 32)]
            latents, vectors = (torch.cat(part) for part in zip(*heard, strict=True))
            self.parts[split] = latents, vectors, condition_of(items, vectors)

    def __call__(self, step: int) -> Metrics:
        metrics: Metrics = {}
        for split, (latents, vectors, conditions) in self.parts.items():
            metrics[f"{split}_velocity"] = self._velocity(latents, conditions)
            few = slice(None, None, -(-len(latents) // SHOWN))  # from end to end: neighbours are of one class
            sheet = STATE / self.name / f"{split}-step{step}.png"
            found = self._relevance(latents[few], vectors[few], conditions[few], sheet)
            metrics |= {f"{split}_{key}": value for key, value in found.items()}
        return metrics

    def _velocity(self, latents: Tensor, conditions: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        order = torch.randperm(len(latents), generator=generator)
        timesteps = spread_timesteps(len(latents), torch.tensor(0.5))[order].to(latents.device)
        columns = zip(*(values.split(16) for values in (latents, conditions, timesteps, noise)), strict=True)
        return torch.cat([velocity_errors(self.model, *part) for part in columns]).mean()

    def _relevance(self, latents: Tensor, vectors: Tensor, conditions: Tensor, sheet: Path) -> Metrics:
        generated = self.model.sample(conditions, self.model.window, STEPS, GUIDANCE, range(len(conditions)))
        real, made = (self.listener.autoencoder.decode(values) for values in (latents, generated))
        save_spectrograms(torch.stack([real, made], 1).flatten(0, 1).cpu(), LITE_MEL, sheet, columns=4)
        ceiling, cosines = (self.listener.space.embed_sounds(mels) @ vectors.T for mels in (real, made))
        count = len(cosines)
        return {
            "relevance": cosines.diagonal().mean(),
            "relevance_other": (cosines.sum() - cosines.trace()) / max(1, count * (count - 1)),
            "relevance_ceiling": ceiling.diagonal().mean(),
        }


def train_generator(
    name: str,
    model: SoundGenerator,
    loss_of: Callable[[np.ndarray, int], tuple[Tensor, Metrics]],
    evaluation: Evaluation,
    *,
    count: int,
    batch: int,
    steps: int,
    rate: float,
    seed: int,
) -> None:
    """Train on ``count`` clips and write the averaged weights to ``assets/weights/<name>-lite``."""
    model.unet.set_attn_processor(AttnProcessor())  # a step takes a quarter less than with torch's fused attention
    weights = train(
        name,
        model,
        [torch.optim.AdamW(optimizer_groups(model, rate, 0.01))],
        Schedule(steps, warmup=100, cooldown=0.4),
        lambda step: shuffled_batches(count, batch, seed, step),
        loss_of,
        evaluation,
        seed=seed,
        ema_decay=0.999,
        evaluate_every=500,
    )
    model.load_state_dict(weights)
    target = WEIGHTS / f"{name}-lite"
    model.save_pretrained(target)
    write_sums(target)
