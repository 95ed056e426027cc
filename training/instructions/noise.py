"""How people type: polite words and chatter around a wish, then missing capitals, marks and letters."""

from __future__ import annotations

import random
import re

from training.instructions.fill import CLOSE, OPEN, Filling
from training.instructions.grammar import Listed
from training.instructions.language import Language

ENDS = (".", "!", "?", "…", '"', ":")
CLEAN_SHARE = 0.45
_WANTED = re.compile(f"({OPEN}.*?{CLOSE})")


def spoken(text: str, filling: Filling, wish: bool) -> str:
    """``text`` as a sentence, at times with a greeting, chatter or, with a ``wish``, thanks around it."""
    rng = filling.rng
    bare = text.rstrip("!? ")  # the space is French
    mark = text[len(bare) :] or _end(bare, filling)
    if wish and "?" not in mark and rng.random() < 0.11:
        thanks = filling.fill((Listed("after"),))
        if thanks.lstrip(", ").split()[0].lower() not in bare.lower() and not bare.endswith((".", ",")):
            bare += thanks
            mark = "" if thanks.endswith("?") else mark
    if rng.random() < 0.12:
        bare = f"{filling.fill((Listed('before'),))} {bare}"
    said = capitalised(bare) + mark
    chance = rng.random()
    if chance < 0.05:
        chatter = Listed("chatter_wish" if wish and chance < 0.02 else "chatter_before")
        said = f"{capitalised(filling.fill((chatter,)))} {said}"
    elif wish and chance < 0.09:
        stop = "" if said.endswith(ENDS) else "."
        said = f"{said}{stop} {capitalised(filling.fill((Listed('chatter_after'),)))}"
    return said


def _end(bare: str, filling: Filling) -> str:
    first = re.findall(r"\w+", bare.lower())[:1]
    if bare.endswith(ENDS):
        return ""
    if "?" not in bare and first and first[0] in filling.language.question_words:
        return "?"
    return filling.rng.choice((".", "", "", "!" if filling.rng.random() < 0.3 else "."))


def capitalised(text: str) -> str:
    """With capitals where sentences begin."""
    return re.sub(r"((?:^|[.!?] )[^\w.!?]*)([^\W\d_])", lambda found: found[1] + found[2].upper(), text)


def roughened(text: str, language: Language, rng: random.Random) -> str:
    """``text`` as it may be typed in haste. Marks of what is wanted stay around the same words."""
    if rng.random() < CLEAN_SHARE:
        return text
    if rng.random() < 0.5:
        text = text.rstrip(".!?").rstrip()
    if rng.random() < 0.25:
        text = re.sub("[,;']" if language.code == "en" else "[,;¿¡]", "", text)
    if rng.random() < 0.2:
        text = shortened(text, language.shorts)
    for _ in range(rng.choices((0, 1, 2), (0.72, 0.22, 0.06))[0]):
        text = mistyped(text, rng)
    chance = rng.random()
    return text.lower() if chance < 0.5 else text.upper() if chance < 0.53 else text


def shortened(text: str, shorts: dict[str, str]) -> str:
    """With the short forms that people type, except in what is wanted."""
    if not shorts:
        return text
    known = re.compile(rf"\b({'|'.join(map(re.escape, shorts))})\b", re.IGNORECASE)
    parts = _WANTED.split(text)
    return "".join(
        part if part.startswith(OPEN) else known.sub(lambda found: shorts[found[1].lower()], part) for part in parts
    )


def mistyped(text: str, rng: random.Random) -> str:
    """With two letters swapped, or one missing or doubled, in one word of four letters or more."""
    words = list(re.finditer(r"[^\W\d_]{4,}", text))
    if not words:
        return text
    word = rng.choice(words)
    place = rng.randrange(word.start() + 1, word.end() - 1)
    here, after = text[place], text[place + 1]
    typed = rng.choice((after + here, after, here + here + after))
    return text[:place] + typed + text[place + 2 :]
