"""The words of ``lexicon.toml`` as patterns."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ANY_WORDS = r"(?:\S+ ){0,8}?"


def whole_words(alternatives: str) -> re.Pattern[str]:
    """Any of ``alternatives``, apart by spaces, as whole words in any case; see the head of ``lexicon.toml``."""
    joined = "|".join(alternatives.split()).replace("_", " ").replace("~", ANY_WORDS)
    return re.compile(rf"(?<![\w'])(?:{joined})(?![\w])", re.IGNORECASE)


_TABLES = tomllib.loads((Path(__file__).parent / "lexicon.toml").read_text(encoding="utf-8"))

NOUNS = {medium: whole_words(text) for medium, text in _TABLES["nouns"].items()}
VERBS = {medium: whole_words(text) for medium, text in _TABLES["verbs"].items()}
PERCEIVED = {medium: whole_words(text) for medium, text in _TABLES["perceived"].items()}
PHRASES = {name: whole_words(text) for name, text in _TABLES["phrases"].items()}
ORDINALS = {int(number): whole_words(text) for number, text in _TABLES["ordinals"].items()}
COLOURS = {name: whole_words(text) for name, text in _TABLES["colours"].items()}
SCAFFOLD = {name: whole_words(text) for name, text in _TABLES["scaffold"].items()}
FUNCTION_WORDS = {name: whole_words(text) for name, text in _TABLES["function_words"].items()}


def is_foreign(text: str) -> bool:
    """Whether ``text`` has more function words of our other languages in it than of English."""
    english, others = (len(FUNCTION_WORDS[name].findall(text)) for name in ("english", "others"))
    return others > english
