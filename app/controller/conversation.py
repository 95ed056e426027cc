"""What was attached and made in one conversation: a graph of artifacts, and which of them is talked about (section 7).

The state is this graph, never the chat's text. Nothing is deleted: "undo" only takes something out of focus. The text
is kept beside it for whoever answers in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.controller.plan import ARTIFACT, STEP, UPLOAD, Step
from app.controller.request import Item, Request, normalised
from app.library import Entry
from pipelines.media import Artifact

MAX_ITEMS = 200


@dataclass(frozen=True)
class Exchange:
    """What the person said, and what they were told."""

    asked: str
    answered: str


@dataclass
class Conversation:
    """``items``: oldest first, ``@1`` is the first; ``hashes``: number to content hash, by which the gallery knows it;
    ``focus``: numbers, the one most talked about first; ``said``: oldest first."""

    items: list[Item] = field(default_factory=list)
    hashes: dict[int, str] = field(default_factory=dict)
    focus: list[int] = field(default_factory=list)
    said: list[Exchange] = field(default_factory=list)

    def request(self, prompt: str, uploads: Sequence[Artifact] = ()) -> Request:
        """``prompt`` with ``uploads`` over all that is here. Raises :class:`UserError` as :func:`normalised`."""
        media = tuple(upload.medium for upload in uploads)
        return Request(normalised(prompt), media, tuple(self.items[-MAX_ITEMS:]), tuple(self.focus))

    def attach(self, artifact: Artifact, title: str) -> Item:
        """Take in something that the person brought."""
        return self._add(artifact.medium, artifact.content_hash(), title, None, brought=True)

    def add(self, entry: Entry, step: Step, made: Mapping[str, int], uploaded: Sequence[int]) -> Item:
        """Take in what ``step`` made, by its entry in the gallery.

        ``made``: item numbers by step id; ``uploaded``: those of the request's attachments, in order.
        """

        def lasting(reference: str) -> str:
            if reference.startswith(STEP):
                return f"{ARTIFACT}{made[reference[1:]]}"
            if reference.startswith(UPLOAD):
                return f"{ARTIFACT}{uploaded[int(reference.removeprefix(UPLOAD)) - 1]}"
            return reference

        recipe = step.model_copy(update={"inputs": tuple(map(lasting, step.inputs))})
        return self._add(entry.medium, entry.content_hash, entry.title, recipe)

    def bring_forward(self, numbers: Sequence[int]) -> None:
        """Talk about ``numbers`` now, the first of them first."""
        known = [number for number in numbers if number in self.hashes]
        self.focus = [*known, *(number for number in self.focus if number not in known)]

    def undo(self) -> Item | None:
        """Talk no more about the newest; returns what is talked about now."""
        self.focus = self.focus[1:]
        return next((item for item in self.items if self.focus and item.number == self.focus[0]), None)

    def _add(self, medium: str, content_hash: str, title: str, recipe: Step | None, brought: bool = False) -> Item:
        number = self.items[-1].number + 1 if self.items else 1  # some may be missing after a reload
        item = Item(number, medium, title, recipe, brought)
        self.items.append(item)
        self.hashes[item.number] = content_hash
        self.focus.insert(0, item.number)
        return item
