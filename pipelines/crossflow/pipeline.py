"""CrossFlow as two pipelines: a picture from words, and a morph between the pictures of two prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import ClassVar, cast

import numpy as np
import torch
from pydantic import Field

from models.errors import UserError
from models.nets import flow_matching as fm
from pipelines.base import ADVANCED, Event, Params, Pipeline, Produced, Progress, Route, Runtime, provenance
from pipelines.crossflow.prompts import clean_prompt
from pipelines.crossflow.sampling import MODELS, Painter
from pipelines.crossflow.styles import Style
from pipelines.media import Artifact, Image, Text, Video


class SamplingParams(Params):
    """What both pipelines let a person choose."""

    style: Style | None = Field(None, description="How it is drawn; none leaves it to the model.")
    guidance_scale: float = Field(
        1.5,  # of 1, 1.25, 1.5, 2, 3 and 4.5 what the judge of the lite weights names best
        ge=1,
        le=10,
        description="How strictly to follow the words. 1 is free, 10 is rigid.",
        json_schema_extra=ADVANCED,
    )
    num_inference_steps: int = Field(
        25, ge=1, le=250, description="Steps of the flow: more are slower and finer.", json_schema_extra=ADVANCED
    )


class CrossFlowParams(SamplingParams):
    num_images: int = Field(1, ge=1, le=16, description="Pictures to paint at once, each from its own seed.")
    add: str = Field("", description="A concept to add to the prompt's latents.", json_schema_extra=ADVANCED)
    remove: str = Field("", description="A concept to take away from the prompt's latents.", json_schema_extra=ADVANCED)
    concept_strength: float = Field(
        1.0, ge=0, le=3, description="How much of the added or removed concept.", json_schema_extra=ADVANCED
    )


class CrossFlow(Pipeline):
    name = "crossflow"
    title = "Picture from words"
    summary = "Type what you want to see. The words themselves flow into a picture."
    routes = (Route(("text",), "image"),)
    params_type = CrossFlowParams
    models: ClassVar[tuple[str, ...]] = MODELS
    examples = (
        ("a red apple",),
        ("a blue bird",),
        ("a slice of cake",),
        ("a sleeping cat",),
        ("a lighthouse",),
        ("a purple mushroom",),
    )

    def shape_of_work(self, inputs: Sequence[Artifact], params: Params) -> tuple[int, ...]:
        return (cast(CrossFlowParams, params).num_images,)

    def effort(self, inputs: Sequence[Artifact], params: Params) -> float:
        params = cast(CrossFlowParams, params)
        return float(params.num_images * params.num_inference_steps)

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        params = cast(CrossFlowParams, params)
        prompts = [clean_prompt(_text(item)) for (item,) in inputs]
        add = clean_prompt(params.add, "'add'") if params.add.strip() else None
        remove = clean_prompt(params.remove, "'remove'") if params.remove.strip() else None
        seeds = params.seeds(params.num_images)
        yield Progress(0, params.num_inference_steps, "Loading models")
        with ExitStack() as stack:
            painter = Painter.lease(runtime, stack)
            sources, cuts = zip(*(painter.sources(prompt, params.style, seeds) for prompt in prompts), strict=True)
            source = torch.cat(sources)
            if add or remove:
                # One seed a term, as the paper does it: with equal noise the terms would cancel it.
                added = painter.sources(add, params.style, [s ^ 1 << 20 for s in seeds])[0] if add else None
                removed = painter.sources(remove, params.style, [s ^ 1 << 21 for s in seeds])[0] if remove else None
                added, removed = (z if z is None else z.repeat(len(prompts), 1, 1, 1) for z in (added, removed))
                source = fm.latent_arithmetic(source, added, removed, params.concept_strength)
            note = "Only the first words of the prompt fit" if any(cuts) else "Painting"
            pictures = yield from painter.paint(source, params.num_inference_steps, params.guidance_scale, note)
        del painter  # its models may go now
        for number, pixels in enumerate(pictures):
            which, index = divmod(number, params.num_images)
            made_by = provenance(self, inputs[which], params, runtime.models, index)
            yield Produced(Image(pixels, provenance=made_by))


class MorphParams(SamplingParams):
    num_frames: int = Field(24, ge=2, le=96, description="Pictures between the two prompts, ends included.")
    frame_rate: float = Field(12.0, ge=1, le=60, description="Frames a second of the clip.", json_schema_extra=ADVANCED)
    back_and_forth: bool = Field(True, description="Play the clip back to its start, so that it loops.")


class CrossFlowMorph(Pipeline):
    name = "crossflow-morph"
    title = "Morph between two prompts"
    summary = "Type two things. One turns into the other, as a clip and as a strip of pictures."
    routes = (Route(("text", "text"), "video"), Route(("text", "text"), "image"))
    params_type = MorphParams
    models: ClassVar[tuple[str, ...]] = MODELS

    examples = (("a sun", "a moon"), ("a red apple", "a green apple"), ("a cat", "a dog"))

    STRIP = 6

    def shape_of_work(self, inputs: Sequence[Artifact], params: Params) -> tuple[int, ...]:
        return (cast(MorphParams, params).num_frames,)

    def effort(self, inputs: Sequence[Artifact], params: Params) -> float:
        params = cast(MorphParams, params)
        return float(params.num_frames * params.num_inference_steps)

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        params = cast(MorphParams, params)
        pairs = [
            (clean_prompt(_text(first), "The first prompt"), clean_prompt(_text(second), "The second prompt"))
            for first, second in inputs
        ]
        yield Progress(0, params.num_inference_steps, "Loading models")
        with ExitStack() as stack:
            painter = Painter.lease(runtime, stack)
            for pair, (first, second) in zip(inputs, pairs, strict=True):
                # Both ends share one noise, so that the blend keeps its deviation (fact sheet 7, pitfall 14).
                (start, _), (end, _) = (
                    painter.sources(prompt, params.style, [params.seed]) for prompt in (first, second)
                )
                blend = torch.linspace(0, 1, params.num_frames, device=start.device).view(-1, 1, 1, 1)
                source = torch.lerp(start, end, blend)
                frames = yield from painter.paint(source, params.num_inference_steps, params.guidance_scale, "Morphing")
                yield from self._produced(frames, pair, params, runtime)

    def _produced(
        self, frames: np.ndarray, pair: Sequence[Artifact], params: MorphParams, runtime: Runtime
    ) -> Iterator[Event]:
        """The clip, then the strip, from ``frames`` (T, H, W, 3)."""
        clip = np.concatenate([frames, frames[-2:0:-1]]) if params.back_and_forth else frames
        yield Produced(Video(clip, params.frame_rate, provenance=provenance(self, pair, params, runtime.models, 0)))
        chosen = np.linspace(0, len(frames) - 1, min(self.STRIP, len(frames))).round().astype(int)
        strip = np.concatenate(list(frames[chosen]), axis=1)
        yield Produced(Image(strip, provenance=provenance(self, pair, params, runtime.models, 1)))


def _text(item: Artifact) -> str:
    if not isinstance(item, Text):
        raise UserError(f"Words are needed here, not {item.medium}.", "Type a prompt.")
    return item.text
