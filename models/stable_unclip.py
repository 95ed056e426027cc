"""Stable unCLIP as it is published: Stable Diffusion 2.1 that draws what a vector of CLIP's pictures means.

XBind's planar prior (arXiv 2411.14715). A folder of ``sd2-community/stable-diffusion-2-1-unclip``, whose vectors are
those of OpenCLIP's ViT-H/14, which ImageBind shares. By diffusers' and transformers' parts.

Shapes: B pictures, D dimensions of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from models.errors import UserError
from models.latent_prior import Asked, LatentPrior, load_schedule, read_reading, require_index, standardised
from models.pretrained import pretrained, read_config

PUBLISHED = "sd2-community/stable-diffusion-2-1-unclip"
PIPELINES = ("StableUnCLIPImg2ImgPipeline", "StableUnCLIPPipeline")


class StableUnCLIP(LatentPrior):
    """``eyes`` give the vector of a picture, and ``reading`` is how they see it; ``normalizer`` and ``noising`` say how
    a vector is made noisy; ``tokenizer`` and ``reader`` are of words, which may be asked for beside."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        schedule: DDIMScheduler,
        eyes: CLIPVisionModelWithProjection,
        reading: dict[str, Any],
        normalizer: StableUnCLIPImageNormalizer,
        noising: DDPMScheduler,
        tokenizer: CLIPTokenizer,
        reader: CLIPTextModel,
    ) -> None:
        super().__init__(unet, vae, schedule)
        self.eyes = eyes
        self.reading = reading
        self.normalizer = normalizer
        self.noising = noising
        self.tokenizer = tokenizer
        self.reader = reader
        self.width: int = eyes.config.projection_dim

    @property
    def length(self) -> float:
        """Of a picture's vector, root mean square, by the stored mean and deviation of each dimension."""
        mean, deviation = self.normalizer.mean.detach(), self.normalizer.std.detach()
        return float((mean.square() + deviation.square()).sum().sqrt())

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        """Square pictures (B, 3, S, S) in [-1, 1] -> unit vectors (B, D) float32; gradients go back."""
        seen = self.eyes(pixel_values=standardised(pixels, self.eyes.config.image_size, self.reading)).image_embeds
        return F.normalize(seen.float(), dim=-1)

    @torch.no_grad()
    def asked(self, vectors: Tensor, words: str, level: int, seeds: Sequence[int]) -> Asked:
        """Unit vectors (B, D) and the ``words`` beside, which may be empty.

        A vector gets the :attr:`length` of a picture's first: a unit vector would mean the mean of all pictures.
        ``level``: how noisy it is made, 0 to 999; more noise hides that it is no picture's. One seed each.
        """
        given = vectors.float() * self.length
        noise = [torch.randn(self.width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        times = torch.full((len(given),), level, device=given.device)
        scaled = (given - self.normalizer.mean) / self.normalizer.std
        noisy = self.noising.add_noise(scaled, torch.stack(noise).to(given), times)
        told = get_timestep_embedding(times, self.width, flip_sin_to_cos=True, downscale_freq_shift=0)
        labels = torch.cat([noisy * self.normalizer.std + self.normalizer.mean, told], 1)
        return Asked(self._said(words).expand(len(given), -1, -1), labels)

    @torch.no_grad()
    def free(self, count: int) -> Asked:
        """Of ``count`` pictures of anything."""
        states = self._said("").expand(count, -1, -1)
        return Asked(states, states.new_zeros(count, 2 * self.width))

    def _said(self, words: str) -> Tensor:
        """(1, T, C); of many words, what fits counts."""
        tokens = self.tokenizer(
            words,
            padding="max_length",
            max_length=self.reader.config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        )
        device = self.normalizer.mean.device
        return cast(Tensor, self.reader(tokens.input_ids.to(device)).last_hidden_state.float())


def load_stable_unclip(folder: Path) -> StableUnCLIP:
    """A folder of ``sd2-community/stable-diffusion-2-1-unclip`` or its kin; float32 on the CPU.

    Weights may be safetensors or ``.bin`` files, of which tensors alone are read. Raises :class:`UserError` if the
    folder holds something else, or parts of different sizes.
    """
    require_index(
        folder, PIPELINES, "Stable unCLIP", "It must be sd2-community/stable-diffusion-2-1-unclip or its kin."
    )
    eyes = pretrained(CLIPVisionModelWithProjection, folder / "image_encoder")
    normalizer = pretrained(StableUnCLIPImageNormalizer, folder / "image_normalizer")
    unet = pretrained(UNet2DConditionModel, folder / "unet")
    width = eyes.config.projection_dim
    if (normalizer.config.embedding_dim, unet.config.projection_class_embeddings_input_dim) != (width, 2 * width):
        raise UserError(f"The parts in '{folder}' do not mean the same by vectors.", "Take them all from one model.")
    return StableUnCLIP(
        unet,
        pretrained(AutoencoderKL, folder / "vae"),
        load_schedule(folder / "scheduler"),
        eyes,
        read_reading(folder / "feature_extractor"),
        normalizer,
        DDPMScheduler.from_config(read_config(folder / "image_noising_scheduler" / "scheduler_config.json")),
        CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        pretrained(CLIPTextModel, folder / "text_encoder"),
    ).eval()
