"""What the makers are told: spans copied from the request, never paraphrased (fact sheet, section 5)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from app.controller.lexicon import NOUNS, PERCEIVED, PHRASES, SCAFFOLD, VERBS

MAX_CLAUSES = 24  # nobody wishes for more at once, and looking for them takes time
QUOTED = re.compile(r"\"([^\"]+)\"|«([^»]+)»|„([^“\"]+)[“\"]")
_THEN = (
    r"(?:then|after that|afterwards|next|finally|dann|danach|puis|ensuite|luego|despu[eé]s|poi|dopo|depois|dan|daarna)"
)
_BREAK = re.compile(
    rf"\s*(?:[;.!?]+(?=\s|$)|,?\s*\b(?:(?:and|und|et|y|e|en)\s+)?\b{_THEN}\b,?|\s[-–—]+\s)\s*", re.IGNORECASE
)
# "(see) what a red apple looks like": the question inside a wish.
_EMBEDDED = re.compile(
    r"^(?:to\s+)?(?:(?:see|hear|know|imagine)\s+)?(?:what|how)\s+(.+?)\s+(?:would\s+)?(?:looks?|sounds?)(?:\s+like)?$",
    re.IGNORECASE,
)
_AUXILIARY = re.compile(
    r"^(?:(?:what|how|wie|was|comment|qu[eé]|che|cosa|come|como|wat|hoe)\b\s*)?(?:does|do|did|would|is|are)?\b\s*(?=\S)",
    re.IGNORECASE,
)
_OPENING = re.compile(r"^(?:(?:and|so|but|now|then|und|et|y)\b[ ,]*)+", re.IGNORECASE)
_MAKES = re.compile(r"\s+(?:makes?|giv(?:e|es)(?: off)?)\W*$", re.IGNORECASE)  # "what sound does a cow make"
# "What is this?": a question that has no words for what it is about.
_WHAT_IS_THIS = re.compile(
    r"(?:what|who|was|wer|qu[eé]|qu'est-ce|che|cosa|o que|wat|wie)"
    r"(?:['’]s|\s+(?:is|are|was|were|can|be|seen|heard|do|you|i|we|see|hear|in|on|que|c'est|ist|sind|war|est|es|son|è|é|sono|s[aã]o|zijn))*"
    r"\s+(?:this|that|it|these|those|here|das|dies|hier|[cç]a|cela|esto|eso|questo|quello|isto|isso|dit|dat)\W*",
    re.IGNORECASE,
)
_AS = re.compile(r"^(?:in|as|into|to|als|en|comme|come|como)\s+", re.IGNORECASE)
_NEXT_WISH = re.compile(r",?\s+(?:and|plus|und|et|y|e|en)\s+|,\s+", re.IGNORECASE)


@dataclass(frozen=True)
class Clause:
    """One wish of a request: its words, and what of them is content (empty where it only points back)."""

    text: str
    content: str

    @property
    def points_back(self) -> bool:
        """Whether it speaks of what came before: "a 3D model of it", "its sound"."""
        return bool(PHRASES["pronoun"].search(self.text))

    def mentions(self, medium: str) -> bool:
        return bool(mention(self.text, medium))


def mention(text: str, medium: str) -> re.Match[str] | None:
    """The first word in ``text`` that names the medium or asks for it."""
    found = [m for pattern in (NOUNS.get(medium), VERBS.get(medium)) if pattern and (m := pattern.search(text))]
    return min(found, key=lambda match: match.start(), default=None)


@lru_cache(256)
def clauses(prompt: str) -> list[Clause]:
    """The wishes of ``prompt`` in order. Cut at sentence ends, at "then", and where "and" begins another wish."""
    parts = [piece for part in _BREAK.split(prompt) if part and part.strip() for piece in _split_wishes(part.strip())]
    return [Clause(part, content_of(part)) for part in parts[:MAX_CLAUSES]]


def content_of(clause: str) -> str:
    """``clause`` without what asks for it: "please draw me a picture of a red apple" gives "a red apple"."""
    quoted = QUOTED.search(clause)
    if quoted:
        return next(group for group in quoted.groups() if group)
    if _WHAT_IS_THIS.fullmatch(clause):
        return ""
    perceived = any(pattern.search(clause) for pattern in PERCEIVED.values())
    asked = _OPENING.sub("", clause)
    text = _without_question(asked) if perceived and PHRASES["question"].match(asked) else clause
    text = _EMBEDDED.sub(r"\1", _without_end(_without_start(text)[0]))
    everything = re.match(rf"{PHRASES['all'].pattern}(?:\s+(?:of|von|de|di|van)\b)?\s*", text, re.IGNORECASE)
    text = text[everything.end() :] if everything else text
    pointer = PHRASES["pronoun"].match(text)
    named = _without_article(text[pointer.end() :].strip() if pointer else text)
    named = _AS.sub("", named)
    nothing_new = not named or any(pattern.fullmatch(named) for pattern in NOUNS.values())
    return "" if nothing_new or (pointer and perceived) else text.strip(" ,:;.!?")


def named_first(text: str) -> tuple[str, str] | None:
    """The medium that the words begin by asking for, and of what: "please, a picture of a bird", but not "a bird in a
    picture"."""
    while True:
        text = text.lstrip(" ,.:!?-…")
        asking = (SCAFFOLD["filler"], SCAFFOLD["receiver"], PHRASES["make"], *VERBS.values())
        begin = next(filter(None, (pattern.match(text) for pattern in asking)), None)
        if begin is None:
            break
        text = text[begin.end() :]
    bare = _without_article(text)
    for medium, nouns in NOUNS.items():
        match = nouns.match(bare)
        rest = bare[match.end() :].lstrip() if match else ""
        if joint := SCAFFOLD["joint"].match(rest):
            return medium, rest[joint.end() :].lstrip()
    return None


