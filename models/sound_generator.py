"""Sound generators, AudioLDM-style (arXiv 2301.12503): latent diffusion whose whole condition is one unit vector.

At both sizes the network is diffusers' UNet2DConditionModel: the vector goes through one linear layer (through two in
our CLIPSonic) and is joined to the embedding of the time step, without cross-attention. Published AudioLDM predicts
noise and was trained with CLAP vectors of sounds; ours predicts velocity, with a cosine schedule that ends in pure
noise. Latents are those of ``models.nets.audio_autoencoder``.

Shapes: B sounds, D dimensions of a condition, C channels, f latent frames (time), m latent bands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.ddim import clean_and_noise, mixed, noise_levels
from models.errors import UserError
from models.packing import pack_int8, unpack_int8
from models.pretrained import read_config
from models.published_spaces import audioldm_words

NULL_CONDITION = "null_condition.safetensors"
AUDIOLDM_FRAMES = 256  # 10.24 s, its training length; ``sample_size`` of its config is only a default of diffusers


class SoundGenerator(nn.Module):
    """``unet`` predicts what ``scheduler`` says, for latents of ``bands`` and, at training, of ``window`` frames.

    ``null_condition`` (D,) stands for "any sound": learned in ours, CLAP's vector of the empty sentence in AudioLDM.
    """

    def __init__(
        self, unet: UNet2DConditionModel, scheduler: DDIMScheduler, null_condition: Tensor, window: int, bands: int
    ) -> None:
        super().__init__()
        self.unet = unet
        self.scheduler = scheduler
        self.null_condition = nn.Parameter(null_condition.detach().float().clone())
        self.window = window
        self.bands = bands
        self.channels: int = unet.config.in_channels

    def forward(self, noisy: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        """Noisy latents (B, C, f, m), steps (B,) or () of the training schedule, conditions (B, D) -> (B, C, f, m)."""
        predicted = self.unet(noisy, timesteps, encoder_hidden_states=None, class_labels=conditions).sample
        return cast(Tensor, predicted.float())

    def sample(self, conditions: Tensor, frames: int, steps: int, guidance: float, seeds: Sequence[int]) -> Tensor:
        """Clean latents (B, C, frames, m): the end of :meth:`denoise`, which says what its parameters mean."""
        *_, (_, latents) = self.denoise(conditions, frames, steps, guidance, seeds)
        return latents

    @torch.no_grad()
    def denoise(
        self, conditions: Tensor, frames: int, steps: int, guidance: float, seeds: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Unit vectors (B, D), one seed each: after each step of DDIM without fresh noise, the present estimate of the
        clean latents and the latents themselves, (B, C, frames, m) both.

        ``frames`` may be any number: beyond ``window`` overlapping windows are denoised together
        (:func:`blend_windows`). ``guidance`` is classifier-free; 1 means none. A sound depends on its condition and
        seed alone: noise is drawn on the CPU, one generator a sound.

        Raises :class:`ValueError` for conditions that are no unit vectors and for numbers out of range.
        """
        self._require(conditions, frames, steps, seeds)
        timesteps, shares = noise_levels(self.scheduler, steps)
        shape = (self.channels, frames, self.bands)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        latents = torch.stack(noise).to(conditions.device)
        for step, timestep in enumerate(timesteps.to(conditions.device)):

            def predict(part: Tensor, timestep: Tensor = timestep) -> Tensor:
                return self._guided(part, timestep, conditions, guidance)

            predicted = blend_windows(predict, latents, self.window)
            clean, noise_there = clean_and_noise(self.scheduler, latents, predicted, shares[step])
            latents = mixed(clean, noise_there, shares[step + 1])
            yield clean, latents

    def _guided(self, latents: Tensor, timestep: Tensor, conditions: Tensor, guidance: float) -> Tensor:
        """Classifier-free guidance (arXiv 2207.12598): from the null condition's prediction through the condition's."""
        if guidance == 1:
            return self(latents, timestep, conditions)
        both = torch.cat([self.null_condition.expand_as(conditions), conditions])
        null, conditional = self(latents.repeat(2, 1, 1, 1), timestep, both).chunk(2)
        return cast(Tensor, null + guidance * (conditional - null))

    def _require(self, conditions: Tensor, frames: int, steps: int, seeds: Sequence[int]) -> None:
        dimensions = self.null_condition.numel()
        if conditions.ndim != 2 or conditions.shape[1] != dimensions or len(conditions) != len(seeds) or not len(seeds):
            raise ValueError(f"expected ({len(seeds)} > 0, {dimensions}), not {tuple(conditions.shape)}")
        if not ((conditions.norm(dim=1) - 1).abs() < 1e-2).all():
            raise ValueError("the conditions are no unit vectors")
        most = self.scheduler.config.num_train_timesteps
        if frames < 1 or not 1 <= steps < most:
            raise ValueError(f"expected at least one frame and 1 to {most - 1} steps, not {frames} and {steps}")

    def save_pretrained(self, folder: Path) -> None:
        """A diffusers folder with ``scheduler_config.json`` and the null condition beside the network, whose large
        tensors are int8 rows (:mod:`models.packing`)."""
        self.unet.save_config(folder)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # where its beginnings were loaded from
        path.write_text(json.dumps(config, indent=2) + "\n")
        save_file(pack_int8(self.unet.state_dict()), folder / SAFETENSORS_WEIGHTS_NAME)
        self.scheduler.save_pretrained(folder)
        save_file({"null_condition": self.null_condition.detach().half()}, folder / NULL_CONDITION)


