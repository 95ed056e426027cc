"""XBind by the published priors of its paper (arXiv 2411.14715), for the full profile.

Any prompt is a vector of the space of OpenCLIP's ViT-H/14, by LanguageBind or ImageBind. Stable unCLIP draws the
reference picture from it, once. Shap-E makes the preview of that picture, and the optimisation goes on from there, or
from a ball, as Stable unCLIP and Zero-1-to-3 say.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from scipy import ndimage
from torch import Tensor

from models.errors import Cancelled
from pipelines.base import (
    ADVANCED,
    Event,
    Params,
    Pipeline,
    Produced,
    Progress,
    Runtime,
    candidate_seed,
    is_preview,
    precision,
    provenance,
)
from pipelines.crossflow.sampling import to_pixels
from pipelines.fmri.pipeline import FMRIParams, is_measured
from pipelines.media import Artifact, Audio, BrainScan, Image, Mesh, Text
from pipelines.xbind.cut_out import cut_out
from pipelines.xbind.optimisation import Refinement, grey_ball, has_surface, refined
from pipelines.xbind.params import ObjectParams
from pipelines.xbind.phases import COLORS, DISTANCES, Distillation, Phase
from pipelines.xbind.pipeline import XBind
from pipelines.xbind.prompts import SHOWN, Meaning, Prompt, Senses, counting
from pipelines.xbind.rendering import SHARPEST, SOFTEST, UNIT, Cameras
from pipelines.xbind.surface import NoSurfaceError, no_object, surface

if TYPE_CHECKING:
    from models.stable_unclip import StableUnCLIP

PLANAR, STEREOSCOPIC, SHAPES = "stable-unclip", "zero123", "shap-e-pictures"
SENSES = {
    "languagebind": Senses("aligned-space", "aligned-ears", by_words=False),
    "imagebind": Senses("imagebind", "imagebind", by_words=False),
}
DRAWS = 4  # of the reference, of which the nearest to the condition is taken
ON_WHITE = "a single object, full view, white background"
SHAPE_STEPS, SHAPE_GUIDANCE = 64, 3.0  # of Shap-E, its usual ones
CLOSE = 1.5  # voxels from a surface
GRID = 64  # voxels a side of what is optimised
# Noise and guidance are near those of systems with these priors (fact sheet, section 2), steps are fewer; nobody has
# published XBind's own.
REFINING: dict[str, tuple[int, int, int]] = {"preview": (0, 0, 0), "draft": (300, 200, 200), "fine": (2000, 2000, 2000)}
MOST_REFINE_STEPS = max(sum(steps) for steps in REFINING.values())
REFINE_EFFORT = 2  # of a step of the optimisation, in steps of the drawing
EVERYTHING, OUTLINE, LIGHT = slice(0, 7), slice(3, 7), slice(0, 3)
PHASES = (
    Phase("coarse field", True, slice(0, 4), EVERYTHING, (0.6, 0.2), (SOFTEST, SHARPEST), 0.5, True),
    Phase("geometry", False, DISTANCES, OUTLINE, (0.3, 0.02), (SHARPEST, SHARPEST), 0.25, False),
    Phase("texture", False, COLORS, LIGHT, (0.5, 0.02), (SHARPEST, SHARPEST), 1.0, True),
)
PHASES_FROM_NOTHING = (replace(PHASES[0], times=(0.9, 0.2)), *PHASES[1:])


class PublishedXBindParams(ObjectParams):
    encoder: Literal["languagebind", "imagebind"] = Field(
        "languagebind", description="What reads the prompt. ImageBind may not be used commercially."
    )
    reference: Literal["drawn", "given"] = Field(
        "drawn", description="With a picture: draw one in its spirit, as the paper does, or go by itself."
    )
    draw_steps: int = Field(
        20, ge=1, le=100, description="Steps of drawing the reference picture.", json_schema_extra=ADVANCED
    )
    guidance: float = Field(
        10.0, ge=1, le=30, description="How strictly the reference follows the prompt.", json_schema_extra=ADVANCED
    )
    noise_level: int = Field(
        0,
        ge=0,
        le=999,
        description="Noise on the prompt's meaning: more is freer, and kinder to sounds.",
        json_schema_extra=ADVANCED,
    )
    resolution: int = Field(
        128,
        ge=32,
        le=256,
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
    # Score distillation for the shape; consistency distillation, which needs guidance, adds detail late.
    geometry: Distillation = Field(
        "cds", description="Refining the geometry: score or consistency distillation.", json_schema_extra=ADVANCED
    )
    texture: Distillation = Field(
        "cds", description="Refining the texture: score or consistency distillation.", json_schema_extra=ADVANCED
    )

    @property
    def refinement(self) -> int:
        """Steps of the optimisation of one object."""
        return min(sum(REFINING[self.preset]), self.refine_steps)

    @property
    def shape_steps(self) -> int:
        """Evaluations by Shap-E for one object; a refinement from scratch needs none."""
        return 2 * SHAPE_STEPS - 1 if self.needs_preview else 0


class PublishedXBind(Pipeline):
    name = "xbind-published"
    title = "3-D object from anything, by large models"
    summary = (
        "XBind by the published models of its paper: type what to make, show it, play its sound, or words with one of "
        "these. Made for a GPU."
    )
    routes = XBind.routes
    params_type = PublishedXBindParams
    keeps_what_is_stopped = True
    refined_by: ClassVar[dict[str, Any]] = {"preset": "fine"}
    models: ClassVar[tuple[str, ...]] = (
        "aligned-space",
        "aligned-ears",
        "imagebind",
        "brain-decoder",
        "category-decoder",
        PLANAR,
        SHAPES,
        STEREOSCOPIC,
    )
    together = (PLANAR, STEREOSCOPIC)
    examples = XBind.examples

    def models_for(self, inputs: Sequence[Artifact], params: Params) -> tuple[str, ...]:
        params = cast(PublishedXBindParams, params)
        senses = SENSES[params.encoder]
        counts = counting(inputs, params.share)
        read = any(isinstance(item, Text) for item in counts)
        scans = [item for item in counts if isinstance(item, BrainScan)]
        measured = [scan for scan in scans if is_measured(scan, FMRIParams())]
        shown = [item for item in counts if isinstance(item, Image)]
        used = {SHAPES: params.needs_preview, STEREOSCOPIC: bool(params.refinement and params.stereoscopic_weight)}
        if params.refinement or not (shown and params.reference == "given"):
            used[PLANAR] = True
            used["category-decoder"], used["brain-decoder"] = bool(measured), len(scans) > len(measured)
            if any(isinstance(item, Audio) for item in counts):
                used[senses.ears] = True
            if read or scans or shown:
                used[senses.space] = True
        return tuple(key for key in self.models if used.get(key))

    def shape_of_work(self, inputs: Sequence[Artifact], params: Params) -> tuple[int, ...]:
        params = cast(PublishedXBindParams, params)
        return DRAWS, params.resolution, int(params.refinement > 0)  # as many pictures at once as views

    def effort(self, inputs: Sequence[Artifact], params: Params) -> float:
        params = cast(PublishedXBindParams, params)
        each = DRAWS * params.draw_steps + params.shape_steps + REFINE_EFFORT * params.refinement
        return float(params.num_shapes * each)

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        params = cast(PublishedXBindParams, params)
        prompts = [Prompt.of(item) for item in inputs]
        yield Progress(0, 1, "Loading models")
        wanted: list[Making] = []
        for prompt in prompts:
            runtime.raise_if_cancelled()
            found = prompt.on_white() if params.background == "remove" else prompt
            meaning = Meaning(torch.empty(0), SHOWN)
            if params.refinement or given_picture(found, params) is None:
                meaning = found.meaning(params.share, runtime, SENSES[params.encoder])
            wanted += [Making(found, meaning, seed, params, runtime) for seed in params.seeds(params.num_shapes)]
        total = sum(one.steps for one in wanted)
        done = 0
        for number, making in enumerate(wanted):
            runtime.raise_if_cancelled()
            making.done, making.total = done, total
            made, steps = yield from making.run()
            done += making.steps
            taken = {"refine_steps": steps} if steps else {"preset": "preview"}
            # One that was stopped is kept, with the steps it took as its recipe.
            made_with = params.model_copy(update=taken) if runtime.cancelled.is_set() else params
            which, index = divmod(number, params.num_shapes)
            badge = making.meaning.badge
            made_by = provenance(self, inputs[which], made_with, runtime.models, index, badge=badge)
            yield Produced(made.with_provenance(made_by))
        runtime.raise_if_cancelled()


def given_picture(prompt: Prompt, params: PublishedXBindParams) -> Image | None:
    """The prompt's own picture, if it is to be the reference and counts at all."""
    counts = prompt.words is None or params.share > 0
    wanted = params.reference == "given" and counts
    return prompt.example if wanted and isinstance(prompt.example, Image) else None


