"""XBind's instant preview: a coloured 3-D object from words, from a picture, or from both, in one pass.

Words and pictures are vectors of one space, and a generator makes shapes from such a vector. So one prompt may be led
towards another of the other medium: a chair, somewhat like this picture. As the paper says of its own, the object is in
the spirit of a picture, and does not reconstruct it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self, cast

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
from pipelines.xbind.surface import NoSurfaceError, surface
from pipelines.xbind.views import shaded

if TYPE_CHECKING:
    from models.nets.shape_autoencoder import ShapeAutoencoder
    from models.nets.shape_generator import ShapeGenerator

SHOWN = 4  # shapes side by side in a preview
PREVIEW_RESOLUTION, PREVIEW_SIDE = 32, 128
AZIMUTH, ELEVATION = 30.0, 20.0  # degrees
SAME_COLOUR = 8  # of 255: what compression does to a single colour


class XBindParams(Params):
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


class XBind(Pipeline):
    name = "xbind"
    title = "3-D object from words or a picture"
    summary = (
        "Type what to make, or show it, or both. You can turn it in seconds; it is like a picture, not a copy of it."
    )
    routes = (Route(("text",), "mesh"), Route(("image",), "mesh"), Route(("text", "image"), "mesh"))
    params_type = XBindParams
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
        share = cast(XBindParams, params).share
        reads = any(isinstance(item, Text) for item in inputs) and not (len(inputs) > 1 and share == 1)
        return tuple(key for key in self.models if reads or key != "sentence-encoder")

    def shape_of_work(self, inputs: Sequence[Artifact], params: Params) -> tuple[int, ...]:
        params = cast(XBindParams, params)
        return params.num_shapes, params.resolution

    def effort(self, inputs: Sequence[Artifact], params: Params) -> float:
        params = cast(XBindParams, params)
        return float(params.num_shapes * params.steps)

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        params = cast(XBindParams, params)
        prompts = [Prompt.of(item) for item in inputs]
        yield Progress(0, params.steps, "Loading models")
        wanted = []
        for prompt in prompts:
            runtime.raise_if_cancelled()
            condition, note = prompt.vector(params.share, runtime)
            wanted += [Wanted(condition, seed, note) for seed in params.seeds(params.num_shapes)]
        with ExitStack() as stack:
            maker = ShapeMaker.lease(runtime, stack)
            objects = yield from maker.make(wanted, params)
        del maker  # its models may go now
        for number, item in enumerate(objects):
            which, index = divmod(number, params.num_shapes)
            made_by = provenance(self, inputs[which], params, runtime.models, index)
            yield Produced(item.with_provenance(made_by))


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

    def make(self, wanted: Sequence[Wanted], params: XBindParams) -> Generator[Progress, None, list[Mesh]]:
        """Yields progress after every step, with a few previews; returns the objects in the order of ``wanted``."""
        size = self.runtime.micro_batch
        chunks = [wanted[i : i + size] for i in range(0, len(wanted), size)]
        done, total = 0, len(chunks) * params.steps
        objects: list[Mesh] = []
        for chunk in chunks:
            self.runtime.raise_if_cancelled()
            conditions, seeds = torch.stack([one.condition for one in chunk]), [one.seed for one in chunk]
            stages = self.generator.denoise(conditions, params.steps, params.guidance, seeds)
            for _ in range(params.steps):
                self.runtime.raise_if_cancelled()
                with precision(self.runtime.models):
                    clean, latents = next(stages)
                done += 1
                preview = self._preview(clean) if is_preview(done, total) else None
                yield Progress(done, total, chunk[0].note, preview)
            for one, of_one in zip(chunk, latents, strict=True):
                self.runtime.raise_if_cancelled()
                objects.append(self._object(of_one, one.seed, params))
        return objects

    def _object(self, latents: Tensor, seed: int, params: XBindParams) -> Mesh:
        """(3, C, p, p) -> the object. One at a time, since a grid takes far more room than its latents."""
        try:
            return surface(self._grids(latents[None], params.resolution)[0], params.num_faces, params.size)
        except NoSurfaceError:
            following = (seed + 1) % (MAX_SEED + 1)
            raise UserError(f"No object came of the seed {seed}.", f"Try the seed {following}.") from None

    def _preview(self, latents: Tensor) -> Image:
        """The first four objects side by side, as the present estimate would end them."""
        grids = self._grids(latents[:SHOWN], PREVIEW_RESOLUTION)
        pictures = [shaded(grid, AZIMUTH, ELEVATION, PREVIEW_SIDE) for grid in grids]
        return Image(torch.cat(pictures, 1).numpy())

    def _grids(self, latents: Tensor, resolution: int) -> Tensor:
        """Latents (B, 3, C, p, p) -> (B, 4, R, R, R) float32 on the CPU."""
        with precision(self.runtime.models):
            return self.autoencoder.grid(latents, resolution).float().cpu()
