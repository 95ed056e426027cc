"""How well requests are understood, over hand-written ones that no training saw (``benchmarks/data/controller.md``).

    python -m benchmarks.controller [--rows rules prototypes ...] [--slices single chain ...]

Every row answers the same requests over the same registry: the routes of all systems of the house plan, none of which
runs. Intervals are 95 %: Wilson's for shares, and McNemar's exact test says whether a row differs from the default one.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from app.controller.plan import Plan, PlanError, check, medium_of
from app.controller.planner import Answer, Controller, Router
from app.controller.request import ACTS, Request
from app.controller.routers import RuleRouter
from app.controller.rules import SURE, Scores
from benchmarks.report import save
from pipelines.base import Params, Pipeline, Registry, Route, installed_registry

DATA = Path(__file__).parent / "data" / "controller.jsonl"
Z = 1.96
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


class Majority:
    """Always the commonest answer: a new picture."""

    name = "majority"

    def score(self, request: Request, media: Sequence[str]) -> Scores:
        outputs = {medium: SURE if medium == "image" else 1 - SURE for medium in media}
        return Scores(outputs, {act: SURE if act == "new" else 0.0 for act in ACTS})


ROWS: dict[str, Callable[[], Router]] = {"majority": Majority, "rules": RuleRouter}


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


def evaluate(router: Router, rows: Sequence[dict[str, Any]]) -> list[Row]:
    controller = Controller(whole_registry(), router, lambda pipeline: 1.0)
    judged = []
    for row in rows:
        history = [(item["medium"], item["title"]) for item in row["history"]]
        started = time.perf_counter()
        answer = controller.answer(Request.of(row["prompt"], row["inputs"], history))
        judged.append(judge(row, answer, time.perf_counter() - started))
    return judged


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--slices", nargs="+")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--errors", action="store_true", help="print what is answered wrongly")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.data.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if not arguments.slices or row["slice"] in arguments.slices]
    results, judged_rows = {}, {}
    for name in arguments.rows:
        judged = judged_rows[name] = evaluate(ROWS[name](), rows)
        slices = {s: summary([j for j in judged if j.slice == s]) for s in dict.fromkeys(row["slice"] for row in rows)}
        times = np.array([j.seconds for j in judged])
        results[name] = {
            "all": summary(judged),
            "slices": slices,
            "milliseconds_p50": round(1000 * float(np.quantile(times, 0.5)), 1),
            "milliseconds_p95": round(1000 * float(np.quantile(times, 0.95)), 1),
            "rss_mb": round(psutil.Process().memory_info().rss / 2**20),
        }
        shown = {s: value["outputs"][0] for s, value in slices.items()}
        print(name, results[name]["all"], shown, flush=True)
        if arguments.errors:
            for row, one in zip(rows, judged, strict=True):
                if not (one.outputs and one.act):
                    print("  ", row["id"], row["act"], row["outputs"], "|", row["prompt"][:150])
    last = arguments.rows[-1]
    for name in arguments.rows[:-1]:
        pair = ([j.outputs for j in judged_rows[name]], [j.outputs for j in judged_rows[last]])
        results[name]["mcnemar_p"] = mcnemar(*pair)
    save("controller", {"rows": results})


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
