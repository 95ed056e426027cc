"""From goals to a plan: typed shortest paths, equal steps merged, the fewest model swaps; no language model.

The language model says what is wanted; the edges come from types (fact sheet, sections 3 and 6).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count

from pydantic import JsonValue, ValidationError

from app.controller.details import SETTINGS, called
from app.controller.plan import MAX_STEPS, STEP, TEXT, Plan, PlanError, Step, check, medium_of, unreadable
from app.names import name_of
from models.errors import UserError
from pipelines.base import Pipeline, Registry

GOAL = "goal:"
# Seconds that one more lossy hop is worth: a picture of a sound of a picture is not that picture.
HOP_PENALTY = 10.0
MAX_WORDS_LENGTH = 300  # characters that makers are told

Seconds = Callable[[Pipeline], float]


@dataclass(frozen=True)
class Goal:
    """One thing that is wanted: ``output``, a medium, made from ``sources``.

    ``sources``: references, or ``goal:1`` for what the first goal gives; ``op``: by this pipeline, where it is known,
    as of an edit or of something made again; ``kept``: whether the person gets it, or it is a means only.
    """

    output: str
    sources: tuple[str, ...]
    op: str | None = None
    params: Mapping[str, JsonValue] = field(default_factory=dict)
    kept: bool = True


class NoRouteError(PlanError):
    """Nothing registered leads from ``given`` (media) to ``wanted``."""

    def __init__(self, wanted: str, given: Sequence[str], registry: Registry) -> None:
        self.wanted, self.given = wanted, tuple(given)
        self.nearest = reachable(given[0], registry) if len(given) == 1 else set()
        if (wanted, *given) == ("text", "text"):
            super().__init__("No step here makes words from words.", "Ask for them alone, and they are answered.")
            return
        nouns = " and ".join(name_of(m).noun if m == "text" else name_of(m).wish for m in given)
        made = ", ".join(name_of(medium).plural for medium in sorted(self.nearest - set(given)))
        can = f"From {nouns} it can make: {made}." if made else ""
        super().__init__(f"Nothing installed here makes {name_of(wanted[:40]).plural} from {nouns} yet.", can)


def compile_plan(
    goals: Sequence[Goal],
    registry: Registry,
    available: Mapping[str, str],
    seconds: Seconds,
    seed: int = 0,
) -> Plan:
    """A plan that passes :func:`~app.controller.plan.check`; ``available``: reference to medium.

    A goal to which no path leads is left out, with what is made from it, and the plan's warnings say so. Raises
    :class:`NoRouteError` if no goal that is kept is left, :class:`PlanError` for anything else that cannot run.
    """
    steps: dict[str, Step] = {}
    results: list[str | None] = []  # of each goal, in order
    problems: list[NoRouteError] = []
    notes: list[str] = []
    media = dict(available)
    for goal in goals:
        resolved = [_resolved(_cut(source, notes), results) for source in goal.sources]
        sources = tuple(source for source in resolved if source is not None)
        if len(sources) < len(resolved):
            results.append(None)
            continue
        try:
            path = _path(goal, [_known_medium(source, media) for source in sources], registry, seconds)
        except NoRouteError as problem:
            problems.append(problem)
            # Of a poem that nothing here writes, what is made of it is made of what it was to be about.
            results.append(sources[0] if (goal.output, *problem.given) == ("text", "text") else None)
            continue
        for pipeline, output in path:
            params = _fitting(goal.params, pipeline, notes) if output == goal.output else {}
            reference = _add(steps, pipeline, sources, output, {"seed": seed} | params)
            media[reference] = output
            sources = (reference,)
        results.append(sources[0])
    kept = (result for goal, result in zip(goals, results, strict=True) if goal.kept and result)
    outputs = tuple(dict.fromkeys(result for result in kept if result.startswith(STEP)))
    if problems and not outputs:
        raise problems[0]
    needed = _needed(steps, outputs)
    if len(needed) > MAX_STEPS:
        raise PlanError(f"That would take more than {MAX_STEPS} steps.", "Ask for it in several requests.")
    ordered = schedule(needed, registry, seconds)
    plan = Plan(steps=ordered, outputs=outputs, warnings=tuple(dict.fromkeys([*map(str, problems), *notes])))
    check(plan, registry, available)
    return plan


def reachable(medium: str, registry: Registry) -> set[str]:
    """The media that some path of single-input pipelines makes from ``medium``, and those that it can be shown in.

    Words only what makes them at once: those about a picture that was made of words say nothing of what was asked.
    """
    found: set[str] = set()
    frontier = {medium}
    while frontier:
        frontier = {output for start in frontier for _, output in _ways_from(start, registry)} - found
        found |= frontier
    if medium == "text" not in {output for _, output in _ways_from(medium, registry)}:
        found -= {medium}
    return found | {output for _, output in _shown_by(medium, registry)}


def reachable_by_sight(medium: str, registry: Registry) -> set[str]:
    """The media that are made in one step of what ``medium`` can be shown in."""
    return {output for _, seen in _shown_by(medium, registry) for _, output in _ways_from(seen, registry)}


def schedule(steps: Sequence[Step], registry: Registry, seconds: Seconds) -> tuple[Step, ...]:
    """The order, each step after those it needs, with the fewest models to bring in; then the soonest first result."""
    models = {step.id: frozenset(registry.get(step.op).models) for step in steps}
    durations = {step.id: seconds(registry.get(step.op)) for step in steps}

    @cache
    def best(done: frozenset[str], loaded: frozenset[str]) -> tuple[int, float, tuple[int, ...]]:
        """Swaps, summed seconds until each step's result, and the order of what is left, as indices.

        ``loaded``: the models of the last step that had any; the others may have made room for them.
        """
        options = []
        for index, step in enumerate(steps):
            if step.id in done or not done.issuperset(step.needs):
                continue
            swaps, later, order = best(done | {step.id}, models[step.id] or loaded)
            waiting = durations[step.id] * (len(steps) - len(done))
            options.append((swaps + len(models[step.id] - loaded), later + waiting, (index, *order)))
        return min(options, default=(0, 0.0, ()))

    return tuple(steps[index] for index in best(frozenset(), frozenset())[2])


def _path(goal: Goal, given: Sequence[str], registry: Registry, seconds: Seconds) -> list[tuple[Pipeline, str]]:
    """Pipelines with the media they give, from ``given`` to the goal."""
    if not given:
        raise PlanError(f"Nothing is given to make {goal.output[:40]} from.", "Write a few words, or attach something.")
    if goal.op is not None:
        try:
            return [(registry.get(goal.op), goal.output)]
        except UserError as error:
            raise PlanError(error.sentence, error.hint) from None
    if len(given) > 1:
        direct = [p for p in registry if not p.is_edit and p.accepts(given, goal.output)]
        if not direct:
            raise NoRouteError(goal.output, given, registry)
        return [(direct[0], goal.output)]
    tie = count()
    queue: list[tuple[float, int, str, list[tuple[Pipeline, str]]]] = [(0.0, next(tie), given[0], [])]
    settled: set[str] = set()
    while queue:
        cost, _, medium, path = heapq.heappop(queue)
        if medium == goal.output and path:
            return path
        if medium in settled and path:
            continue
        settled.add(medium)
        for pipeline, output in _ways_from(medium, registry):
            if output == "text" == given[0] and path:
                continue
            further = cost + seconds(pipeline) + HOP_PENALTY
            heapq.heappush(queue, (further, next(tie), output, [*path, (pipeline, output)]))
    shown = _shown_by(given[0], registry)
    for edit, seen in shown:
        if seen == goal.output:
            return [(edit, seen)]
    # An object cannot be described, but what is seen of it can: one side after the other better than all on a sheet.
    for edit, seen in sorted(shown, key=lambda way: way[1] != "video"):
        for pipeline, output in _ways_from(seen, registry):
            if output == goal.output:
                return [(edit, seen), (pipeline, output)]
    raise NoRouteError(goal.output, given, registry)


def _ways_from(medium: str, registry: Registry) -> list[tuple[Pipeline, str]]:
    """One pipeline for each medium that can be made in one step: the first registered, which is the better one, even
    where another is faster."""
    ways: dict[str, Pipeline] = {}
    for pipeline in registry:
        for route in pipeline.routes:
            if not pipeline.is_edit and route.inputs == (medium,):
                ways.setdefault(route.output, pipeline)
    return [(pipeline, output) for output, pipeline in ways.items()]


def _shown_by(medium: str, registry: Registry) -> list[tuple[Pipeline, str]]:
    """Edits that show what there is in another medium. Nothing comes before them on a longer way: whoever asks for a
    clip of a dog does not mean an object that turns around."""
    edits = [pipeline for pipeline in registry if pipeline.is_edit and pipeline.accepts([medium])]
    return [(edit, edit.routes[0].output) for edit in edits if edit.routes[0].output != medium]


def _cut(source: str, notes: list[str]) -> str:
    """Words no longer than makers read, cut between two of them."""
    if not source.startswith(TEXT) or len(source) <= len(TEXT) + MAX_WORDS_LENGTH:
        return source
    kept = source[: len(TEXT) + MAX_WORDS_LENGTH + 1]
    kept = kept.rpartition(" ")[0].rstrip(" ,;:-") if " " in kept[len(TEXT) :].strip() else kept[:-1]
    notes.append(f"The description is long: it was read up to “{' '.join(kept[len(TEXT) :].split()[-4:])[-60:]}”.")
    return kept


def _fitting(wanted: Mapping[str, JsonValue], pipeline: Pipeline, notes: list[str]) -> dict[str, JsonValue]:
    """What of ``wanted`` the pipeline has a setting for, within that setting's bounds; ``notes`` says what is not."""
    params: dict[str, JsonValue] = {}
    for name, value in wanted.items():
        field = pipeline.params_type.model_fields.get(name)
        if field is None and name in SETTINGS:
            notes.append(f"“{pipeline.title}” cannot be told about {called(name)}: that was left out.")
            continue
        params[name] = value
        if field and (name in SETTINGS or pipeline.is_edit) and isinstance(value, int | float):
            bounds = {key: getattr(m, key) for m in field.metadata for key in ("ge", "le") if hasattr(m, key)}
            params[name] = min(max(value, bounds.get("ge", value)), bounds.get("le", value))
            if params[name] != value:
                notes.append(f"“{pipeline.title}”: {params[name]:g} instead of {value:g} {called(name)}.")
    return params


