"""How much waiting the model manager's choices save, against other rules, on one trace of mixed requests.

    python -m benchmarks.manager_trace

Every rule runs in the same manager code on the same requests, with real files that are really loaded. Until the
systems that this project is for are all built, the models are stand-ins: the components and chains of the house plan's
sheet on model managers (section 3.6), at a fiftieth of their size. Rows labelled "rule of" re-create the rule of a
program that itself cannot run here. Writes ``benchmarks/results/manager_trace.json``.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.report import save, table
from models.accounts import Candidate
from models.eviction import Choose, value_cover
from models.loading import trim_heap
from models.manager import ModelManager
from models.sources import Folder
from models.spec import ModelSpec

CPU = torch.device("cpu")
SCALE = 50
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
COMPUTE_SECONDS = 0.02  # of a step, beside loads


@dataclass(frozen=True)
class Rule:
    """``most``: models that stay after a request, by recency, where the rule counts models instead of bytes."""

    name: str
    choose: Choose
    plans: bool = False
    most: int | None = None


def least_recent(candidates: Sequence[Candidate], need: int, _: Sequence[str] = ()) -> list[Candidate]:
    return _until(sorted(candidates, key=lambda item: item.last_used), need)


def smallest(candidates: Sequence[Candidate], need: int, _: Sequence[str] = ()) -> list[Candidate]:
    return _until(sorted(candidates, key=lambda item: item.bytes), need)


def tightest_subset(candidates: Sequence[Candidate], need: int, _: Sequence[str] = ()) -> list[Candidate]:
    """The subset that covers the need with the fewest bytes to spare; everything, if none does."""
    sizes = ((sum(item.bytes for item in subset), subset) for n in range(1, len(candidates) + 1)
             for subset in combinations(candidates, n))  # fmt: skip
    best = min((pair for pair in sizes if pair[0] >= need), key=lambda pair: pair[0], default=None)
    return list(best[1] if best else candidates)


def _until(ordered: Sequence[Candidate], need: int) -> list[Candidate]:
    chosen: list[Candidate] = []
    while sum(item.bytes for item in chosen) < need and len(chosen) < len(ordered):
        chosen.append(ordered[len(chosen)])
    return chosen


def stand_ins(folder: Path) -> dict[str, ModelSpec]:
    """A model a component: one matrix of its size, in a safetensors file."""
    specs = {}
    for key, gigabytes in GIGABYTES.items():
        rows = int(gigabytes * 1e9 / SCALE / 4 / 1024)
        (folder / key).mkdir()
        save_file({"weight": torch.randn(rows, 1024)}, folder / key / "model.safetensors")
        specs[key] = ModelSpec(key, "lite", Folder(folder / key), _load, "Apache-2.0", rows * 1024 * 4)
    return specs


def _load(folder: Path) -> nn.Module:
    weight = load_file(folder / "model.safetensors")["weight"]
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    model.weight = nn.Parameter(weight.clone())  # as loaders that cast or rename do: off the file's own pages
    return model


def trace(requests: int, repeat: float, seed: int) -> list[tuple[str, ...]]:
    """Chains of steps; with the chance ``repeat`` a request is of the same kind as the last."""
    chance = random.Random(seed)
    chosen: list[tuple[str, ...]] = []
    for _ in range(requests):
        again = chosen and chance.random() < repeat
        chosen.append(chosen[-1] if again else chance.choices(list(CHAINS), list(CHAINS.values()))[0])
    return chosen


def replay(specs: dict[str, ModelSpec], requests: Sequence[tuple[str, ...]], budget: int, rule: Rule) -> dict[str, Any]:
    """Lease and compute every step of every request in turn; seconds, counters and the peak of resident memory."""
    manager = ModelManager(specs, CPU, budget, choose=rule.choose)
    used: dict[str, int] = {}
    peak, square = 0, torch.randn(256, 256)
    started = time.perf_counter()
    for number, chain in enumerate(requests):
        for position, step in enumerate(chain):
            if rule.plans:
                coming = chain[position:] + (requests[number + 1] if number + 1 < len(requests) else ())
                manager.expect([key for later in coming for key in STEPS[later]])
            _run_step(manager, STEPS[step], square)
            used |= dict.fromkeys(STEPS[step], number)
            peak = max(peak, psutil.Process().memory_info().rss)
        if rule.most is not None:
            for row in sorted(manager.status(), key=lambda row: -used[row.key])[rule.most :]:
                manager.free(row.key)
    wall = time.perf_counter() - started
    manager.expect([])
    metrics = manager.metrics
    manager.free()
    trim_heap(CPU)
    return {
        "rule": rule.name,
        "wall_seconds": wall,
        "reload_seconds": metrics.load_seconds,
        "wait_seconds": metrics.wait_seconds,
        "hit_rate": metrics.hit_rate,
        "loads": metrics.loads + metrics.prefetches,
        "peak_rss_mb": peak / 1e6,
    }


def _run_step(manager: ModelManager, keys: Sequence[str], square: torch.Tensor) -> None:
    with ExitStack() as stack:
        for key in keys:
            stack.enter_context(manager.lease(key))
        until = time.perf_counter() + COMPUTE_SECONDS
        while time.perf_counter() < until:
            square @ square


def rules(specs: dict[str, ModelSpec], budget: int) -> list[Rule]:
    sizes = sorted((spec.bytes for spec in specs.values()), reverse=True)
    fit = max((n for n in range(1, len(sizes) + 1) if sum(sizes[:n]) <= budget), default=1)
    largest = max(len(keys) for keys in STEPS.values())
    return [
        Rule("reload every time", value_cover, most=0),
        Rule("LRU by count (rule of Ray)", least_recent, most=max(fit, largest)),
        Rule("LRU by bytes", least_recent),
        Rule("smallest first (rule of InvokeAI's VRAM tier)", smallest),
        Rule("tightest subset (rule of diffusers' ComponentsManager)", tightest_subset),
        Rule("value cover, ours without plans", value_cover),
        Rule("value cover, ours with plans", value_cover, plans=True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--repeat", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budgets", nargs="+", default=["all", "two thirds", "half", "largest set"])
    arguments = parser.parse_args()
    requests = trace(arguments.requests, arguments.repeat, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        specs = stand_ins(Path(folder))
        everything = sum(spec.bytes for spec in specs.values())
        largest = max(sum(specs[key].bytes for key in keys) for keys in STEPS.values())
        sizes = {"all": everything, "two thirds": everything * 2 // 3, "half": everything // 2, "largest set": largest}
        rows = []
        for name in arguments.budgets:
            budget = sizes[name]
            measured = [replay(specs, requests, budget, rule) for rule in rules(specs, budget)]
            lru = next(row["wall_seconds"] for row in measured if row["rule"] == "LRU by bytes")
            for row in measured:
                rows.append(
                    {"budget": name, "budget_mb": budget / 1e6, **row, "wall_of_lru": row["wall_seconds"] / lru}
                )
                print(rows[-1], flush=True)
    save("manager_trace", {"requests": len(requests), "repeat": arguments.repeat, "models": "stand-ins", "rows": rows})
    print(table(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
