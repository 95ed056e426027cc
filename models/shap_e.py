"""Shap-E (arXiv 2305.02463) as it is published: diffusion over the weights of a small network that is a coloured shape.

By diffusers' classes and in its folders: ``openai/shap-e`` reads words, ``openai/shap-e-img2img`` pictures. The prior
denoises latents, each of which gives a row of the weights of an MLP from points to signed distances and colours.

Shapes: B objects, N latents of D dimensions, P points, R voxels a side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from diffusers import HeunDiscreteScheduler, PriorTransformer
from diffusers.pipelines.shap_e import ShapERenderer
from torch import Tensor, nn
from torch.func import functional_call
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from models.errors import UserError
from models.pretrained import pretrained, read_config

POINTS_AT_ONCE = 2**16
MOST_STEPS = 256


class WordsReader(nn.Module):
    """CLIP's text encoder."""

    reads: ClassVar[Literal["text"]] = "text"
    usual_guidance: ClassVar[float] = 15.0  # of the original's notebooks

    def __init__(self, tokenizer: CLIPTokenizer, encoder: CLIPTextModelWithProjection) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.encoder = encoder

    @torch.no_grad()
    def read(self, prompts: Sequence[Any]) -> Tensor:
        """Texts -> (B, D) float32 of unit variance; of a long one, what fits into 77 tokens counts."""
        most = self.encoder.config.max_position_embeddings
        batch = self.tokenizer(
            list(prompts), padding="max_length", max_length=most, truncation=True, return_tensors="pt"
        )
        said = self.encoder(batch.input_ids.to(self.encoder.device)).text_embeds.float()
        return math.sqrt(said.shape[1]) * nn.functional.normalize(said, dim=-1)


class PicturesReader(nn.Module):
    """CLIP's image encoder: what it makes of each patch of the middle square."""

    reads: ClassVar[Literal["image"]] = "image"
    usual_guidance: ClassVar[float] = 3.0

    def __init__(self, processor: CLIPImageProcessorPil, encoder: CLIPVisionModel) -> None:
        super().__init__()
        self.processor = processor
        self.encoder = encoder

    @torch.no_grad()
    def read(self, prompts: Sequence[Any]) -> Tensor:
        """Pictures (H, W, 3) uint8 of any size -> (B, patches, D) float32."""
        pixels = self.processor(images=list(prompts), return_tensors="pt").pixel_values
        seen = self.encoder(pixels.to(self.encoder.device)).last_hidden_state
        return cast(Tensor, seen[:, 1:].float())