def _without_question(text: str) -> str:
    """ "what does rain on a roof sound like" gives "rain on a roof"."""
    for pattern in PERCEIVED.values():
        text = _AUXILIARY.sub("", pattern.sub(" ", text).strip(), count=1)
    return _MAKES.sub("", " ".join(text.split()))


def _split_wishes(sentence: str) -> Iterator[str]:
    """Cut at an "and" or comma after which a medium is named or asked for within a few words."""
    start = 0
    for joint in islice(_NEXT_WISH.finditer(sentence), MAX_CLAUSES):
        ahead = " ".join(sentence[joint.end() :].split()[:4])
        begins = [m for medium in NOUNS if (m := mention(ahead, medium))]
        before = sentence[start : joint.start()]
        if begins and len(before.split()) > 1 and not _listing(before):
            yield before
            start = joint.end()
    yield sentence[start:]


def _listing(before: str) -> bool:
    """Whether ``before`` has named media only, so that "a picture and a sound of rain" stays whole."""
    text, asked = _without_start(before)
    return asked and not text.strip(" ,")


def _without_start(text: str) -> tuple[str, bool]:
    """``text`` from its content on, and whether a medium or a making was cut off."""
    asked = False
    while True:
        rest = text.lstrip(" ,.:!?-…")
        for name in ("filler", "receiver"):
            if match := SCAFFOLD[name].match(rest):
                rest = rest[match.end() :]
                break
        else:
            rest, made = _without_making(rest)
            asked |= made
        if rest == text:
            return text, asked
        text = rest


def _without_making(text: str) -> tuple[str, bool]:
    if match := PHRASES["make"].match(text):
        return text[match.end() :], True
    for verbs in VERBS.values():
        if match := verbs.match(text):
            return text[match.end() :], True
    bare = _without_article(text)
    for nouns in NOUNS.values():
        if match := nouns.match(bare):
            rest = bare[match.end() :].lstrip(" ,")
            joint = SCAFFOLD["joint"].match(rest)
            further = re.match(r"(?:and|or|und|et|y|e|en|,)\s+", rest)
            if joint:
                return rest[joint.end() :], True
            if further:
                return rest[further.end() :], True
            if any(others.match(rest) for others in NOUNS.values()):  # "a turntable gif of it"
                return rest, True
            if not rest or PHRASES["pronoun"].fullmatch(rest):
                return "", True
    return text, False


def _without_article(text: str) -> str:
    rest = text
    while True:
        match = SCAFFOLD["article"].match(rest) or SCAFFOLD["quality"].match(rest)
        if not match or match.end() == len(rest):
            return rest
        rest = rest[match.end() :].lstrip()


def _without_end(text: str) -> str:
    """Without thanks, and without "as a picture", "in 3D", "and its sound" at the end."""
    for _ in range(MAX_CLAUSES):
        text = text.rstrip(" ,.:;!?-…")
        endings = [m for m in SCAFFOLD["ending"].finditer(text) if m.end() == len(text)]
        forms = [
            m
            for nouns in NOUNS.values()
            for m in re.finditer(
                rf"\s+(?:as|in|into|als|en|comme|come|como)\s+(?:{_A}\s+)?{nouns.pattern}$", text, re.IGNORECASE
            )
        ]
        cut = min((m.start() for m in [*endings, *forms]), default=None)
        if not cut:
            break
        text = text[:cut]
    return text


_A = r"(?:an?|the|eine?[mn]?|une?|una?|uno|um|uma|een)"
