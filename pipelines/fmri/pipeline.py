"""fMRI decoding: from brain scans to a sentence and a picture guided by what was decoded.

STTM's two parts (arXiv 2403.06361): a semantic vector, and how the picture looks from afar. The vector becomes words:
the concept whose pictures are nearest to it; the words' source latents are moved towards the coarse look, and CrossFlow
flows on from there to a picture. So it is with our own CrossFlow, which was trained on sources that are faint copies of
pictures; those of the published one are like no picture, and it paints the words alone. Decoded features guide the
picture; it is not what a person saw.

The brains that the decoder knows are simulated, but for those of adapters that somebody fitted (``adapting``). Of the
one that was measured (Haxby et al. 2001) it is decoded which of eight kinds of thing was looked at, and the picture is
of that kind.

Before any of this the scan itself is drawn (``cortex``). Of simulated brains groups of regions can be left out: their
voxels are set to their means.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from models.errors import UserError
from models.nets.brain_subjects import SubjectDecoder
from models.nets.category_decoder import SUBJECT as MEASURED_SUBJECT
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
from pipelines.fmri.cortex import NOTHING, Drawing, draw_scan, places_for, unknown_regions
from pipelines.fmri.flat_map import GROUPS, known_places
from pipelines.fmri.known_pictures import draw_neighbours, known_pictures
from pipelines.fmri.trials import AS_SAID, Units, chosen_trials, trials_of, whose
from pipelines.formats.scans.checks import SCALE
from pipelines.formats.scans.files import MEASURED, RAW, SIMULATED, Z_SCORED, surface_of
from pipelines.formats.scans.subjects import is_simulated
from pipelines.media import Artifact, BrainScan, Image, Text

SHUFFLES = 1000  # of a scan's voxels, that its answer is compared with
NEAREST = 5
OF_SIMULATION = "Simulated brain data (sim-v1): computed from the picture, not measured in a person."
OF_SIMULATED_SUBJECT = "Read as a simulated brain (sim-v1), the only kind that the decoder knows."
OF_ADAPTED_SUBJECT = "Read by an adapter to a decoder that learnt from simulated brains (sim-v1) alone."
OF_MEASURED_SUBJECT = "Read by a decoder that learnt from a few people's fMRI (NSD); other people's it reads badly."
OF_MEASUREMENT = "Measured fMRI, Haxby et al. 2001, one slice, 8 categories."
OF_UPLOAD = "An uploaded scan of unknown places."
GUIDED = "Guided by decoded features; it is not what a person saw, and not for diagnosis."
LOOKED_UP = "Known pictures near to decoded features; not what a person saw, and not for diagnosis."
DRAWN = "The scan itself, drawn; nothing was decoded, and it is not for diagnosis."

Show = Literal["picture", "activity", "nearest pictures"]
Without = Literal["none", "early", "higher", "V4", "lateral", "ventral", "dorsal"]


class FMRIParams(SamplingParams):
    show: Show = Field(
        "picture",
        description="A picture guided by what is decoded, the activity itself, or the nearest of known pictures.",
    )
    without: Without = Field(
        "none",
        description="Regions to leave out, of a simulated brain: early is V1 to V3, higher all others, lateral LO.",
    )
    num_images: int = Field(1, ge=1, le=16, description="Pictures to make at once, each from its own seed.")
    trial: int = Field(
        0, ge=0, le=100_000, description="Which trial of the scan; 0 takes all as repeats of one picture: their mean."
    )
    strength: float = Field(
        0.5,
        ge=0,
        le=1,
        description="How much of the decoded look to start from; 0 takes the decoded words alone, as the full profile "
        "always does: its painter cannot start from a look.",
    )
    shuffled: bool = Field(False, description="Shuffle the voxels first, to see what comes of a scan of nothing.")
    subject: str = Field("", max_length=40, description="Whose brain; by the number of voxels if empty.")
    units: Units = Field(AS_SAID, description="What the scan's numbers are, if it does not say.")


class FMRI(Pipeline):
    name = "fmri"
    title = "Picture from a brain scan"
    summary = "Show what a brain answered to a picture, and see and read what was decoded of it."
    routes = (Route(("scan",), "image"), Route(("scan",), "text"))
    params_type = FMRIParams
    models: ClassVar[tuple[str, ...]] = ("brain-decoder", "category-decoder", *MODELS)
    example_files = tuple(sorted((EXAMPLES / "scans").glob("*.npz")))

    def models_for(self, inputs: Sequence[Artifact], params: Params) -> tuple[str, ...]:
        params = cast(FMRIParams, params)
        if params.show != "picture":
            return ("brain-decoder",) if params.show == "nearest pictures" else ()
        unused = "brain-decoder" if is_measured(_scan(inputs), params) else "category-decoder"
        return tuple(key for key in self.models if key != unused)

    def shape_of_work(self, inputs: Sequence[Artifact], params: Params) -> tuple[int, ...]:
        return (cast(FMRIParams, params).num_images,)

    def effort(self, inputs: Sequence[Artifact], params: Params) -> float:
        params = cast(FMRIParams, params)
        return float(params.num_images * params.num_inference_steps) if params.show == "picture" else 0.0

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        params = cast(FMRIParams, params)
        scans = [_scan(item) for item in inputs]
        for item, scan in zip(inputs, scans, strict=True):
            runtime.raise_if_cancelled()
            drawing = drawn(scan, params)
            activity = Image(drawing.pixels)
            yield Progress(0, params.num_inference_steps, "Reading the scan", activity)
            waiting = _seen_while_loading(activity, runtime)
            if params.show == "activity":
                pictures, words, badge = drawing.pixels[None], drawing.words, _badge_of_drawing(scan, params)
            elif params.show == "nearest pictures":
                pictures, words, badge = looked_up(scan, params, waiting)
            else:
                reading = decoded(scan, params, waiting)
                words, badge = reading.words, reading.badge
                with ExitStack() as stack:
                    painting = painted(reading, params, Painter.lease(waiting, stack))
                    pictures = yield from _seen_before(activity, painting)
            for index, pixels in enumerate(pictures):
                made_by = provenance(self, item, params, runtime.models, index, badge=badge)
                yield Produced(Image(pixels, provenance=made_by))
            made_by = provenance(self, item, params, runtime.models, len(pictures), badge=badge)
            yield Produced(Text(words, provenance=made_by))


def drawn(scan: BrainScan, params: FMRIParams) -> Drawing:
    """The scan as it is decoded: the chosen trials, without what is left out. Raises :class:`UserError` as
    :func:`~pipelines.fmri.cortex.draw_scan` does."""
    if params.shuffled and scan.values.ndim <= 2:
        scan = replace(scan, values=scan.values[..., _order(scan.values.shape[-1], params).numpy()])
    return draw_scan(scan, params.trial, params.subject, params.units, params.without)


def _seen_while_loading(activity: Image, runtime: Runtime) -> Runtime:
    return replace(runtime, report=lambda progress: runtime.report(replace(progress, preview=activity)))


def _seen_before(
    activity: Image, painting: Generator[Progress, None, np.ndarray]
) -> Generator[Progress, None, np.ndarray]:
    """``painting``, in which the activity is seen until there is something of the picture."""
    begun = False
    while True:
        try:
            event = next(painting)
        except StopIteration as end:
            return cast(np.ndarray, end.value)
        begun = begun or event.preview is not None
        yield event if begun else replace(event, preview=activity)


@dataclass(frozen=True)
class Reading:
    """``sentence``: what was decoded, for the painter; ``semantic`` (D,): where that lies among pictures, if more than
    a category was decoded; ``look``: a picture's latents (1, C, H, W), of any size, if they were decoded; ``words``:
    all that is to be said of it; ``badge``: what kind of data it is of."""

    sentence: str
    semantic: Tensor | None
    look: Tensor | None
    words: str
    badge: str


def decoded(scan: BrainScan, params: FMRIParams, runtime: Runtime) -> Reading:
    """By the decoder that knows such a brain. Raises :class:`UserError` as :func:`read` and :func:`categorise` do."""
    return (categorise if is_measured(scan, params) else read)(scan, params, runtime)


def painted(reading: Reading, params: FMRIParams, painter: Painter) -> Generator[Progress, None, np.ndarray]:
    """Yields progress; returns pictures (num_images, H, W, 3) uint8. Raises :class:`UserError` for another look than
    the painter's, if it can start from one."""
    mean, log_variance, _ = painter.encode(reading.sentence, params.style)
    faint = painter.flow.config.faint
    if reading.look is not None and faint is not None:
        if reading.look.shape[1] != mean.shape[1]:
            raise UserError(
                "The brain decoder and the painter do not mean the same by latents.", "Take both from one profile."
            )
        look = faint * F.interpolate(reading.look, mean.shape[2:], mode="bilinear")
        mean = torch.lerp(mean, look.to(mean), params.strength)
    source = painter.drawn(mean, log_variance, params.seeds(params.num_images))
    note = f"Painting {reading.sentence}"
    return (yield from painter.paint(source, params.num_inference_steps, params.guidance_scale, note))


