"""The one door: the UI, the command line and batches all generate through :class:`Studio`."""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any

import psutil
import torch
from pydantic import JsonValue

from app.durations import Durations
from app.library import Entry, Library
from app.recovery import events_of
from app.settings import Settings
from models.accounts import Decision, Freed, Metrics, ModelStatus
from models.errors import Cancelled, UserError
from models.machine import choose_device, memory_budget
from models.manager import ModelManager
from models.precision import PRECISIONS, Precision
from models.quantize import SLOWER, choose_precision
from models.spec import ModelSpec
from models.speeds import measured_speeds
from pipelines.base import Event, Params, Pipeline, Produced, Progress, Registry, Runtime, installed_registry
from pipelines.media import Artifact, Text

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
TITLE_LENGTH = 120
# Of a run of a pipeline that never ran on this machine, with and without models.
GUESSED_SECONDS, GUESSED_SECONDS_OF_PLAIN_CODE = 5.0, 0.5


@dataclass(frozen=True)
class Saved:
    """An artifact that is in the gallery now, as it was made: the gallery's own may hold less, of a clip's frames."""

    entry: Entry
    artifact: Artifact


@dataclass(frozen=True)
class MachineState:
    """What the models take of this machine, and what the manager decided; ``decisions`` oldest first."""

    models: list[ModelStatus]
    decisions: list[Decision]
    metrics: Metrics
    used_bytes: int
    budget_bytes: int
    rss_bytes: int
    device: str
    precision: str


class InternalError(Exception):
    """A fault of ours. The log holds it whole under :attr:`id`, which the text tells the user."""

    def __init__(self, error_id: str) -> None:
        super().__init__(f"Something went wrong on our side; the log has the details under {error_id}.")
        self.id = error_id


