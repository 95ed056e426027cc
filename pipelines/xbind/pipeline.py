"""XBind: a coloured 3-D object from words, a picture, a sound or a brain scan; in one pass, then optimised if asked.

All media are vectors of one space, and a generator makes shapes from such a vector. So words may be led towards an
example of another medium: a chair, somewhat like this picture. As the paper says of its own, the object is in the
spirit of a picture, and does not reconstruct it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from models.errors import Cancelled, UserError
from pipelines.base import (
    ADVANCED,
    Event,
    Params,
    Pipeline,
    Produced,
    Progress,
    Route,
    Runtime,
    candidate_seed,
    is_preview,
    precision,
    provenance,
)
from pipelines.fmri.pipeline import FMRIParams, is_measured
from pipelines.media import Artifact, Audio, BrainScan, Image, Mesh, Text
from pipelines.xbind.optimisation import Refinement, grey_ball, has_surface, refined
from pipelines.xbind.params import ObjectParams
from pipelines.xbind.phases import PHASES, PHASES_FROM_NOTHING
from pipelines.xbind.prompts import Meaning, Prompt, counting
from pipelines.xbind.supervision import Supervision
from pipelines.xbind.surface import NoSurfaceError, is_one_piece, no_object, surface
from pipelines.xbind.views import shaded

if TYPE_CHECKING:
    from models.nets.shape_autoencoder import ShapeAutoencoder
    from models.nets.shape_generator import ShapeGenerator

SHOWN = 4  # shapes side by side in a preview
CANDIDATES = 4  # at most, for one object; one in twenty of the first comes in pieces
PREVIEW_RESOLUTION, PREVIEW_SIDE = 32, 128
AZIMUTH, ELEVATION = 30.0, 20.0  # degrees
# Steps of the optimisation's phases: coarse field, geometry, texture. "fine" takes about a minute on two cores.
REFINING: dict[str, tuple[int, int, int]] = {"preview": (0, 0, 0), "draft": (40, 40, 40), "fine": (120, 100, 100)}
MOST_REFINE_STEPS = max(sum(steps) for steps in REFINING.values())
REFINE_EFFORT = 4  # of a step of the optimisation, in steps of the flow


class XBindParams(ObjectParams):
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
        return min(sum(REFINING[self.preset]), self.refine_steps)


class XBind(Pipeline):
    name = "xbind"
    title = "3-D object from anything"
    summary = (
        "Type what to make, show it, play its sound, attach a brain scan, or words with one of these. You can turn it "
        "in seconds; it is like a picture, not a copy of it, and a thing never taught comes out as what is nearest."
    )
    routes = tuple(
        Route(inputs, "mesh")
        for inputs in (
            ("text",),
            ("image",),
            ("audio",),
            ("scan",),
            ("text", "image"),
            ("text", "audio"),
            ("text", "scan"),
        )
    )
    params_type = XBindParams
    keeps_what_is_stopped = True
    refined_by: ClassVar[dict[str, Any]] = {"preset": "fine"}
    models: ClassVar[tuple[str, ...]] = (
        "picture-text",
        "sentence-encoder",
        "bind-audio",
        "brain-decoder",
        "category-decoder",
        "shape-generator",
        "shape-autoencoder",
        "view-diffusion",
    )
    examples = (
        ("a wooden chair",),
        ("a desk lamp",),
        ("a sofa",),
        ("a car",),
        ("a bathtub",),
        ("a horse",),
    )

    def models_for(self, inputs: Sequence[Artifact], params: Params) -> tuple[str, ...]:
        params = cast(XBindParams, params)
        counts = counting(inputs, params.share)
        read = any(isinstance(item, Text) for item in counts)
        measured = [item for item in counts if isinstance(item, BrainScan) and is_measured(item, FMRIParams())]
        seen, heard = (any(isinstance(item, kind) for item in counts) for kind in (Image, Audio))
        used = {
            "sentence-encoder": read or measured or heard,
            "picture-text": read or measured or heard or seen or params.refinement,
            "bind-audio": heard,
            "category-decoder": measured,
            "brain-decoder": not measured and any(isinstance(item, BrainScan) for item in counts),
            "shape-generator": params.needs_preview,
            "view-diffusion": params.refinement,
        }
        return tuple(key for key in self.models if used.get(key, True))

    def shape_of_work(self, inputs: Sequence[Artifact], params: Params) -> tuple[int, ...]:
        params = cast(XBindParams, params)
        return params.num_shapes, params.resolution

    def effort(self, inputs: Sequence[Artifact], params: Params) -> float:
        params = cast(XBindParams, params)
        return float(params.num_shapes * (params.steps + REFINE_EFFORT * params.refinement))

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        params = cast(XBindParams, params)
        prompts = [Prompt.of(item) for item in inputs]
        yield Progress(0, params.steps, "Loading models")
        wanted = []
        for prompt in prompts:
            runtime.raise_if_cancelled()
            found = prompt.on_white() if params.background == "remove" else prompt
            if found != prompt and isinstance(found.example, Image):
                yield Progress(0, params.steps, "Cut the object out of its background", found.example)
            meaning = found.meaning(params.share, runtime)
            wanted += [Wanted(meaning, seed) for seed in params.seeds(params.num_shapes)]

        def produced(number: int, item: Mesh, made_with: XBindParams = params) -> Produced:
            which, index = divmod(number, params.num_shapes)
            badge = wanted[number].meaning.badge
            made_by = provenance(self, inputs[which], made_with, runtime.models, index, badge=badge)
            return Produced(item.with_provenance(made_by))

        with runtime.lease("shape-autoencoder") as autoencoder:
            maker = ShapeMaker(autoencoder, runtime)
            latents: Sequence[Tensor | None] = [None] * len(wanted)
            if params.needs_preview:
                latents = yield from maker.make(wanted, params)
            if params.refinement:
                for number, pair in enumerate(zip(wanted, latents, strict=True)):
                    item, steps = yield from maker.refine(*pair, params, number, len(wanted))
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
        del maker, autoencoder  # the model may go now
        for number, item in enumerate(objects):
            yield produced(number, item)


@dataclass(frozen=True)
class Wanted:
    """One object to be made."""

    meaning: Meaning
    seed: int


@dataclass
class ShapeMaker:
    """From what is wanted to objects, with the leased autoencoder, for the length of one run."""

    autoencoder: ShapeAutoencoder
    runtime: Runtime

    def flow_steps(self, count: int, params: XBindParams) -> int:
        """Of ``count`` objects, as many at once as may be."""
        if not params.needs_preview:
            return 0
        return -(-count // self.runtime.micro_batch) * params.steps

    def make(self, wanted: Sequence[Wanted], params: XBindParams) -> Generator[Progress, None, list[Tensor]]:
        """Yields progress after every step, with a few previews; returns the latents (3, C, p, p) of each object.

        Instead of one that comes in pieces, the first of a few others is taken that does not. Raises
        :class:`UserError` if the generator's latents are not the autoencoder's.
        """
        with self.runtime.lease("shape-generator") as generator:
            made, read = ((model.config.channels, model.config.plane) for model in (generator, self.autoencoder))
            if made != read:
                raise UserError(
                    "The shape generator and the shape autoencoder do not mean the same by latents.",
                    "Take both from the same training.",
                )
            return (yield from self._make(generator, wanted, params))

    def _make(
        self, generator: ShapeGenerator, wanted: Sequence[Wanted], params: XBindParams
    ) -> Generator[Progress, None, list[Tensor]]:
        size = self.runtime.micro_batch
        chunks = [wanted[i : i + size] for i in range(0, len(wanted), size)]
        done, flow = 0, self.flow_steps(len(wanted), params)
        made: list[Tensor] = []
        for chunk in chunks:
            self.runtime.raise_if_cancelled()
            conditions, seeds = torch.stack([one.meaning.vector for one in chunk]), [one.seed for one in chunk]
            stages = generator.denoise(conditions, params.steps, params.guidance, seeds)
            for _ in range(params.steps):
                self.runtime.raise_if_cancelled()
                with precision(self.runtime.models):
                    clean, latents = next(stages)
                done += 1
                preview = self._preview(clean) if is_preview(done, flow) else None
                progress = Progress(done, flow + len(wanted) * params.refinement, chunk[0].meaning.note, preview)
                yield progress
            for one, of_one in zip(chunk, latents, strict=True):
                made.append((yield from self._in_one_piece(generator, one, of_one, params, progress)))
        return made

    def _in_one_piece(
        self, generator: ShapeGenerator, wanted: Wanted, first: Tensor, params: XBindParams, progress: Progress
    ) -> Generator[Progress, None, Tensor]:
        """Latents (3, C, p, p) of a candidate that is one thing: the ``first``, unless only another is."""
        candidate = first
        for number in range(CANDIDATES):
            if number > 0:
                yield replace(progress, message="It came in pieces: trying once more", preview=None)
                seed = candidate_seed(wanted.seed, number)
                with precision(self.runtime.models):
                    [candidate] = generator.sample(wanted.meaning.vector[None], params.steps, params.guidance, [seed])
            if self.runtime.cancelled.is_set():
                return first
            [grid] = self._grids(candidate[None], self.autoencoder.config.size)
            if is_one_piece(grid):
                return candidate
        return first

    def object(
        self, wanted: Wanted, latents: Tensor | None, params: XBindParams, addition: Tensor | None = None
    ) -> Mesh:
        """(3, C, p, p), or nothing for a ball, and what the optimisation adds to its grid -> the object.

        One at a time, since a grid takes far more room than its latents. Raises :class:`UserError` if it has no
        surface.
        """
        grid = self._begun(latents, params.resolution)
        try:
            return surface(grid if addition is None else refined(grid, addition.cpu()), params.num_faces, params.size)
        except NoSurfaceError:
            raise no_object(wanted.seed) from None

    def refine(
        self, wanted: Wanted, latents: Tensor | None, params: XBindParams, number: int, count: int
    ) -> Generator[Progress, None, tuple[Mesh, int]]:
        """Optimise the object ``number`` of ``count``: it, and the steps taken; told to stop, the best so far."""
        if self.runtime.cancelled.is_set() and latents is not None:
            return self.object(wanted, latents, params), 0
        flow = self.flow_steps(count, params)
        try:
            with self.runtime.lease("view-diffusion") as prior, self.runtime.lease("picture-text") as space:
                vector = wanted.meaning.vector
                supervision = Supervision(prior, space, vector, params.weights, wanted.seed, self.runtime)
                refinement = self._refinement(self.start(wanted, latents), supervision, wanted.seed, params)
                for event in refinement.run():
                    if self.runtime.cancelled.is_set():
                        refinement.settle()
                        break
                    step = flow + number * params.refinement + event.step
                    yield Progress(step, flow + count * params.refinement, event.message, event.preview)
        except Cancelled:  # while the two were loading
            if latents is None:
                raise
            return self.object(wanted, latents, params), 0
        if latents is None and not refinement.addition.any():
            self.runtime.raise_if_cancelled()
            raise no_object(wanted.seed)  # a mere ball is none
        return self.object(wanted, latents, params, refinement.addition), refinement.done

    @staticmethod
    def _refinement(start: Tensor, supervision: Supervision, seed: int, params: XBindParams) -> Refinement:
        steps, most = REFINING[params.preset], params.refine_steps
        phases = params.phases(PHASES if params.needs_preview else PHASES_FROM_NOTHING)
        return Refinement(start, supervision, seed, steps, most, phases, may_stay=params.needs_preview)

    def start(self, wanted: Wanted, latents: Tensor | None) -> Tensor:
        """The grid (4, R, R, R) that is optimised, on the models' device, at the resolution that its decoder learned.

        Raises :class:`UserError` if it has no surface.
        """
        grid = self._begun(latents, self.autoencoder.config.size)
        if not has_surface(grid):
            raise no_object(wanted.seed)
        return grid.to(self.runtime.models.device)

    def _preview(self, latents: Tensor) -> Image:
        """The first four objects side by side, as the present estimate would end them."""
        grids = self._grids(latents[:SHOWN], PREVIEW_RESOLUTION)
        pictures = [shaded(grid, AZIMUTH, ELEVATION, PREVIEW_SIDE) for grid in grids]
        return Image(torch.cat(pictures, 1).numpy())

    def _begun(self, latents: Tensor | None, resolution: int) -> Tensor:
        """What the optimisation adds to, (4, R, R, R) on the CPU."""
        return grey_ball(resolution) if latents is None else self._grids(latents[None], resolution)[0]

    def _grids(self, latents: Tensor, resolution: int) -> Tensor:
        """Latents (B, 3, C, p, p) -> (B, 4, R, R, R) float32 on the CPU."""
        with precision(self.runtime.models):
            return self.autoencoder.grid(latents, resolution).float().cpu()