def _add(
    steps: dict[str, Step], pipeline: Pipeline, sources: tuple[str, ...], output: str, params: dict[str, JsonValue]
) -> str:
    """The reference of the step; an equal one that is there already serves both."""
    for step in steps.values():
        if (step.op, step.inputs, step.output, step.params) == (pipeline.name, sources, output, params):
            return STEP + step.id
    id = f"s{len(steps) + 1}"
    try:
        steps[id] = Step(id=id, op=pipeline.name, inputs=sources, output=output, params=params)
    except ValidationError as error:
        raise unreadable(error) from None
    return STEP + id


def _needed(steps: Mapping[str, Step], outputs: Sequence[str]) -> list[Step]:
    """The steps that some output is made from; those of a goal that came to nothing are not."""
    wanted = set(outputs)
    for step in reversed(list(steps.values())):
        if STEP + step.id in wanted:
            wanted.update(step.inputs)
    return [step for step in steps.values() if STEP + step.id in wanted]


def _resolved(source: str, results: Sequence[str | None]) -> str | None:
    """``goal:1`` as a reference to what that goal's step gives; ``None`` if nothing gives it."""
    if not source.startswith(GOAL):
        return source
    named = {f"{GOAL}{number}": result for number, result in enumerate(results, 1)}
    if source not in named:
        raise PlanError(f"A step takes the result of '{source[:60]}', which does not come before it.", "Ask in order.")
    return named[source]


def _known_medium(source: str, media: Mapping[str, str]) -> str:
    medium = medium_of(source, media)
    if medium is None:
        raise PlanError(f"There is no '{source[:60]}' here.", "Attach it, or make it first.")
    return medium
