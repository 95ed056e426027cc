"""A noun with its article, by language.

Written in ``nouns.txt``: English nouns without an article ("mouse/mice" with a plural that no rule gives), German and
Dutch ones with the definite article ("der Löwe/Löwen" with the other cases' ending), Romance ones with the indefinite
article. "~" before a noun: not countable ("~rain", "~der Regen", "~la pluie"); "+": plural only ("+les vagues"); both
stand with the definite article outside English.

Forms: ``a`` a dog; ``the`` the dog; ``n`` dog; English ``s`` dogs; German ``acc``, ``dat``, ``theacc``, ``thedat`` by
case; Romance ``of`` of a dog, ``ofthe`` of the dog.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """``article``: none in English; ``other``: the irregular plural or the oblique case; ``scene``: a whole phrase."""

    language: str
    word: str
    marks: frozenset[str]
    article: str = ""
    other: str = ""
    countable: bool = True
    scene: bool = False

    @property
    def key(self) -> str:
        """What decides the split: the head of a compound, so that "grand piano" goes with "piano"."""
        words = self.word.lower().split()
        return words[-1 if self.language == "en" else 0]


def read_noun(language: str, written: str, marks: frozenset[str], scene: bool = False) -> Noun:
    """A noun as ``nouns.txt`` has it."""
    countable = written[0] not in "~+"
    words = written.lstrip("~+")
    article = ""
    if language != "en":
        found = re.fullmatch(r"(\w+ |\w+')(.+)", words)
        if found is None:
            raise ValueError(f"No article: {written}")
        article, words = found[1].strip(), found[2]
    word, _, other = words.partition("/")
    return Noun(language, word, marks, article, other, countable, scene)


def form(noun: Noun, name: str) -> str:
    """Raises ``KeyError`` for a form that the language does not have."""
    return noun.word if name == "n" else _LANGUAGES[noun.language](noun, name)


def _english(noun: Noun, name: str) -> str:
    if name == "s":
        return plural(noun.word, noun.other) if noun.countable else noun.word
    return {"a": f"a {noun.word}" if noun.countable else noun.word, "the": f"the {noun.word}"}[name]


def plural(word: str, irregular: str = "") -> str:
    """The English plural."""
    if irregular:
        return irregular
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    return re.sub(r"y$", "ie", word) + "s" if re.search(r"[^aeiou]y$", word) else word + "s"


def with_an(text: str) -> str:
    """English with "an" before a vowel's sound. Marks of what is wanted may stand between."""

    def fixed(found: re.Match[str]) -> str:
        article, space, word = found.groups()
        spoken = re.match(r"[aeio](?!ne\b|uro)|u(?!ni[^nm]|k|s[ae]|fo|t)|hour|honest", word, re.IGNORECASE)
        return (article + "n" if spoken else article) + space + word

    return re.sub(r"\b([Aa])( [\x02\x03\uE000-\uE00F]*)(\w+)", fixed, text)


_GERMAN = {
    "a": {"der": "ein", "die": "eine", "das": "ein"},
    "acc": {"der": "einen", "die": "eine", "das": "ein"},
    "dat": {"der": "einem", "die": "einer", "das": "einem"},
    "the": {"der": "der", "die": "die", "das": "das"},
    "theacc": {"der": "den", "die": "die", "das": "das"},
    "thedat": {"der": "dem", "die": "der", "das": "dem"},
}


def _german(noun: Noun, name: str) -> str:
    word = noun.word if name in ("a", "the") or not noun.other else noun.other
    if not noun.countable and not name.startswith("the"):
        return word
    return f"{_GERMAN[name][noun.article]} {word}"


def _dutch(noun: Noun, name: str) -> str:
    indefinite = f"een {noun.word}" if noun.countable else noun.word
    return {"a": indefinite, "the": f"{noun.article} {noun.word}"}[name]


_DEFINITE = {
    "fr": {"un": "le", "une": "la"},
    "es": {"un": "el", "una": "la"},
    "it": {"un": "il", "uno": "lo", "una": "la", "un'": "l'"},
    "pt": {"um": "o", "uma": "a"},
}
_OF = {
    "fr": ("d'", {"le": "du", "les": "des"}, "de "),
    "es": ("de ", {"el": "del"}, "de "),
    "it": (
        "di ",
        {"il": "del", "lo": "dello", "la": "della", "l'": "dell'", "i": "dei", "gli": "degli", "le": "delle"},
        "",
    ),
    "pt": ("de ", {"o": "do", "a": "da", "os": "dos", "as": "das"}, ""),
}
_VOWEL = {
    "fr": re.compile(
        r"[aeiouyéèêâîôû]|h(?=orl|omm|élic|erbe|uil|uît|armon|ôt|iver|hist|iron|ippo|abit)", re.IGNORECASE
    ),
    "it": re.compile(r"[aeiou]", re.IGNORECASE),
}


def _romance(noun: Noun, name: str) -> str:
    of_a, contractions, of_the = _OF[noun.language]
    article = _DEFINITE[noun.language].get(noun.article, noun.article)
    elides = _VOWEL.get(noun.language)
    if elides and article in ("le", "la", "il") and noun.countable and elides.match(noun.word):
        article = "l'"
    the = _joined(article, noun.word)
    ofthe = _joined(contractions[article] if article in contractions else of_the + article, noun.word)
    a = _joined(noun.article, noun.word) if noun.countable else the
    return {"a": a, "the": the, "of": of_a + a if noun.countable else ofthe, "ofthe": ofthe}[name]


def _joined(article: str, word: str) -> str:
    return article + word if article.endswith("'") else f"{article} {word}"


_LANGUAGES: dict[str, Callable[[Noun, str], str]] = {
    "en": _english,
    "de": _german,
    "nl": _dutch,
    "fr": _romance,
    "es": _romance,
    "it": _romance,
    "pt": _romance,
}
