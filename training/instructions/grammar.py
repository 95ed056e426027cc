"""The grammar of the data files, read into nodes.

In templates, scenes and lists:

- ``(a|b|)``: one of the alternatives, which may be empty; ``[a|b]``: the same, or nothing.
- ``{draw}``: an alternative of the list ``draw`` in ``lists.txt``.
- ``{a:sound}``: a noun with the mark ``sound`` in the form ``a`` (``forms.py``); ``{a:seen sound}``: with both marks.
- ``{a+:sound}``: the same, or a scene with the mark; ``{a1:sound}``: noun 1 of the row, the same wherever it comes.
- ``{-a:sound}``: a noun that is not part of what is wanted.
- ``{n@1}``: the noun in the title of the first thing in the history that the request is about; ``{n@x}``: of another.
- ``<...>``: words that belong to what is wanted, as nouns and scenes do.
- ``{mash}``, ``{number}``, ``{nothing}``: keys hit at random, a number, no words at all. ``->`` is an arrow.

A line that starts with ``#`` and a space is a comment. Above a group of templates stand its labels:

``== SLICE ACT OUTPUTS EDGES [inputs=A+B] [history=A?,B/C!] [text=title] [exact] [literal]``

- OUTPUTS and EDGES as ``image+mesh`` and ``text>image,image>mesh``; ``-`` where there are none.
- ``history``: oldest first; ``!``: the request is about it; ``?``: there in half of the rows; ``B/C``: one of the two.
- ``text=title``: what the title says is part of what is wanted.
- ``exact``: nothing polite or chatty around it, no typing errors. ``literal``: the line is the prompt, grammar and all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GROUP = "== "
_TOKEN = re.compile(r"->|\{[^{}]*\}|[()\[\]|<>]|[^{}()\[\]|<>-]+|-")
_NOUN = re.compile(r"(-?)([a-z]+)(\d?)(\+?):([a-z ]+)")
_TITLE = re.compile(r"([a-z]+)@([1-9x])")
_HEADER = re.compile(r"(\S+) (\S+) (\S+) (\S+)((?: \S+)*)")


class GrammarError(ValueError):
    """A line of the data files that cannot be read."""


@dataclass(frozen=True)
class Pick:
    """One of several sequences."""

    options: tuple[Nodes, ...]


@dataclass(frozen=True)
class Wanted:
    """Words that belong to what is wanted."""

    nodes: Nodes


@dataclass(frozen=True)
class Listed:
    """An alternative of the list ``name``, or something built in."""

    name: str


@dataclass(frozen=True)
class NounSlot:
    """A noun in ``form`` with all ``marks``; ``number``: which one of the row, or empty."""

    form: str
    marks: tuple[str, ...]
    number: str = ""
    scenes: bool = False
    wanted: bool = True


@dataclass(frozen=True)
class TitleSlot:
    """The noun of a title; ``which``: counts the things that the request is about, ``x`` for another thing."""

    form: str
    which: str


Node = str | Pick | Wanted | Listed | NounSlot | TitleSlot
Nodes = tuple[Node, ...]


@dataclass(frozen=True)
class Artifact:
    """One entry of a history: of one of ``media``."""

    media: tuple[str, ...]
    target: bool
    optional: bool


@dataclass(frozen=True)
class Labels:
    """What a group's templates mean; ``edges`` is ``None`` where several ways are as good or nothing new is made."""

    slice: str
    act: str
    outputs: tuple[str, ...]
    edges: tuple[str, ...] | None
    inputs: tuple[str, ...] = ()
    history: tuple[Artifact, ...] = ()
    title_wanted: bool = False
    exact: bool = False
    literal: bool = False

    @property
    def makes(self) -> bool:
        """Whether words go to a maker."""
        return self.act in ("new", "regenerate")


@dataclass(frozen=True)
class Template:
    language: str
    text: str
    labels: Labels
    nodes: Nodes

    @property
    def names_titles(self) -> bool:
        return "@" in self.text and not self.labels.literal


def parse(text: str) -> Nodes:
    """Raises :class:`GrammarError` for brackets that do not match and slots that do not exist."""
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text:
        raise GrammarError(f"A brace is not closed: {text}")
    rest = iter(tokens)
    pick = _alternatives(rest, "", text)
    return pick.options[0] if len(pick.options) == 1 else (pick,)


def _alternatives(tokens: Iterator[str], closing: str, text: str) -> Pick:
    options: list[list[Node]] = [[]]
    for token in tokens:
        if token == closing:
            return Pick(tuple(map(tuple, options)))
        if token == "|":
            options.append([])
        elif token == "(":
            options[-1].append(_alternatives(tokens, ")", text))
        elif token == "[":
            inner = _alternatives(tokens, "]", text)
            options[-1].append(Pick((*inner.options, *[()] * len(inner.options))))
        elif token == "<":
            options[-1].append(Wanted((_alternatives(tokens, ">", text),)))
        elif token in ")]>":
            raise GrammarError(f"'{token}' closes nothing: {text}")
        else:
            options[-1].append(_slot(token[1:-1], text) if token.startswith("{") else token)
    if closing:
        raise GrammarError(f"'{closing}' is missing: {text}")
    return Pick(tuple(map(tuple, options)))


def _slot(inside: str, text: str) -> Node:
    if found := _NOUN.fullmatch(inside):
        minus, form, number, plus, marks = found.groups()
        return NounSlot(form, tuple(marks.split()), number, bool(plus), not minus)
    if found := _TITLE.fullmatch(inside):
        return TitleSlot(found[1], found[2])
    if re.fullmatch(r"[a-z_]+", inside):
        return Listed(inside)
    raise GrammarError(f"No slot: {{{inside}}} in {text}")


def lines(path: Path) -> list[str]:
    """The lines of a data file, without comments and empty lines."""
    return [line for line in path.read_text("utf-8").splitlines() if line.strip() and not line.startswith("# ")]


def read_templates(path: Path, language: str) -> list[Template]:
    """Raises :class:`GrammarError` for a line that cannot be read, or one above the first labels."""
    templates: list[Template] = []
    labels: Labels | None = None
    for line in lines(path):
        if line.startswith(GROUP):
            labels = read_labels(line.removeprefix(GROUP))
        elif labels is None:
            raise GrammarError(f"No labels stand above: {line}")
        else:
            templates.append(Template(language, line, labels, (line,) if labels.literal else parse(line)))
    return templates


def read_labels(header: str) -> Labels:
    """Raises :class:`GrammarError` if ``header`` is no line of labels."""
    found = _HEADER.fullmatch(header)
    if found is None:
        raise GrammarError(f"No labels: {header}")
    slice_, act, outputs, edges, rest = found.groups()
    options = dict(part.partition("=")[::2] for part in rest.split())
    if unknown := options.keys() - {"inputs", "history", "text", "exact", "literal"}:
        raise GrammarError(f"Unknown label {', '.join(sorted(unknown))}: {header}")
    return Labels(
        slice=slice_,
        act=act,
        outputs=() if outputs == "-" else tuple(outputs.split("+")),
        edges=None if edges == "-" else tuple(edges.split(",")),
        inputs=tuple(filter(None, options.get("inputs", "").split("+"))),
        history=tuple(_artifact(part) for part in filter(None, options.get("history", "").split(","))),
        title_wanted=options.get("text") == "title",
        exact="exact" in options or "literal" in options,
        literal="literal" in options,
    )


def _artifact(part: str) -> Artifact:
    return Artifact(tuple(part.rstrip("!?").split("/")), "!" in part, "?" in part)
