"""How much waiting the model manager's choices save, against other rules, on a recorded trace of mixed requests.

    python -m benchmarks.manager_trace record       # 300 requests through Ask -> benchmarks/data/manager_trace.json
    python -m benchmarks.manager_trace              # replay -> benchmarks/results/manager_trace.json
    python -m benchmarks.manager_trace stand-ins    # components of the sizes of published models, at a fiftieth

Every rule is replayed at four budgets: all that the trace leases, two thirds and half of it, and the most that it holds
at once. 300 requests under eight rules at four budgets would take hours of loading, so there are two replays:

*On a virtual clock*: the whole trace, where each model's load takes what it really took here (the median of several)
and loads and computing slow each other down by as much as was measured. The manager's own books and rules decide
(``manager_simulation.py``).

*Really loaded*: the first requests, in the real manager, with the models from ``assets/`` really loaded
(``manager_replay.py``). What the virtual clock says of the same requests stands beside it, as a check.

The stand-ins are a file of one matrix for each component of the house plan's sheet on model managers (section 3.6), all
requests really loaded; a step computes for a fiftieth of a second.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.manager_record import record
from benchmarks.manager_replay import Replay, Worker, measured_machine
from benchmarks.manager_rules import LRU, OURS, PLANNED, QUEUED, Request, Rule, budgets, rules
from benchmarks.manager_simulation import GIGABYTES, Machine, Simulation, sheet_trace
from benchmarks.report import machine, save, table
from models.catalog import catalog
from models.precision import Precision
from models.quantize import bytes_at
from models.sources import Folder
from models.spec import ModelSpec

TRACE = Path(__file__).parent / "data" / "manager_trace.json"
SCALE = 50  # of the stand-ins
REALLY_LOADED = (LRU, OURS, PLANNED, QUEUED)


def on_clock(trace: Sequence[Request], machine: Machine, budget: int, rule: Rule) -> dict[str, Any]:
    outcome = Simulation(machine, budget, rule).run(trace)
    return {
        "wall_seconds": outcome.wall_seconds,
        "reload_seconds": outcome.reload_seconds,
        "wait_seconds": outcome.wait_seconds,
        "hit_rate": outcome.hits / outcome.leases,
        "loads": outcome.loads,
    }


def compared(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one budget, each with its shares of LRU's wall time and waiting and of the best other rule's wall."""
    lru = next(row for row in rows if row["rule"] == LRU.name)
    ours = {rule.name for rule in (OURS, PLANNED, QUEUED)}
    best_other = min(row["wall_seconds"] for row in rows if row["rule"] not in ours)
    return [
        row
        | {
            "wall_of_lru": row["wall_seconds"] / lru["wall_seconds"],
            "wait_of_lru": row["wait_seconds"] / max(lru["wait_seconds"], 1e-9),
            "wall_of_best_other": row["wall_seconds"] / best_other,
        }
        for row in rows
    ]


def replay(trace: Sequence[Request], specs: Mapping[str, ModelSpec], precisions: Mapping[str, Precision], real: int,
           real_budgets: Sequence[str]) -> dict[str, Any]:  # fmt: skip
    """The results of the recorded trace; ``real``: how many of its first requests are really loaded as well."""
    worker = Worker()
    measured = measured_machine(specs, precisions, worker)
    # What a load is refused by, before the model was ever weighed, is a guess that a tight budget may not hold.
    sized = {
        key: replace(spec, bytes=measured.bytes[key] * 1000 // bytes_at(1000, precisions[key]))
        for key, spec in specs.items()
    }
    clock, checks = [], []
    for name, budget in budgets(measured.bytes, trace).items():
        setting = {"budget": name, "budget_mb": budget / 1e6}
        clock += compared(
            [
                setting | {"rule": r.name} | on_clock(trace, measured, budget, r)
                for r in rules(measured.bytes, budget, trace)
            ]
        )
        if name in real_budgets:
            rows = []
            for rule in REALLY_LOADED:
                said = on_clock(trace[:real], measured, budget, rule)
                really = Replay(sized, precisions, budget, rule, worker).run(trace[:real])
                on_the_clock = {f"{part}_on_clock": said[part] for part in ("wall_seconds", "wait_seconds")}
                rows.append(setting | {"rule": rule.name} | really | on_the_clock)
                print(rows[-1], flush=True)
            checks += compared(rows)
    return {"loads": asdict(measured), "clock": clock, "really_loaded": {"requests": real, "rows": checks}}


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


def replay_stand_ins(requests: int, repeat: float, seed: int, wanted: Sequence[str]) -> list[dict[str, Any]]:
    trace = sheet_trace(requests, repeat, seed, seconds=1 / SCALE)
    worker = Worker()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        specs = stand_ins(Path(folder))
        sizes = {key: spec.bytes for key, spec in specs.items()}
        for name, budget in budgets(sizes, trace).items():
            if name not in wanted:
                continue
            measured = []
            for rule in rules(sizes, budget, trace):
                row = {"budget": name, "budget_mb": budget / 1e6, "rule": rule.name}
                measured.append(row | Replay(specs, {}, budget, rule, worker).run(trace))
                print(measured[-1], flush=True)
            rows += compared(measured)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("record", "replay", "stand-ins"), default="replay")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--repeat", type=float, default=0.3, help="the chance that a request is of the last one's kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=3, help="really run of each kind of request when recording")
    parser.add_argument("--real", type=int, default=30, help="of the first requests, which are really loaded")
    parser.add_argument("--real-budgets", nargs="+", default=["two thirds", "half"])
    parser.add_argument(
        "--budgets", nargs="+", default=["all", "two thirds", "half", "largest set"], help="of stand-ins"
    )
    given = parser.parse_args()
    if given.what == "record":
        recorded = record(given.runs, given.requests, given.repeat, given.seed, lambda said: print(said, flush=True))
        TRACE.write_text(json.dumps({"machine": machine(), "repeat": given.repeat, **recorded}) + "\n")
        return
    if given.what == "stand-ins":
        rows = replay_stand_ins(given.requests, given.repeat, given.seed, given.budgets)
        save("manager_trace", {"stand_ins": {"requests": given.requests, "repeat": given.repeat, "rows": rows}})
    else:
        recorded = json.loads(TRACE.read_text())
        trace = [recorded["runs"][kind][run] for kind, run in recorded["requests"]]
        specs = {key: spec for key, spec in catalog("lite").items() if key in recorded["bytes"]}
        results = replay(trace, specs, recorded["precisions"], given.real, given.real_budgets)
        save("manager_trace", {"requests": len(trace), "repeat": recorded["repeat"], **results})
        rows = results["clock"]
        checks = results["really_loaded"]["rows"]
        print(table(list(checks[0]), [list(row.values()) for row in checks]), "\n")
    print(table(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