def read(scan: BrainScan, params: FMRIParams, runtime: Runtime) -> Reading:
    """Decode the scan. Raises :class:`UserError` for one that no known brain fits, or whose units nobody says."""
    with runtime.lease("brain-decoder") as decoder:
        subject, values, left_out = _standardised(scan, params, decoder)
        found = decoder.decode(subject, values.to(runtime.models.device))
        others = decoder.vectors(subject, _shuffles(values[0]).to(runtime.models.device))
        [concepts] = decoder.nearest(found.semantic, NEAREST)
        share = float((decoder.likeness(others).amax(1) < concepts[0].cosine).float().mean())
        badge = _badge(scan, subject, decoder)
    notes = [*left_out, *_notes(params, badge, GUIDED)]
    nearest = ", ".join(f"{concept.name} {concept.cosine:.2f}" for concept in concepts)
    lines = [
        f"Perhaps {concepts[0].sentence}",
        f"Nearest concepts: {nearest}.",
        f"{_whose(scan, params, subject)}; nearer to a concept than {_than_shuffled(share)}.",
        *notes,
    ]
    return Reading(concepts[0].sentence, found.semantic[0], found.low_level, "\n".join(lines), " ".join(notes))


def looked_up(scan: BrainScan, params: FMRIParams, runtime: Runtime) -> tuple[np.ndarray, str, str]:
    """The nearest known pictures, drawn (1, H, W, 3); what is said of them, and their badge.

    Raises :class:`UserError` as :func:`read` does, and for the measured brain.
    """
    if is_measured(scan, params):
        raise UserError(
            f"Of {MEASURED_SUBJECT} only the kind of thing is decoded, to which no known picture is near.",
            "Choose a simulated scan, or show the picture.",
        )
    known = known_pictures()
    with runtime.lease("brain-decoder") as decoder:
        if known.vectors.shape[1] != len(decoder.center):
            raise UserError(
                "This brain decoder and the known pictures do not mean the same by vectors.",
                "Show the picture or the activity, or use the lite profile.",
            )
        subject, values, left_out = _standardised(scan, params, decoder)
        both = torch.cat([values, _shuffles(values[0])]).to(runtime.models.device)
        semantic = decoder.vectors(subject, both)
        found = known.nearest(semantic[:1], semantic[1:], decoder.center)
        badge = _badge(scan, subject, decoder)
    notes = [*left_out, *_notes(params, badge, LOOKED_UP)]
    who = _whose(scan, params, subject)
    lines = [
        f"Nearest of {len(known.names)} known pictures, which is not a reconstruction:",
        *(
            f"{rank}. {known.names[row]} {cosine:.2f}, nearer than {_than_shuffled(above)}"
            for rank, (row, cosine, above) in enumerate(found, 1)
        ),
        f"{who}.",
        *notes,
    ]
    return draw_neighbours(known, found, who)[None], "\n".join(lines), " ".join(notes)


