"""Plain changes in words: "louder", "rotate it by 45", "trim to two seconds" as an edit pipeline with its params."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from app.controller.compiler import GOAL, Goal
from app.controller.lexicon import PHRASES, whole_words
from app.controller.references import content_words, referred
from app.controller.request import Item, Request
from models.errors import UserError
from pipelines.base import Pipeline, Registry

_UNIT = r"(?:s|secs?|seconds?|px|pixels?|db|decibels?|°|degrees?|faces|triangles)"
_NUMBER = re.compile(
    rf"(?<![\w@#$.])(-?\d{{1,6}}(?:[.,]\d+)?)(?:\s*{_UNIT})?(?![\w%]|\s*(?:%|percent|[x×]|times\b|-?fold))",
    re.IGNORECASE,
)
_JOINED = re.compile(r"\b(?:and|und|et|then)\b|[,;]", re.IGNORECASE)  # "twice as loud and half as fast"
_SIDES = re.compile(r"\b(\d{1,4})\s*[x×]\s*(\d{1,4})\b", re.IGNORECASE)
_NUMBER_WORDS = {"one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0, "six": 6.0, "eight": 8.0, "ten": 10.0}
_TIMES = re.compile(
    rf"(?<![\w.])(?P<number>\d{{1,3}}(?:[.,]\d+)?|{'|'.join(_NUMBER_WORDS)})"
    r"(?:\s*[x×]\b|[\s-]*(?:times|fold|mal|fach|fois)\b)",
    re.IGNORECASE,
)
_PERCENT = re.compile(
    r"(?P<to>\b(?:to|at|auf|à)\s+)?(?<![\w.])(?P<percent>\d{1,4}(?:[.,]\d+)?)\s*"
    r"(?:%|(?:percent|prozent|pour cent)\b)(?P<of>\s+(?:of|speed|size)\b)?",
    re.IGNORECASE,
)
_FACTORS = {
    2.0: whole_words("twice double doppelt deux_fois"),
    3.0: whole_words("triple"),
    0.5: whole_words("half halb"),
}

_HALF_AS_MUCH = re.compile(r"\bhalf\s+(?:as|the)\b|\bhalb\s+so\b", re.IGNORECASE)
_BY_HALF = re.compile(r"\bby\s+half\b|\bum\s+die\s+H[aä]lfte\b", re.IGNORECASE)


@dataclass(frozen=True)
class Edit:
    """``op`` where ``words`` are said; ``number``: the param that a number among them sets, with this ``sign``;
    ``times``: the one that a multiple or a percentage sets; ``sides``: those of a size."""

    words: re.Pattern[str]
    op: str
    params: Mapping[str, JsonValue]
    number: str | None
    sign: int
    times: str | None
    sides: tuple[str, ...]

    def params_for(self, prompt: str, pipeline: Pipeline) -> dict[str, JsonValue]:
        """The usual params, or those with the number of the request, if the pipeline takes it."""
        if self.sides and (size := _SIDES.search(prompt)):
            return dict(zip(self.sides, map(int, size.groups()), strict=True))
        own = next((part for part in _JOINED.split(prompt) if self.words.search(part)), prompt)
        less = self.times is not None and float(str(self.params[self.times])) < 1
        times = _times_in(own) if self.times else None
        if self.times and times and (less or times.relative or times.absolute or times.value >= 1):
            if times.relative:
                return {self.times: 1 - times.value if less else 1 + times.value}
            return {self.times: 1 / times.value if less and times.value > 1 else times.value}
        given = _number_in(prompt) if self.number else None
        if given is None or self.number is None:
            return dict(self.params)
        whole = isinstance(pipeline.params_type.model_fields[self.number].default, int)
        params: dict[str, JsonValue] = {self.number: self.sign * (round(given) if whole else given)}
        try:
            pipeline.parse_params(params)
        except UserError:
            return dict(self.params)
        return params


def _read_table() -> tuple[Edit, ...]:
    table = tomllib.loads((Path(__file__).parent / "edits.toml").read_text(encoding="utf-8"))
    return tuple(
        Edit(
            whole_words(row["words"]),
            row["op"],
            row.get("params", {}),
            row.get("number"),
            row.get("sign", 1),
            row.get("times"),
            tuple(row.get("sides", ())),
        )
        for row in table["edit"]
    )


EDITS = _read_table()


def says_edit(prompt: str, media: Collection[str]) -> bool:
    """Whether ``prompt`` names a plain change of something of these media."""
    return any(edit.words.search(prompt) for edit in EDITS if edit.op.partition("-")[0] in media)


def says_only_edits(prompt: str, media: Collection[str]) -> bool:
    """Whether nothing is said beside plain changes of these media, numbers and what points at something."""
    return says_edit(prompt, media) and not content_words(_NUMBER.sub(" ", _without_edits(prompt, media)))


def edit_starts(prompt: str, media: Collection[str]) -> list[int]:
    """Where in ``prompt`` the words of plain changes of these media begin."""
    found = (edit.words.search(prompt) for edit in EDITS if edit.op.partition("-")[0] in media)
    return [match.start() for match in found if match]


def edits_said(prompt: str, registry: Registry, media: Collection[str]) -> dict[str, list[Goal]]:
    """Medium to the changes that ``prompt`` asks for in something of it, in order, without sources yet."""
    known = {pipeline.name: pipeline for pipeline in registry if pipeline.is_edit}
    found: dict[str, list[tuple[re.Match[str], Goal]]] = {}
    for edit in EDITS:
        pipeline, match = known.get(edit.op), edit.words.search(prompt)
        medium = edit.op.partition("-")[0]
        if pipeline is None or match is None or medium not in media:
            continue
        others = found.setdefault(medium, [])
        if all(match.end() <= other.start() or other.end() <= match.start() for other, _ in others):
            made = pipeline.routes[0].output
            others.append((match, Goal(made, (), edit.op, edit.params_for(prompt, pipeline))))
    # What shows an object in another medium shows it as it is after all its changes.
    return {
        medium: [goal for _, goal in sorted(pairs, key=lambda pair: (pair[1].output != medium, pair[0].start()))]
        for medium, pairs in found.items()
    }


def edit_goals(request: Request, registry: Registry) -> list[Goal]:
    """The changes asked for, one upon the other, of the attachments or else of what is meant; empty if none fits."""
    available = {*request.uploads, *(item.medium for item in request.in_focus())}
    said = edits_said(request.prompt, registry, available)
    uploads = [f"upload:{n}" for n, medium in enumerate(request.uploads, 1) if medium in said]
    if uploads:
        sources = [(reference, request.available[reference]) for reference in uploads]
    else:
        items: list[Item] = referred(request, said) if said else []
        everything = bool(PHRASES["all"].search(_without_edits(request.prompt, said)))
        sources = [(f"@{item.number}", item.medium) for item in (items if everything else items[:1])]
    goals: list[Goal] = []
    for reference, medium in sources:
        goals += chained(said[medium], medium, reference, len(goals))
    return goals


def chained(edits: Sequence[Goal], medium: str, reference: str, before: int) -> list[Goal]:
    """``edits`` of something of ``medium`` one upon the other, the first of ``reference``; ``before``: how many goals
    stand before them. The last change is kept, and so is all that shows it in another medium."""
    changes = sum(edit.output == medium for edit in edits)
    goals: list[Goal] = []
    for number, edit in enumerate(edits):
        source = f"{GOAL}{before + min(number, changes)}" if min(number, changes) else reference
        goals.append(replace(edit, sources=(source,), kept=number >= changes - 1))
    return goals


def _without_edits(prompt: str, media: Collection[str]) -> str:
    """So that "from all sides" does not mean all of them."""
    for edit in EDITS:
        if edit.op.partition("-")[0] in media:
            prompt = edit.words.sub(" ", prompt)
    return prompt


class Times(NamedTuple):
    """What something is multiplied by, or, ``relative``, what share of it is added or taken away; ``absolute``: what is
    said is what is left, as in "to 50 %"."""

    value: float
    relative: bool = False
    absolute: bool = False


def _times_in(prompt: str) -> Times | None:
    """ "3x", "three times", "fourfold", "half", "200 %"."""
    if match := _PERCENT.search(prompt):
        share = float(match["percent"].replace(",", ".")) / 100
        absolute = bool(match["to"] or match["of"])
        return Times(share, not absolute, absolute)
    if match := _TIMES.search(prompt):
        number = match["number"].lower()
        return Times(_NUMBER_WORDS.get(number) or float(number.replace(",", ".")))
    if _BY_HALF.search(prompt):
        return Times(0.5, relative=True)
    as_much = bool(_HALF_AS_MUCH.search(prompt))  # and no "lower half"
    return next(
        (Times(factor, absolute=as_much) for factor, pattern in _FACTORS.items() if pattern.search(prompt)), None
    )


def _number_in(prompt: str) -> float | None:
    if match := _NUMBER.search(prompt):
        return float(match[1].replace(",", "."))
    said = ((value, rf"\b{word}\s+{_UNIT}\b") for word, value in _NUMBER_WORDS.items())
    return next((value for value, pattern in said if re.search(pattern, prompt, re.IGNORECASE)), None)
