"""What a pipeline is: one declaration (name, routes, params, models) and a ``run`` that yields events.

UI controls, command-line flags, batch columns, the controller's schema and the docs table are all derived from the
declaration. A third party adds a pipeline with an entry point in the group ``synesthete.pipelines``.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.config import JsonDict

from models.errors import Cancelled, UserError
from models.records import ModelRecord
from pipelines.artifact import BADGE_CHARACTERS
from pipelines.media import Artifact, Image, Provenance, Text

log = logging.getLogger(__name__)

MAX_SEED = 2**31 - 1
CANDIDATES_APART = 1 << 24
ENTRY_POINTS = "synesthete.pipelines"
EXAMPLES = Path(__file__).parents[1] / "assets" / "examples"
ADVANCED: JsonDict = {"advanced": True}  # as a field's ``json_schema_extra``: its control is in the page's folded part


@dataclass(frozen=True)
class Route:
    """Media in, medium out, by :attr:`Artifact.medium` names: ``Route(("text",), "image")``."""

    inputs: tuple[str, ...]
    output: str


class Params(BaseModel):
    """A pipeline's settings. Each field has a default, bounds and a ``description``: they are the controls' labels."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(0, ge=0, le=MAX_SEED, description="Same seed, same settings: same result.")

    def seeds(self, count: int) -> list[int]:
        """One for each of ``count`` variations, from ``seed`` on."""
        return [(self.seed + i) % (MAX_SEED + 1) for i in range(count)]


def candidate_seed(seed: int, number: int) -> int:
    """Of the candidate ``number`` for the variation ``seed``, which is its first; far from other variations' seeds."""
    return (seed + number * CANDIDATES_APART) % (MAX_SEED + 1)


@dataclass(frozen=True)
class Progress:
    """``step`` of ``total`` is done. ``preview`` shows what has come of the sampling so far."""

    step: int
    total: int
    message: str
    preview: Image | None = None


@dataclass(frozen=True)
class Produced:
    artifact: Artifact


Event = Progress | Produced


PREVIEWS = 5


