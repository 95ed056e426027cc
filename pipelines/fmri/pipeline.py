"""fMRI decoding: from brain scans to a sentence and a picture guided by what was decoded.

STTM's two parts (arXiv 2403.06361): a semantic vector, and how the picture looks from afar. The vector becomes words:
the concept whose pictures are nearest to it; the words' source latents are moved towards the coarse look, and CrossFlow
flows on from there to a picture: it was trained on sources that are faint copies of pictures. Decoded features guide
the picture; it is not what a person saw.

The brains that the decoder knows are simulated, but for those of adapters that somebody fitted (``adapting``). Of the
one that was measured (Haxby et al. 2001) it is decoded which of eight kinds of thing was looked at, and the picture is
of that kind.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from models.errors import UserError
from models.nets.brain_decoder import BrainDecoder, Concept
from models.nets.category_decoder import SUBJECT as MEASURED_SUBJECT
from models.nets.crossflow import FAINT
from pipelines.base import (
    EXAMPLES,
    Event,
    Params,
    Pipeline,
    Produced,
    Progress,
    Route,
    Runtime,
    provenance,
)
from pipelines.crossflow.pipeline import SamplingParams
from pipelines.crossflow.sampling import MODELS, Painter
from pipelines.formats.scans.checks import SCALE
from pipelines.formats.scans.files import RAW, SIMULATED, UNKNOWN, Z_SCORED
from pipelines.formats.scans.subjects import is_simulated
from pipelines.media import Artifact, BrainScan, Image, Text

SHUFFLES = 1000  # of a scan's voxels, that its answer is compared with
NEAREST = 5
OF_SIMULATION = "Simulated brain data (sim-v1): computed from the picture, not measured in a person."
OF_SIMULATED_SUBJECT = "Read as a simulated brain (sim-v1), the only kind that the decoder knows."
OF_ADAPTED_SUBJECT = "Read by an adapter to a decoder that learnt from simulated brains (sim-v1) alone."
OF_MEASUREMENT = "Measured fMRI, Haxby et al. 2001, one slice, 8 categories."
GUIDED = "The picture is guided by decoded features; it is not what a person saw, and not for diagnosis."
Units = Literal["as the scan says", "percent signal change", "percent signal change x 300", "z-scored"]


class FMRIParams(SamplingParams):
    num_images: int = Field(1, ge=1, le=16, description="Pictures to make at once, each from its own seed.")
    trial: int = Field(
        0, ge=0, le=100_000, description="Which trial of the scan; 0 takes all as repeats of one picture: their mean."
    )
    strength: float = Field(
        0.5,
        ge=0,
        le=1,
        description="How much of the decoded look to start from; 0 takes the decoded words alone.",
    )
    shuffled: bool = Field(False, description="Shuffle the voxels first, to see what comes of a scan of nothing.")
    subject: str = Field("", max_length=40, description="Whose brain; by the number of voxels if empty.")
    units: Units = Field("as the scan says", description="What the scan's numbers are, if it does not say.")


class FMRI(Pipeline):
    name = "fmri"
    title = "Picture from a brain scan"
    summary = "Show what a brain answered to a picture, and see and read what was decoded of it."
    routes = (Route(("scan",), "image"), Route(("scan",), "text"))
    params_type = FMRIParams
    models: ClassVar[tuple[str, ...]] = ("brain-decoder", "category-decoder", *MODELS)
    example_files = tuple(sorted((EXAMPLES / "scans").glob("*.npz")))

    def models_for(self, inputs: Sequence[Artifact], params: Params) -> tuple[str, ...]:
        measured = _is_measured(_scan(inputs), cast(FMRIParams, params))
        unused = "brain-decoder" if measured else "category-decoder"
        return tuple(key for key in self.models if key != unused)

    def shape_of_work(self, inputs: Sequence[Artifact], params: Params) -> tuple[int, ...]:
        return (cast(FMRIParams, params).num_images,)

    def effort(self, inputs: Sequence[Artifact], params: Params) -> float:
        params = cast(FMRIParams, params)
        return float(params.num_images * params.num_inference_steps)

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        params = cast(FMRIParams, params)
        scans = [_scan(item) for item in inputs]
        yield Progress(0, params.num_inference_steps, "Loading models")
        for item, scan in zip(inputs, scans, strict=True):
            runtime.raise_if_cancelled()
            reading = (categorise if _is_measured(scan, params) else read)(scan, params, runtime)
            with ExitStack() as stack:
                pictures = yield from painted(reading, params, Painter.lease(runtime, stack))
            for index, pixels in enumerate(pictures):
                made_by = provenance(self, item, params, runtime.models, index)
                made_by = made_by.model_copy(update={"badge": " ".join(_notes(params, reading.badge))})
                yield Produced(Image(pixels, provenance=made_by))
            made_by = provenance(self, item, params, runtime.models, params.num_images)
            yield Produced(Text(reading.words, provenance=made_by))


@dataclass(frozen=True)
class Reading:
    """``sentence``: what was decoded, for the painter; ``look``: latents (1, C, H, W) that a picture like it may start
    from, if that was decoded; ``words``: all that is to be said of it; ``badge``: what kind of data it is of."""

    sentence: str
    look: Tensor | None
    words: str
    badge: str


def painted(reading: Reading, params: FMRIParams, painter: Painter) -> Generator[Progress, None, np.ndarray]:
    """Yields progress; returns pictures (num_images, H, W, 3) uint8. Raises :class:`UserError` for another look than
    the painter's."""
    mean, log_variance, _ = painter.encode(reading.sentence, params.style)
    if reading.look is not None:
        if reading.look.shape != mean.shape:
            raise UserError(
                "The brain decoder and the painter do not mean the same by latents.", "Take both from the lite profile."
            )
        mean = torch.lerp(mean, reading.look.to(mean), params.strength)
    source = painter.drawn(mean, log_variance, params.seeds(params.num_images))
    note = f"Painting {reading.sentence}"
    return (yield from painter.paint(source, params.num_inference_steps, params.guidance_scale, note))


