"""What a person asks: words, attachments, and what the conversation holds already."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.controller.plan import Step
from models.errors import UserError

if TYPE_CHECKING:  # it reads words by what stands here
    from app.controller.details import Details

MAX_CHARACTERS = 4000
HEAD, TAIL = 1500, 500  # of what is longer, this much is read: people wish at the start or at the end
MAX_TITLES = 8
ACTS = ("new", "edit", "regenerate", "select", "undo", "chat", "ask")


@dataclass(frozen=True)
class Item:
    """An artifact of the conversation, as the controller sees it: ``@number`` is its reference."""

    number: int
    medium: str
    title: str
    recipe: Step | None = None  # the step that made it, over references of the conversation, where it is known
    brought: bool = False  # by the person, so that it cannot be made again


@dataclass(frozen=True)
class Request:
    """``prompt`` normalised by :func:`normalised`; ``uploads``: media in order; ``history``: oldest first.

    ``focus``: numbers of the items that are talked about, the latest first; what was undone is not among them.
    ``details``: what was said of settings, once it is taken out of the prompt.
    """

    prompt: str
    uploads: tuple[str, ...] = ()
    history: tuple[Item, ...] = ()
    focus: tuple[int, ...] = ()
    details: Details | None = None

    @classmethod
    def of(cls, prompt: str, uploads: Sequence[str] = (), history: Iterable[tuple[str, str]] = ()) -> Request:
        """A request over ``history``, (medium, title) each, with everything in focus, the newest first."""
        items = tuple(Item(number, medium, title) for number, (medium, title) in enumerate(history, 1))
        focus = tuple(item.number for item in reversed(items))
        return cls(normalised(prompt), tuple(uploads), items, focus)

    @property
    def latest(self) -> Item | None:
        """What is talked about most."""
        return next(iter(self.in_focus()), None)

    def item(self, number: int) -> Item | None:
        return next((item for item in self.history if item.number == number), None)

    @property
    def available(self) -> dict[str, str]:
        """Reference to medium, of everything a plan may take."""
        uploads = {f"upload:{number}": medium for number, medium in enumerate(self.uploads, 1)}
        return uploads | {f"@{item.number}": item.medium for item in self.history}

    def in_focus(self, *media: str) -> list[Item]:
        """The items of these media (of any, if none are given), the one most talked about first."""
        items = [item for number in self.focus if (item := self.item(number))]
        return [item for item in items if not media or item.medium in media]

    @property
    def context(self) -> str:
        """Attachments and earlier artifacts in one line, as the language model reads them; empty if there are none."""
        parts = [f"attached {medium}" for medium in self.uploads]
        parts += [f"{item.medium} '{item.title[:60]}'" for item in self.history[-MAX_TITLES:]]
        return "; ".join(parts)


def normalised(prompt: str) -> str:
    """One line in NFKC without control characters; of a very long text its start and its end.

    Raises :class:`UserError` for more than a million characters.
    """
    if len(prompt) > 1_000_000:
        raise UserError("The request is longer than a million characters.", "Attach long texts as a file.")
    if len(prompt) > MAX_CHARACTERS:
        prompt = f"{prompt[:HEAD]} … {prompt[-TAIL:]}"
    text = unicodedata.normalize("NFKC", prompt).translate({0x2019: "'", 0x2018: "'", 0x201C: '"', 0x201D: '"'})
    return " ".join("".join(c if unicodedata.category(c)[0] != "C" else " " for c in text).split())