def is_preview(step: int, steps: int) -> bool:
    """Whether step ``step`` of ``steps``, counted from 1, is one of the few after which a preview is shown."""
    return step < steps and step % max(1, steps // (PREVIEWS + 1)) == 0


class Lender(Protocol):
    """What a pipeline needs of the model manager.

    ``device`` and ``dtype`` are where and in what precision leased models compute: wrap forwards in :func:`precision`.
    """

    device: torch.device
    dtype: torch.dtype

    def lease(
        self, key: str, on_progress: Callable[[float, str], None] | None = None
    ) -> AbstractContextManager[Any]: ...

    def record(self, key: str) -> ModelRecord: ...


@dataclass
class Runtime:
    """What a run is given beside inputs and params: models by lease, and the wish to stop.

    ``micro_batch``: how many things may be computed at once; less after memory ran out. ``report`` takes progress that
    comes while the pipeline waits for a model and can yield nothing. ``waits``: seconds until it had each lease.
    """

    models: Lender
    cancelled: threading.Event = field(default_factory=threading.Event)
    micro_batch: int = 16
    report: Callable[[Progress], None] = field(default=lambda progress: None)
    waits: list[float] = field(default_factory=list)

    @contextmanager
    def lease(self, key: str) -> Iterator[Any]:
        """The model ``key`` for as long as the context lasts; its load reports progress and can be cancelled."""
        asked = time.perf_counter()
        with self.models.lease(key, self._loading) as model:
            self.waits.append(time.perf_counter() - asked)
            yield model

    def _loading(self, fraction: float, message: str) -> None:
        self.raise_if_cancelled()
        # In words: the bar is for the work itself, and would jump back for every model.
        share = f" ({100 * fraction:.0f} %)" if 0 < fraction < 1 else ""
        self.report(Progress(0, 1, message + share))

    def raise_if_cancelled(self) -> None:
        """Raises :class:`Cancelled`; called between denoising steps."""
        if self.cancelled.is_set():
            raise Cancelled


def precision(models: Lender) -> torch.autocast:
    """The autocast context in which the lender's models compute; a no-op in float32."""
    return torch.autocast(models.device.type, models.dtype, enabled=models.dtype != torch.float32)


class Pipeline(ABC):
    """One generation system."""

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    routes: ClassVar[tuple[Route, ...]]
    params_type: ClassVar[type[Params]]
    models: ClassVar[tuple[str, ...]]
    together: ClassVar[tuple[str, ...]] = ()  # of the models, those that a run needs at one time; none: all
    examples: ClassVar[tuple[tuple[str, ...], ...]] = ()  # texts of the inputs, to click on
    example_files: ClassVar[tuple[Path, ...]] = ()  # for the one input of the first route, to click on
    is_edit: ClassVar[bool] = False  # changes something by plain means, or shows it in another medium; no model
    uses_chance: ClassVar[bool] = True  # another seed gives another result
    keeps_what_is_stopped: ClassVar[bool] = False  # a run that is told to stop still makes of it what it can
    refined_by: ClassVar[Mapping[str, Any]] = {}  # settings that go on from what others of its settings gave

    @abstractmethod
    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        """Run many inputs with equal params, micro-batched. Artifacts come in the order of ``inputs``.

        Raises :class:`UserError` for inputs it cannot use, :class:`Cancelled` when the runtime says stop.
        """

    def run(self, inputs: Sequence[Artifact], params: Params, runtime: Runtime) -> Iterator[Event]:
        """A batch of one."""
        return self.run_batch([inputs], params, runtime)

    def shape_of_work(self, inputs: Sequence[Artifact], params: Params) -> tuple[int, ...]:
        """What a run's memory grows with beside its models; first how many things it computes, such as pictures."""
        return (1,)

    def models_for(self, inputs: Sequence[Artifact], params: Params) -> tuple[str, ...]:
        """Those of ``models`` that such a run leases; the others need not even be on this machine."""
        return self.models

    def effort(self, inputs: Sequence[Artifact], params: Params) -> float:
        """What a run's time grows with, in any unit of the pipeline's own, such as pictures times steps."""
        return float(self.shape_of_work(inputs, params)[0])

    def parse_params(self, values: dict[str, Any]) -> Params:
        """``values`` checked against the bounds; raises :class:`UserError` naming the first field that is wrong."""
        try:
            return self.params_type.model_validate(values)
        except ValidationError as error:
            raise UserError(*_explain(self, error)) from None

    def accepts(self, inputs: Sequence[str], output: str | None = None) -> bool:
        """Whether some route goes from these media to ``output`` (to anything, if ``None``)."""
        return any(sorted(route.inputs) == sorted(inputs) and output in (None, route.output) for route in self.routes)


def _explain(pipeline: Pipeline, error: ValidationError) -> tuple[str, str]:
    first = error.errors()[0]
    location = tuple(map(str, first["loc"])) or ("the settings",)
    fields = pipeline.params_type.model_fields
    if first["type"] == "extra_forbidden":
        return f"{pipeline.title} has no setting called '{location[0][:60]}'.", f"It has: {', '.join(fields)}."
    message = first["msg"].removeprefix("Value error, ")
    shown = str(first["input"])
    shown = shown if len(shown) <= 40 else shown[:40] + "…"
    field = fields.get(location[0])
    hint = f"Its meaning: {field.description}" if field else ""
    return f"'{'.'.join(location)}' cannot be {shown!r}: {message[0].lower()}{message[1:]}.", hint


VERSION = "0.1.0"


def provenance(
    pipeline: Pipeline,
    inputs: Sequence[Artifact],
    params: Params,
    lender: Lender,
    index: int = 0,
    *,
    badge: str = "",
    models: Sequence[str] | None = None,
) -> Provenance:
    """The provenance of the artifact number ``index`` of a run. What is made of something with a badge has it too,
    after its own ``badge``. ``models``: those that made it, if they are not all that such a run may lease."""
    badges = dict.fromkeys([badge, *(item.provenance.badge for item in inputs if item.provenance)])
    return Provenance(
        pipeline=pipeline.name,
        inputs=tuple(_described(item) for item in inputs),
        params=params.model_dump(mode="json", exclude={"seed"}),
        seed=params.seed,
        parents=tuple(item.content_hash() for item in inputs if not isinstance(item, Text)),
        models=tuple(lender.record(key) for key in (pipeline.models_for(inputs, params) if models is None else models)),
        index=index,
        version=VERSION,
        badge=" ".join(filter(None, badges))[:BADGE_CHARACTERS],
    )


def _described(item: Artifact) -> dict[str, str]:
    if isinstance(item, Text):
        return {"medium": item.medium, "text": item.text}
    return {"medium": item.medium, "hash": item.content_hash()}


class Registry:
    """The pipelines that exist: the built-in ones and those of installed entry points, by name."""

    def __init__(self, pipelines: Sequence[Pipeline]) -> None:
        self._pipelines = {pipeline.name: pipeline for pipeline in pipelines}

    def __iter__(self) -> Iterator[Pipeline]:
        return iter(self._pipelines.values())

    def get(self, name: str) -> Pipeline:
        if name not in self._pipelines:
            raise UserError(
                f"There is no pipeline called {name[:60]!r}.", f"Choose one of: {', '.join(self._pipelines)}."
            )
        return self._pipelines[name]


def installed_registry(profile: Literal["lite", "full"] = "lite") -> Registry:
    """The built-in pipelines that have models in the profile, then those that installed packages offer, then the plain
    edits. Where two can do a thing, the first does it."""
    from pipelines.audioldm.pipeline import AudioLDM
    from pipelines.clipsonic.pipeline import CLIPSonic
    from pipelines.crossflow.pipeline import CrossFlow, CrossFlowMorph
    from pipelines.describe.pipeline import Describe
    from pipelines.edits import EDITS
    from pipelines.fmri.pipeline import FMRI
    from pipelines.neuropictor.pipeline import NeuroPictorPipeline
    from pipelines.neuropictor.small import SmallNeuroPictorPipeline
    from pipelines.shap_e.pipeline import ShapE
    from pipelines.v2a_mapper.pipeline import V2AMapper
    from pipelines.xbind.pipeline import XBind
    from pipelines.xbind_published.pipeline import PublishedXBind

    shapes = [] if profile == "lite" else [ShapE(), PublishedXBind()]
    maps = SmallNeuroPictorPipeline() if profile == "lite" else NeuroPictorPipeline()
    sounds = [V2AMapper(), AudioLDM(), CLIPSonic()]
    built_in = [CrossFlow(), CrossFlowMorph(), *sounds, *shapes, XBind(), Describe(), FMRI(), maps]
    edits = [edit() for edit in EDITS]
    return Registry([*built_in, *_offered({pipeline.name for pipeline in (*built_in, *edits)}), *edits])


def _offered(taken: set[str]) -> list[Pipeline]:
    """What installed packages offer. One that fails, or whose name is ``taken``, is left out and logged: the rest
    of the app works."""
    offered: dict[str, Pipeline] = {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            pipeline: Pipeline = point.load()()
        except Exception:  # whatever somebody else's code raises
            log.exception("The pipeline '%s' of an installed package cannot be loaded, and is left out", point.value)
            continue
        if pipeline.name in taken | set(offered):
            log.error("The pipeline '%s' is left out: there is a '%s' already", point.value, pipeline.name)
            continue
        offered[pipeline.name] = pipeline
    return list(offered.values())