def look_of(low_level: Tensor) -> Tensor:
    """Decoded latents (1, 8, 8, 8) as faint as the sources that the painter was trained on, (1, 8, 16, 16)."""
    return FAINT * F.interpolate(low_level, scale_factor=2, mode="bilinear")


def read(scan: BrainScan, params: FMRIParams, runtime: Runtime) -> Reading:
    """Decode the scan. Raises :class:`UserError` for one that no known brain fits, or whose units nobody says."""
    with runtime.lease("brain-decoder") as decoder:
        subject, values = _standardised(scan, params, decoder)
        decoded = decoder.decode(subject, values.to(runtime.models.device))
        others = decoder.decode(subject, _shuffles(values[0]).to(runtime.models.device)).semantic
        [concepts] = decoder.nearest(decoded.semantic, NEAREST)
        share = float((decoder.likeness(others).amax(1) < concepts[0].cosine).float().mean())
    badge = _badge(scan, subject)
    words = _words(concepts, share, scan, subject, params, badge)
    return Reading(concepts[0].sentence, look_of(decoded.low_level), words, badge)


def categorise(scan: BrainScan, params: FMRIParams, runtime: Runtime) -> Reading:
    """Which kind of thing was looked at. Raises :class:`UserError` for other voxels, and unless they are z-scored."""
    values, units = _chosen(scan, params)
    with runtime.lease("category-decoder") as decoder:
        if units != Z_SCORED or values.shape[1] != decoder.voxels:
            raise UserError(
                f"A scan of {MEASURED_SUBJECT} is {decoder.voxels} voxels, z-scored by the volumes of rest.",
                "Prepare it as the shipped examples were.",
            )
        values = _perhaps_shuffled(values.mean(0, keepdim=True), params)
        scores, others = (decoder(part.to(runtime.models.device)) for part in (values, _shuffles(values[0])))
        share = float((others.amax(1) < scores.max()).float().mean())
        order = scores[0].argsort(descending=True).tolist()
        ranked = ", ".join(f"{decoder.names[index]} {scores[0, index]:.2f}" for index in order)
        right = f"{100 * decoder.accuracy:.0f} % of blocks of runs that it was not fitted on"
        lines = [
            decoder.names[order[0]],
            f"Scores: {ranked}.",
            f"{_whose(scan, params, decoder.subject)}; a higher score than {_than_shuffled(share)}.",
            f"Such a decoder is right for {right} (chance {100 / len(order):.0f} %).",
            *_notes(params, OF_MEASUREMENT),
        ]
        return Reading(decoder.names[order[0]], None, "\n".join(lines), OF_MEASUREMENT)


