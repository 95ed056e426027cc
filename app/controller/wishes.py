"""Which media a request asks for: named or asked for, not denied, not the topic, not what it is made from."""

from __future__ import annotations

import re
from collections.abc import Sequence

from app.controller.lexicon import NOUNS, PERCEIVED, PHRASES, SCAFFOLD, VERBS, whole_words
from app.controller.slots import Clause

_NEGATED_REACH = 28  # characters between "no" and what it denies
_POINTING = re.compile(
    r"\b(?:this|that|these|those|my|the attached|dies(?:e[mnrs]?)?|cette?|est[ea]|quest[oa]|dit|deze)$", re.IGNORECASE
)
_FROM_IT = re.compile(
    r"\b(?:from|of|to|behind|aus|von|de|da|dal|uit|van) (?:the|this|that|my|it|de[mr]|la|el|il|het|o|a)$", re.IGNORECASE
)
_THE = re.compile(r"\s+(?:the|de[nrm]|das|die|le|la|el|il|lo|het|de|o|a)$", re.IGNORECASE)
_YES_OR_NO = re.compile(r"(?:is|are|was|were|do|does|did|will|has|have|should)\b", re.IGNORECASE)  # "is it possible to"
_AS_FORM = re.compile(
    r"\b(?:as|in|into|als|en|comme|come|como)\s+(?:an?\s+|the\s+|eine?[mn]?\s+|une?\s+|una?\s+|um\s+|een\s+)?\S+(?:\s\S+)?$",
    re.IGNORECASE,
)


def wishes(parts: Sequence[Clause], media: Sequence[str], has_source: bool) -> set[str]:
    """The media that are asked for. ``has_source``: whether there is anything that something could be made from."""
    wanted: set[str] = set()
    denied: set[str] = set()
    for part in parts:
        text = _without_topic(part.text)
        asks = is_question(text) and not (_YES_OR_NO.match(without_greeting(text)) and PHRASES["make"].search(text))
        why = re.match(r"(?:why|when|who|warum|pourquoi|por qu[eé]|perch[eé]|waarom)\b", text, re.IGNORECASE)
        perceived = set() if why else {m for m, pattern in PERCEIVED.items() if pattern.search(text)}
        for medium, match in _mentions(text, media):
            if _denied(text, match):
                denied.add(medium)
            elif not asks and not _is_source(text, match, has_source):
                wanted.add(medium)
        wanted |= perceived & set(media) - denied
        if asks and not perceived:
            wanted.add("text")
    return wanted


def sources(parts: Sequence[Clause], media: Sequence[str]) -> set[str]:
    """The media that are spoken of as something to make from: "describe the picture"."""
    named = [(part.text, medium, match) for part in parts for medium, match in _mentions(part.text, media)]
    return {medium for text, medium, match in named if _is_source(text, match, True)}


def is_question(text: str) -> bool:
    return bool(PHRASES["question"].match(without_greeting(text)))


def without_greeting(text: str) -> str:
    """Without politeness at the start, so that a question is seen to be one."""
    text = text.lstrip(" ,.!¿¡")
    while match := SCAFFOLD["greeting"].match(text) or re.match(
        r"(?:and|so|but|well|ok|please)\b", text, re.IGNORECASE
    ):
        text = text[match.end() :].lstrip(" ,.!¿¡")
    return text


def _mentions(text: str, media: Sequence[str]) -> list[tuple[str, re.Match[str]]]:
    """Every word that names a medium or asks for it, but for those that only describe what is to be made.

    Of "movie poster" the last word counts, of "sound clip" the longer match; behind "a picture of ..." and "draw ..."
    all is description, up to an "as a clip" or "in 3D" at the end.
    """
    found = [(medium, match) for medium in media for pattern in _patterns(medium) for match in pattern.finditer(text)]
    found = [
        (medium, match)
        for medium, match in found
        if not any(
            o.start() <= match.start() and match.end() <= o.end() and len(o[0]) > len(match[0]) for _, o in found
        )
    ]
    starts = {match.start(): medium for medium, match in found}
    found = [(m, match) for m, match in found if starts.get(match.end() + 1, m) == m or text[match.end()] != " "]
    begin = min((_described_from(text, medium, match) for medium, match in found), default=len(text))
    form = _AS_FORM.search(text)
    end = form.start() if form else len(text)
    return [(medium, match) for medium, match in found if match.start() < begin or match.start() >= end]


def _patterns(medium: str) -> list[re.Pattern[str]]:
    known = [table[medium] for table in (NOUNS, VERBS) if medium in table]
    return known or [whole_words(rf"{re.escape(medium)}s?".replace("_", " "))]


def _described_from(text: str, medium: str, match: re.Match[str]) -> int:
    """Where the description of what is to be made begins, if it does behind ``match``."""
    rest = text[match.end() :]
    verb = medium in VERBS and VERBS[medium].fullmatch(match[0])
    if verb and not re.match(r"\s+(?:me\s+|us\s+|mir\s+|moi\s+)?(?:an?|the|my|some)?\s*$", rest) and medium != "text":
        article = SCAFFOLD["article"].match(rest.lstrip())
        named = rest.lstrip()[article.end() :].lstrip() if article else rest.lstrip()
        if not any(pattern.match(named) for pattern in NOUNS.values()):
            return match.end()
    return match.end() if SCAFFOLD["joint"].match(rest.lstrip()) else len(text)


def _denied(text: str, match: re.Match[str]) -> bool:
    before = text[max(0, match.start() - _NEGATED_REACH) : match.start()]
    refusals = list(PHRASES["not"].finditer(before))
    return bool(refusals) and not re.search(r"[,;:]|\bbut\b", before[refusals[-1].end() :])


def _is_source(text: str, match: re.Match[str], has_source: bool) -> bool:
    """Whether the medium is what something is made from: "this photo", "from the picture", "describe the sound"."""
    before = text[: match.start()].rstrip()
    the = _THE.search(before)
    told_of = the and any(verb.end() == the.start() for verb in VERBS["text"].finditer(before))
    return bool(_POINTING.search(before) or (has_source and (_FROM_IT.search(before) or told_of)))


def _without_topic(text: str) -> str:
    """Without what a text is to be about: "a poem about a painting" does not ask for a painting."""
    written = [m for pattern in (VERBS["text"], NOUNS["text"]) if (m := pattern.search(text))]
    about = PHRASES["about"].search(text, min((m.end() for m in written), default=len(text)))
    return text[: about.start()] if about else text
