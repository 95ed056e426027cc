"""XBind: a coloured 3-D object from words, from a picture, or from both; in one pass, and then optimised if asked.

Words and pictures are vectors of one space, and a generator makes shapes from such a vector. So one prompt may be led
towards another of the other medium: a chair, somewhat like this picture. As the paper says of its own, the object is in
the spirit of a picture, and does not reconstruct it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from models.errors import UserError
from pipelines.base import (
    ADVANCED,
    MAX_SEED,
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
from pipelines.crossflow.prompts import clean_prompt
from pipelines.media import Artifact, Image, Mesh, Text
from pipelines.spaces import picture_vector, words_vector
from pipelines.xbind.optimisation import Refinement, has_surface, refined
from pipelines.xbind.supervision import Supervision, Weights
from pipelines.xbind.surface import NoSurfaceError, surface
from pipelines.xbind.views import shaded

if TYPE_CHECKING:
    from models.nets.shape_autoencoder import ShapeAutoencoder
    from models.nets.shape_generator import ShapeGenerator

SHOWN = 4  # shapes side by side in a preview
PREVIEW_RESOLUTION, PREVIEW_SIDE = 32, 128
AZIMUTH, ELEVATION = 30.0, 20.0  # degrees
# Steps of the optimisation's phases: coarse field, geometry, texture. "fine" takes about a minute on two cores.
PHASES: dict[str, tuple[int, int, int]] = {"preview": (0, 0, 0), "draft": (40, 40, 40), "fine": (120, 100, 100)}
MOST_REFINE_STEPS = max(sum(steps) for steps in PHASES.values())
REFINE_EFFORT = 4  # of a step of the optimisation, in steps of the flow
SAME_COLOUR = 8  # of 255: what compression does to a single colour


class PreviewParams(Params):
    num_shapes: int = Field(1, ge=1, le=4, description="Variations to make at once, each from its own seed.")
    share: float = Field(
        0.5, ge=0, le=1, description="With words and a picture: how far to go from the words to the picture."
    )
    size: float = Field(1.0, ge=0.01, le=100, description="Metres of its longest side.")
    steps: int = Field(
        20, ge=1, le=200, description="Steps of the flow: more are slower and finer.", json_schema_extra=ADVANCED
    )
    guidance: float = Field(
        3.0,
        ge=1,
        le=10,
        description="How strictly to follow what is asked. 1 is free, 10 is rigid.",
        json_schema_extra=ADVANCED,
    )
    resolution: int = Field(
        96,
        ge=32,
        le=128,
        description="Voxels a side from which the surface is made: more are slower and finer.",
        json_schema_extra=ADVANCED,
    )
    num_faces: int = Field(
        20_000, ge=200, le=100_000, description="At most this many triangles.", json_schema_extra=ADVANCED
    )

    @property
    def refinement(self) -> int:
        """Steps of the optimisation of one object."""
        return 0


class XBindParams(PreviewParams):
    preset: Literal["preview", "draft", "fine"] = Field(
        "preview", description="A preview is there in seconds. draft and fine go on from it for a minute or two."
    )
    planar_weight: float = Field(
        1.0,
        ge=0,
        le=10,
        description="Refining: weight of how a view of what is asked for should look.",
        json_schema_extra=ADVANCED,
    )
    stereoscopic_weight: float = Field(
        1.0,
        ge=0,
        le=10,
        description="Refining: weight of how other sides should look, given one.",
        json_schema_extra=ADVANCED,
    )
    similarity_weight: float = Field(
        1.0, ge=0, le=10, description="Refining: weight of meaning what is asked for.", json_schema_extra=ADVANCED
    )
    refine_steps: int = Field(
        MOST_REFINE_STEPS,
        ge=1,
        le=MOST_REFINE_STEPS,
        description="Refining: stop after this many steps, if the preset has more.",
        json_schema_extra=ADVANCED,
    )

    @property
    def refinement(self) -> int:
        """Steps of the optimisation of one object."""
        return min(sum(PHASES[self.preset]), self.refine_steps)


class XBindPreview(Pipeline):
    """What is installed until weights of "view-diffusion" are trained, without which :class:`XBind` cannot refine."""

    name = "xbind"
    title = "3-D object from words or a picture"
    summary = (
        "Type what to make, or show it, or both. You can turn it in seconds; it is like a picture, not a copy of it."
    )
    routes = (Route(("text",), "mesh"), Route(("image",), "mesh"), Route(("text", "image"), "mesh"))
    params_type: ClassVar[type[PreviewParams]] = PreviewParams
    models: ClassVar[tuple[str, ...]] = ("picture-text", "sentence-encoder", "shape-generator", "shape-autoencoder")
    examples = (
        ("a wooden chair",),
        ("a desk lamp",),
        ("a sofa",),
        ("a car",),
        ("a bathtub",),
        ("a palm tree",),
    )

    def models_for(self, inputs: Sequence[Artifact], params: Params) -> tuple[str, ...]:
        params = cast(PreviewParams, params)
        reads = any(isinstance(item, Text) for item in inputs) and not (len(inputs) > 1 and params.share == 1)
        used = {"sentence-encoder": reads, "view-diffusion": params.refinement > 0}
        return tuple(key for key in self.models if used.get(key, True))

    def shape_of_work(self, inputs: Sequence[Artifact], params: Params) -> tuple[int, ...]:
        params = cast(PreviewParams, params)
        return params.num_shapes, params.resolution

    def effort(self, inputs: Sequence[Artifact], params: Params) -> float:
        params = cast(PreviewParams, params)
        return float(params.num_shapes * (params.steps + REFINE_EFFORT * params.refinement))

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        params = cast(PreviewParams, params)
        prompts = [Prompt.of(item) for item in inputs]
        yield Progress(0, params.steps, "Loading models")
        wanted = []
        for prompt in prompts:
            runtime.raise_if_cancelled()
            condition, note = prompt.vector(params.share, runtime)
            wanted += [Wanted(condition, seed, note) for seed in params.seeds(params.num_shapes)]

        def produced(number: int, item: Mesh, made_with: PreviewParams = params) -> Produced:
            which, index = divmod(number, params.num_shapes)
            return Produced(item.with_provenance(provenance(self, inputs[which], made_with, runtime.models, index)))

        with ExitStack() as stack:
            maker = ShapeMaker.lease(runtime, stack)
            latents = yield from maker.make(wanted, params)
            if params.refinement:
                for number, pair in enumerate(zip(wanted, latents, strict=True)):
                    item, steps = yield from maker.refine(*pair, cast(XBindParams, params), number, len(wanted))
                    # One that was stopped is kept, with the steps it took as its recipe.
                    taken = {"refine_steps": steps} if steps else {"preset": "preview"}
                    stopped = runtime.cancelled.is_set()
                    yield produced(number, item, params.model_copy(update=taken) if stopped else params)
                    runtime.raise_if_cancelled()
                return
            objects = []
            for pair in zip(wanted, latents, strict=True):
                runtime.raise_if_cancelled()
                objects.append(maker.object(*pair, params))
        del maker  # its models may go now
        for number, item in enumerate(objects):
            yield produced(number, item)


class XBind(XBindPreview):
    params_type = XBindParams
    models = (*XBindPreview.models, "view-diffusion")


@dataclass(frozen=True)
class Prompt:
    """What is asked for; at least one of both."""

    words: str | None
    picture: Image | None

    @classmethod
    def of(cls, item: Sequence[Artifact]) -> Self:
        """In any order. Raises :class:`UserError` for other media, empty words, and a picture of nothing."""
        for one in item:
            if not isinstance(one, Text | Image):
                raise UserError(
                    f"Words or a picture are needed here, not {one.medium}.", "Say what to make, or show it."
                )
        words = [_clean_words(one.text) for one in item if isinstance(one, Text)]
        pictures = [_of_something(one) for one in item if isinstance(one, Image)]
        if not 1 <= len(item) <= 2 or len(words) > 1 or len(pictures) > 1:
            raise UserError("One text, one picture, or one of each is needed here.", "Leave out the others.")
        return cls(words[0] if words else None, pictures[0] if pictures else None)

    def vector(self, share: float, runtime: Runtime) -> tuple[Tensor, str]:
        """The unit vector (D,) of it, and what progress says; ``share``: of the way from the words to the picture."""
        if self.words is None or (self.picture is not None and share == 1):
            return self._seen(runtime), "Making what the picture shows"
        said, heard = words_vector("picture-text", self.words, runtime)
        note = f'Making "{heard[:80]}"'
        if self.picture is None or share == 0:
            return said[0], note
        from models.bridges import slerp

        return slerp(said[0], self._seen(runtime), share), f"{note} and what the picture shows"

    def _seen(self, runtime: Runtime) -> Tensor:
        with runtime.lease("picture-text") as space:
            return picture_vector(space, cast(Image, self.picture), runtime)


def _clean_words(text: str) -> str:
    try:
        return clean_prompt(text, "The text")
    except UserError as error:
        raise UserError(error.sentence, "Say in a few words what to make, such as 'a wooden chair'.") from None


def _of_something(picture: Image) -> Image:
    if np.ptp(picture.pixels, axis=(0, 1)).max() <= SAME_COLOUR:
        raise UserError("The picture shows nothing: it is one colour all over.", "Use a picture of one object.")
    return picture


@dataclass(frozen=True)
class Wanted:
    """One object to be made of the unit vector ``condition`` (D,); ``note`` is what progress says."""

    condition: Tensor
    seed: int
    note: str


@dataclass
class ShapeMaker:
    """The two leased models, for the length of one run."""

    generator: ShapeGenerator
    autoencoder: ShapeAutoencoder
    runtime: Runtime

    @classmethod
    def lease(cls, runtime: Runtime, stack: ExitStack) -> Self:
        """Raises :class:`UserError` if the two do not fit together."""
        generator, autoencoder = (
            stack.enter_context(runtime.lease(key)) for key in ("shape-generator", "shape-autoencoder")
        )
        made, read = ((model.config.channels, model.config.plane) for model in (generator, autoencoder))
        if made != read:
            raise UserError(
                "The shape generator and the shape autoencoder do not mean the same by latents.",
                "Take both from the same training.",
            )
        return cls(generator, autoencoder, runtime)

    def flow_steps(self, count: int, params: PreviewParams) -> int:
        """Of ``count`` objects, as many at once as may be."""
        return -(-count // self.runtime.micro_batch) * params.steps

    def make(self, wanted: Sequence[Wanted], params: PreviewParams) -> Generator[Progress, None, list[Tensor]]:
        """Yields progress after every step, with a few previews; returns the latents (3, C, p, p) of each object."""
        size = self.runtime.micro_batch
        chunks = [wanted[i : i + size] for i in range(0, len(wanted), size)]
        done, flow = 0, self.flow_steps(len(wanted), params)
        made: list[Tensor] = []
        for chunk in chunks:
            self.runtime.raise_if_cancelled()
            conditions, seeds = torch.stack([one.condition for one in chunk]), [one.seed for one in chunk]
            stages = self.generator.denoise(conditions, params.steps, params.guidance, seeds)
            for _ in range(params.steps):
                self.runtime.raise_if_cancelled()
                with precision(self.runtime.models):
                    clean, latents = next(stages)
                done += 1
                preview = self._preview(clean) if is_preview(done, flow) else None
                yield Progress(done, flow + len(wanted) * params.refinement, chunk[0].note, preview)
            made += latents
        return made

    def object(self, wanted: Wanted, latents: Tensor, params: PreviewParams, addition: Tensor | None = None) -> Mesh:
        """(3, C, p, p), and what the optimisation adds to its grid -> the object.

        One at a time, since a grid takes far more room than its latents. Raises :class:`UserError` if it has no
        surface.
        """
        [grid] = self._grids(latents[None], params.resolution)
        try:
            return surface(grid if addition is None else refined(grid, addition.cpu()), params.num_faces, params.size)
        except NoSurfaceError:
            raise _no_object(wanted) from None

    def refine(
        self, wanted: Wanted, latents: Tensor, params: XBindParams, number: int, count: int
    ) -> Generator[Progress, None, tuple[Mesh, int]]:
        """Optimise the object ``number`` of ``count``: it, and the steps taken; told to stop, the best so far."""
        if self.runtime.cancelled.is_set():
            return self.object(wanted, latents, params), 0
        flow = self.flow_steps(count, params)
        weights = Weights(params.planar_weight, params.stereoscopic_weight, params.similarity_weight)
        with self.runtime.lease("view-diffusion") as prior, self.runtime.lease("picture-text") as space:
            supervision = Supervision(prior, space, wanted.condition, weights, wanted.seed, self.runtime)
            start = self.start(wanted, latents)
            refinement = Refinement(start, supervision, wanted.seed, PHASES[params.preset], params.refine_steps)
            for event in refinement.run():
                if self.runtime.cancelled.is_set():
                    refinement.settle()
                    break
                step = flow + number * params.refinement + event.step
                yield Progress(step, flow + count * params.refinement, event.message, event.preview)
        return self.object(wanted, latents, params, refinement.addition), refinement.done

    def start(self, wanted: Wanted, latents: Tensor) -> Tensor:
        """The grid (4, R, R, R) that is optimised, on the models' device, at the resolution that its decoder learned.

        Raises :class:`UserError` if it has no surface.
        """
        [grid] = self._grids(latents[None], self.autoencoder.config.size)
        if not has_surface(grid):
            raise _no_object(wanted)
        return grid.to(self.runtime.models.device)

    def _preview(self, latents: Tensor) -> Image:
        """The first four objects side by side, as the present estimate would end them."""
        grids = self._grids(latents[:SHOWN], PREVIEW_RESOLUTION)
        pictures = [shaded(grid, AZIMUTH, ELEVATION, PREVIEW_SIDE) for grid in grids]
        return Image(torch.cat(pictures, 1).numpy())

    def _grids(self, latents: Tensor, resolution: int) -> Tensor:
        """Latents (B, 3, C, p, p) -> (B, 4, R, R, R) float32 on the CPU."""
        with precision(self.runtime.models):
            return self.autoencoder.grid(latents, resolution).float().cpu()


def _no_object(wanted: Wanted) -> UserError:
    following = (wanted.seed + 1) % (MAX_SEED + 1)
    return UserError(f"No object came of the seed {wanted.seed}.", f"Try the seed {following}.")
