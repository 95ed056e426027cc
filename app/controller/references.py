"""Which earlier artifacts a request speaks of: "@3", "the second one", "the cat picture", "both", "it" (section 7)."""

from __future__ import annotations

import re
from collections.abc import Collection

from app.controller.lexicon import NOUNS, ORDINALS, PHRASES, SCAFFOLD
from app.controller.request import Item, Request
from app.controller.slots import content_of, mention

_NUMBERED = re.compile(r"@(\d{1,6})|#(\d{1,3})\b")
FEW_WORDS = 12  # of a thing that is only named
_NO = r"(?:no|nope|nein|non|nee|n[aã]o)\b\s*[,.;:!-]+\s*"
_CORRECTED = re.compile(
    rf"(?:{_NO})?(?:not|nicht|pas)\s+[^,;]+[,;]\s*(?:but\s+|sondern\s+|mais\s+)?(?P<not>.+)"
    r"|(?:(?:and|now|then|please|can you|could you)\s+)*make (?:it|that|this) (?P<make>an?\s(?!bit\b|little\b|lot\b).+)"
    rf"|{_NO}(?P<no>.+)",
    re.IGNORECASE,
)
_I_MEANT = re.compile(
    r"(?:i\s+(?:mean|meant|want|wanted|said)|rather|lieber|plut[oô]t)\s+(?=an?\s|the\s|\d)", re.IGNORECASE
)
_BEFORE_THAT = re.compile(
    r"\b(?:one before|previous one|before that|davor|pr[eé]c[eé]dent|anterior|precedente|vorige)\b", re.I
)


def referred(request: Request, media: Collection[str] = ()) -> list[Item]:
    """The items meant, the one most talked about first where several fit; empty if it is about none that there is.

    ``media``: what it must be to be of use; empty for anything.
    """
    prompt = request.prompt
    fitting = [item for item in request.in_focus() if not media or item.medium in media]
    named = [medium for medium in NOUNS if mention(prompt, medium) and (not media or medium in media)]
    of_named = [item for item in fitting if item.medium in named] or fitting
    if _BEFORE_THAT.search(prompt) and not _NUMBERED.search(prompt):
        return of_named[1:2]
    pointed = pointed_at(request, named or media)
    if pointed is not None:
        return [item for item in pointed if not media or item.medium in media]
    by_title = titled(prompt, fitting)
    if by_title:
        return by_title
    if PHRASES["all"].search(prompt):
        return of_named
    return of_named[:1]


def pointed_at(request: Request, media: Collection[str] = ()) -> list[Item] | None:
    """The items meant by number, "@3", or by order, "the second one"; ``None`` where nothing is said of either.

    ``media``: what is counted for an order; empty for anything.
    """
    numbers = [int(a or b) for a, b in _NUMBERED.findall(request.prompt)]
    if numbers:
        return [item for number in numbers if (item := request.item(number))]
    order = order_said(request.prompt)
    return None if order is None else _counted(request, media, order)


def order_said(prompt: str) -> int | None:
    """1 for "the first one", -1 for "the last one"."""
    return next((number for number, pattern in ORDINALS.items() if pattern.search(prompt)), None)


def without_order(prompt: str) -> str:
    for pattern in ORDINALS.values():
        prompt = pattern.sub(" ", prompt)
    return prompt


def correction(prompt: str) -> str:
    """What is wanted instead: "no, a cat", "not a dog, a cat" and "make it a cat" give "a cat"; empty where nothing is
    put right so."""
    match = _CORRECTED.fullmatch(prompt.strip())
    said = next(filter(None, match.groups()), "") if match else ""
    if match is None or not said or any(mention(said, medium) for medium in NOUNS):
        return ""
    named = SCAFFOLD["article"].match(said) or re.match(r"\d+\s", said) or _I_MEANT.match(said)
    if not match["make"] and not named:  # "no, wait", "not bad, more clouds"
        return ""
    other = content_of(_I_MEANT.sub("", said))
    looking_back = (*(PHRASES[name] for name in ("again", "pronoun", "all", "undo", "not")), *ORDINALS.values())
    if any(pattern.search(other) for pattern in (*looking_back, SCAFFOLD["talk"])) or PHRASES["question"].match(other):
        return ""
    return other if len(other.split()) <= FEW_WORDS else ""


def titled(prompt: str, items: Collection[Item]) -> list[Item]:
    """The items whose title shares the most words with ``prompt``, if any does."""
    said = content_words(prompt)
    shared = {item.number: len(said & content_words(item.title)) for item in items}
    most = max(shared.values(), default=0)
    return [item for item in items if most and shared[item.number] == most]


def content_words(text: str) -> set[str]:
    """Lower-case words of three letters or more that are no scaffold."""
    words = {word.lower() for word in re.findall(r"[^\W_]{3,}", text)}
    scaffold = (*SCAFFOLD.values(), *PHRASES.values(), *NOUNS.values())
    return {word for word in words if not any(pattern.fullmatch(word) for pattern in scaffold)}


def points_at_history(request: Request, said: str) -> bool:
    """Whether ``said`` names something that is there: by number, by order, or by words that are all in its title."""
    if _NUMBERED.search(said) or any(pattern.search(said) for pattern in ORDINALS.values()):
        return bool(request.history)
    words = content_words(said)
    return any(words and words <= content_words(item.title) for item in request.in_focus())


def _counted(request: Request, media: Collection[str], number: int) -> list[Item]:
    """The item number ``number`` of the conversation, or of its items of ``media`` where one is named."""
    items = [item for item in request.history if not media or item.medium in media] or list(request.history)
    index = number - 1 if number > 0 else number
    return [items[index]] if -len(items) <= index < len(items) else []
