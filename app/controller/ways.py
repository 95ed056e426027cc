"""What is to be shown of a thing that is there: "draw the cortex" of a scan as the pipeline that does it, and how."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from app.controller.compiler import Goal
from app.controller.lexicon import whole_words
from app.controller.references import content_words, order_said, pointed_at, without_order
from app.controller.request import Request
from pipelines.base import Registry

_LEAVING = (
    r"(?:without|leav(?:e|ing)_out|omit(?:ting)?|ignor(?:e|ing)|skip(?:ping)?|exclud(?:e|ing)|remov(?:e|ing)|"
    r"zero(?:ing)?(?:_out)?|silenc(?:e|ing)|(?:switch|turn)(?:ing)?_off|minus|except(?:_for)?)"
)


@dataclass(frozen=True)
class Way:
    """Of a ``medium``, where ``words`` are said and nothing of ``unless`` is: ``op`` with ``params``.

    ``names``: what else names the param's value, so that two of them are noticed.
    """

    words: re.Pattern[str]
    unless: re.Pattern[str] | None
    names: re.Pattern[str] | None
    medium: str
    op: str
    params: dict[str, JsonValue]

    def said(self, prompt: str) -> bool:
        return bool(self.words.search(prompt)) and not (self.unless and self.unless.search(prompt))


_NEGATED = re.compile(r"\b(?:do not|don['’]?t|never|nicht|keine?n?|ne pas)\b", re.IGNORECASE)
_TABLE = (Path(__file__).parent / "ways.toml").read_text(encoding="utf-8")
_VOCABULARY = {*re.findall(r"[^\W\d_]{3,}", _TABLE.lower()), "same"}


def _read_ways() -> tuple[Way, ...]:
    return tuple(
        Way(
            whole_words(row["words"].replace("LEAVING", _LEAVING)),
            whole_words(row["unless"]) if "unless" in row else None,
            whole_words(row["names"]) if "names" in row else None,
            row["medium"],
            row["op"],
            row["params"],
        )
        for row in tomllib.loads(_TABLE)["way"]
    )


WAYS = _read_ways()
THINGS = {medium: whole_words(words) for medium, words in tomllib.loads(_TABLE)["things"].items()}


def ways_said(request: Request) -> Sequence[Way]:
    """Those that the words ask for, of a thing that is attached or, where nothing is, talked about; of each param the
    first, and all of one pipeline."""
    found: list[Way] = []
    for way in WAYS if not _NEGATED.search(request.prompt) else ():
        if way.said(request.prompt) and _source(request, way) and all(way.op == other.op for other in found):
            found += [way] if not any(way.params.keys() & other.params.keys() for other in found) else []
    return found


def too_many_ways(request: Request) -> str:
    """A sentence where several values are named for what can have one only, such as what is left out; else empty."""
    for name in {name for way in ways_said(request) for name in way.params}:
        ways = [way for way in WAYS if name in way.params]
        values = [way.params[name] for way in ways if way.names and way.names.search(request.prompt)]
        if len(values) > 1:
            listed = ", ".join(str(way.params[name]) for way in ways if way.names)
            return f"Only one of these can be chosen at a time: {listed}."
    return ""


def way_goal(request: Request, registry: Registry) -> Goal | None:
    """What shows it, if something installed does; what was made so before is made again but for the new params."""
    ways = ways_said(request)
    pipeline = next((one for one in registry if ways and one.name == ways[0].op), None)
    if pipeline is None or any(not way.params.keys() <= pipeline.params_type.model_fields.keys() for way in ways):
        return None
    sources, params = _source(request, ways[0]) or ((), {})
    for way in ways:
        params = {**params, **way.params}
    return Goal(pipeline.routes[0].output, sources, pipeline.name, params)


def _source(request: Request, way: Way) -> tuple[tuple[str, ...], dict[str, JsonValue]] | None:
    """What it is of, and the params that it was made with before.

    Of what was not attached with the request, it is what is talked about just now, or what the words name, and the
    words speak of nothing else: "draw a map of volcanic activity" is no wish for a scan of an hour ago.
    """
    attached = [number for number, medium in enumerate(request.uploads, 1) if medium == way.medium]
    if attached:
        order = order_said(request.prompt) or 1
        place = order - 1 if order > 0 else order
        return (f"upload:{attached[place if -len(attached) <= place < len(attached) else 0]}",), {}
    if request.uploads or not all(map(_is_known, content_words(without_order(request.prompt)))):
        return None
    items = pointed_at(request, (way.medium,))
    if items is None:
        named = THINGS[way.medium].search(request.prompt)
        items = request.in_focus() if named else request.in_focus()[:1]
    for item in items:
        if item.recipe is not None and item.recipe.op == way.op:
            return item.recipe.inputs, dict(item.recipe.params)
        if item.medium == way.medium:
            return (f"@{item.number}",), {}
    return None


def _is_known(word: str) -> bool:
    """Whether some way has the word; of a long one an ending may differ."""
    return any(
        word == known or (len(known) > 4 and word.startswith(known) and len(word) <= len(known) + 3)
        for known in _VOCABULARY
    )
