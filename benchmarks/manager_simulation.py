"""Rules for making room on a virtual clock: any number of traces in seconds, without a single load.

    python -m benchmarks.manager_simulation

The books (:class:`~models.ledger.Ledger`) and the rules are the manager's own; only the thread that loads is played.
Printed are reload seconds, waiting and wall time as shares of LRU's, the mean of ten seeds, over the components and
chains of the house plan's sheet on model managers (section 3.6): 13.4 GB, 300 requests, a load takes 0.25 s + GB / 0.6,
a step computes for a second. Half of the traces change their habits every 30 requests, so that nothing is tuned to
habits that never change. Writes ``benchmarks/results/manager_simulation.json``.
"""

from __future__ import annotations

import argparse
import math
import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from benchmarks.manager_rules import LRU, OURS, PLANNED, QUEUED, Event, Request, Rule, leased, smallest
from benchmarks.report import save, table
from models.errors import UserError
from models.ledger import Ledger
from models.resident import Lease, Resident
from models.sources import Folder
from models.spec import ModelSpec

GIGABYTES = {
    "router": 0.35, "t5": 2.4, "clip": 0.85, "crossflow": 0.95, "vae": 0.17, "mapper": 0.06, "audio": 1.3,
    "clap": 0.6, "clipsonic": 0.55, "vocoder": 0.06, "imagebind": 1.2, "xbind": 0.1, "shapes": 1.3, "fmri": 0.9,
    "unclip": 2.6,
}  # fmt: skip
STEPS = {
    "route": ("router",),
    "image": ("clip", "crossflow", "vae"),
    "v2a": ("clip", "mapper", "audio", "vocoder"),
    "sound": ("clip", "clap", "clipsonic", "audio", "vocoder"),
    "shape": ("imagebind", "xbind", "shapes"),
    "fmri": ("fmri", "unclip", "vae"),
}
CHAINS = {
    ("route", "image"): 30, ("route", "image", "v2a"): 12, ("route", "sound"): 18, ("route", "image", "shape"): 10,
    ("route", "image", "sound", "shape"): 5, ("route", "fmri"): 4, ("route", "fmri", "v2a"): 2, ("route", "v2a"): 10,
    ("route", "shape"): 9,
}  # fmt: skip
SESSION = 30  # requests between two changes of habit
SEEDS = range(10)
REPEATS = (0, 0.3, 0.5)
BUDGETS_GB = (4, 6, 6.7, 8, 10)
MODULE = nn.Identity()


def sheet_request(chain: Sequence[str], seconds: float) -> list[Event]:
    """The events of a chain whose steps compute for ``seconds`` each. The plan is known once the request is read."""
    events: list[Event] = []
    for number, step in enumerate(chain):
        if number:
            events.append(("expect", [key for later in chain[number:] for key in STEPS[later]]))
        events += [("work", STEPS[step]), *(("lease", key) for key in STEPS[step]), ("compute", seconds)]
        events += [*(("release", key) for key in STEPS[step]), ("done", STEPS[step])]
    return [*events, ("expect", [])]


def sheet_trace(
    requests: int, repeat: float, seed: int, *, habits_change: bool = False, seconds: float = 1.0
) -> list[list[Event]]:
    """Requests; with the chance ``repeat`` one is of the same kind as the last."""
    chance = random.Random(seed)
    weights: list[float] = list(CHAINS.values())
    chosen: list[tuple[str, ...]] = []
    for number in range(requests):
        if habits_change and number % SESSION == 0:
            weights = [weight * math.exp(chance.gauss(0, 1.5)) for weight in CHAINS.values()]
        again = chosen and chance.random() < repeat
        chosen.append(chosen[-1] if again else chance.choices(list(CHAINS), weights)[0])
    return [sheet_request(chain, seconds) for chain in chosen]


@dataclass(frozen=True)
class Machine:
    """Bytes and seconds of a load by key. ``drag``: how many times as long a load and computing take together."""

    bytes: Mapping[str, int]
    seconds: Mapping[str, float]
    load_drag: float = 1.0
    compute_drag: float = 1.0


@dataclass
class Outcome:
    wall_seconds: float = 0.0
    compute_seconds: float = 0.0  # slowed by loads as it is
    reload_seconds: float = 0.0
    wait_seconds: float = 0.0
    leases: int = 0
    hits: int = 0
    loads: int = 0


