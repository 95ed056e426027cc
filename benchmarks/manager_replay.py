"""Replays a trace in the real manager, with models that are really loaded, and without computing what nobody waits for.

Computing is stood in for by products of matrices, as many as this machine does in the recorded seconds while nothing
else runs, in as many threads. They are really computed while a load is on its way, because then the two slow each other
down. When nothing loads, the rest of the recorded seconds is only added to the wall time: a thread that computes alone,
beside a loader that sleeps until the next lease, would take just those seconds. Loads are never scaled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import psutil
import torch

from benchmarks.manager_rules import Request, Rule, leased
from benchmarks.manager_simulation import Machine
from models.accounts import Candidate
from models.loading import trim_heap
from models.manager import ModelManager
from models.precision import Precision
from models.spec import ModelSpec

CPU = torch.device("cpu")
LOADS = 5  # of a model, of which the median counts
BATCH = 16  # products between two looks, some milliseconds
IDLE_LOOKS = 3  # one after another that must find nothing on its way: between two loads there is a moment of nothing


class Worker:
    """Stands in for computing; ``per_second``: products in a second while nothing else runs."""

    def __init__(self) -> None:
        self.square = torch.randn(256, 256)
        self.products_in(1.0)
        self.per_second = self.products_in(3.0) / 3

    def products_in(self, seconds: float) -> int:
        count, until = 0, time.perf_counter() + seconds
        while time.perf_counter() < until:
            count += self.products(BATCH)
        return count

    def products(self, count: int) -> int:
        for _ in range(count):
            self.square @ self.square
        return count

    def products_while(self, going_on: Callable[[], bool], most: int) -> int:
        """Up to ``most`` products, fewer if ``going_on`` ends."""
        count = idle = 0
        while count < most and idle < IDLE_LOOKS:
            count += self.products(min(BATCH, most - count))
            idle = 0 if going_on() else idle + 1
        return count


def measured_machine(specs: Mapping[str, ModelSpec], precisions: Mapping[str, Precision], worker: Worker) -> Machine:
    """Bytes and seconds of every model's load, and how much loads and computing slow each other down."""
    manager = ModelManager(specs, CPU, 10**12, precisions=precisions)
    seconds: dict[str, list[float]] = {key: [] for key in specs}
    sizes = {}
    beside = products = took = 0.0
    for number in range(1 + LOADS):  # the first imports
        for key in specs:
            with manager.lease(key):
                [row] = manager.status()
            if number:
                seconds[key].append(row.seconds_to_load)
            sizes[key] = row.bytes
            manager.free()
    for key in specs:
        started = time.perf_counter()
        manager.expect([key])
        products += worker.products_while(lambda: loads(manager), 10**9)
        took += time.perf_counter() - started
        [row] = manager.status()
        beside += row.seconds_to_load
        manager.expect([])
        manager.free()
    alone = {key: median(values) for key, values in seconds.items()}
    load_drag, compute_drag = beside / sum(alone.values()), took * worker.per_second / products
    return Machine(sizes, alone, max(1.0, load_drag), max(1.0, compute_drag))


def loads(manager: ModelManager) -> bool:
    return any(row.loading for row in manager.status())


@dataclass
class Replay:
    """One rule in one budget. ``counted``: seconds of computing that were not computed, for nothing was on its way."""

    specs: Mapping[str, ModelSpec]
    precisions: Mapping[str, Precision]
    budget: int
    rule: Rule
    worker: Worker
    counted: float = 0.0
    working: tuple[str, ...] = ()
    plan: tuple[str, ...] = ()
    queued: tuple[str, ...] = ()
    held: dict[str, list[ExitStack]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.manager = ModelManager(self.specs, CPU, self.budget, precisions=self.precisions, choose=self._choose)

    def run(self, trace: Sequence[Request]) -> dict[str, Any]:
        """Seconds, counters and the peak of resident memory."""
        peak = 0
        started = time.perf_counter()
        for number, request in enumerate(trace):
            self.queued = leased(trace[number + 1]) if number + 1 < len(trace) else ()
            self.plan = self.rule.plan_at_start(request)
            for kind, said in request:
                getattr(self, kind)(said)
                if kind in ("expect", "work", "done") and self.rule.ahead:
                    self.manager.expect(self.rule.expected(self.working, self.plan, self.queued))
            peak = max(peak, psutil.Process().memory_info().rss)
            if self.rule.most is not None:
                for row in self.manager.status()[self.rule.most :]:  # most recently used first
                    self.manager.free(row.key)
        wall = time.perf_counter() - started + self.counted
        metrics = self.manager.metrics
        self.manager.expect([])
        self.manager.free()
        trim_heap(CPU)
        return {
            "wall_seconds": wall,
            "reload_seconds": metrics.load_seconds,
            "wait_seconds": metrics.wait_seconds,
            "hit_rate": metrics.hit_rate,
            "loads": metrics.loads + metrics.prefetches,
            "peak_rss_mb": peak / 1e6,
        }

    def expect(self, keys: Sequence[str]) -> None:
        self.plan = tuple(keys)

    def work(self, keys: Sequence[str]) -> None:
        self.working = tuple(keys)

    def done(self, _: Sequence[str]) -> None:
        self.working = ()

    def lease(self, key: str) -> None:
        self.held.setdefault(key, []).append(ExitStack())
        self.held[key][-1].enter_context(self.manager.lease(key))

    def release(self, key: str) -> None:
        self.held[key].pop().close()

    def compute(self, seconds: float) -> None:
        most = round(seconds * self.worker.per_second)
        done = self.worker.products_while(lambda: loads(self.manager), most) if self.rule.ahead else 0
        self.counted += max(0.0, seconds - done / self.worker.per_second)

    def _choose(self, candidates: Sequence[Candidate], need: int, expected: Sequence[str]) -> list[Candidate]:
        """Rules that load nothing ahead know what the pipeline that runs is going to lease, all the same."""
        return self.rule.choose(candidates, need, expected if self.rule.ahead else self.working)
