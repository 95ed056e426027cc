"""Which idle models go when another needs room: those whose loss is expected to cost the fewest seconds.

An idle model's value is its reload time times the chance that it is asked for again soon, which decays with every
request for another. Models are given up by value per byte until the need is covered, the superfluous is taken back, and
the result is compared with giving up one single model (a greedy weighted cover, O(n log n)). Models that a
queued plan is going to ask for go only if the others do not suffice, and then the one needed last goes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from models.accounts import Candidate

LEASES_PER_REQUEST = 3
HALF_LIFE_REQUESTS = 20  # after which an old use counts half
HALF_LIFE = HALF_LIFE_REQUESTS * LEASES_PER_REQUEST  # in leases
UNKNOWN_SECONDS, UNKNOWN_BYTES_PER_SECOND = 0.25, 0.6e9  # of a model that was never loaded here

# Idle models, bytes needed, keys expected (soonest first) -> the models that go.
Choose = Callable[[Sequence[Candidate], int, Sequence[str]], list[Candidate]]


class Reuse:
    """How likely each model is asked for again: uses, decayed by what was asked for since."""

    def __init__(self) -> None:
        self._clock = 0
        self._rates: dict[str, tuple[int, float]] = {}

    def note(self, key: str) -> None:
        """A lease of ``key`` begins."""
        self._clock += 1
        self._rates[key] = (self._clock, self._rate(key) + 1 / HALF_LIFE_REQUESTS)

    def chance(self, key: str) -> float:
        """In [0, 1): that the next request is for ``key``, were requests as they lately were."""
        return 1 - math.exp(-self._rate(key))

    def _rate(self, key: str) -> float:
        then, rate = self._rates.get(key, (self._clock, 0.0))
        return rate * 0.5 ** ((self._clock - then) / HALF_LIFE)


def expected_reload_seconds(size: int, measured: float | None) -> float:
    return UNKNOWN_SECONDS + size / UNKNOWN_BYTES_PER_SECOND if measured is None else measured


def value_cover(candidates: Sequence[Candidate], need_bytes: int, expected: Sequence[str] = ()) -> list[Candidate]:
    """The candidates to give up for ``need_bytes``; all of them, if even that is not enough.

    ``expected``: keys that queued plans will ask for, soonest first.
    """
    unplanned = [item for item in candidates if item.key not in expected]
    room = sum(item.bytes for item in unplanned)
    if room >= need_bytes:
        return _cover(unplanned, need_bytes)
    chosen = list(unplanned)
    planned = [item for item in candidates if item.key in expected]
    for item in sorted(planned, key=lambda item: expected.index(item.key), reverse=True):
        if room >= need_bytes:
            break
        chosen.append(item)
        room += item.bytes
    return _without_superfluous(chosen, need_bytes, kept=set(expected))


def _cover(candidates: Sequence[Candidate], need_bytes: int) -> list[Candidate]:
    """A cover of at most twice the least value (Carnes and Shmoys, "Primal-dual schema for capacitated covering").

    The next is the cheapest by what it still covers, not by its size; what the others would have saved on the way is
    taken off their price.
    """
    prices = [item.value for item in candidates]
    left, chosen = list(range(len(candidates))), []
    need = need_bytes
    while need > 0 and left:
        covers = {index: max(1, min(candidates[index].bytes, need)) for index in left}
        best = min(left, key=lambda index: prices[index] / covers[index])
        rate = prices[best] / covers[best]
        for index in left:
            prices[index] -= rate * covers[index]
        left.remove(best)
        chosen.append(candidates[best])
        need -= candidates[best].bytes
    chosen = _without_superfluous(chosen, need_bytes)
    single = min((item for item in candidates if item.bytes >= need_bytes), key=lambda item: item.value, default=None)
    return [single] if single is not None and single.value < sum(item.value for item in chosen) else chosen


def _without_superfluous(chosen: Sequence[Candidate], need_bytes: int, kept: Collection[str] = ()) -> list[Candidate]:
    """``chosen`` less those without which the need is still covered: planned models first, then the most valuable."""
    spare = sum(item.bytes for item in chosen) - need_bytes
    remaining = list(chosen)
    for item in sorted(chosen, key=lambda item: (item.key in kept, item.value), reverse=True):
        if item.bytes <= spare:
            remaining.remove(item)
            spare -= item.bytes
    return remaining
