"""What the model manager tells of itself: which models are where, what it decided and why, and its counters."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Tier = Literal["accelerator", "pinned", "host", "disk"]
Kind = Literal[
    "load", "prefetch", "made room", "refused", "shared", "failed", "out of memory", "freed", "idle too long"
]


@dataclass(frozen=True)
class ModelStatus:
    """One model of the catalog that is in memory, or on its way there.

    ``keys``: the catalog's names for it, several where equal files are shared; ``holders``: who leases it now;
    ``idle_seconds``: since its last lease ended, 0 while it is leased; ``expected``: a queued plan needs it.
    """

    keys: tuple[str, ...]
    tier: Tier
    precision: str
    bytes: int
    loading: bool
    holders: tuple[str, ...]
    idle_seconds: float
    seconds_to_load: float
    expected: bool

    @property
    def key(self) -> str:
        return self.keys[0]

    @property
    def leases(self) -> int:
        return len(self.holders)


@dataclass(frozen=True)
class Candidate:
    """An idle model that could make room.

    ``value``: the reload seconds that its loss is expected to cost per lease to come; ``last_used``: seconds since the
    epoch.
    """

    key: str
    bytes: int
    value: float
    last_used: float = 0.0


@dataclass(frozen=True)
class Decision:
    """What the manager did at one moment, and what it had to choose from.

    ``chosen``: the models that went; ``seconds``: how long the load took, where there was one.
    """

    kind: Kind
    key: str
    need_bytes: int = 0
    room_bytes: int = 0
    candidates: tuple[Candidate, ...] = ()
    chosen: tuple[str, ...] = ()
    freed_bytes: int = 0
    seconds: float = 0.0
    note: str = ""
    time: float = field(default_factory=time.time)

    def sentence(self) -> str:
        """The decision in plain words."""
        went = f"; {_listed(self.chosen)} ({readable_bytes(self.freed_bytes)}) went" if self.chosen else ""
        need = readable_bytes(self.need_bytes)
        said = {
            "load": f"Loaded {self.key} ({need}) in {self.seconds:.1f} s{went}",
            "prefetch": f"Loaded {self.key} ({need}) ahead of its turn in {self.seconds:.1f} s{went}",
            "made room": f"Made room for {self.key} ({need}){went}",
            "refused": f"Refused {self.key}: it needs {need} and {readable_bytes(self.room_bytes)} could be had",
            "shared": f"Did not load {self.key} again",
            "failed": f"Could not load {self.key}",
            "out of memory": f"Ran out of memory with {self.key}{went}",
            "freed": f"Freed {_listed(self.chosen) or 'nothing'} ({readable_bytes(self.freed_bytes)}) when asked to",
            "idle too long": f"Let {_listed(self.chosen)} go ({readable_bytes(self.freed_bytes)}): unused for long",
        }[self.kind]
        return f"{said}{': ' + self.note if self.note else ''}".rstrip(".") + "."

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Freed:
    """Bytes that models held before and after, by device name, and the models that stayed because they are in use."""

    before: dict[str, int]
    after: dict[str, int]
    kept: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(self.before.values()) - sum(self.after.values())


@dataclass
class Metrics:
    """Counters since the process began. ``hits``: leases that found their model ready."""

    hits: int = 0
    misses: int = 0
    prefetch_hits: int = 0
    loads: int = 0
    prefetches: int = 0
    failures: int = 0
    load_seconds: float = 0.0
    wait_seconds: float = 0.0
    high_water_bytes: int = 0
    out_of_memory: int = 0
    bytes_moved: Counter[str] = field(default_factory=Counter)  # by the tier that they came to
    evictions: Counter[str] = field(default_factory=Counter)  # by reason

    @property
    def hit_rate(self) -> float:
        return self.hits / max(1, self.hits + self.misses)

    def prometheus(self, gauges: dict[str, float]) -> str:
        """The counters, and ``gauges`` beside them, in Prometheus' text format."""
        lines = []
        for name, value in vars(self).items():
            if isinstance(value, Counter):
                label = {"bytes_moved": "tier", "evictions": "reason"}[name]
                lines.append(f"# TYPE synesthete_{name}_total counter")
                lines += [f'synesthete_{name}_total{{{label}="{key}"}} {count}' for key, count in sorted(value.items())]
            elif name == "high_water_bytes":
                lines += [f"# TYPE synesthete_{name} gauge", f"synesthete_{name} {value}"]
            else:
                lines += [f"# TYPE synesthete_{name}_total counter", f"synesthete_{name}_total {value}"]
        for name, number in gauges.items():
            lines += [f"# TYPE synesthete_{name} gauge", f"synesthete_{name} {number}"]
        return "\n".join(lines) + "\n"


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))


def readable_bytes(size: int) -> str:
    """``1_530_000_000`` -> ``"1.53 GB"``, ``3_900_000`` -> ``"3.9 MB"``, ``4_000`` -> ``"4.0 KB"``."""
    if size < 1000:
        return f"{size} bytes"
    unit, name = (1e9, "GB") if size >= 1e9 else (1e6, "MB") if size >= 1e5 else (1e3, "KB")
    return f"{size / unit:.{2 if name == 'GB' else 1}f} {name}"
