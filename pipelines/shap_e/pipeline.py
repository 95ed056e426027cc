"""Shap-E: a coloured 3-D object from words or from a picture, by the published models of the full profile."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from pipelines.base import (
    ADVANCED,
    Event,
    Params,
    Pipeline,
    Produced,
    Progress,
    Route,
    Runtime,
    is_preview,
    precision,
    provenance,
)
from pipelines.media import Artifact, Image, Mesh, Text
from pipelines.xbind.prompts import Prompt
from pipelines.xbind.surface import NoSurfaceError, no_object, surface
from pipelines.xbind.views import shaded

if TYPE_CHECKING:
    from models.shap_e import ShapE as Model

WORDS, PICTURES = "shap-e-words", "shap-e-pictures"
PREVIEW_RESOLUTION, PREVIEW_SIDE = 32, 128
AZIMUTH, ELEVATION = 30.0, 20.0  # degrees


class ShapEParams(Params):
    num_shapes: int = Field(1, ge=1, le=4, description="Variations to make, each from its own seed.")
    steps: int = Field(64, ge=1, le=256, description="Steps of the diffusion: more are slower and finer.")
    guidance: float = Field(
        0.0,
        ge=0,
        le=30,
        description="How strictly to follow what is asked, 1 is free; 0 is the usual: 15 for words, 3 for a picture.",
    )
    background: Literal["remove", "keep"] = Field(
        "remove", description="With a picture: whether its object is first cut out of a plain background."
    )
    size: float = Field(1.0, ge=0.01, le=100, description="Metres of its longest side.")
    resolution: int = Field(
        128,
        ge=32,
        le=256,
        description="Voxels a side from which the surface is made: more are slower and finer.",
        json_schema_extra=ADVANCED,
    )
    num_faces: int = Field(
        20_000, ge=200, le=100_000, description="At most this many triangles.", json_schema_extra=ADVANCED
    )


class ShapE(Pipeline):
    name = "shap-e"
    title = "Shap-E: 3-D object from words or a picture"
    summary = "Type what to make, or show it. The published model knows many things, and is slow without a GPU."
    routes = (Route(("text",), "mesh"), Route(("image",), "mesh"))
    params_type = ShapEParams
    models: ClassVar[tuple[str, ...]] = (WORDS, PICTURES)
    examples = (("a wooden chair",), ("a shark",), ("a green boot",), ("an airplane that looks like a banana",))

    def models_for(self, inputs: Sequence[Artifact], params: Params) -> tuple[str, ...]:
        return (WORDS if any(isinstance(item, Text) for item in inputs) else PICTURES,)

    def shape_of_work(self, inputs: Sequence[Artifact], params: Params) -> tuple[int, ...]:
        params = cast(ShapEParams, params)
        return params.num_shapes, params.resolution

    def effort(self, inputs: Sequence[Artifact], params: Params) -> float:
        params = cast(ShapEParams, params)
        return float(params.num_shapes * params.steps)

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        params = cast(ShapEParams, params)
        prompts = [Prompt.of(item) for item in inputs]
        yield Progress(0, params.steps, "Loading models")
        for item, prompt in zip(inputs, prompts, strict=True):
            [key] = self.models_for(item, params)
            with runtime.lease(key) as model:
                condition, note = _condition(model, prompt, params, runtime)
                seeds = params.seeds(params.num_shapes)
                for start in range(0, len(seeds), runtime.micro_batch):
                    some = seeds[start : start + runtime.micro_batch]
                    latents = yield from _denoised(model, condition, some, params, note, runtime)
                    for index, (seed, one) in enumerate(zip(some, latents, strict=True), start):
                        made = _object(model, one, seed, params, runtime)
                        made_by = provenance(self, item, params, runtime.models, index)
                        yield Produced(made.with_provenance(made_by))


def _condition(model: Model, prompt: Prompt, params: ShapEParams, runtime: Runtime) -> tuple[Tensor, str]:
    """(1, ...) on the models' device, and what progress says."""
    runtime.raise_if_cancelled()
    asked: object
    if prompt.words is not None:
        asked, note = prompt.words, f'Making "{prompt.words[:80]}"'
    else:
        shown = prompt.on_white() if params.background == "remove" else prompt
        asked, note = cast(Image, shown.example).pixels, "Making what the picture shows"
    with precision(runtime.models):
        return model.reader.read([asked]).to(runtime.models.device), note


def _denoised(
    model: Model, condition: Tensor, seeds: Sequence[int], params: ShapEParams, note: str, runtime: Runtime
) -> Generator[Progress, None, Tensor]:
    """Yields progress after each evaluation, with a few previews; returns the latents (B, N, D)."""
    total = model.evaluations(params.steps)
    conditions = condition.repeat(len(seeds), *(1 for _ in condition.shape[1:]))
    guidance = params.guidance or model.reader.usual_guidance
    stages = model.denoise(conditions, params.steps, guidance, seeds)
    for step in range(1, total + 1):
        runtime.raise_if_cancelled()
        with precision(runtime.models):
            clean, latents = next(stages)
        yield Progress(step, total, note, _preview(model, clean) if is_preview(step, total) else None)
    return latents


def _object(model: Model, latents: Tensor, seed: int, params: ShapEParams, runtime: Runtime) -> Mesh:
    """Latents (N, D) -> the object. Raises :class:`UserError` if it has no surface."""
    try:
        grid = model.grid(latents, params.resolution, runtime.raise_if_cancelled)
        return surface(grid, params.num_faces, params.size)
    except NoSurfaceError:
        raise no_object(seed) from None


def _preview(model: Model, latents: Tensor) -> Image:
    """The objects (B, N, D) side by side, as the present estimate would end them."""
    grids = [model.grid(one, PREVIEW_RESOLUTION) for one in latents]
    return Image(torch.cat([shaded(grid, AZIMUTH, ELEVATION, PREVIEW_SIDE) for grid in grids], 1).numpy())