def _words(
    concepts: Sequence[Concept], share: float, scan: BrainScan, subject: str, params: FMRIParams, badge: str
) -> str:
    nearest = ", ".join(f"{concept.name} {concept.cosine:.2f}" for concept in concepts)
    lines = [
        f"Perhaps {concepts[0].sentence}",
        f"Nearest concepts: {nearest}.",
        f"{_whose(scan, params, subject)}; nearer to a concept than {_than_shuffled(share)}.",
        *_notes(params, badge),
    ]
    return "\n".join(lines)


def _badge(scan: BrainScan, subject: str) -> str:
    if scan.origin == SIMULATED:
        return OF_SIMULATION
    return OF_SIMULATED_SUBJECT if is_simulated(subject) else OF_ADAPTED_SUBJECT


def _whose(scan: BrainScan, params: FMRIParams, subject: str) -> str:
    trials = len(trials_of(scan))
    return f"{subject}, " + (
        f"mean of {trials} trials" if params.trial == 0 and trials > 1 else f"trial {max(1, params.trial)}"
    )


def _than_shuffled(share: float) -> str:
    return f"{100 * share:.0f} % of {SHUFFLES:,} scans of shuffled voxels"


def _notes(params: FMRIParams, badge: str) -> list[str]:
    of_nothing = ["Its own voxels were shuffled too: this is what comes of nothing."] if params.shuffled else []
    return [*of_nothing, badge, GUIDED]


def _scan(item: Sequence[Artifact]) -> BrainScan:
    [given] = item
    if not isinstance(given, BrainScan):
        raise UserError(f"A brain scan is needed here, not {given.medium}.", "Attach one.")
    return given


def trials_of(scan: BrainScan) -> Tensor:
    """(N, V) float32. Raises :class:`UserError` unless the scan is of voxels."""
    values = torch.tensor(scan.values)
    if values.ndim > 2:
        raise UserError(
            f"The scan has {values.ndim} axes, and the decoder reads voxels, or trials and voxels.",
            "Apply the subject's mask to it first.",
        )
    return values[None] if values.ndim == 1 else values


def _standardised(scan: BrainScan, params: FMRIParams, decoder: BrainDecoder) -> tuple[str, Tensor]:
    """The subject, and the chosen trial or the mean of all, z-scored: (1, V)."""
    values, units = _chosen(scan, params)
    named = params.subject.strip() or (scan.subject if scan.subject in decoder.subjects else "")
    subject = named or decoder.recognise(values.shape[1])
    decoder.check(subject, values)
    if units != Z_SCORED:
        values = decoder.standardised(subject, values / SCALE if units == RAW else values)
    return subject, _perhaps_shuffled(values.mean(0, keepdim=True), params)


def _chosen(scan: BrainScan, params: FMRIParams) -> tuple[Tensor, str]:
    """The chosen trial or all of them, (N, V), and what their numbers are."""
    values = trials_of(scan)
    if params.trial > len(values):
        raise UserError(
            f"The scan has no trial {params.trial}, only {len(values)}.", "Choose one of them, or 0 for all."
        )
    if params.trial:
        values = values[params.trial - 1 : params.trial]
    units = scan.units if params.units == "as the scan says" else params.units
    if units == UNKNOWN:
        raise UserError(
            "The scan does not say whether its numbers are percent signal change or z-scores.",
            "Say it by 'units'.",
        )
    return values, units


def _perhaps_shuffled(values: Tensor, params: FMRIParams) -> Tensor:
    """(1, V), its voxels in another order if that was asked for."""
    if not params.shuffled:
        return values
    return values[:, torch.randperm(values.shape[1], generator=torch.Generator().manual_seed(params.seed))]


def _is_measured(scan: BrainScan, params: FMRIParams) -> bool:
    return (params.subject.strip() or scan.subject) == MEASURED_SUBJECT


def _shuffles(values: Tensor) -> Tensor:
    """(V,) -> (SHUFFLES, V), the same for every scan of a subject."""
    noise = torch.rand(SHUFFLES, len(values), generator=torch.Generator().manual_seed(0))
    return values[noise.argsort(1)]
