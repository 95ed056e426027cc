"""Who reads the request: rules alone, or rules beside a model that was taught to."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from app.controller.lexicon import is_foreign
from app.controller.request import Request
from app.controller.rules import Scores, rule_scores
from models.errors import UserError

if TYPE_CHECKING:  # its import takes seconds
    from models.language_model import LanguageModel

log = logging.getLogger(__name__)

READ_CHARACTERS = 600  # so that the cue at the end is never cut off

RULES_SHARE = 0.25  # best on the generator's validation rows (`benchmarks/controller.py` measures on others)
# The language model was made from English. Those rows cannot tell this from 0.25: the benchmark's 60 requests chose it.
FOREIGN_RULES_SHARE = 0.5
LEAST = 1e-5

Lease = Callable[[], AbstractContextManager["LanguageModel"]]


class Router(Protocol):
    """Says what a request wants. ``name`` is what the page shows of it."""

    @property
    def name(self) -> str: ...

    def score(self, request: Request, media: Sequence[str]) -> Scores: ...


class RuleRouter:
    """Needs no model at all."""

    name = "rules"

    def score(self, request: Request, media: Sequence[str]) -> Scores:
        return rule_scores(request, media)


class LanguageModelRouter:
    """The adapted language model's head on the state of the last token, one pass a request; rules steady it.

    Where it is not on this machine (``missing``, asked at every request: it may be fetched while the app runs) or
    cannot be loaded, ``otherwise`` reads. Media that it was not taught, those of third parties, are left to the rules.
    """

    def __init__(self, lease: Lease, missing: Callable[[], bool], otherwise: Router) -> None:
        self.lease, self.missing, self.otherwise = lease, missing, otherwise

    @property
    def name(self) -> str:
        return self.otherwise.name if self.missing() else "language model"

    def score(self, request: Request, media: Sequence[str]) -> Scores:
        if self.missing():
            return self.otherwise.score(request, media)
        try:
            with self.lease() as model:
                outputs, acts = model.read(as_read(request))
                least = model.head.least if model.head else 0.0
        except UserError as error:
            log.warning("%s read the request: %s", self.otherwise.name, error)
            note = f"{error} This request was read without the language model."
            return replace(self.otherwise.score(request, media), note=note)
        return steadied(request, media, outputs, acts, least)


def steadied(
    request: Request, media: Sequence[str], outputs: Mapping[str, float], acts: Mapping[str, float], least: float
) -> Scores:
    """What a language model read, ``outputs`` and ``acts``, with the rules' reading mixed in."""
    ruled = rule_scores(request, media)
    share = FOREIGN_RULES_SHARE if is_foreign(request.prompt) else RULES_SHARE
    mixed = {medium: _mixed(outputs.get(medium), ruled.outputs[medium], share) for medium in media}
    if any(ruled.outputs[medium] > 0.5 for medium in media if medium not in outputs):
        mixed = dict(ruled.outputs)  # what the model makes of "a scent" instead, which it never heard of, is a guess
    return Scores(mixed, _mixed_acts(acts, ruled.acts, share), least=least)


def _mixed(read: float | None, ruled: float, share: float) -> float:
    """A probability between the two in log-odds; rules have the word on what was never taught."""
    if read is None:
        return ruled
    odds = (1 - share) * _log_odds(read) + share * _log_odds(ruled)
    return 1 / (1 + math.exp(-odds))


def _mixed_acts(read: Mapping[str, float], ruled: Mapping[str, float], share: float) -> dict[str, float]:
    """The weighted geometric mean, over the acts that the model knows."""
    shares = {act: max(p, LEAST) ** (1 - share) * max(ruled[act], LEAST) ** share for act, p in read.items()}
    total = sum(shares.values())
    return {act: share / total for act, share in shares.items()}


def _log_odds(probability: float) -> float:
    inside = min(max(probability, LEAST), 1 - LEAST)
    return math.log(inside / (1 - inside))


def as_read(request: Request) -> str:
    """A request as a language model reads it: what is there, the words, and a cue for the state that is looked at."""
    there = f"There is: {request.context}\n" if request.context else ""
    return f"{there}Request: {request.prompt[:READ_CHARACTERS]}\nWanted:"
