"""Words to a scent and back: a medium of which Synesthete has never heard, as its makers would bring it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from pydantic import Field

from models.errors import UserError
from pipelines.artifact import Artifact, digest, provenance_of
from pipelines.base import Event, Params, Pipeline, Produced, Progress, Route, Runtime, provenance
from pipelines.media import Text

OILS = ("bergamot", "cedar", "clove", "fir needle", "galbanum", "iris", "moss", "pepper", "resin", "vetiver")


@dataclass(frozen=True, eq=False)
class Scent(Artifact):
    """``notes``: oils, the most volatile first. ``.scent`` is a recipe in JSON that any scent printer mixes."""

    medium = "scent"
    suffixes = (".scent",)

    notes: tuple[str, ...]

    def content_hash(self) -> str:
        return digest(self.medium, *self.notes)

    def encode(self, suffix: str) -> bytes:
        return json.dumps({"notes": self.notes, "made": self.note()}, indent=2).encode()

    @classmethod
    def decode(cls, data: bytes, suffix: str) -> Self:
        recipe = json.loads(data)
        return cls(tuple(recipe["notes"]), provenance=provenance_of(recipe["made"]))


class Nose(Pipeline):
    name = "nose"
    title = "Nose"
    summary = "Says in words what a scent is made of."
    routes = (Route(("scent",), "text"),)
    params_type = Params
    models: ClassVar[tuple[str, ...]] = ()

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        for item in inputs:
            (scent,) = item
            assert isinstance(scent, Scent)
            words = f"It smells of {', '.join(scent.notes)}."
            yield Produced(Text(words, provenance=provenance(self, item, params, runtime.models)))


class ScentParams(Params):
    count: int = Field(3, ge=1, le=6, description="How many oils are mixed.")


class Perfumer(Pipeline):
    name = "perfumer"
    title = "Perfumer"
    summary = "Mixes a scent from words."
    routes = (Route(("text",), "scent"),)
    params_type = ScentParams
    models: ClassVar[tuple[str, ...]] = ()
    examples = (("a pine forest after rain",),)

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        assert isinstance(params, ScentParams)
        for item in inputs:
            (text,) = item
            if not isinstance(text, Text) or not text.text.strip():
                raise UserError("There are no words to smell of.", "Write what it should smell of.")
            notes = []
            for number in range(params.count):
                runtime.raise_if_cancelled()
                drop = hashlib.sha256(f"{params.seed} {number} {text.text}".encode()).digest()
                notes.append(OILS[drop[0] % len(OILS)])
                yield Progress(number + 1, params.count, "Mixing")
            yield Produced(Scent(tuple(notes), provenance=provenance(self, item, params, runtime.models)))
