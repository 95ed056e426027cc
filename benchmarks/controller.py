"""How well requests are understood, over hand-written ones that no training saw (``benchmarks/data/controller.md``).

    python -m benchmarks.controller [--rows rules prototypes ...] [--count N] [--slices single chain ...]

Every row answers the same requests over the same registry: the routes of all systems of the house plan, none of which
runs; it does so in a process of its own, whose memory is its own. Intervals are 95 %: Wilson's for shares, and
McNemar's exact test says whether a row differs from the default one on the requests that both answered. ``--count``
asks N of the requests, as many of each slice, because a row with a language model takes seconds a request. Rows that
were measured before stay in the results; with ``--slices`` or ``--data`` figures are only printed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from app.controller.plan import Plan, PlanError, check, medium_of
from app.controller.planner import Answer, Controller, Slots, by_rules
from app.controller.request import Request
from app.controller.routers import Router
from benchmarks.controller_rows import NO_MODEL, ROWS, slot_words
from benchmarks.report import RESULTS, save
from models.errors import UserError
from pipelines.base import Params, Pipeline, Registry, Route, installed_registry

DATA = Path(__file__).parent / "data" / "controller.jsonl"
DEFAULT = "head"  # what is shipped, and what the others are compared with
Z, BINS = 1.96, 10
ROUTES = {
    "crossflow": (("text", "image"),),
    "v2a": (("image", "audio"), ("video", "audio")),
    "clipsonic": (("text", "audio"),),
    "xbind": (("text", "mesh"), ("image", "mesh"), ("audio", "mesh")),
    "describe": (("image", "text"), ("audio", "text"), ("video", "text")),
    "fmri": (("scan", "image"),),
}


@dataclass(frozen=True)
class Row:
    """One request with its answer, judged."""

    slice: str
    outputs: bool
    act: bool
    over: bool
    under: bool
    valid: bool
    slots: float | None
    edges: float | None
    refers: bool | None
    seconds: float
    confidence: float


def whole_registry() -> Registry:
    """Pipelines with the routes of all systems, and the plain edits; none of them can run."""
    made = [_declared(name, routes) for name, routes in ROUTES.items()]
    morph = _declared("morph", ((("text", "text"), "video"),))
    return Registry([*made, morph, *(pipeline for pipeline in installed_registry() if pipeline.is_edit)])


def judge(row: dict[str, Any], answer: Answer, seconds: float) -> Row:
    wanted, got = set(row["outputs"]), set(answer.outputs)
    plan = answer.plan
    return Row(
        slice=row["slice"],
        outputs=wanted == got,
        act=row["act"] == answer.act,
        over=bool(got - wanted),
        under=bool(wanted - got),
        valid=_valid(row, answer),
        slots=_slots(row, plan),
        edges=_edges(row, plan),
        refers=_refers(row, answer),
        seconds=seconds,
        confidence=max(answer.scores.acts.values()),
    )


def evaluate(router: Router, rows: Sequence[dict[str, Any]], slots: Slots = by_rules) -> list[Row]:
    controller = Controller(whole_registry(), router, lambda pipeline: 1.0, slots)
    judged = []
    for row in rows:
        history = [(item["medium"], item["title"]) for item in row["history"]]
        started = time.perf_counter()
        answer = controller.answer(Request.of(row["prompt"], row["inputs"], history))
        if answer.scores.note:  # another one read it: these would be no figures of this router
            raise UserError(answer.scores.note)
        judged.append(judge(row, answer, time.perf_counter() - started))
    return judged


def measured(name: str, rows: Sequence[dict[str, Any]]) -> tuple[list[Row], float]:
    """``rows`` answered by the router ``name``, and the most memory (MiB) that this process ever held (Linux)."""
    judged = evaluate(ROWS[name](), rows, by_rules if name in NO_MODEL else slot_words())
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    return judged, int(peak[1]) / 1024


def in_own_process(name: str, rows: Sequence[dict[str, Any]]) -> tuple[list[Row], float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measured, name, rows).result()


def spread(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """``count`` of the rows in their order, as many of each slice as it has; a smaller count's are among them."""
    within: Counter[str] = Counter()
    places = {}
    for row in sorted(rows, key=lambda row: sha256(row["id"].encode()).digest()):
        places[row["id"]] = within[row["slice"]]
        within[row["slice"]] += 1
    chosen = set(sorted(places, key=places.__getitem__)[:count])
    return [row for row in rows if row["id"] in chosen]