@dataclass
class Simulation:
    """One rule in one budget; ``loading``: the model on its way, ``left``: what its load still takes by itself."""

    machine: Machine
    budget: int
    rule: Rule
    outcome: Outcome = field(default_factory=Outcome)
    loading: Resident | None = None
    left: float = 0.0
    working: tuple[str, ...] = ()
    plan: tuple[str, ...] = ()
    queued: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.ledger = Ledger(torch.device("cpu"), self.budget, 0, self.rule.choose, lambda residents: None)
        self.ledger.seconds = {(key, "disk"): seconds for key, seconds in self.machine.seconds.items()}

    def run(self, trace: Sequence[Request]) -> Outcome:
        for number, request in enumerate(trace):
            self.queued = leased(trace[number + 1]) if number + 1 < len(trace) else ()
            self.plan = self.rule.plan_at_start(request)
            for kind, said in request:
                getattr(self, kind)(said)
                self.ledger.expected = self.rule.expected(self.working, self.plan, self.queued)
                self._load_ahead()
            if self.rule.most is not None:
                idle = sorted(self.ledger.residents(), key=lambda resident: -resident.last_used)
                self.ledger.drop(idle[self.rule.most :], "freed")
        return self.outcome

    def expect(self, keys: Sequence[str]) -> None:
        self.plan = tuple(keys)

    def work(self, keys: Sequence[str]) -> None:
        self.working = tuple(keys)

    def done(self, _: Sequence[str]) -> None:
        self.working = ()

    def lease(self, key: str) -> None:
        self.outcome.leases += 1
        self.ledger.reuse.note(key)
        resident = self.ledger.get(key)
        self.outcome.hits += resident is not None and resident is not self.loading
        if resident is None:
            resident = self._begin(key)
        if resident is self.loading:
            self._wait()
        resident.leases.append(Lease(resident, threading.current_thread()))
        resident.last_used = self.outcome.leases

    def release(self, key: str) -> None:
        resident = self.ledger.get(key)
        assert resident is not None
        resident.leases.pop()
        resident.last_used = self.outcome.leases

    def compute(self, seconds: float) -> None:
        """Computing and loading at once slow each other down."""
        while self.loading and seconds > 0:
            span = min(seconds * self.machine.compute_drag, self.left * self.machine.load_drag)
            seconds -= span / self.machine.compute_drag
            self.left -= span / self.machine.load_drag
            self.outcome.wall_seconds += span
            self.outcome.compute_seconds += span
            if self.left < 1e-9:
                self._arrive()
                self._load_ahead()
        self.outcome.wall_seconds += max(0.0, seconds)
        self.outcome.compute_seconds += max(0.0, seconds)

    def _begin(self, key: str) -> Resident:
        """Start a load for a model that is wanted now, behind the one on its way."""
        try:
            self._make_room(key)
        except UserError:  # the one on its way takes the room
            self._wait()
            self._make_room(key)
        if self.loading:
            self._wait()
        return self._start(key)

    def _make_room(self, key: str) -> None:
        away = [k for k in self.ledger.expected if k != key and self.ledger.get(k) is None] if self.rule.ahead else []
        self.ledger.make_room(key, self.machine.bytes[key], [self.machine.bytes[other] for other in away])

    def _start(self, key: str) -> Resident:
        spec = ModelSpec(key, "lite", Folder(Path(key)), str, "", self.machine.bytes[key])
        self.loading, self.left = Resident(spec, "float32", spec.bytes), self.machine.seconds[key]
        self.ledger.enter(self.loading)
        self.outcome.loads += 1
        self.outcome.reload_seconds += self.left
        return self.loading

    def _wait(self) -> None:
        self.outcome.wall_seconds += self.left
        self.outcome.wait_seconds += self.left
        self._arrive()

    def _arrive(self) -> None:
        assert self.loading is not None
        self.loading.model.set_result(MODULE)
        self.loading = None

    def _load_ahead(self) -> None:
        """As :meth:`models.loader.Loader.load_ahead`."""
        if self.loading or not self.rule.ahead:
            return
        missing = next((key for key in self.ledger.expected if self.ledger.get(key) is None), None)
        if missing is not None and self.ledger.fits_without_harm(self.machine.bytes[missing]):
            self._make_room(missing)
            self._start(missing)


SHEET = Machine(
    {key: int(size * 1e9) for key, size in GIGABYTES.items()},
    {key: 0.25 + size / 0.6 for key, size in GIGABYTES.items()},
)


RULES = {"smallest first": Rule("", smallest), "ours": OURS, "with plans": PLANNED, "queued": QUEUED}


def compared(traces: Sequence[Sequence[Request]], budget: int) -> dict[str, float]:
    """Of each rule the mean shares of LRU's seconds, and the largest share of its wall time."""
    row = {}
    lru = [Simulation(SHEET, budget, LRU).run(trace) for trace in traces]
    for name, rule in RULES.items():
        ours = [Simulation(SHEET, budget, rule).run(trace) for trace in traces]
        for part in ("reload_seconds", "wait_seconds", "wall_seconds"):
            shares = [getattr(one, part) / getattr(other, part) for one, other in zip(ours, lru, strict=True)]
            row[f"{name}: {part.removesuffix('_seconds')}"] = mean(shares)
        row[f"{name}: worst wall"] = max(shares)
    return row


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows: list[dict[str, Any]] = []
    for habits_change in (False, True):
        for repeat in REPEATS:
            traces = [sheet_trace(300, repeat, seed, habits_change=habits_change) for seed in SEEDS]
            for budget in BUDGETS_GB:
                setting: dict[str, Any] = {
                    "habits": "change" if habits_change else "stay",
                    "repeat": repeat,
                    "budget_gb": budget,
                }
                rows.append(setting | compared(traces, int(budget * 1e9)))
                print(rows[-1], flush=True)
    save("manager_simulation", {"seeds": len(SEEDS), "rows": rows})
    print(table(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