def categorise(scan: BrainScan, params: FMRIParams, runtime: Runtime) -> Reading:
    """Which kind of thing was looked at. Raises :class:`UserError` for other voxels, and unless they are z-scored."""
    values, units = chosen_trials(scan, params.trial, params.units)
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
            *(notes := _notes(params, OF_MEASUREMENT, GUIDED)),
        ]
        return Reading(decoder.names[order[0]], None, None, "\n".join(lines), " ".join(notes))


def _badge(scan: BrainScan, subject: str, decoder: SubjectDecoder) -> str:
    if scan.origin == SIMULATED:
        return OF_SIMULATION
    if decoder.learnt_from == "measured":
        return OF_MEASURED_SUBJECT
    return OF_SIMULATED_SUBJECT if is_simulated(subject) else OF_ADAPTED_SUBJECT


def _badge_of_drawing(scan: BrainScan, params: FMRIParams) -> str:
    subject = params.subject.strip() or scan.subject
    left_out = []
    if scan.origin == SIMULATED:
        kind = OF_SIMULATION
    elif scan.origin == MEASURED and subject == MEASURED_SUBJECT:
        kind = OF_MEASUREMENT
    else:
        kind = OF_SIMULATED_SUBJECT if places_for(subject, scan.values.shape[-1]) else OF_UPLOAD
    if params.without != NOTHING:
        left_out = [f"Left out: {_named(params.without)}."]
    return " ".join([*left_out, *_notes(params, kind, DRAWN)])


