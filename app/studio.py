"""The one door: the UI, the command line and batches all generate through :class:`Studio`."""

from __future__ import annotations

import logging
import queue
import secrets
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import JsonValue

from app.library import Entry, Library
from app.settings import Settings
from models.catalog import catalog
from models.errors import Cancelled, UserError
from models.machine import choose_device, memory_budget
from models.manager import ModelManager
from pipelines.base import Event, Params, Pipeline, Produced, Progress, Registry, Runtime, installed_registry
from pipelines.media import Artifact, Text

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
TITLE_LENGTH = 120


@dataclass(frozen=True)
class Saved:
    """An artifact that is in the gallery now."""

    entry: Entry
    artifact: Artifact


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
        self.registry = registry or installed_registry()
        self.manager = manager or build_manager(settings)
        # Pipelines run in one thread of their own: two would fight for the same cores, and autocast and inference mode
        # belong to a thread, whereas a web server may resume an iterator in another thread than it began in.
        self._lane = ThreadPoolExecutor(1, thread_name_prefix="generation")

    @cached_property
    def library(self) -> Library:
        """The gallery; opened when first needed. Raises :class:`UserError` if its folder cannot be used."""
        return Library(self.settings.output_folder)

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
            pipeline = self.registry.get(pipeline_name)
            _check_media(pipeline, inputs)
            runtime = Runtime(self.manager, cancelled or threading.Event())
            yield from self._in_lane(pipeline, inputs, pipeline.parse_params(params), runtime)

    def generate(
        self,
        pipeline_name: str,
        inputs: Sequence[Artifact],
        params: dict[str, Any],
        cancelled: threading.Event | None = None,
    ) -> Iterator[Progress | Saved]:
        """Like :meth:`run`, with every artifact saved to the gallery as it comes."""
        with reporting():
            library = self.library
            events = self.run(pipeline_name, inputs, params, cancelled)
            title = title_of(inputs) or self.registry.get(pipeline_name).title
            for event in events:
                if isinstance(event, Produced):
                    yield Saved(library.add(event.artifact, title), event.artifact)
                else:
                    yield event

    def remix(self, entry_id: str) -> tuple[str, list[Artifact], dict[str, Any]]:
        """The pipeline's name, inputs and params that made a gallery entry, ready for :meth:`generate`.

        Raises :class:`UserError` if the entry or something that it was made from is not in the gallery any more.
        """
        provenance = self.library.get(entry_id).provenance
        inputs = [self._input(described) for described in provenance.inputs]
        return provenance.pipeline, inputs, {**provenance.params, "seed": provenance.seed}

    def _input(self, described: dict[str, JsonValue]) -> Artifact:
        if described["medium"] == Text.medium:
            return Text(str(described["text"]))
        return self.library.load_by_hash(str(described["hash"]))

    def _in_lane(
        self, pipeline: Pipeline, inputs: Sequence[Artifact], params: Params, runtime: Runtime
    ) -> Iterator[Progress | Produced]:
        """Run in the lane's thread and hand its events to whichever thread iterates here."""
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                for event in _stream(pipeline, inputs, params, runtime):
                    events.put(event)
            finally:
                events.put(None)

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


def build_manager(settings: Settings) -> ModelManager:
    """The manager of the settings' device, budget and models."""
    device = choose_device(settings.device)
    budget = settings.memory_budget_gb
    return ModelManager(
        catalog(settings.profile, settings.local_weights),
        device,
        memory_budget(device) if budget is None else int(budget * 1e9),
    )


def title_of(inputs: Sequence[Artifact]) -> str:
    """The texts among the inputs on one line of at most 120 characters; empty if there are none."""
    texts = [" ".join(item.text[: 8 * TITLE_LENGTH].split()) for item in inputs if isinstance(item, Text)]
    title = " → ".join(texts)
    return title if len(title) <= TITLE_LENGTH else title[: TITLE_LENGTH - 1] + "…"


def _stream(
    pipeline: Pipeline, inputs: Sequence[Artifact], params: Params, runtime: Runtime
) -> Iterator[Progress | Produced]:
    """The pipeline's events with a look at the user's wish to stop between them, even if the pipeline never looks."""
    runtime.raise_if_cancelled()
    stream = pipeline.run(inputs, params, runtime)
    try:
        for event in stream:
            yield event
            runtime.raise_if_cancelled()
    finally:
        if isinstance(stream, Generator):
            stream.close()  # here and now, so that its leases end with the run


def _check_media(pipeline: Pipeline, inputs: Sequence[Artifact]) -> None:
    media = [item.medium for item in inputs]
    if not pipeline.accepts(media):
        given = " + ".join(media) or "nothing"
        takes = ", or ".join(" + ".join(route.inputs) for route in pipeline.routes)
        raise UserError(f"{pipeline.title} cannot be made from {given}.", f"It takes {takes}.")


@contextmanager
def reporting() -> Iterator[None]:
    """Lets the user's errors pass; logs any other whole and makes it an :class:`InternalError`."""
    try:
        yield
    except (UserError, Cancelled, InternalError):
        raise
    except Exception as error:
        error_id = secrets.token_hex(4)
        log.exception("internal error %s", error_id)
        raise InternalError(error_id) from error