def blend_windows(predict: Callable[[Tensor], Tensor], latents: Tensor, window: int) -> Tensor:
    """MultiDiffusion along time (arXiv 2302.08113): ``predict`` for (B, C, f, m) of any f, ``window`` at once at most.

    Windows overlap by half or more. Where they do, the mean of their predictions counts, weighted by the distance from
    each window's ends, so that nothing jumps where one ends. Averaging predictions is averaging the paper's denoised
    windows, because a DDIM step is linear in the prediction.
    """
    frames = latents.shape[2]
    if frames <= window:
        return predict(latents)
    count = 1 - (window - frames) // (window // 2)
    starts = torch.linspace(0, frames - window, count).round().int().tolist()
    rising = torch.arange(1, window + 1, dtype=torch.float32, device=latents.device)
    level = torch.full_like(rising, window)
    total, weight = torch.zeros_like(latents), latents.new_zeros(frames, 1)
    for start in starts:
        # The sound's own ends are no seams: there a window keeps its weight.
        fade_in = rising if start > 0 else level
        fade_out = rising.flip(0) if start + window < frames else level
        weights = torch.minimum(fade_in, fade_out)[:, None]
        part = slice(start, start + window)
        total[:, :, part] += weights * predict(latents[:, :, part])
        weight[part] += weights
    return total / weight


def load_sound_generator(folder: Path, null_condition: Tensor | None = None) -> SoundGenerator:
    """A folder as :meth:`SoundGenerator.save_pretrained` writes it, or one of AudioLDM; float32 on the CPU.

    AudioLDM's (``cvssp/audioldm-s-full-v2`` and its kin) has the parts in folders, of which ``unet`` and ``scheduler``
    are loaded and the shape of the latents is read from ``vae`` and ``vocoder``. Its null condition is CLAP's text
    vector (D,) of the empty sentence: given here, stored beside as ``null_condition.safetensors``, or else said by the
    ``text_encoder`` of the folder, with its ``tokenizer``.

    Raises :class:`UserError` if the folder holds something else or no null condition is known.
    """
    published = (folder / "unet").is_dir()
    unet = _load_unet(folder / "unet" if published else folder, published)
    scheduler = _load_scheduler(folder / "scheduler" if published else folder)
    if null_condition is None:
        null_condition = _load_null_condition(folder)
    dimensions = unet.config.projection_class_embeddings_input_dim
    if null_condition.shape != (dimensions,):
        raise UserError(
            f"The vector of the empty sentence has shape {tuple(null_condition.shape)}, and '{folder}' takes "
            f"{dimensions} dimensions.",
            "Take it from the CLAP that belongs to this generator.",
        )
    window, bands = (AUDIOLDM_FRAMES, _bands_of(folder)) if published else unet.config.sample_size
    return SoundGenerator(unet, scheduler, null_condition, window, bands).eval()


def _load_unet(folder: Path, published: bool) -> UNet2DConditionModel:
    config = read_config(folder / "config.json")
    layers = config.get("class_embed_type") in ("simple_projection", "projection")
    conditioned = layers and config.get("class_embeddings_concat")
    if config.get("_class_name") != "UNet2DConditionModel" or not conditioned:
        raise UserError(
            f"The weights in '{folder}' are no sound generator.",
            "It must be a UNet2DConditionModel that is conditioned on one vector, as AudioLDM's is.",
        )
    if published:
        return UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)
    unet = UNet2DConditionModel.from_config(config)
    unet.load_state_dict(unpack_int8(load_file(folder / SAFETENSORS_WEIGHTS_NAME)))
    return unet


def _load_scheduler(folder: Path) -> DDIMScheduler:
    """Whatever sampler a schedule was saved for, DDIM samples with its noise levels."""
    scheduler = DDIMScheduler.from_config(read_config(folder / "scheduler_config.json"))
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction") or scheduler.config.clip_sample:
        raise UserError(
            f"The schedule in '{folder}' is of another kind than a sound generator's.",
            "It must predict epsilon or v_prediction, with clip_sample false.",
        )
    return scheduler


def _load_null_condition(folder: Path) -> Tensor:
    path = folder / NULL_CONDITION
    if path.exists():
        return load_file(path)["null_condition"]
    if not (folder / "text_encoder").is_dir():
        raise UserError(
            f"The generator in '{folder}' lacks the vector of the empty sentence.",
            "Fetch its folders text_encoder and tokenizer too.",
        )
    return audioldm_words(folder, [""])[0]


def _bands_of(folder: Path) -> int:
    """Latent bands of an AudioLDM folder: mel bands of its vocoder over the factor of its autoencoder."""
    factor = 2 ** (len(read_config(folder / "vae" / "config.json")["block_out_channels"]) - 1)
    return int(read_config(folder / "vocoder" / "config.json")["model_in_dim"]) // factor
