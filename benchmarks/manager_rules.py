"""Which rules for making room are compared, and the form of the traces that they are compared on.

A trace is a list of requests, and a request a list of events in the order in which they happen: ``expect`` (the keys
that the plan is still going to lease), ``work`` (a pipeline begins, and is going to lease these) and ``done``,
``lease`` and ``release`` of a key, ``compute`` for so many seconds. Rows labelled "rule of" re-create the rule of a
program that itself cannot run here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from models.accounts import Candidate
from models.eviction import Choose, value_cover

Kind = Literal["expect", "work", "done", "lease", "release", "compute"]
Event = tuple[Kind, Any]
Request = Sequence[Event]


@dataclass(frozen=True)
class Rule:
    """``plans``: how far ahead it is told what comes: not at all beyond the pipeline that runs, to the end of the
    request's plan, or to the end of the request that waits behind it. ``ahead``: whether it loads ahead.

    ``most``: models that stay after a request, by recency, where the rule counts models instead of bytes.
    """

    name: str
    choose: Choose
    plans: Literal["none", "own", "queued"] = "none"
    ahead: bool = False
    most: int | None = None

    def expected(self, working: Sequence[str], plan: Sequence[str], queued: Sequence[str]) -> tuple[str, ...]:
        """The keys that it is told of, soonest first. All rules know what the pipeline that runs is going to lease."""
        known = {"none": (), "own": plan, "queued": (*plan, *queued)}[self.plans]
        return tuple(dict.fromkeys((*working, *known)))

    def plan_at_start(self, request: Request) -> tuple[str, ...]:
        """What is known of a request before it is read: where it has been waiting, all that it leases."""
        return leased(request) if self.plans == "queued" else ()


def least_recent(candidates: Sequence[Candidate], need: int, expected: Sequence[str]) -> list[Candidate]:
    return _until(sorted(candidates, key=lambda item: (item.key in expected, item.last_used)), need)


def smallest(candidates: Sequence[Candidate], need: int, expected: Sequence[str]) -> list[Candidate]:
    return _until(sorted(candidates, key=lambda item: (item.key in expected, item.bytes)), need)


def tightest_subset(candidates: Sequence[Candidate], need: int, expected: Sequence[str]) -> list[Candidate]:
    """The subset that covers the need with the fewest bytes to spare; everything, if none does."""
    free = [item for item in candidates if item.key not in expected]
    if sum(item.bytes for item in free) < need:
        free = list(candidates)
    best, spare = free, sum(item.bytes for item in free) - need
    for count in range(1, len(free) + 1):
        for subset in combinations(free, count):
            room = sum(item.bytes for item in subset) - need
            if 0 <= room < spare:
                best, spare = list(subset), room
    return best


def _until(ordered: Sequence[Candidate], need: int) -> list[Candidate]:
    chosen: list[Candidate] = []
    while sum(item.bytes for item in chosen) < need and len(chosen) < len(ordered):
        chosen.append(ordered[len(chosen)])
    return chosen


LRU = Rule("LRU by bytes", least_recent)
OURS = Rule("value cover, ours without plans", value_cover, ahead=True)
PLANNED = Rule("value cover, ours with plans", value_cover, plans="own", ahead=True)
QUEUED = Rule("value cover, ours with plans, the next request waiting", value_cover, plans="queued", ahead=True)


def rules(sizes: Mapping[str, int], budget: int, trace: Sequence[Request]) -> list[Rule]:
    """All rules; ``sizes``: bytes by key."""
    ordered = sorted(sizes.values(), reverse=True)
    fit = max((n for n in range(1, len(ordered) + 1) if sum(ordered[:n]) <= budget), default=1)
    at_once = max(len(keys) for request in trace for keys in leased_at_once(request))
    return [
        Rule("reload every time", value_cover, most=0),
        Rule("LRU by count (rule of Ray)", least_recent, most=max(fit, at_once)),
        LRU,
        Rule("smallest first (rule of InvokeAI's VRAM tier)", smallest),
        Rule("tightest subset (rule of diffusers' ComponentsManager)", tightest_subset),
        OURS,
        PLANNED,
        QUEUED,
    ]


def leased(request: Request) -> tuple[str, ...]:
    """The keys of its leases, in order."""
    return tuple(dict.fromkeys(key for kind, key in request if kind == "lease"))


def leased_at_once(request: Request) -> list[set[str]]:
    """What is held after each of its leases."""
    held: list[str] = []
    sets = []
    for kind, key in request:
        if kind == "lease":
            held.append(key)
            sets.append(set(held))
        elif kind == "release":
            held.remove(key)
    return sets


def budgets(sizes: Mapping[str, int], trace: Sequence[Request]) -> dict[str, int]:
    """Bytes by name: all that the trace leases, two thirds and half of that, and the most that it holds at once."""
    everything = sum(sizes[key] for key in {key for request in trace for key in leased(request)})
    largest = max(sum(sizes[key] for key in held) for request in trace for held in leased_at_once(request))
    shares = {"all": everything, "two thirds": everything * 2 // 3, "half": everything // 2}
    return {name: max(budget, largest) for name, budget in shares.items()} | {"largest set": largest}
