"""Runs a plan step by step: from the gallery what an equal run has made already, the rest while the next models load.

A step that fails takes only those with it that need it. To try again is to execute the same plan again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from app.controller.plan import STEP, TEXT, Plan, Step, check
from app.studio import InternalError, Saved, Studio, reporting, title_of
from models.errors import Cancelled, UserError
from models.manager import ModelManager
from models.records import ModelRecord
from pipelines.base import Pipeline, Progress, provenance
from pipelines.media import Artifact, Text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    step: Step


@dataclass(frozen=True)
class Running:
    step: Step
    progress: Progress


@dataclass(frozen=True)
class Done:
    """``saved``: all that the step made, in order; ``cached``: the gallery had it; ``seconds``: since it started."""

    step: Step
    saved: tuple[Saved, ...]
    cached: bool
    seconds: float

    @property
    def result(self) -> Saved:
        """What other steps get of it: the first that is of the step's output medium."""
        return next(saved for saved in self.saved if saved.entry.medium == self.step.output)


@dataclass(frozen=True)
class Failed:
    step: Step
    error: UserError | InternalError


@dataclass(frozen=True)
class Skipped:
    """``because``: the id of the failed step that this one needs, directly or not."""

    step: Step
    because: str


StepEvent = Started | Running | Done | Failed | Skipped


def execute(
    studio: Studio,
    plan: Plan,
    sources: Mapping[str, Artifact],
    cancelled: threading.Event | None = None,
    titles: Mapping[str, str] | None = None,
) -> Generator[StepEvent, None, None]:
    """Run ``plan``; everything that its steps make is in the gallery then.

    ``sources``: what ``upload:1`` and ``@1`` stand for; ``titles``: what those are called, which is what comes of them
    is called too. A step gives :class:`Started`, any number of :class:`Running`
    and then :class:`Done` or :class:`Failed`, or only :class:`Skipped`. Raises
    :class:`~app.controller.plan.PlanError` before anything runs if the plan cannot, and :class:`Cancelled` within one
    denoising step once ``cancelled`` is set; what is finished by then stays in the gallery.
    """
    check(plan, studio.registry, {reference: artifact.medium for reference, artifact in sources.items()})
    with studio.upcoming() as tell:
        yield from _Execution(studio, plan, sources, cancelled or threading.Event(), tell, titles or {}).events()