def _whose(scan: BrainScan, params: FMRIParams, subject: str) -> str:
    return whose(subject, params.trial, len(trials_of(scan)))


def _than_shuffled(share: float) -> str:
    return f"{100 * share:.0f} % of {SHUFFLES:,} scans of shuffled voxels"


def _notes(params: FMRIParams, badge: str, of_result: str) -> list[str]:
    of_nothing = ["Its own voxels were shuffled too: this is what comes of nothing."] if params.shuffled else []
    return [*of_nothing, badge, of_result]


def _scan(item: Sequence[Artifact]) -> BrainScan:
    [given] = item
    if not isinstance(given, BrainScan):
        raise UserError(f"A brain scan is needed here, not {given.medium}.", "Attach one.")
    return given


def _standardised(scan: BrainScan, params: FMRIParams, decoder: SubjectDecoder) -> tuple[str, Tensor, list[str]]:
    """The subject, and the chosen trial or the mean of all, z-scored: (1, V); what of it was left out."""
    if surface_of(scan.space):
        raise UserError(
            f"Numbers on the cortex's surface ({scan.space}) cannot be decoded: the decoder reads a subject's voxels.",
            "Set 'show' to 'activity' to see them on the cortex.",
        )
    values, units = chosen_trials(scan, params.trial, params.units)
    named = params.subject.strip() or (scan.subject if scan.subject in decoder.subjects else "")
    subject = named or decoder.recognise(values.shape[1])
    decoder.check(subject, values)
    if units != Z_SCORED:
        values = decoder.standardised(subject, values / SCALE if units == RAW else values)
    values = _perhaps_shuffled(values.mean(0, keepdim=True), params)
    if params.without == NOTHING:
        return subject, values, []
    places = known_places().get(subject)
    if places is None or places.mask_hash != decoder.adapter(subject).mask_hash:
        raise unknown_regions(subject)
    gone = torch.from_numpy(places.within(params.without))
    told = f"Left out: {_named(params.without)}, {int(gone.sum()):,} of {len(gone):,} voxels set to their means."
    return subject, values.masked_fill(gone, 0.0), [told]


def _named(group: str) -> str:
    """ "early (V1, V2, V3)"."""
    return f"{group} ({', '.join(GROUPS[group])})"


def _perhaps_shuffled(values: Tensor, params: FMRIParams) -> Tensor:
    """(1, V), its voxels in another order if that was asked for."""
    if not params.shuffled:
        return values
    return values[:, _order(values.shape[1], params)]


def _order(voxels: int, params: FMRIParams) -> Tensor:
    return torch.randperm(voxels, generator=torch.Generator().manual_seed(params.seed))


def is_measured(scan: BrainScan, params: FMRIParams) -> bool:
    return (params.subject.strip() or scan.subject) == MEASURED_SUBJECT


def _shuffles(values: Tensor) -> Tensor:
    """(V,) -> (SHUFFLES, V), the same for every scan of a subject."""
    noise = torch.rand(SHUFFLES, len(values), generator=torch.Generator().manual_seed(0))
    return values[noise.argsort(1)]