def summary(judged: Sequence[Row]) -> dict[str, Any]:
    """Shares of all, each with its interval where it is one."""

    def share(values: Sequence[bool | float | None]) -> list[float] | None:
        known = [float(value) for value in values if value is not None]
        return [round(x, 3) for x in (float(np.mean(known)), *wilson(sum(known), len(known)))] if known else None

    return {
        "requests": len(judged),
        "outputs": share([row.outputs for row in judged]),
        "act": share([row.act for row in judged]),
        "over_calls": share([row.over for row in judged]),
        "under_calls": share([row.under for row in judged]),
        "valid": share([row.valid for row in judged]),
        "slot_coverage": share([row.slots for row in judged]),
        "edge_f1": share([row.edges for row in judged]),
        "refers": share([row.refers for row in judged]),
    }


def calibration_error(confidence: Sequence[float], right: Sequence[bool]) -> float:
    """How far confidence is from the share that is right, over ten equal bins of confidence (ECE, arXiv 1706.04599)."""
    bins = np.minimum((np.array(confidence) * BINS).astype(int), BINS - 1)
    gaps = [np.sum((np.array(confidence) - np.array(right, float))[bins == number]) for number in range(BINS)]
    return float(np.abs(gaps).sum() / len(bins))


def wilson(hits: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    p = hits / count
    middle = (p + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z * math.sqrt(p * (1 - p) / count + Z * Z / (4 * count * count)) / (1 + Z * Z / count)
    return middle - half, middle + half


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided exact p value that two rows are right equally often."""
    only = [sum(a and not b for a, b in zip(*pair, strict=True)) for pair in ((first, second), (second, first))]
    count, least = sum(only), min(only)
    return min(1.0, 2 * sum(math.comb(count, k) for k in range(least + 1)) / 2**count)


def results_of(rows: Sequence[dict[str, Any]], judged: Sequence[Row], peak: float) -> dict[str, Any]:
    """All that is kept of one row; ``wrong``: the requests whose outputs were not met."""
    slices = {name: [j for j in judged if j.slice == name] for name in dict.fromkeys(row["slice"] for row in rows)}
    times = [1000 * j.seconds for j in judged]
    return {
        "all": summary(judged),
        "slices": {name: summary(members) for name, members in slices.items()},
        "calibration_error": round(calibration_error([j.confidence for j in judged], [j.act for j in judged]), 3),
        "milliseconds_p50": round(float(np.quantile(times, 0.5)), 1),
        "milliseconds_p95": round(float(np.quantile(times, 0.95)), 1),
        "peak_rss_mb": round(peak),
        "wrong": [row["id"] for row, one in zip(rows, judged, strict=True) if not one.outputs],
    }


def compared(results: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Put McNemar's p against :data:`DEFAULT` into every other row of ``results``, on what both were asked."""
    for name, result in results.items():
        if name != DEFAULT and DEFAULT in results:
            pair = [result, results[DEFAULT]]
            common = spread(rows, min(one["all"]["requests"] for one in pair))
            first, second = ([row["id"] not in set(one["wrong"]) for row in common] for one in pair)
            result["mcnemar_p"] = round(mcnemar(first, second), 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--count", type=int, help="ask only so many requests, spread evenly over the slices")
    parser.add_argument("--slices", nargs="+")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--errors", action="store_true", help="print what is answered wrongly")
    arguments = parser.parse_args()
    everything = [json.loads(line) for line in arguments.data.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in everything if not arguments.slices or row["slice"] in arguments.slices]
    rows = spread(rows, arguments.count) if arguments.count else rows
    path = RESULTS / "controller.json"
    results = json.loads(path.read_text())["rows"] if path.exists() else {}
    for name in arguments.rows:
        try:
            judged, peak = in_own_process(name, rows)
        except UserError as error:
            print(f"{name} is left out: {error}", flush=True)
            continue
        results[name] = results_of(rows, judged, peak)
        _show(name, results[name])
        if arguments.errors:
            _show_errors(rows, judged)
        if not arguments.slices and arguments.data == DATA:  # at once, because the next row may take long
            compared(results, everything)
            save("controller", {"rows": results})


def _show(name: str, result: dict[str, Any]) -> None:
    shown = {key: value for key, value in result.items() if key not in ("slices", "wrong")}
    print(name, json.dumps(shown), {name: value["outputs"][0] for name, value in result["slices"].items()}, flush=True)


def _show_errors(rows: Sequence[dict[str, Any]], judged: Sequence[Row]) -> None:
    for row, one in zip(rows, judged, strict=True):
        if not (one.outputs and one.act):
            print("  ", row["id"], row["act"], row["outputs"], "|", row["prompt"][:150])


def _declared(name: str, routes: Sequence[tuple[str | tuple[str, ...], str]]) -> Pipeline:
    ways = tuple(Route((given,) if isinstance(given, str) else given, output) for given, output in routes)
    declaration = {
        "name": name,
        "title": name,
        "summary": name,
        "routes": ways,
        "params_type": Params,
        "models": (name,),
    }
    return type(name, (Pipeline,), {**declaration, "run_batch": lambda *_: iter(())})()


def _valid(row: dict[str, Any], answer: Answer) -> bool:
    """Whether it is a plan that passes the check, a question, or talk."""
    if answer.plan is None:
        return answer.act in ("chat", "select", "undo") or bool(answer.sentence)
    request = Request.of(row["prompt"], row["inputs"], [(item["medium"], item["title"]) for item in row["history"]])
    try:
        check(answer.plan, whole_registry(), request.available)
    except PlanError:
        return False
    return bool(answer.plan.steps)


def _slots(row: dict[str, Any], plan: Plan | None) -> float | None:
    """Share of the words that have to reach the makers, and do."""
    if not row.get("text"):
        return None
    if plan is None:
        return 0.0
    said = " ".join(source for step in plan.steps for source in step.inputs if source.startswith("text:")).lower()
    titles = [item["title"] for item in row["history"]]
    said += " ".join(titles[int(s[1:]) - 1] for step in plan.steps for s in step.inputs if s.startswith("@")).lower()
    return float(np.mean([word.lower() in said for word in row["text"]]))


def _edges(row: dict[str, Any], plan: Plan | None) -> float | None:
    """F1 of what is made from what, as media."""
    if not row.get("edges"):
        return None
    if plan is None:
        return 0.0
    media = {f"upload:{n}": medium for n, medium in enumerate(row["inputs"], 1)}
    media |= {f"@{n}": item["medium"] for n, item in enumerate(row["history"], 1)}
    media |= {f"${step.id}": step.output for step in plan.steps}
    got = {f"{medium_of(source, media)}>{step.output}" for step in plan.steps for source in step.inputs}
    wanted = set(row["edges"])
    return 2 * len(got & wanted) / (len(got) + len(wanted)) if got else 0.0


def _refers(row: dict[str, Any], answer: Answer) -> bool | None:
    if not row["refers"] or answer.act == "regenerate":
        return None  # what is made again has no recipe here: it is known by its words
    used = {int(s[1:]) for step in (answer.plan.steps if answer.plan else ()) for s in step.inputs if s.startswith("@")}
    if answer.act in ("select", "undo"):
        used = set(answer.focus[:1])
    return used == set(row["refers"])


if __name__ == "__main__":
    main()
