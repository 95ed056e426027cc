"""Colours and styles as people say them of what is there: "make it blue", "in green please", "as a watercolour"."""

from __future__ import annotations

import re

from app.controller.lexicon import COLOURS, NOUNS, PHRASES, SCAFFOLD
from app.controller.request import Item, Request

_COLOUR = re.compile("|".join(pattern.pattern for pattern in COLOURS.values()), re.IGNORECASE)
_SHADE = r"(?:(?:light|dark|bright|pale|deep|hell|dunkel)[ -]?)?"
_STYLE = r"(?:in )?(?:an? |the )?(?P<style>(?:[\w-]+ ){1,2}style)|(?:in )?(?:the )?(?P<manner>style of .{1,60}?)"
_IN_STYLE = re.compile(_STYLE, re.IGNORECASE)
_IN_COLOUR = re.compile(rf"(?:in |to |all )*({_SHADE}(?:{_COLOUR.pattern}))", re.IGNORECASE)
_STYLED = re.compile(r"(?:,| in(?: an?)?) (?:[\w-]+ ){1,2}style$|,? in the style of .*$| as an? [\w-]+$", re.IGNORECASE)
_LEADING = re.compile(r"^(with|as|in|on|at|under|during|by|near|without)\s+", re.IGNORECASE)
_POLITE = rf"(?:{SCAFFOLD['ending'].pattern}|\binstead\b|\bthis time\b|\bstattdessen\b|[ ,.!])*"
_ASKING = "|".join(p.pattern for p in (SCAFFOLD["filler"], PHRASES["make"], PHRASES["pronoun"]))
_ASKED = rf"(?:(?:{_ASKING}|paint|dye|colou?r|do|try|but|same|one|the)[ ,]+)"
_DRAWN = rf"(?:(?:look )?like|as) an? (?:{NOUNS['image'].pattern})"
_LOOK = re.compile(
    rf"{_ASKED}{{0,8}}(?P<look>(?P<colour>{_IN_COLOUR.pattern})|{_STYLE}|{_DRAWN}){_POLITE}",
    re.IGNORECASE,
)
_LIKE = re.compile(r"^(?:look )?like ", re.IGNORECASE)
SEEN = ("image", "mesh", "video")


def look_said(prompt: str) -> str:
    """The colour or style that is asked for, where the words say nothing else: "in blue", "outline style"."""
    match = _LOOK.fullmatch(prompt.strip())
    return _LIKE.sub("as ", match["look"].strip(" ,.!")) if match else ""


def colour_said(prompt: str) -> str:
    """The English name of the colour that :func:`look_said` has; empty if it has none."""
    look = look_said(prompt)
    return next((name for name, pattern in COLOURS.items() if look and pattern.search(look)), "")


def looked_at(request: Request) -> tuple[str, str, Item | None] | None:
    """Reference, medium and item of that whose look can be another: what is attached, else what is talked about."""
    if request.uploads:
        return next(((f"upload:{n}", m, None) for n, m in enumerate(request.uploads, 1) if m in SEEN), None)
    look, items = look_said(request.prompt), request.in_focus()
    if look.lower().startswith("as "):  # of a sound, "as a drawing" is a wish for a picture
        fitting = [item for item in items[:1] if item.medium == "image"]
    else:
        fitting = [item for item in items if item.medium in SEEN or (item.medium == "audio" and not colour_said(look))]
    return (f"@{fitting[0].number}", fitting[0].medium, fitting[0]) if fitting else None


def unstyled(text: str) -> str:
    return _STYLED.sub("", text)


def reworded(text: str, change: str) -> str:
    """``text`` with ``change`` in place of what it replaces: a colour, a style, what follows the same "with", else all
    of it."""
    if style := _IN_STYLE.fullmatch(change):
        said = style["style"] or f"in the {style['manner']}"
        return f"{unstyled(text)}, {said}"
    if colour := _IN_COLOUR.fullmatch(change):
        if _COLOUR.search(text):
            return re.sub(rf"{_SHADE}(?:{_COLOUR.pattern})", colour[1], text, count=1, flags=re.IGNORECASE)
        article = SCAFFOLD["article"].match(text)
        return f"{article[0]} {colour[1]} {text[article.end() :].lstrip()}" if article else f"{colour[1]} {text}"
    if leading := _LEADING.match(change):
        plain = unstyled(text) if leading[1].lower() == "as" else text
        kept = re.split(rf"\s+{leading[1]}\s+", plain, maxsplit=1, flags=re.IGNORECASE)[0]
        return f"{kept} {change}"
    return change
