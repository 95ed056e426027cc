"""The request read by rules alone: works with no model in memory, and steadies the scores of those that there are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from app.controller.edits import says_edit
from app.controller.lexicon import NOUNS, ORDINALS, PERCEIVED, PHRASES, SCAFFOLD, VERBS, whole_words
from app.controller.request import ACTS, Request
from app.controller.slots import Clause, clauses

SURE, LIKELY, OPEN, UNLIKELY = 0.95, 0.8, 0.4, 0.05
BARE_WORDS = 12  # a noun phrase of at most so many words is a wish for a picture
_NEGATED_REACH = 28  # characters between "no" and what it denies


@dataclass(frozen=True)
class Scores:
    """Probabilities: of each medium to be wanted (they need not sum to one), and of each act (they do)."""

    outputs: dict[str, float]
    acts: dict[str, float]

    @property
    def act(self) -> str:
        return max(self.acts, key=self.acts.__getitem__)


def rule_scores(request: Request, media: Iterable[str]) -> Scores:
    """``media``: all that anything installed makes; one that the lexicon does not know is known by its name."""
    act, outputs = _read(request, tuple(media))
    others = (1 - SURE) / (len(ACTS) - 1)
    return Scores(outputs, {name: SURE if name == act else others for name in ACTS})


def _read(request: Request, media: tuple[str, ...]) -> tuple[str, dict[str, float]]:
    none = dict.fromkeys(media, UNLIKELY)
    prompt = request.prompt
    parts = clauses(prompt)
    if request.history and re.fullmatch(r"[@#]\d{1,6}\W*", prompt):
        return "select", none
    if is_noise(prompt) or not parts:
        return "ask", none
    if request.history and PHRASES["undo"].match(prompt):
        return "undo", none
    wanted = wishes(parts, media, bool(request.uploads or request.history))
    if request.history and not request.uploads:
        if selects(prompt, wanted):
            return "select", none
        again = [item for item in request.in_focus() if not wanted or item.medium in wanted]
        if PHRASES["again"].search(prompt) and again and wanted <= {item.medium for item in again}:
            return "regenerate", none | {again[0].medium: SURE}
    around = {*request.uploads, *(item.medium for item in request.in_focus())}
    if around and says_edit(prompt, around) and wanted <= around:
        edited = [*request.uploads, *(item.medium for item in request.in_focus())]
        best = next((medium for medium in edited if medium in wanted and says_edit(prompt, {medium})), None)
        best = best or next(medium for medium in edited if says_edit(prompt, {medium}))
        return "edit", none | {best: SURE}
    if not around and not wanted - {"text"} and says_edit(prompt, media) and PHRASES["pronoun"].search(prompt):
        return "ask", none
    if "scan" in request.uploads and wanted <= {"text"} and not VERBS["text"].search(prompt):
        return "new", none | {"image": SURE}
    if not wanted:
        return _nothing_named(request, none)
    if wanted == {"text"} and not request.uploads and not (request.history and _points_back(parts)):
        return "chat", none | {"text": SURE}
    return "new", none | dict.fromkeys(wanted, SURE)


def wishes(parts: list[Clause], media: tuple[str, ...], has_source: bool) -> set[str]:
    """The media that are asked for, with those denied taken out."""
    wanted: set[str] = set()
    denied: set[str] = set()
    for part in parts:
        text = _without_topic(part.text)
        asks = bool(PHRASES["question"].match(_stripped(text))) and not PHRASES["make"].search(text)
        perceived = {medium for medium, pattern in PERCEIVED.items() if pattern.search(text)}
        for medium in media:
            for match in _mentions(text, medium):
                if _denied(text, match):
                    denied.add(medium)
                elif not asks and not _is_source(text, match, has_source):
                    wanted.add(medium)
        wanted |= perceived & set(media)
        if asks and not perceived:
            wanted.add("text")
    return wanted - denied


def selects(prompt: str, wanted: set[str]) -> bool:
    """ "I like the second one", "go back to the red one": one of several is meant, and nothing is to be made."""
    if PHRASES["back_to"].search(prompt):
        return True
    if len(prompt.split()) <= 4 and any(pattern.search(prompt) for pattern in ORDINALS.values()):
        return True
    made = PHRASES["make"].search(prompt) or any(verbs.search(prompt) for verbs in VERBS.values())
    return bool(PHRASES["liking"].search(prompt)) and not made and len(prompt.split()) <= BARE_WORDS


def is_noise(prompt: str) -> bool:
    """Nothing that could be words: no letters, or letters as a cat types them."""
    letters = re.findall(r"[^\W\d_]+", prompt)
    if not letters:
        return True
    ascii_words = [word.lower() for word in letters if word.isascii()]
    strange = [
        w
        for w in ascii_words
        if len(w) > 3 and (not re.search("[aeiouy]", w) or re.search(r"[^aeiouy]{6}|(.)\1{3}", w))
    ]
    return len(strange) > len(letters) / 2


def _nothing_named(request: Request, none: dict[str, float]) -> tuple[str, dict[str, float]]:
    prompt = request.prompt
    if PHRASES["question"].match(_stripped(prompt)) or SCAFFOLD["greeting"].match(prompt):
        return "chat", none | {"text": SURE}
    described = bool(SCAFFOLD["article"].match(prompt)) and not PHRASES["pronoun"].search(prompt)
    if request.uploads or (request.history and not described) or PHRASES["again"].match(prompt):
        return "ask", none
    if len(prompt.split()) <= BARE_WORDS and "image" in none:
        return "new", none | {"image": LIKELY}
    return "chat", none | {"text": LIKELY}


def _mentions(text: str, medium: str) -> list[re.Match[str]]:
    patterns = [table[medium] for table in (NOUNS, VERBS) if medium in table] or [
        whole_words(rf"{re.escape(medium)}s?")
    ]
    return [match for pattern in patterns for match in pattern.finditer(text)]


def _denied(text: str, match: re.Match[str]) -> bool:
    before = text[max(0, match.start() - _NEGATED_REACH) : match.start()]
    refusals = list(PHRASES["not"].finditer(before))
    return bool(refusals) and not re.search(r"[,;:]|\bbut\b", before[refusals[-1].end() :])


def _is_source(text: str, match: re.Match[str], has_source: bool) -> bool:
    """Whether the medium is what something is made from: "this photo", "from the picture", "of the sound"."""
    before = text[: match.start()].rstrip()
    pointing = re.search(
        r"\b(?:this|that|these|those|my|the attached|dies(?:e[mnrs]?)?|cette?|est[ea]|quest[oa]|dit|deze)$",
        before,
        re.I,
    )
    from_it = re.search(
        r"\b(?:from|of|to|behind|aus|von|de|da|dal|uit|van) (?:the|this|that|my|it|de[mr]|la|el|il|het|o|a)$",
        before,
        re.I,
    )
    return bool(pointing or (has_source and from_it))


def _without_topic(text: str) -> str:
    """Without what a text is to be about: "a poem about a painting" does not ask for a painting."""
    written = [m for pattern in (VERBS["text"], NOUNS["text"]) if (m := pattern.search(text))]
    about = PHRASES["about"].search(text, min((m.end() for m in written), default=len(text)))
    return text[: about.start()] if about else text


def _points_back(parts: list[Clause]) -> bool:
    return any(part.points_back for part in parts)


def _stripped(text: str) -> str:
    """Without politeness at the start, so that a question is seen to be one."""
    while match := SCAFFOLD["greeting"].match(text.lstrip(" ,.!")) or re.match(
        r"(?:and|so|but|well|ok|please)\b", text.lstrip(" ,.!"), re.I
    ):
        text = text.lstrip(" ,.!")[match.end() :]
    return text.lstrip(" ,.!¿¡")
