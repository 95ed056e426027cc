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
from app.controller.request import Request
from pipelines.base import Registry

_LEAVING = (
    r"(?:without|leav(?:e|ing)_out|omit(?:ting)?|ignor(?:e|ing)|skip(?:ping)?|exclud(?:e|ing)|remov(?:e|ing)|"
    r"zero(?:ing)?(?:_out)?|silenc(?:e|ing)|(?:switch|turn)(?:ing)?_off|minus|except(?:_for)?)"
)


@dataclass(frozen=True)
class Way:
    """Of a ``medium``, where ``words`` are said and nothing of ``unless`` is: ``op`` with ``params``."""

    words: re.Pattern[str]
    unless: re.Pattern[str] | None
    medium: str
    op: str
    params: dict[str, JsonValue]

    def said(self, prompt: str) -> bool:
        return bool(self.words.search(prompt)) and not (self.unless and self.unless.search(prompt))


def _read_table() -> tuple[Way, ...]:
    table = tomllib.loads((Path(__file__).parent / "ways.toml").read_text(encoding="utf-8"))
    return tuple(
        Way(
            whole_words(row["words"].replace("LEAVING", _LEAVING)),
            whole_words(row["unless"]) if "unless" in row else None,
            row["medium"],
            row["op"],
            row["params"],
        )
        for row in table["way"]
    )


WAYS = _read_table()


def ways_said(request: Request) -> Sequence[Way]:
    """Those that the words ask for, of a thing that is attached or, where nothing is, talked about; of each param the
    first, and all of one pipeline."""
    found: list[Way] = []
    for way in WAYS:
        if way.said(request.prompt) and _source(request, way) and all(way.op == other.op for other in found):
            found += [way] if not any(way.params.keys() & other.params.keys() for other in found) else []
    return found


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
    """What it is of, and the params that it was made with before."""
    for number, medium in enumerate(request.uploads, 1):
        if medium == way.medium:
            return (f"upload:{number}",), {}
    if request.uploads:
        return None
    for item in request.in_focus():
        if item.recipe is not None and item.recipe.op == way.op:
            return item.recipe.inputs, dict(item.recipe.params)
        if item.medium == way.medium:
            return (f"@{item.number}",), {}
    return None
