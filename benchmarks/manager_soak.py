"""Whether the model manager holds under long and rough use, with the real lite models.

    python -m benchmarks.manager_soak [--cycles 200] [--seconds 120]

First every model is loaded and evicted over and over: resident memory must not grow. Then eight threads lease at random
under a budget that holds the largest model and little more, while loads fail, waits are given up and plans change at
random: nobody may hang, memory may not pass the budget, and at the end the accounts must be what a recount finds.
Writes ``benchmarks/results/manager_soak.json``; exits with 1 if anything of that does not hold.
"""

from __future__ import annotations

import argparse
import gc
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.report import save
from models.catalog import shipped
from models.errors import Cancelled, UserError
from models.loading import trim_heap
from models.manager import ModelManager
from models.modules import bytes_of
from models.spec import ModelSpec

CPU = torch.device("cpu")
THREADS, FAILURE_SHARE, GIVEN_UP_SHARE = 8, 0.1, 0.1
GROWTH_ALLOWED = 50e6


def rss() -> int:
    trim_heap(CPU)
    return psutil.Process().memory_info().rss


def cycles(count: int) -> dict[str, Any]:
    """Load and evict each lite model in turn ``count`` times in all; growth of resident memory after the first ten."""
    specs = shipped()
    manager = ModelManager(specs, CPU, max(spec.bytes for spec in specs.values()))
    start, started = 0, time.perf_counter()
    for number in range(count):
        if number == 10:
            start = rss()
        with manager.lease(list(specs)[number % len(specs)]):
            pass
        manager.free()
    grown = rss() - start
    return {"cycles": count, "loads": manager.metrics.loads, "grown_mb": grown / 1e6} | _seconds(started)


def storm(seconds: float, seed: int) -> dict[str, Any]:
    """Eight threads for ``seconds``; what came of their leases, the most that was held, and the recount."""
    ever: weakref.WeakSet[Any] = weakref.WeakSet()
    chance = random.Random(seed)
    specs = {key: replace(spec, load=_failing(spec, chance, ever)) for key, spec in shipped().items()}
    budget = int(1.05 * max(spec.bytes for spec in specs.values()))
    manager = ModelManager(specs, CPU, budget)
    outcomes: Counter[str] = Counter()
    most = [0]
    until = time.monotonic() + seconds

    def lease_at_random(own: random.Random) -> None:
        while time.monotonic() < until:
            key = own.choice(list(specs))
            if own.random() < 0.2:
                manager.expect(own.sample(list(specs), 2))
            gives_up = own.random() < GIVEN_UP_SHARE
            try:
                with manager.lease(key, _give_up if gives_up else None):
                    most[0] = max(most[0], manager.used_bytes)
                    time.sleep(own.random() * 0.02)
                    outcomes["leased"] += 1
            except Cancelled:
                outcomes["given up"] += 1
            except UserError:
                outcomes["no room"] += 1
            except InjectedError:
                outcomes["failed"] += 1

    threads = [threading.Thread(target=lease_at_random, args=(random.Random(seed + n),)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)
    hanging = sum(thread.is_alive() for thread in threads)
    manager.expect([])
    while any(row.loading for row in manager.status()):
        time.sleep(0.05)
    gc.collect()
    return {
        "seconds": seconds,
        **outcomes,
        "hanging_threads": hanging,
        "most_over_budget": most[0] / budget - 1,
        "accounts": manager.used_bytes,
        "recount": sum(bytes_of(model) for model in ever),
    }


class InjectedError(Exception):
    pass


def _failing(spec: ModelSpec, chance: random.Random, ever: weakref.WeakSet[Any]) -> Callable[[Path], object]:
    def load(folder: Path) -> object:
        if chance.random() < FAILURE_SHARE:
            raise InjectedError
        model = spec.load(folder)
        ever.add(model)
        return model

    return load


def _give_up(fraction: float, message: str) -> None:
    raise Cancelled


def _seconds(started: float) -> dict[str, float]:
    return {"seconds": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    arguments = parser.parse_args()
    results = {"cycles": cycles(arguments.cycles), "storm": storm(arguments.seconds, seed=0)}
    save("manager_soak", results)
    print(results)
    storm_ = results["storm"]
    holds = (
        results["cycles"]["grown_mb"] < GROWTH_ALLOWED / 1e6
        and storm_["hanging_threads"] == 0
        and storm_["most_over_budget"] <= 0.05
        and storm_["accounts"] == storm_["recount"]
    )
    raise SystemExit(0 if holds else 1)


if __name__ == "__main__":
    main()