class Studio:
    """Requests in, events out. Threads may share one Studio: generations queue up for its single lane."""

    def __init__(
        self, settings: Settings, registry: Registry | None = None, manager: ModelManager | None = None
    ) -> None:
        self.settings = settings
        self.registry = registry or installed_registry(settings.profile)
        self.manager = manager or build_manager(settings, self.registry)
        # Pipelines run in one thread of their own: two would fight for the same cores, and autocast and inference mode
        # belong to a thread, whereas a web server may resume an iterator in another thread than it began in.
        self._lane = ThreadPoolExecutor(1, thread_name_prefix="generation")
        # The manager's plan: what runs and what waits for the lane, in order; then what plans are still going to run.
        self._queue: dict[object, Sequence[str]] = {}
        self._plans: dict[object, Sequence[str]] = {}
        self._queue_lock = threading.Lock()

    @cached_property
    def library(self) -> Library:
        """The gallery; opened when first needed. Raises :class:`UserError` if its folder cannot be used."""
        return Library(self.settings.output_folder)

    @cached_property
    def durations(self) -> Durations:
        """What the runs of :meth:`generate` took on this machine."""
        return Durations(self.settings.output_folder / "durations.json")

    def seconds(self, pipeline: Pipeline) -> float:
        """About what a run at default params takes once its models are there: as measured, else a plain guess."""
        guess = GUESSED_SECONDS if pipeline.models else GUESSED_SECONDS_OF_PLAIN_CODE
        return self.durations.expected(pipeline.name) or guess

    def run(
        self,
        pipeline_name: str,
        inputs: Sequence[Artifact],
        params: dict[str, Any],
        cancelled: threading.Event | None = None,
    ) -> Iterator[Progress | Produced]:
        """The pipeline's events, nothing saved. Closing the iterator early sets ``cancelled`` and so stops the run.

        Raises :class:`UserError` for a request that cannot be done, :class:`Cancelled` when ``cancelled`` was set, and
        :class:`InternalError` for everything unexpected.
        """
        with reporting():
            pipeline, parsed = self._understood(pipeline_name, inputs, params)
            yield from self._in_lane(pipeline, inputs, parsed, Runtime(self.manager, cancelled or threading.Event()))

    def generate(
        self,
        pipeline_name: str,
        inputs: Sequence[Artifact],
        params: dict[str, Any],
        cancelled: threading.Event | None = None,
        title: str = "",
    ) -> Iterator[Progress | Saved]:
        """Like :meth:`run`, with every artifact saved to the gallery as it comes, and its attachments kept.

        ``title``: what it is called there, else by its words, else by its pipeline.
        """
        with reporting():
            library = self.library
            pipeline, parsed = self._understood(pipeline_name, inputs, params)
            inputs = [item if isinstance(item, Text) else library.keep_input(item) for item in inputs]
            title = title or title_of(inputs) or pipeline.title
            efforts = [pipeline.effort(inputs, of) for of in (parsed, pipeline.parse_params({}))]
            note = partial(self.durations.note, pipeline.name, *efforts)
            made: list[Entry] = []
            runtime = Runtime(self.manager, cancelled or threading.Event())
            for event in self._in_lane(pipeline, inputs, parsed, runtime, note):
                if isinstance(event, Produced):
                    made.append(library.add(event.artifact, title))
                    yield Saved(made[-1], event.artifact)
                else:
                    yield event
            library.note_run(made)

    @contextmanager
    def upcoming(self) -> Iterator[Callable[[Sequence[str]], None]]:
        """Gives a function that tells the manager which models a plan is still going to lease, soonest first.

        It is called with all that is left, the step that is about to run included, before every step: so the next
        steps' models are loaded while one computes, and nothing that is needed soon goes in between.
        """
        ticket = object()

        def tell(keys: Sequence[str]) -> None:
            with self._queue_lock:
                self._plans[ticket] = tuple(keys)
                self._expect()

        try:
            yield tell
        finally:
            with self._queue_lock:
                self._plans.pop(ticket, None)
                self._expect()

    def remix(self, entry_id: str) -> tuple[str, list[Artifact], dict[str, Any]]:
        """The pipeline's name, inputs and params that made a gallery entry, ready for :meth:`generate`.

        Raises :class:`UserError` if the entry or something that it was made from is not in the gallery any more.
        """
        provenance = self.library.get(entry_id).provenance
        inputs = [self._input(described) for described in provenance.inputs]
        return provenance.pipeline, inputs, {**provenance.params, "seed": provenance.seed}

    def machine(self) -> MachineState:
        """What models are where, what they take, and the latest decisions."""
        manager = self.manager
        precisions = sorted(set(manager.precisions.values()))
        return MachineState(
            models=manager.status(),
            decisions=manager.decisions(),
            metrics=manager.metrics,
            used_bytes=manager.used_bytes,
            budget_bytes=manager.budget_bytes,
            rss_bytes=psutil.Process().memory_info().rss,
            device=str(manager.device),
            precision=", ".join(precisions),
        )

    def free(self, key: str | None = None, *, keep_expected: bool = False) -> Freed:
        """Drop one model, or every idle one, ``keep_expected``: but for those that waiting requests need.

        Raises :class:`UserError` for one that is unknown or in use.
        """
        return self.manager.free(key, keep_expected=keep_expected)

    def _input(self, described: dict[str, JsonValue]) -> Artifact:
        if described["medium"] == Text.medium:
            return Text(str(described["text"]))
        return self.library.load_by_hash(str(described["hash"]))

    def _understood(
        self, pipeline_name: str, inputs: Sequence[Artifact], params: dict[str, Any]
    ) -> tuple[Pipeline, Params]:
        """Raises :class:`UserError` for what the pipeline does not take."""
        pipeline = self.registry.get(pipeline_name)
        _check_media(pipeline, inputs)
        return pipeline, pipeline.parse_params(params)

    def _in_lane(
        self,
        pipeline: Pipeline,
        inputs: Sequence[Artifact],
        params: Params,
        runtime: Runtime,
        note: Callable[[float], None] = lambda seconds: None,
    ) -> Iterator[Progress | Produced]:
        """Run in the lane's thread and hand its events to whichever thread iterates here.

        ``note`` is called with the seconds of a run that came to its end, less those that it waited for models.
        """

        def task(tell: Callable[[Event], None]) -> None:
            started = time.perf_counter()
            for event in events_of(pipeline, inputs, params, runtime, self.manager):
                tell(event)
            note(time.perf_counter() - started - sum(runtime.waits))

        yield from self.in_lane(pipeline.title, pipeline.models_for(inputs, params), task, runtime)

    def in_lane(
        self, title: str, models: Sequence[str], task: Callable[[Callable[[Event], None]], None], runtime: Runtime
    ) -> Generator[Event, None, None]:
        """Do ``task``, which leases ``models``, in the lane's thread, where nothing else computes meanwhile; yields
        what it tells and what ``runtime`` reports. Closed early, it sets the runtime's ``cancelled``, as :meth:`run`.
        """
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

        def work() -> None:
            threading.current_thread().name = title  # the Machine tab says who holds a model
            try:
                task(events.put)
            finally:
                events.put(None)

        runtime.report = events.put
        with self._queued(models):
            yield from self._stream(work, events, runtime)

    @contextmanager
    def _queued(self, keys: Sequence[str]) -> Iterator[None]:
        """Tell the manager that these models are going to be asked for, as long as the request waits or runs."""
        ticket = object()
        with self._queue_lock:
            self._queue[ticket] = keys
            self._expect()
        try:
            yield
        finally:
            with self._queue_lock:
                del self._queue[ticket]
                self._expect()

    def _expect(self) -> None:
        self.manager.expect([*chain.from_iterable(self._queue.values()), *chain.from_iterable(self._plans.values())])

    def _stream(
        self, work: Callable[[], None], events: queue.SimpleQueue[Event | None], runtime: Runtime
    ) -> Iterator[Progress | Produced]:
        """Do ``work`` in the lane and yield what it puts into ``events``, up to the ``None`` at its end."""
        job = self._lane.submit(work)
        told = False
        try:
            while True:
                try:
                    event = events.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    if runtime.cancelled.is_set() and job.cancel():
                        raise Cancelled from None
                    if not (told or job.running() or job.done()):
                        told = True
                        yield Progress(0, 1, "Waiting for another generation to finish")
                    continue
                if event is None:
                    return job.result()
                yield event
        finally:
            if not job.done():
                runtime.cancelled.set()
                job.cancel()


