"""Who reads the request: rules alone, or rules beside a model that was taught to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from app.controller.request import Request
from app.controller.rules import Scores, rule_scores
from models.language_model import LanguageModel

READ_CHARACTERS = 600  # so that the cue at the end is never cut off

Lease = Callable[[], AbstractContextManager[LanguageModel]]


class RuleRouter:
    """Needs no model at all."""

    name = "rules"

    def score(self, request: Request, media: Sequence[str]) -> Scores:
        return rule_scores(request, media)


class LanguageModelRouter:
    """The adapted language model's head on the state of the last token, one pass a request.

    Media that it was not taught, those of third parties, are left to the rules.
    """

    name = "language model"

    def __init__(self, lease: Lease) -> None:
        self.lease = lease

    def score(self, request: Request, media: Sequence[str]) -> Scores:
        with self.lease() as model:
            outputs, acts = model.read(as_read(request))
        ruled = rule_scores(request, media)
        return Scores({medium: outputs.get(medium, ruled.outputs[medium]) for medium in media}, acts)


def as_read(request: Request) -> str:
    """A request as a language model reads it: what is there, the words, and a cue for the state that is looked at."""
    there = f"There is: {request.context}\n" if request.context else ""
    return f"{there}Request: {request.prompt[:READ_CHARACTERS]}\nWanted:"
