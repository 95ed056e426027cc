"""NeuroPictor (arXiv 2403.18211) as the lite profile has it: from simulated brains, which it paints on a map itself.

The same pipeline with smaller models. A simulated scan (``sim-v1``) is voxels, so they are put on the map that the
decoder learnt from; a map is read as it is. What was decoded has a name, which is said beside the picture, and how much
nearer to a name the scan is than scans of nothing are, whose voxels are shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from models.errors import UserError
from models.neuropictor_lite import SmallNeuroPictor
from pipelines.base import EXAMPLES, Route, Runtime, precision
from pipelines.fmri.cortex import places_for
from pipelines.fmri.trials import AS_SAID, chosen_trials, trials_of, whose
from pipelines.formats.scans.checks import SCALE
from pipelines.formats.scans.files import MAP_SHAPE, RAW, UNKNOWN, Z_SCORED
from pipelines.media import BrainScan
from pipelines.neuropictor.maps import SIDE, maps_of, pixels_of
from pipelines.neuropictor.pipeline import KEY, NeuroPictorParams, NeuroPictorPipeline, chosen_map

SHUFFLES = 200  # scans of nothing
NEAREST = 5
HOW_TO_HAVE_ONE = "Use a simulated scan (S1 to S8), or a .npy file of z-scored (1, 256, 256) maps."


@dataclass(frozen=True)
class Activity:
    """``values`` (1, V), z-scored: of voxels, or of a map's pixels within the cortex. ``shown`` (64, 64): which of them
    is at which pixel, -1 for none. ``who``: whose they are."""

    values: Tensor
    shown: Tensor
    who: str

    def on_map(self) -> Tensor:
        """(1, 1, 64, 64)."""
        return maps_of(self.values, self.shown)

    def shuffled(self, seeds: Sequence[int]) -> Tensor:
        """Maps of nothing (len(seeds), 1, 64, 64): the values in other orders."""
        count = self.values.shape[1]
        orders = [torch.randperm(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return maps_of(torch.cat([self.values[:, order] for order in orders]), self.shown)


class SmallNeuroPictorPipeline(NeuroPictorPipeline):
    summary = "A simulated scan, on a flat map of the visual cortex, steers a picture: what is in it, and where."
    routes: ClassVar[tuple[Route, ...]] = (Route(("scan",), "image"), Route(("scan",), "text"))
    models: ClassVar[tuple[str, ...]] = SmallNeuroPictor.models
    example_files = tuple(sorted((EXAMPLES / "scans").glob("S*.npz")))

    def lease(self, runtime: Runtime, stack: ExitStack) -> SmallNeuroPictor:
        return SmallNeuroPictor(*(stack.enter_context(runtime.lease(key)) for key in self.models))

    def read(self, scan: BrainScan, params: NeuroPictorParams, runtime: Runtime) -> Tensor:
        activity = activity_in(scan, params, runtime)
        return activity.shuffled([params.seed]) if params.shuffled else activity.on_map()

    def words(self, scan: BrainScan, params: NeuroPictorParams, map_read: Tensor, runtime: Runtime) -> str:
        activity = activity_in(scan, params, runtime)
        maps = torch.cat([map_read, activity.shuffled(range(SHUFFLES))]).to(runtime.models.device)
        with runtime.lease(KEY) as decoder, runtime.lease("brain-decoder") as names:
            with precision(runtime.models):
                semantic = decoder.decode(maps).semantic
            [concepts] = names.nearest(semantic[:1], NEAREST)
            share = float((names.likeness(semantic[1:]).amax(1) < concepts[0].cosine).float().mean())
        nearest = ", ".join(f"{concept.name} {concept.cosine:.2f}" for concept in concepts)
        return (
            f"Perhaps {concepts[0].sentence}\nNearest concepts: {nearest}.\n"
            f"{activity.who}; nearer to a concept than {100 * share:.0f} % of {SHUFFLES} scans of shuffled voxels."
        )


def activity_in(scan: BrainScan, params: NeuroPictorParams, runtime: Runtime) -> Activity:
    """The chosen trial or the mean of all. Raises :class:`UserError` as :func:`chosen_map` does, for brains whose
    voxels have no place on the map, and where nobody knows by what to z-score them."""
    if scan.values.shape[-3:] == MAP_SHAPE:
        cells = F.adaptive_avg_pool2d(chosen_map(scan, params), SIDE)[0, 0]
        within = cells != 0
        shown = torch.where(within.flatten(), within.flatten().cumsum(0) - 1, -1).view_as(cells)
        count = len(scan.values) if scan.values.ndim == 4 else 1
        return Activity(cells[within][None], shown, whose("A map", params.trial, count))
    places = places_for(scan.subject, scan.values.shape[-1]) if scan.values.ndim <= 2 else None
    if places is None:
        named = "" if scan.subject == UNKNOWN else f" of {scan.subject[:40]}"
        sizes = " x ".join(map(str, scan.values.shape))
        raise UserError(f"Where these {sizes} values{named} lie on a map of the cortex is not known.", HOW_TO_HAVE_ONE)
    subject = places[0]
    values, units = chosen_trials(scan, params.trial, AS_SAID)
    if units != Z_SCORED:
        values = _z_scored(subject, values / SCALE if units == RAW else values, runtime)
    who = whose(subject, params.trial, len(trials_of(scan)))
    return Activity(values.mean(0, keepdim=True), torch.from_numpy(pixels_of(subject)), who)


def _z_scored(subject: str, betas: Tensor, runtime: Runtime) -> Tensor:
    """Percent signal change (N, V), by the statistics that the decoder of voxels has of this subject."""
    with runtime.lease("brain-decoder") as names:
        if subject not in names.subjects:
            raise UserError(
                f"By what to z-score scans of {subject} is not known.",
                "z-score each voxel over the trials of its session first, or choose a scan of another subject.",
            )
        standardised: Tensor = names.standardised(subject, betas.to(runtime.models.device))
        return standardised.cpu()