class _Execution:
    """One run of a plan. ``tell`` hears which models are still to come, before every step that runs."""

    def __init__(
        self,
        studio: Studio,
        plan: Plan,
        sources: Mapping[str, Artifact],
        cancelled: threading.Event,
        tell: Callable[[Sequence[str]], None],
        titles: Mapping[str, str],
    ) -> None:
        self.studio, self.plan, self.sources, self.cancelled, self.tell = studio, plan, sources, cancelled, tell
        self.results: dict[str, Saved] = {}  # by reference
        self.titles = dict(titles)  # by reference: the words or the file that it started from
        self.blamed: dict[str, str] = {}  # the id of a step that cannot run: the id of the failed one

    def events(self) -> Iterator[StepEvent]:
        for step in self.plan.steps:
            if self.cancelled.is_set():
                raise Cancelled
            if step.id in self.blamed:
                yield Skipped(step, self.blamed[step.id])
                continue
            yield Started(step)
            try:
                yield from self._run(step)
            except (UserError, InternalError) as error:
                self._blame(step)
                yield Failed(step, error)

    def _run(self, step: Step) -> Iterator[Running | Done]:
        started = time.monotonic()
        with reporting():
            pipeline = self.studio.registry.get(step.op)
            inputs = [self._artifact(reference) for reference in step.inputs]
            words = dict.fromkeys(self._words(reference) for reference in step.inputs)
            title = title_of([Text(text) for text in words if text]) or title_of(inputs)
            saved = _made_before(self.studio, pipeline, inputs, step.params)
            cached = bool(saved)
            if not cached:
                own = pipeline.models_for(inputs, pipeline.parse_params(step.params))
                self.tell([*own, *self._models_after(step)])
                for event in self.studio.generate(pipeline.name, inputs, step.params, self.cancelled, title):
                    if isinstance(event, Saved):
                        saved.append(event)
                    else:
                        yield Running(step, event)
            if all(made.entry.medium != step.output for made in saved):
                raise LookupError(f"the pipeline '{pipeline.name}' made no {step.output}")
            done = Done(step, tuple(saved), cached, time.monotonic() - started)
        self.results[STEP + step.id], self.titles[STEP + step.id] = done.result, title
        yield done

    def _artifact(self, reference: str) -> Artifact:
        """What a reference stands for. Results come out of the gallery: a file may hold less than there was in memory
        (a clip's frames), and what is made of it must be the same whether it was made just now or before. Of words that
        a pipeline made, the first line is what they say; how sure that is, below it, is nothing to paint.
        """
        if reference.startswith(TEXT):
            return Text(reference.removeprefix(TEXT))
        made = reference in self.results
        artifact = self.studio.library.load(self.results[reference].entry.id) if made else self.sources[reference]
        if isinstance(artifact, Text) and artifact.provenance and (lines := artifact.text.strip().splitlines()):
            return Text(lines[0], provenance=artifact.provenance)
        return artifact

    def _words(self, reference: str) -> str:
        """The words that a chain of steps started from; empty if it started from a file."""
        if reference in self.titles:
            return self.titles[reference]
        artifact = self._artifact(reference)
        if isinstance(artifact, Text):
            return title_of([Text((artifact.text.strip().splitlines() or [""])[0])])
        entry = self.studio.library.by_content(artifact.content_hash())
        return entry.title if entry else ""

    def _models_after(self, step: Step) -> list[str]:
        """The models of all steps after ``step`` that can run, soonest first."""
        left = self.plan.steps[self.plan.steps.index(step) + 1 :]
        return [key for later in left if later.id not in self.blamed for key in self._models_of(later)]

    def _models_of(self, step: Step) -> tuple[str, ...]:
        """Those that it will lease; all that it may, unless it starts from words and attachments alone."""
        pipeline = self.studio.registry.get(step.op)
        if not all(reference.startswith(TEXT) or reference in self.sources for reference in step.inputs):
            return pipeline.models
        inputs = [self._artifact(reference) for reference in step.inputs]
        try:
            return pipeline.models_for(inputs, pipeline.parse_params(step.params))
        except UserError:  # it is that step's to say
            return pipeline.models

    def _blame(self, failed: Step) -> None:
        """Find all that cannot run without ``failed``: every step stands after those that it needs."""
        self.blamed[failed.id] = failed.id
        for step in self.plan.steps:
            for needed in step.needs:
                if needed in self.blamed:
                    self.blamed.setdefault(step.id, self.blamed[needed])


def _made_before(
    studio: Studio, pipeline: Pipeline, inputs: Sequence[Artifact], params: dict[str, JsonValue]
) -> list[Saved]:
    """What an equal run has made, if all of that is still there; empty if it has to run.

    Equal: the same pipeline, inputs, params, seed, version, and models by the checksums of their files and precision.
    """
    manager = studio.manager
    try:
        parsed = pipeline.parse_params(params)
        keys = pipeline.models_for(inputs, parsed)
        if any(key not in manager.specs or manager.specs[key].source.missing() for key in keys):
            return []  # the run itself fetches them, or says what is wrong
        models = tuple(_record(manager, key) for key in keys)
        recipe = provenance(pipeline, inputs, parsed, manager)
        entries = studio.library.made_by(recipe.model_copy(update={"models": models}))
        return [Saved(entry, studio.library.load(entry.id)) for entry in entries]
    except UserError as problem:
        log.info("'%s' runs although it may have been made before: %s", pipeline.name, problem)
        return []


def _record(manager: ModelManager, key: str) -> ModelRecord:
    """The model by its files as they are now: what is in memory may be older, and would be loaded anew for a run."""
    files = manager.specs[key].source.resolve(lambda share, said: None)
    return ModelRecord(key, files.checksum, manager.precisions[key])
