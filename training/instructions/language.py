"""One language's nouns, scenes, lists and templates, and which split each belongs to."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

from training.instructions.forms import Noun, read_noun
from training.instructions.grammar import GROUP, Nodes, Template, lines, parse, read_templates

DATA = Path(__file__).parent / "data"
LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "nl")
VALIDATION_SHARE = 0.15
# Under this one, each language has nouns of every kind and templates of nearly every slice on both sides.
SALT = "instructions 209"

Split = Literal["train", "validation"]


def split_of(name: str) -> Split:
    """By a hash, so that it never depends on what else there is."""
    digest = hashlib.sha256(f"{SALT}|{name}".encode()).digest()
    return "validation" if int.from_bytes(digest[:4], "big") < VALIDATION_SHARE * 2**32 else "train"


@dataclass(frozen=True)
class Language:
    code: str
    nouns: tuple[Noun, ...]
    scenes: tuple[Noun, ...]
    lists: dict[str, Nodes]
    templates: tuple[Template, ...]

    @cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(noun.key for noun in self.nouns)

    @cached_property
    def _pools(self) -> dict[tuple[Split, tuple[str, ...], bool], tuple[Noun, ...]]:
        return {}

    def pool(self, split: Split, marks: tuple[str, ...], scenes: bool = False) -> tuple[Noun, ...]:
        """The nouns, or the scenes, of ``split`` with all ``marks``."""
        key = (split, marks, scenes)
        if key not in self._pools:
            wanted = set(marks)
            self._pools[key] = tuple(
                one
                for one in (self.scenes if scenes else self.nouns)
                if wanted <= one.marks and (self.scene_split(one) if scenes else split_of(one.key)) == split
            )
        return self._pools[key]

    def scene_split(self, scene: Noun) -> Split | None:
        """That of the nouns it mentions; its own if it mentions none; ``None`` if it mentions nouns of both."""
        words = re.findall(r"\w+", re.sub(r"\{.*?\}", " ", scene.word.lower()))
        mentioned = {split_of(key) for word in words for key in (word, word.removesuffix("s")) if key in self._keys}
        return mentioned.pop() if len(mentioned) == 1 else None if mentioned else split_of(scene.word)

    @cached_property
    def stopwords(self) -> frozenset[str]:
        return frozenset(self.words("stopwords"))

    @cached_property
    def question_words(self) -> frozenset[str]:
        return frozenset(self.words("question_words"))

    @cached_property
    def shorts(self) -> dict[str, str]:
        """Words with the short forms that people type."""
        return dict(pair.split("=") for pair in self._plain("shorts").split(";") if pair)

    def words(self, name: str) -> list[str]:
        return self._plain(name).split()

    def _plain(self, name: str) -> str:
        return "".join(node for node in self.lists.get(name, ()) if isinstance(node, str))


@cache
def load(code: str) -> Language:
    """Raises ``GrammarError`` for a data file that cannot be read."""
    folder = DATA / code
    templates = [one for path in sorted(folder.glob("templates*.txt")) for one in read_templates(path, code)]
    return Language(
        code,
        tuple(_read_nouns(folder / "nouns.txt", code)),
        tuple(_read_scenes(folder / "scenes.txt", code)),
        {
            name.strip(): parse(text.strip())
            for name, _, text in (line.partition("=") for line in lines(folder / "lists.txt"))
        },
        tuple(templates),
    )


def _read_nouns(path: Path, code: str) -> list[Noun]:
    nouns = []
    for line in lines(path):
        _, marks, words = (part.strip() for part in line.split("|"))
        nouns += [read_noun(code, word.strip(), frozenset(marks.split())) for word in words.split(",")]
    return nouns


def _read_scenes(path: Path, code: str) -> list[Noun]:
    scenes = []
    marks: frozenset[str] = frozenset()
    for line in lines(path):
        if line.startswith(GROUP):
            marks = frozenset(line.removeprefix(GROUP).split())
        elif code == "en":
            scenes.append(Noun(code, line, marks, scene=True))
        else:
            scenes.append(read_noun(code, line, marks, scene=True))
    return scenes
