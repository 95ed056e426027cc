"""A plan: steps over the registry's pipelines, wired by references, checked before anything runs.

References: ``text:a red apple`` words, ``upload:1`` an attachment of this request, ``@3`` an artifact of the
conversation, ``$a`` the result of the step ``a``. Numbers count from one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from models.errors import UserError
from pipelines.base import Pipeline, Registry

MAX_STEPS, MAX_DEPTH = 12, 6
TEXT, UPLOAD, ARTIFACT, STEP = "text:", "upload:", "@", "$"
_REFERENCE = re.compile(r"text:.+|upload:[1-9]\d{0,2}|@[1-9]\d{0,5}|\$[a-z0-9]{1,20}", re.DOTALL)


class PlanError(UserError):
    """A plan that cannot run. The sentence names the step and what is wrong with it."""


class Step(BaseModel):
    """One run of the pipeline ``op``: ``inputs`` are references in the order of its route, ``output`` is a medium."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[a-z0-9]{1,20}$")
    op: str = Field(max_length=100)
    inputs: tuple[str, ...] = Field(min_length=1, max_length=4)
    output: str = Field(max_length=40)
    params: dict[str, JsonValue] = {}

    @property
    def needs(self) -> tuple[str, ...]:
        """The ids of the steps that this one takes something from."""
        return tuple(reference[1:] for reference in self.inputs if reference.startswith(STEP))


class Plan(BaseModel):
    """``steps`` in the order in which they run; ``outputs``: references of what the person gets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    steps: tuple[Step, ...] = Field(max_length=MAX_STEPS)
    outputs: tuple[str, ...] = Field(max_length=MAX_STEPS)
    warnings: tuple[str, ...] = ()

    def step(self, id: str) -> Step:
        """Raises ``KeyError`` for an unknown id."""
        return {step.id: step for step in self.steps}[id]

    def without(self, id: str) -> Plan:
        """The plan without the step ``id`` and those that need it."""
        gone = {id}
        for _ in self.steps:
            gone |= {step.id for step in self.steps if gone & set(step.needs)}
        kept = tuple(step for step in self.steps if step.id not in gone)
        outputs = tuple(reference for reference in self.outputs if reference not in {STEP + id for id in gone})
        return self.model_copy(update={"steps": kept, "outputs": outputs})


def read_plan(text: str) -> Plan:
    """A plan from JSON, say one that somebody edited. Raises :class:`PlanError` for anything else."""
    try:
        return Plan.model_validate_json(text)
    except ValidationError as error:
        raise unreadable(error) from None


def unreadable(error: ValidationError) -> PlanError:
    """What is wrong with the first wrong field."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))[:60] or "the plan"
    message = first["msg"][:1].lower() + first["msg"][1:]
    return PlanError(f"The plan cannot be read: {place}: {message}.", "Undo the last change to it.")


def check(plan: Plan, registry: Registry, available: Mapping[str, str]) -> None:
    """Raise :class:`PlanError` unless ``plan`` can run over ``registry``.

    ``available``: reference to medium, of the attachments and the conversation's artifacts.
    """
    media = dict(available)
    depths: dict[str, int] = {}
    ids = [step.id for step in plan.steps]
    for step in plan.steps:
        if ids.count(step.id) > 1:
            raise PlanError(f"Two steps are called '{step.id}'.", "Give each step an id of its own.")
        pipeline = _pipeline(step, registry)
        given = [_medium(reference, step, media, ids) for reference in step.inputs]
        if not pipeline.accepts(given, step.output):
            takes = " or ".join(f"{' + '.join(route.inputs)} to {route.output}" for route in pipeline.routes)
            raise PlanError(
                f"Step '{step.id}' gives {' + '.join(given)} to '{step.op}' and wants {step.output}.",
                f"It does {takes}.",
            )
        try:
            pipeline.parse_params(step.params)
        except UserError as error:
            raise PlanError(f"Step '{step.id}': {error.sentence}", error.hint) from None
        media[STEP + step.id] = step.output
        depths[step.id] = 1 + max((depths[needed] for needed in step.needs), default=0)
    if max(depths.values(), default=0) > MAX_DEPTH:
        raise PlanError(f"The plan is more than {MAX_DEPTH} steps deep.", "Ask for it in several requests.")
    for reference in plan.outputs:
        if reference not in media:
            raise PlanError(f"The plan promises '{reference[:60]}', which no step makes.", "Take it out.")


def medium_of(reference: str, media: Mapping[str, str]) -> str | None:
    """What ``reference`` stands for; ``None`` for what there is not."""
    return "text" if reference.startswith(TEXT) else media.get(reference)


def _pipeline(step: Step, registry: Registry) -> Pipeline:
    try:
        return registry.get(step.op)
    except UserError as error:
        raise PlanError(f"Step '{step.id}': {error.sentence}", error.hint) from None


def _medium(reference: str, step: Step, media: Mapping[str, str], ids: list[str]) -> str:
    if not _REFERENCE.fullmatch(reference):
        raise PlanError(
            f"Step '{step.id}' takes '{reference[:60]}', which is no reference.",
            "Write text:WORDS, upload:1, @1 or $STEP.",
        )
    medium = medium_of(reference, media)
    if medium is None:
        if reference[1:] in ids and reference.startswith(STEP):
            raise PlanError(
                f"Step '{step.id}' takes the result of '{reference[1:]}', which comes later or depends on it.",
                "Put the steps in order; a cycle cannot run.",
            )
        raise PlanError(f"Step '{step.id}' takes '{reference[:60]}', which does not exist.", "Choose something else.")
    return medium