@dataclass
class Making:
    """One object. ``done`` of ``total`` steps of the run."""

    prompt: Prompt
    meaning: Meaning
    seed: int
    params: PublishedXBindParams
    runtime: Runtime
    done: int = 0
    total: int = 0

    @property
    def drawing_steps(self) -> int:
        if given_picture(self.prompt, self.params) is not None:
            return 0
        return -(-DRAWS // self.runtime.micro_batch) * self.params.draw_steps

    @property
    def steps(self) -> int:
        """In all."""
        return self.drawing_steps + self.params.shape_steps + self.params.refinement

    def run(self) -> Generator[Progress, None, tuple[Mesh, int]]:
        """Yields progress; returns the object and the steps of the optimisation that it took."""
        reference = yield from self.reference()
        grid = yield from self.start(reference)
        if not has_surface(grid):
            raise no_object(self.seed)
        if not self.params.refinement:
            return self.object(grid), 0
        return (yield from self.refine(grid, reference))

    def reference(self) -> Generator[Progress, None, Image]:
        """The picture of the object on white that is nearest to the condition of a few; or the prompt's own."""
        given = given_picture(self.prompt, self.params)
        if given is not None:
            return square(given)
        drawn = []
        with self.runtime.lease(PLANAR) as prior:
            wanted = self.meaning.vector.float().to(self.runtime.models.device)
            for first in range(0, DRAWS, self.runtime.micro_batch):
                count = min(DRAWS - first, self.runtime.micro_batch)
                seeds = [candidate_seed(self.seed, first + number) for number in range(count)]
                drawn += yield from self._drawn(prior, wanted, seeds)
            with torch.no_grad(), precision(self.runtime.models):
                vectors = torch.cat([prior.embed_pictures(one) for one in drawn])
            nearest = int((vectors @ wanted).argmax())
        reference = square(cut_out(Image(to_pixels(drawn[nearest])[0])))
        yield self.progress("Drew the picture to go by", reference)
        return reference

    def _drawn(self, prior: StableUnCLIP, wanted: Tensor, seeds: list[int]) -> Generator[Progress, None, list[Tensor]]:
        """Pictures (1, 3, S, S), drawn together."""
        with precision(self.runtime.models):
            asked = prior.asked(wanted.expand(len(seeds), -1), self.words, self.params.noise_level, seeds)
            free = prior.free(len(seeds))
        steps, side = self.params.draw_steps, prior.latent_side
        drawing = prior.sample(asked, free, steps, self.params.guidance, seeds, side)
        for step in range(1, steps + 1):
            self.runtime.raise_if_cancelled()
            with precision(self.runtime.models):
                clean, latents = next(drawing)
                shown = prior.decode(clean[:1]) if is_preview(step, steps) else None
            self.done += 1
            yield self.progress(self.meaning.note, None if shown is None else Image(to_pixels(shown)[0]))
        with precision(self.runtime.models):
            return [prior.decode(one[None]) for one in latents]

    @property
    def words(self) -> str:
        """What is said beside the vector; words that count for nothing are left out."""
        said = self.prompt.words if self.prompt.example is None or self.params.share < 1 else None
        return f"{said}, {ON_WHITE}" if said else ON_WHITE

    def start(self, reference: Image) -> Generator[Progress, None, Tensor]:
        """The grid (4, R, R, R) of Shap-E's preview of the reference, on the CPU; or a grey ball."""
        if not self.params.shape_steps:
            return grey_ball(self.params.resolution)
        with self.runtime.lease(SHAPES) as model:
            with precision(self.runtime.models):
                condition = model.reader.read([reference.pixels])
            stages = model.denoise(condition, SHAPE_STEPS, SHAPE_GUIDANCE, [self.seed])
            for _ in range(self.params.shape_steps):
                self.runtime.raise_if_cancelled()
                with precision(self.runtime.models):
                    _, latents = next(stages)
                self.done += 1
                yield self.progress("Making a first object of the picture")
            with precision(self.runtime.models):
                grid: Tensor = model.grid(latents[0], self.params.resolution, self.runtime.raise_if_cancelled)
        return grid

    def refine(self, grid: Tensor, reference: Image) -> Generator[Progress, None, tuple[Mesh, int]]:
        """The optimisation of ``grid`` (4, R, R, R): the best of it, also when told to stop, and its steps."""
        scratch = not self.params.needs_preview
        fine = grid if scratch else metric(grid)
        start = resized(fine, GRID).to(self.runtime.models.device)
        if not has_surface(start):
            yield self.progress("The preview is too thin to be refined, so it stays.")
            return self.object(grid), 0
        try:
            with ExitStack() as stack:
                refinement = self._refinement(start, reference, stack)
                before = self.done
                for event in refinement.run():
                    if self.runtime.cancelled.is_set():
                        refinement.settle()
                        break
                    self.done = before + event.step
                    yield self.progress(event.message, event.preview)
        except Cancelled:  # while models were loading
            if scratch:
                raise
            return self.object(grid), 0
        if refinement.addition.any():
            return self.object(refined(fine, refinement.addition.cpu())), refinement.done
        if scratch:
            self.runtime.raise_if_cancelled()
            raise no_object(self.seed)  # a mere ball is none
        return self.object(grid), refinement.done

    def _refinement(self, start: Tensor, reference: Image, stack: ExitStack) -> Refinement:
        # Its imports take seconds that a mere listing need not spend.
        from pipelines.xbind_published.supervision import Meant, PublishedSupervision, facing

        params, scratch = self.params, not self.params.needs_preview
        planar = stack.enter_context(self.runtime.lease(PLANAR))
        stereoscopic = stack.enter_context(self.runtime.lease(STEREOSCOPIC)) if params.stereoscopic_weight else None
        camera = Cameras.of((0.0, 0.0)) if scratch else facing(start, reference, planar, self.runtime)
        meant = Meant(self.meaning.vector, self.words, params.noise_level)
        supervision = PublishedSupervision(
            planar, stereoscopic, meant, reference, camera, params.weights, self.seed, self.runtime
        )
        phases = params.phases(PHASES_FROM_NOTHING if scratch else PHASES)
        steps, most = REFINING[params.preset], params.refine_steps
        return Refinement(start, supervision, self.seed, steps, most, phases, may_stay=not scratch)

    def object(self, grid: Tensor) -> Mesh:
        """Raises :class:`UserError` if it has no surface."""
        try:
            return surface(grid, self.params.num_faces, self.params.size)
        except NoSurfaceError:
            raise no_object(self.seed) from None

    def progress(self, message: str, preview: Image | None = None) -> Progress:
        return Progress(self.done, self.total, message, preview)


def metric(grid: Tensor) -> Tensor:
    """Shap-E's distances (4, R, R, R) are none: those of their surface, as renderers read them.

    Near the surface a value over its slope, to keep what is thin; else to the nearest voxel on the other side.
    """
    field = grid[0].double().numpy()
    inside = field < 0
    away = ndimage.distance_transform_edt(~inside) - ndimage.distance_transform_edt(inside)
    steepness = np.sqrt(sum(slope**2 for slope in np.gradient(field)))
    close = np.clip(field / np.maximum(steepness, np.finfo(float).tiny), -CLOSE, CLOSE)
    voxels = np.where(np.abs(away) < CLOSE, close, away - 0.5 * np.sign(away))
    distances = torch.from_numpy(voxels).float() * (2 / len(inside) / UNIT)
    return torch.cat([distances.clamp(-1, 1)[None], grid[1:]])


def resized(grid: Tensor, size: int) -> Tensor:
    """(4, R, R, R) -> (4, size, size, size)."""
    return torch.nn.functional.interpolate(grid[None], (size,) * 3, mode="trilinear", align_corners=False)[0]


def square(picture: Image) -> Image:
    """In the middle of as much white as makes it square."""
    height, width = picture.pixels.shape[:2]
    side = max(height, width)
    canvas = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = picture.pixels
    return Image(canvas)
