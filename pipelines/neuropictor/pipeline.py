"""NeuroPictor (arXiv 2403.18211): a picture from a map of the visual cortex, which steers what is seen and where.

The map's tokens stand where a prompt's would, and a copy of the generator's encoder is given them too, whose answers
are added to the generator's own: the control. The paper's two knobs are here: how much of the control, and how strongly
what was decoded is told from no words at all. The published model was trained on measured brains; the small one
(``small``) on simulated brains alone. The decoded features guide a picture, and it is not what a person saw.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from models.errors import UserError
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
from pipelines.crossflow.sampling import to_pixels
from pipelines.fmri.cortex import draw_scan
from pipelines.fmri.pipeline import GUIDED, OF_SIMULATION
from pipelines.fmri.trials import check_trial
from pipelines.formats.scans.checks import MAX_BACKGROUND, MAX_DEVIATION, MIN_DEVIATION
from pipelines.formats.scans.files import MAP_SHAPE, PERCENT, RAW, SIMULATED
from pipelines.media import Artifact, BrainScan, Image, Text

if TYPE_CHECKING:
    from models.neuropictor import NeuroPictor

KEY = "neuropictor"
OF_NOTHING = "Its pixels were shuffled first: this is what comes of nothing."
READ_BY = {
    "measured": "Read by NeuroPictor, which learnt from a few people's fMRI (NSD); other people's it reads badly.",
    "simulated": "Read by a small NeuroPictor, which learnt from simulated brains (sim-v1) alone.",
}
HOW_TO_HAVE_ONE = (
    "Use a .npy file of (1, 256, 256) or (N, 1, 256, 256): z-scored pixels of the flattened visual cortex, 0 around it."
)


class NeuroPictorParams(Params):
    num_images: int = Field(1, ge=1, le=16, description="Pictures to make at once, each from its own seed.")
    trial: int = Field(
        0, ge=0, le=100_000, description="Which map of the scan; 0 takes all as repeats of one picture: their mean."
    )
    control_scale: float = Field(
        1.0, ge=0, le=2, description="How much the map steers where things are; 0 leaves that to the generator."
    )
    guidance_scale: float | None = Field(
        None,
        ge=1,
        le=20,
        description="How strongly it steers what is seen. 1 is free; none takes what the model was made for.",
        json_schema_extra=ADVANCED,
    )
    num_inference_steps: int = Field(
        50, ge=1, le=250, description="Steps of denoising: more are slower and finer.", json_schema_extra=ADVANCED
    )
    shuffled: bool = Field(False, description="Shuffle the pixels first, to see what comes of a scan of nothing.")


class MapPainter(Protocol):
    """What the published model and the small one have in common; :class:`models.neuropictor.NeuroPictor` says what."""

    @property
    def learnt_from(self) -> Literal["measured", "simulated"]: ...

    @property
    def guidance_scale(self) -> float: ...

    def denoise(
        self, maps: Tensor, steps: int, guidance: float, control_scale: float, seeds: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor]]: ...

    def decode(self, latents: Tensor) -> Tensor: ...


class NeuroPictorPipeline(Pipeline):
    name = "neuropictor"
    title = "Picture from a map of the cortex"
    summary = "A flat map of the visual cortex steers a picture: what is in it, and where."
    routes: ClassVar[tuple[Route, ...]] = (Route(("scan",), "image"),)
    params_type = NeuroPictorParams
    models: ClassVar[tuple[str, ...]] = (KEY,)

    def lease(self, runtime: Runtime, stack: ExitStack) -> MapPainter:
        """What paints, for as long as ``stack`` lasts."""
        model: NeuroPictor = stack.enter_context(runtime.lease(KEY))
        return model

    def read(self, scan: BrainScan, params: NeuroPictorParams, runtime: Runtime) -> Tensor:
        """The map that is meant, (1, 1, H, W). Raises :class:`UserError` for what is none that can be read."""
        chosen = chosen_map(scan, params)
        return shuffled(chosen, params.seed) if params.shuffled else chosen

    def words(self, scan: BrainScan, params: NeuroPictorParams, map_read: Tensor, runtime: Runtime) -> str:
        """What is said beside the pictures of what :meth:`read` gave, if anything."""
        return ""

    def shape_of_work(self, inputs: Sequence[Artifact], params: Params) -> tuple[int, ...]:
        return (cast(NeuroPictorParams, params).num_images,)

    def effort(self, inputs: Sequence[Artifact], params: Params) -> float:
        params = cast(NeuroPictorParams, params)
        return float(params.num_images * params.num_inference_steps)

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        params = cast(NeuroPictorParams, params)
        scans = [scan_in(item) for item in inputs]
        maps = [self.read(scan, params, runtime) for scan in scans]  # all, before one is painted for nothing
        for item, scan, activity in zip(inputs, scans, maps, strict=True):
            yield Progress(
                0, params.num_inference_steps, "Reading the map", Image(draw_scan(scan, params.trial).pixels)
            )
            with ExitStack() as stack:
                model = self.lease(runtime, stack)
                pictures = yield from pictures_of(activity, params, model, runtime)
                badge = badge_of(scan, params, model.learnt_from)
            words = self.words(scan, params, activity, runtime)
            for index, pixels in enumerate(pictures):
                made_by = provenance(self, item, params, runtime.models, index, badge=badge)
                yield Produced(Image(pixels, provenance=made_by))
            if words:
                made_by = provenance(self, item, params, runtime.models, len(pictures), badge=badge)
                yield Produced(Text(f"{words}\n{badge}", provenance=made_by))


def pictures_of(
    activity: Tensor, params: NeuroPictorParams, model: MapPainter, runtime: Runtime
) -> Generator[Progress, None, np.ndarray]:
    """From one map (1, 1, 256, 256). Yields progress after every step, with a few previews; returns the pictures,
    (num_images, H, W, 3) uint8."""
    guidance = model.guidance_scale if params.guidance_scale is None else params.guidance_scale
    seeds, steps = params.seeds(params.num_images), params.num_inference_steps
    chunks = [seeds[i : i + runtime.micro_batch] for i in range(0, len(seeds), runtime.micro_batch)]
    pictures = []
    for index, chunk in enumerate(chunks):
        maps = activity.to(runtime.models.device).expand(len(chunk), -1, -1, -1)
        stages = model.denoise(maps, steps, guidance, params.control_scale, chunk)
        for step in range(1, steps + 1):
            runtime.raise_if_cancelled()
            with precision(runtime.models):
                clean, latents = next(stages)
            preview = Image(_row(_decoded(clean[:4], model, runtime))) if is_preview(step, steps) else None
            yield Progress(index * steps + step, steps * len(chunks), "Painting", preview)
        pictures.append(_decoded(latents, model, runtime))
    return np.concatenate(pictures)


def _decoded(latents: Tensor, model: MapPainter, runtime: Runtime) -> np.ndarray:
    with precision(runtime.models):
        return to_pixels(model.decode(latents))


def _row(pictures: np.ndarray) -> np.ndarray:
    return np.concatenate(list(pictures), axis=1)


def scan_in(item: Sequence[Artifact]) -> BrainScan:
    """Raises :class:`UserError` for anything but a scan."""
    [given] = item
    if not isinstance(given, BrainScan):
        raise UserError(f"A brain scan is needed here, not {given.medium}.", "Attach one.")
    return given


def chosen_map(scan: BrainScan, params: NeuroPictorParams) -> Tensor:
    """The chosen map, or the mean of all: (1, 1, 256, 256).

    Raises :class:`UserError` for what is no map, one that is not there, is nearly empty, or is of another scale than
    z-scores.
    """
    if scan.values.shape[-3:] != MAP_SHAPE:
        sizes = " x ".join(map(str, scan.values.shape))
        raise UserError(f"The scan is no map of the cortex but {sizes} values ({scan.space}).", HOW_TO_HAVE_ONE)
    maps = torch.tensor(scan.values).view(-1, *MAP_SHAPE)
    check_trial(params.trial, len(maps))
    if params.trial:
        maps = maps[params.trial - 1 : params.trial]
    within = maps != 0
    empty = 1 - float(within.float().mean())
    if empty > MAX_BACKGROUND:
        raise UserError(f"{100 * empty:.0f} % of the map's pixels are 0.", HOW_TO_HAVE_ONE)
    spread = float(maps[within].std())
    if scan.units in (PERCENT, RAW) or not MIN_DEVIATION <= spread <= MAX_DEVIATION:
        said = scan.units if scan.units in (PERCENT, RAW) else f"of a standard deviation of {spread:.3g}"
        raise UserError(
            f"The map's values are {said}, and the model reads z-scores.",
            "z-score each place of the cortex over the maps of its session first.",
        )
    return maps.mean(0, keepdim=True)


def shuffled(maps: Tensor, seed: int) -> Tensor:
    """One map (1, 1, H, W) whose pixels within the cortex changed places."""
    cells = maps.flatten().clone()
    within = cells.nonzero().flatten()
    cells[within] = cells[within[torch.randperm(len(within), generator=torch.Generator().manual_seed(seed))]]
    return cells.view_as(maps)


def badge_of(scan: BrainScan, params: NeuroPictorParams, learnt_from: str) -> str:
    kind = [OF_SIMULATION] if scan.origin == SIMULATED else []
    return " ".join([*([OF_NOTHING] if params.shuffled else []), *kind, READ_BY[learnt_from], GUIDED])
