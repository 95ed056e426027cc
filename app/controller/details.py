"""How many, how long and in what style: what of a request is for a pipeline's settings, and not for its words."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from pydantic import JsonValue

from app.controller.lexicon import NOUNS, PHRASES, SCAFFOLD, VERBS, whole_words
from app.controller.looks import look_said
from app.controller.slots import clauses
from app.controller.wishes import wishes
from pipelines.base import Pipeline, Registry

_TABLE = tomllib.loads((Path(__file__).parent / "details.toml").read_text(encoding="utf-8"))
SETTINGS = {name for kind in ("count", "seconds", "style") for name in _TABLE[kind].values()}
NUMBERS = {int(number): whole_words(words) for number, words in _TABLE["numbers"].items()}
_NUMBER = rf"(?:\d{{1,4}}|{'|'.join(pattern.pattern for pattern in NUMBERS.values())})"
_VARIATIONS, _OF_THEM = (whole_words(_TABLE["said"][name]).pattern for name in ("variations", "of_them"))
_SECONDS, _MINUTES = (whole_words(_TABLE["said"][name]).pattern for name in ("seconds", "minutes"))
_MADE = "|".join(NOUNS[medium].pattern for medium in _TABLE["count"])
_JOINT = SCAFFOLD["joint"].pattern
_ASKING = "|".join(
    pattern.pattern for pattern in (SCAFFOLD["filler"], SCAFFOLD["receiver"], PHRASES["make"], *VERBS.values())
)
_BEGIN = rf"(?P<begin>(?:^|[,;.:!?]\s+|\s(?:and|und|et)\s+)(?:(?:{_ASKING})\s+){{0,6}})"
_MORE_OF = re.compile(r"\b(?:different|more|other|new)\s+", re.IGNORECASE)
_KIND = rf"(?:(?:different|more|other|new|{SCAFFOLD['quality'].pattern})\s+){{0,3}}"
# "three pictures of a star", "4 variations of a green frog", "ten 3D chairs"
_COUNT = re.compile(
    rf"{_BEGIN}(?P<count>{_NUMBER})\s+(?P<kind>{_KIND})"
    rf"(?:(?P<many>{_VARIATIONS})(?:\s+(?:{_JOINT}))?|(?P<noun>{_MADE})(?=\s+(?:{_JOINT})|\W*$|\s*,|(?<=3d)\s+\w+s\b|(?<=-d)\s+\w+s\b))",
    re.IGNORECASE,
)
# "4 of them", "give me three more", "five variations": of what there is
_MORE = re.compile(
    rf"{_BEGIN}(?P<count>{_NUMBER})\s+(?:{_VARIATIONS}\s*)?(?:{_OF_THEM}\s*){{0,2}}(?:{SCAFFOLD['ending'].pattern})?\W*",
    re.IGNORECASE,
)
_LENGTH = re.compile(
    rf"(?:,?\s*\b(?:for|lasting|about|around|(?:that|which)\s+lasts?|f[uü]r|pendant|of|de)\s+)?(?<![\w@#.])"
    rf"(?:(?P<value>\d{{1,4}}[.,]\d+|{_NUMBER})[\s-]*"
    # "a second of rain", but no "second sound", and no "second hand"
    rf"|(?:an?|one|eine?|une)\s+(?=\w{{6,8}}(?:\s+(?:{_JOINT}|long\b|lang\b)|\W*$)))"
    rf"(?:{_SECONDS}|(?P<minutes>{_MINUTES}))\b"
    rf"(?:\s+(?:long|lang|each|jeweils)\b)*(?P<joint>\s+(?:{_JOINT}))?",
    re.IGNORECASE,
)
_SIZE = re.compile(r",?\s*(?:\b(?:in|at|of|with)\s+)?\b\d{3,5}\s*[x×]\s*\d{3,5}\b(?:\s*(?:px|pixels))?", re.IGNORECASE)


@dataclass(frozen=True)
class Details:
    """``count``: how many, of ``medium`` where it is said; ``seconds``: how long; ``size``: "1024x1024"."""

    count: int | None = None
    medium: str | None = None
    seconds: float | None = None
    style: str | None = None
    size: str = ""

    def params_for(self, medium: str) -> dict[str, JsonValue]:
        """The settings of whatever makes the medium, whether or not it has them."""
        count = self.count if self.medium in (None, medium) else None
        said = {"count": count, "seconds": self.seconds, "style": self.style}
        return {_TABLE[kind][medium]: value for kind, value in said.items() if value and medium in _TABLE[kind]}


def called(param: str) -> str:
    """What there are a number of, when people are told of it."""
    name: str = _TABLE["called"].get(param, param.replace("_", " "))
    return name


def counted(medium: str, params: dict[str, JsonValue]) -> int:
    """How many things of ``medium`` a run with these params gives, and so how many seeds it takes."""
    count = params.get(_TABLE["count"].get(medium, ""), 1)
    return count if isinstance(count, int) else 1


def styles_of(pipeline: Pipeline) -> tuple[str, ...]:
    """The styles that it knows by name."""
    field = pipeline.params_type.model_fields.get("style")
    options = [get_args(option) or (option,) for option in get_args(field.annotation)] if field else []
    return tuple(value for option in options for value in option if isinstance(value, str))


def read_details(prompt: str, registry: Registry, is_edit: bool) -> tuple[str, Details]:
    """``prompt`` without the details that are said in it, and those. ``is_edit``: whether it asks for a plain change of
    what there is, whose numbers are that change's own."""
    if match := _MORE.fullmatch(prompt):
        return "another one", Details(count=int(_value(match["count"])))
    details = Details()
    if match := _COUNT.search(prompt):
        noun = match["noun"] or ""
        medium = next((medium for medium in _TABLE["count"] if noun and NOUNS[medium].fullmatch(noun)), None)
        details = replace(details, count=int(_value(match["count"])), medium=medium)
        kind = _MORE_OF.sub("", match["kind"])
        prompt = f"{prompt[: match.start()]}{match['begin']}{kind}{noun} {prompt[match.end() :]}"
    if is_edit:
        return " ".join(prompt.split()), details
    if match := _SIZE.search(prompt):
        details = replace(details, size=match[0].strip(" ,"))
        prompt = prompt[: match.start()] + prompt[match.end() :]
    prompt, seconds = _without_length(prompt)
    style = named_style(prompt, {style for pipeline in registry for style in styles_of(pipeline)})
    if style and not look_said(prompt):  # that one is about something else, and no word would be left
        prompt, details = f"{prompt[: style[0]]} {prompt[style[1] :]}", replace(details, style=style[2])
    return " ".join(prompt.split()), replace(details, seconds=seconds)


