"""Fills a template's slots with the nouns of one split."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from training.instructions.forms import Noun, form, with_an
from training.instructions.grammar import Listed, Node, Nodes, NounSlot, Pick, TitleSlot, Wanted, parse
from training.instructions.language import Language, Split

# Around words that belong to what is wanted, until the row is finished: typing errors must reach the label too. After
# OPEN stands a letter of the private use area, whose bits say which of KINDS the template asked the noun to be.
OPEN, CLOSE = "\x02", "\x03"
KINDS = ("seen", "sound", "moves", "thing")
_BITS = 0xE000
MARK = re.compile(f"{OPEN}([\\uE000-\\uE00F])|{CLOSE}")
SCENE_SHARE, ADJECTIVE_SHARE = 0.45, 0.15
ADJECTIVES_BY_MARK = ("person", "food", "place", "plant", "alive", "thing")
MASHED = ("asdf", "jkl", "qwe", "zxcv", "hjkl", "fgh", "uio", "bnm", "wer", "xx", "poi", "lkj", "dfg", "vv")


def wanted(words: str, marks: Sequence[str] = ()) -> str:
    """``words`` between marks."""
    bits = sum(1 << number for number, kind in enumerate(KINDS) if kind in marks)
    return OPEN + chr(_BITS + bits) + words + CLOSE


def unmarked(text: str) -> str:
    return MARK.sub("", text)


def spans_of(text: str) -> list[tuple[int, int, tuple[str, ...]]]:
    """Where in ``unmarked(text)`` the outermost marked words begin and end, and which of KINDS they have to be."""
    found: list[tuple[int, int, tuple[str, ...]]] = []
    depth = shift = start = 0
    kinds: tuple[str, ...] = ()
    for mark in MARK.finditer(text):
        here = mark.start() - shift
        shift += len(mark[0])
        if mark[1]:
            if not depth:
                start, kinds = here, ()
            depth += 1
            bits = ord(mark[1]) - _BITS
            kinds = kinds or tuple(kind for number, kind in enumerate(KINDS) if bits >> number & 1)
        else:
            depth -= 1
            if not depth:
                found.append((start, here, kinds))
    return found


class Filling:
    """What one row is filled with. ``titled``: the nouns of the titles that it may name, see :class:`TitleSlot`."""

    def __init__(
        self, language: Language, split: Split, rng: random.Random, titled: dict[str, Noun] | None = None
    ) -> None:
        self.language, self.split, self.rng = language, split, rng
        self.titled = titled or {}
        self.adjectives = False
        self.numbered: dict[str, Noun] = {}
        self.used: list[Noun] = list(self.titled.values())

    def fill(self, nodes: Nodes) -> str:
        """The words, with :data:`OPEN` and :data:`CLOSE` around what is wanted."""
        return self.tidied(self._joined(nodes))

    def tidied(self, text: str) -> str:
        """With the spaces, and in English the articles, that belong there."""
        text = re.sub(r" +", " ", text).strip()
        text = re.sub(r" ([,.!])", r"\1", text)
        if self.language.code != "en":
            return text
        return with_an(re.sub(r"(?<![\w'.-])i(?=[\s',?!]|$)", "I", text))

    def choose(self, marks: Sequence[str], scenes: bool = False) -> Noun:
        """A noun, or at times a scene, that this row does not have yet."""
        if scenes and self.rng.random() < SCENE_SHARE and (pool := self.language.pool(self.split, tuple(marks), True)):
            chosen = self.rng.choice(pool)
        else:
            taken = {noun.key for noun in self.used}
            pool = self.language.pool(self.split, tuple(marks))
            chosen = self.rng.choice([noun for noun in pool if noun.key not in taken] or pool)
        self.used.append(chosen)
        return chosen

    def say(self, noun: Noun, name: str) -> str:
        """``noun`` in the form ``name``."""
        if noun.scene and noun.language == "en":
            return self._joined(parse(noun.word))
        return form(noun, name)

    def _joined(self, nodes: Nodes) -> str:
        return "".join(self._one(node) for node in nodes)

    def _one(self, node: Node) -> str:
        match node:
            case str():
                return node
            case Pick(options):
                return self._joined(self.rng.choice(options))
            case Wanted(nodes):
                return wanted(self._joined(nodes))
            case Listed("mash"):
                return "".join(self.rng.choices(MASHED, k=self.rng.randint(1, 4)))
            case Listed("number"):
                return str(self.rng.randint(0, 99_999))
            case Listed("nothing"):
                return ""
            case Listed(name):
                return self._joined(self.language.lists[name])
            case TitleSlot(name, which):
                return form(self.titled[which], name)
            case NounSlot():
                return self._noun(node)

    def _noun(self, slot: NounSlot) -> str:
        noun = self.numbered.get(slot.number) or self.choose(slot.marks, slot.scenes)
        if slot.number:
            self.numbered[slot.number] = noun
        said = self.say(noun, slot.form)
        if self.adjectives and slot.form == "a" and slot.wanted and not slot.number and self._takes_adjective(noun):
            said = f"a {self._adjective(noun)} {noun.word}"
        return wanted(said, slot.marks) if slot.wanted else said

    def _takes_adjective(self, noun: Noun) -> bool:
        known = noun.countable and not noun.scene and self.language.code == "en"
        return known and not noun.marks.isdisjoint(ADJECTIVES_BY_MARK) and self.rng.random() < ADJECTIVE_SHARE

    def _adjective(self, noun: Noun) -> str:
        mark = next(mark for mark in ADJECTIVES_BY_MARK if mark in noun.marks)
        return self._joined(self.language.lists[f"adjectives_{mark}"])
