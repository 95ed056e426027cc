"""The Machine tab's HTML: models in memory, what the manager decided, and memory over time."""

from __future__ import annotations

import os
import platform
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from html import escape
from pathlib import Path

from app.studio import MachineState
from app.ui.markup import moment
from models.accounts import Decision, Freed, ModelStatus, readable_bytes

SHOWN_SECONDS = 300.0
SHORTEST_STEP = 1.0  # several open pages look at the same history
LONGEST_STEP = 15.0  # a longer gap means that nobody looked, and what lay between is not known
SAMPLES_KEPT = 400
DECISIONS_SHOWN = 12
WIDTH, HEIGHT = 600.0, 160.0


@dataclass(frozen=True)
class Sample:
    """Bytes at one moment; ``time`` in seconds of any clock that only goes forward."""

    time: float
    program: int
    models: int
    budget: int


class MemoryHistory:
    """The last minutes of samples, as far as somebody looked."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_KEPT)

    def add(self, state: MachineState, now: float) -> None:
        if not self._samples or now - self._samples[-1].time >= SHORTEST_STEP:
            self._samples.append(Sample(now, state.rss_bytes, state.used_bytes, state.budget_bytes))

    def recent(self, now: float) -> list[Sample]:
        return [sample for sample in tuple(self._samples) if now - sample.time <= SHOWN_SECONDS]


@cache
def processor() -> str:
    """The processor's name and how many of its cores this program may use."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} core{'s' * (cores != 1)}"


def machine_line(state: MachineState) -> str:
    """What the models run on, in one line."""
    facts = [
        processor(),
        f"models on {state.device}",
        f"precision {state.precision}",
        f"{readable_bytes(state.budget_bytes)} for models",
    ]
    return f'<p class="summary">{escape(" · ".join(facts))}</p>'


def models_table(state: MachineState, may_free: bool = True) -> str:
    """The models in memory by name, each with a button that frees it, if that is allowed."""
    if not state.models:
        return '<p class="nothing">No model is in memory. The next request brings in what it needs.</p>'
    titles = ("Model", "Where", "Precision", "Size", "Idle", "Used by")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    # In an order that use does not change, so that no row moves away from under the finger.
    rows = "".join(_row(model, state.device, may_free) for model in sorted(state.models, key=lambda model: model.keys))
    return (
        '<table class="residents"><caption class="unseen">Models in memory</caption>'
        f"<thead><tr>{head}{'<td></td>' if may_free else ''}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _row(model: ModelStatus, device: str, may_free: bool) -> str:
    name = escape(", ".join(model.keys))
    holders = escape(", ".join(model.holders)) or ("needed next" if model.expected else "nobody")
    cells = [
        ("Where", _where(model, device)),
        ("Precision", escape(model.precision)),
        ("Size", readable_bytes(model.bytes)),
        ("Idle", "–" if model.holders or model.loading else _duration(model.idle_seconds)),
        ("Used by", holders),
    ]
    listed = "".join(f'<td data-label="{label}">{text}</td>' for label, text in cells)
    busy = " disabled" if model.holders or model.loading else ""
    free = (
        '<td class="free"><button type="button" class="action" data-event="remove" '
        f'data-entry="{escape(model.key)}" aria-label="Free {name}"{busy}>Free</button></td>'
    )
    return f'<tr><th scope="row">{name}</th>{listed}{free if may_free else ""}</tr>'


def _where(model: ModelStatus, device: str) -> str:
    if model.loading:
        return "on its way"
    return {
        "accelerator": escape(device),
        "pinned": "memory, pinned",
        "host": "memory",
        "disk": "disk",
    }[model.tier]


def _duration(seconds: float) -> str:
    """``75`` -> ``"1 min"``."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def freed(freed: Freed) -> str:
    """What came of freeing, in words."""
    kept = f" In use or needed next, so kept: {', '.join(freed.kept)}." if freed.kept else ""
    return said(f"Freed {readable_bytes(freed.bytes)}.{kept}")


def said(sentence: str) -> str:
    return f'<p class="said" role="status">{escape(sentence)}</p>'


def decisions(decided: Sequence[Decision]) -> str:
    """The latest decisions in words, newest first; ``decided`` is oldest first."""
    if not decided:
        return '<p class="nothing">Nothing was decided yet.</p>'
    items = "".join(map(_decision, reversed(decided[-DECISIONS_SHOWN:])))
    return f'<ol class="decisions">{items}</ol>'


def _decision(decision: Decision) -> str:
    when = datetime.fromtimestamp(decision.time).astimezone()
    return f'<li><time title="{moment(when)}">{when:%H:%M:%S}</time> <span>{escape(decision.sentence())}</span></li>'


def memory_plot(samples: Sequence[Sample], now: float) -> str:
    """Memory over the last minutes: the whole program, its models, and the budget where it is not far above both."""
    if not samples:
        return ""
    last = samples[-1]
    most = max(max(sample.program, sample.models) for sample in samples)
    top = 1.1 * (last.budget if most < last.budget <= 2 * most else most) or 1.0
    lines = [
        ("program", "This program", last.program),
        ("models", "Models", last.models),
        ("budget", "Budget", last.budget),
    ]
    drawn = "".join(_line(kind, samples, now, top) for kind, _, _ in reversed(lines))
    legend = "".join(
        f'<li class="{kind}"><span>{name}</span> <span class="numbers">{readable_bytes(size)}</span></li>'
        for kind, name, size in lines
    )
    summary = ", ".join(f"{name.lower()} {readable_bytes(size)}" for _, name, size in lines)
    return (
        f'<figure class="plot" role="img" aria-label="Memory now: {summary}">'
        f'<p class="numbers top">{readable_bytes(int(top))}</p>'
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>'
        f'<p class="numbers ends"><span>{SHOWN_SECONDS / 60:.0f} minutes ago</span><span>now</span></p>'
        f"<figcaption><ul>{legend}</ul></figcaption></figure>"
    )


def _line(kind: str, samples: Sequence[Sample], now: float, top: float) -> str:
    """A path through one kind of sample, lifted where nobody looked."""
    steps = []
    for index, sample in enumerate(samples):
        x = WIDTH * (1 - (now - sample.time) / SHOWN_SECONDS)
        y = HEIGHT * (1 - getattr(sample, kind) / top)
        lifted = index == 0 or sample.time - samples[index - 1].time > LONGEST_STEP
        steps.append(f"{'M' if lifted else 'L'}{x:.1f} {y:.1f}")
        if lifted:
            steps.append("l0.1 0")  # so that a single look shows too
    return f'<path class="{kind}" d="{"".join(steps)}"/>'
