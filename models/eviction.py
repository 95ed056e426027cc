"""Which idle models go when another needs room: those whose loss is expected to cost the fewest seconds.

An idle model's value is its reload time times how often it is asked for, where a use counts for less with every request
for another. Models are given up by value per byte until the need is covered, the superfluous is taken back, and the
result is compared with giving up one single model (a greedy weighted cover). Models that a queued plan is going to ask
for go only if the others do not suffice, and then the one needed last goes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from models.accounts import Candidate

# People have habits, and they ask for the same again: how often a model is used is estimated over a window of about
# thirty requests and one of a single request, and the two estimates are mixed. Each is (leases after which a use counts
# half, share in the mix); flat around these values over many random traces (benchmarks/manager_simulation.py).
LEASES_PER_REQUEST = 8
WINDOWS = ((32 * LEASES_PER_REQUEST, 0.8), (LEASES_PER_REQUEST, 0.2))
UNKNOWN_SECONDS, UNKNOWN_BYTES_PER_SECOND = 0.25, 0.6e9  # of a model that was never loaded here

# Idle models, bytes needed, keys expected (soonest first) -> the models that go.
Choose = Callable[[Sequence[Candidate], int, Sequence[str]], list[Candidate]]


class Reuse:
    """How often each model is asked for, as requests lately were."""

    def __init__(self) -> None:
        self._clock = 0
        self._uses: dict[str, tuple[int, list[float]]] = {}  # when last noted, and the uses in each window then

    def note(self, key: str) -> None:
        """A lease of ``key`` begins."""
        self._clock += 1
        self._uses[key] = (self._clock, [1 + count for count in self._faded(key)])

    def rate(self, key: str) -> float:
        """Uses of ``key`` in a lease of any model."""
        windows = zip(WINDOWS, self._faded(key), strict=True)
        return sum(share * count * math.log(2) / half_life for (half_life, share), count in windows)

    def _faded(self, key: str) -> list[float]:
        then, counts = self._uses.get(key, (self._clock, [0.0] * len(WINDOWS)))
        return [
            c * 0.5 ** ((self._clock - then) / half_life) for c, (half_life, _) in zip(counts, WINDOWS, strict=True)
        ]


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