def named_style(text: str, styles: Collection[str]) -> tuple[int, int, str] | None:
    """Where one of ``styles`` is said, from and to, and which: "in flat style", "in the style of a sticker"."""
    if not styles:
        return None
    named = "|".join(map(re.escape, sorted(styles)))
    match = re.search(
        rf",?\s*(?:\b(?:in|with|as)\s+(?:an?\s+|the\s+)?)?\b(?P<before>{named})[\s-]styled?\b"
        rf"|\b(?P<kind>{named})\s+(?=(?:{NOUNS['image'].pattern})\s+(?:{_JOINT}))"
        rf"|,?\s*(?:\bin\s+)?(?:\bthe\s+)?\bstyle\s+of\s+(?:an?\s+)?(?P<after>{named})s?\b",
        text,
        re.IGNORECASE,
    )
    return (match.start(), match.end(), (match["before"] or match["kind"] or match["after"]).lower()) if match else None


def _without_length(prompt: str) -> tuple[str, float | None]:
    """Of what is to be heard, or to move: "a clock at ten seconds to midnight" is a picture of that."""
    match = _LENGTH.search(prompt)
    if match is None:
        return prompt, None
    seconds = (_value(match["value"]) if match["value"] else 1) * (60.0 if match["minutes"] else 1.0)
    before, after = prompt[: match.start()].rstrip(" ,"), prompt[match.end() :]
    if PHRASES["pronoun"].match(after.strip()):  # "5 seconds of it"
        return prompt, None
    named, named_before = (wishes(clauses(text), tuple(NOUNS), False) for text in (prompt, before))
    if named & set(_TABLE["seconds"]):
        return f"{before} {match['joint'] if named_before and match['joint'] else ''} {after}", seconds
    if named or not match["joint"] or before.strip():
        return prompt, None
    return f"a sound of {after}", seconds  # "ten seconds of rain"


def _value(said: str) -> float:
    if re.fullmatch(r"\d+", said):
        return int(said)
    if re.fullmatch(r"\d+[.,]\d+", said):
        return float(said.replace(",", "."))
    return next((number for number, pattern in NUMBERS.items() if pattern.fullmatch(said)), 1)