def build_manager(settings: Settings, registry: Registry | None = None) -> ModelManager:
    """The manager of the settings' device, budget, models and precision.

    Precision ``auto`` halves memory at no visible loss and no loss of speed on this machine, goes lower where a model
    loses neither by it, and lower still if the models of some pipeline would not fit together otherwise.
    """
    device = choose_device(settings.device)
    specs = settings.catalog()
    given = settings.memory_budget_gb
    budget = memory_budget(device) if given is None else int(given * 1e9)
    precisions = _chosen_precisions(settings, specs, registry or installed_registry(settings.profile), device, budget)
    for key in settings.model_precision:
        if key not in specs:
            raise UserError(
                f"There is no model called {key[:60]!r} to set a precision for.", f"There is: {', '.join(specs)}."
            )
    return ModelManager(
        specs,
        device,
        budget,
        precisions=precisions | settings.model_precision,
        may_be_lowered=set(specs) - set(settings.model_precision) if settings.precision == "auto" else (),
        host_bytes=memory_budget(torch.device("cpu")) // 2 if device.type == "cuda" else 0,
        idle_seconds=settings.unload_after_minutes and 60 * settings.unload_after_minutes,
    )


def _chosen_precisions(
    settings: Settings, specs: Mapping[str, ModelSpec], registry: Registry, device: torch.device, budget: int
) -> dict[str, Precision]:
    if settings.precision != "auto":
        return dict.fromkeys(specs, settings.precision)
    needed = [pipeline.together or pipeline.models for pipeline in registry]
    sets = [[specs[key].bytes for key in keys if key in specs] for keys in needed]
    speeds = measured_speeds(device)
    fits = choose_precision(max(map(sum, sets), default=0), budget, speeds)
    # Without products of whole numbers, or with faster ones of bfloat16, int8 would cost speed.
    if speeds.int8 > SLOWER * getattr(speeds, fits, speeds.int8):
        return dict.fromkeys(specs, fits)
    return {key: max(fits, spec.lossless, key=PRECISIONS.index) for key, spec in specs.items()}


def title_of(inputs: Sequence[Artifact]) -> str:
    """The texts among the inputs on one line of at most 120 characters; empty if there are none."""
    texts = [" ".join(item.text[: 8 * TITLE_LENGTH].split()) for item in inputs if isinstance(item, Text)]
    title = " → ".join(texts)
    return title if len(title) <= TITLE_LENGTH else title[: TITLE_LENGTH - 1] + "…"


def _check_media(pipeline: Pipeline, inputs: Sequence[Artifact]) -> None:
    media = [item.medium for item in inputs]
    if not pipeline.accepts(media):
        given = " + ".join(media) or "nothing"
        takes = ", or ".join(" + ".join(route.inputs) for route in pipeline.routes)
        raise UserError(f"{pipeline.title} cannot be made from {given}.", f"It takes {takes}.")


@contextmanager
def reporting() -> Iterator[None]:
    """Lets the user's errors pass, and that nobody reads on.

    Logs any other whole, and makes it an :class:`InternalError`.
    """
    try:
        yield
    except (UserError, Cancelled, InternalError, BrokenPipeError):
        raise
    except Exception as error:
        error_id = secrets.token_hex(4)
        log.exception("internal error %s", error_id)
        raise InternalError(error_id) from error