class ShapE(nn.Module):
    """``reader`` turns prompts into conditions, ``prior`` denoises latents by ``scheduler``, ``renderer`` reads them.

    Of the renderer the two networks are used: the one that projects latents to weights, and the one with these weights.
    """

    def __init__(
        self,
        reader: WordsReader | PicturesReader,
        prior: PriorTransformer,
        scheduler: HeunDiscreteScheduler,
        renderer: ShapERenderer,
    ) -> None:
        super().__init__()
        self.reader = reader
        self.prior = prior
        self.scheduler = scheduler
        self.renderer = renderer
        for layer in renderer.modules():
            if type(layer) is nn.Linear:
                layer.__class__ = WholeLinear

    def evaluations(self, steps: int) -> int:
        """Of the prior: Heun's method corrects each step but the last."""
        return 2 * steps - 1

    @torch.no_grad()
    def denoise(
        self, conditions: Tensor, steps: int, guidance: float, seeds: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Conditions (B, ...) as the reader gives them, one seed each: after each of :meth:`evaluations` the present
        estimate of the clean latents and the latents themselves, (B, N, D) both.

        ``guidance`` is classifier-free, from a condition of zeros; 1 means none. An object depends on its condition and
        seed alone: noise is drawn on the CPU, one generator an object. Raises :class:`ValueError` for numbers out of
        range.
        """
        if len(conditions) != len(seeds) or not seeds or not 1 <= steps <= MOST_STEPS:
            raise ValueError(f"expected one seed for each of {len(conditions)} conditions, and 1 to {MOST_STEPS} steps")
        scheduler = HeunDiscreteScheduler.from_config(self.scheduler.config)  # it counts steps, so one for each run
        scheduler.set_timesteps(steps, device=conditions.device)
        shape = (self.prior.config.num_embeddings, self.prior.config.embedding_dim)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        latents = torch.stack(noise).to(conditions.device) * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, timestep)
            clean = self._guided(scaled, timestep, conditions, guidance)
            latents = scheduler.step(clean, timestep, latents).prev_sample.float()
            yield clean.clamp(-1, 1), latents

    def _guided(self, latents: Tensor, timestep: Tensor, conditions: Tensor, guidance: float) -> Tensor:
        """What the prior predicts, the clean latents; the other half of its output is a variance."""
        both = [conditions] if guidance == 1 else [torch.zeros_like(conditions), conditions]
        several = latents.repeat(len(both), 1, 1)
        predicted = self.prior(several, timestep, proj_embedding=torch.cat(both)).predicted_image_embedding.float()
        clean = predicted[..., : latents.shape[-1]]
        if guidance == 1:
            return cast(Tensor, clean)
        null, conditional = clean.chunk(2)
        return cast(Tensor, null + guidance * (conditional - null))

    @torch.no_grad()
    def fields(self, latents: Tensor, points: Tensor) -> Tensor:
        """One object's latents (N, D) at points (P, 3) in [-1, 1], Shap-E's axes -> (P, 4) float32.

        Signed distances, positive inside and at most 1; then red, green and blue in [0, 1], which are sRGB as all
        colours here. (diffusers' ``decode_to_mesh`` makes them linear.)
        """
        projected = self.renderer.params_proj(latents[None])
        weights = {name.removeprefix("nerstf."): value[0] for name, value in projected.items()}
        # Only ``rendering_mode`` counts: a surface has no direction, and is read from the finer of two networks.
        asked = {
            "position": points[None],
            "direction": None,
            "ts": None,
            "nerf_level": "fine",
            "rendering_mode": "stf",
        }
        read = functional_call(self.renderer.mlp, weights, (), asked)
        return torch.cat([read.signed_distance, read.channels], dim=-1)[0].float()

    @torch.no_grad()
    def grid(self, latents: Tensor, resolution: int, between: Callable[[], None] = lambda: None) -> Tensor:
        """One object's latents (N, D) -> (4, R, R, R) on the CPU: signed distances, negative inside, and colours.

        As :class:`models.nets.shape_autoencoder.ShapeAutoencoder` has it: x, y up, z to the viewer, at the middles of
        voxels of [-1, 1]. ``between`` is called now and then, and may raise.
        """
        along = (torch.arange(resolution, device=latents.device) + 0.5) / resolution * 2 - 1
        x, y, z = torch.meshgrid(along, along, along, indexing="ij")
        # Shap-E's objects stand along z: they are turned back by 90 degrees about x, then half round, to the front.
        points = torch.stack([-x, z, y], dim=-1).flatten(0, 2)
        read = []
        for part in points.split(POINTS_AT_ONCE):
            between()
            read.append(self.fields(latents, part).cpu())
        grid = torch.cat(read).T.reshape(4, resolution, resolution, resolution)
        return torch.cat([-grid[:1], grid[1:]])


class WholeLinear(nn.Linear):
    """Held in float32 in any precision (``models/quantize.py``): its weight is read or replaced, not only applied."""


def load_shap_e(folder: Path) -> ShapE:
    """A folder of ``openai/shap-e`` or ``openai/shap-e-img2img``; float32 on the CPU.

    Weights may be safetensors or ``.bin`` files, of which tensors alone are read. Raises :class:`UserError` if the
    folder holds something else.
    """
    index = read_config(folder / "model_index.json").get("_class_name")
    if index not in ("ShapEPipeline", "ShapEImg2ImgPipeline"):
        raise UserError(f"The weights in '{folder}' are no Shap-E.", "It must be openai/shap-e or its img2img.")
    scheduler = HeunDiscreteScheduler.from_config(read_config(folder / "scheduler" / "scheduler_config.json"))
    if scheduler.config.prediction_type != "sample":
        raise UserError(f"The schedule in '{folder}' is of another kind than Shap-E's.", "It must predict the sample.")
    prior = pretrained(PriorTransformer, folder / "prior")
    renderer = pretrained(ShapERenderer, folder / "shap_e_renderer")
    reader = _words_reader(folder) if index == "ShapEPipeline" else _pictures_reader(folder)
    needed = sum(rows for rows, _ in renderer.config.param_shapes)
    if (prior.config.num_embeddings, prior.config.embedding_dim) != (needed, renderer.config.d_latent):
        raise UserError(
            f"The prior and the renderer in '{folder}' do not mean the same by latents.", "Take both from one folder."
        )
    return ShapE(reader, prior, scheduler, renderer).eval()


def _words_reader(folder: Path) -> WordsReader:
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    tokenizer.pad_token_id = 0  # as Shap-E was trained, whatever the file says
    return WordsReader(tokenizer, pretrained(CLIPTextModelWithProjection, folder / "text_encoder"))


def _pictures_reader(folder: Path) -> PicturesReader:
    processor = CLIPImageProcessorPil.from_pretrained(folder / "image_processor", local_files_only=True)
    return PicturesReader(processor, pretrained(CLIPVisionModel, folder / "image_encoder"))
