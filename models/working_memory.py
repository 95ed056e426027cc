"""What computing needs beside weights, learnt from measured peaks per operation, shape and precision."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

MARGIN = 1.1
REMEMBERED = 20
RUNS_BEFORE_MORE = 20  # with a smaller micro-batch, until a larger one is tried again
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Work:
    """``operation`` is a pipeline's name; ``shape`` what its memory grows with, such as pictures and their sides."""

    operation: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"


@dataclass
class Measuring:
    valid: bool = True


@dataclass
class MicroBatch:
    """How many things could be computed at once, and the runs that computed so many since."""

    things: int
    runs: int = 0


class WorkingMemory:
    """Peaks of the work that was done on one device, and how much of it could be done at once. Thread-safe."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._peaks: defaultdict[Work, deque[int]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._micro_batches: dict[Work, MicroBatch] = {}  # of work for which memory ran out with more
        self._lock = threading.Lock()

    def expected(self, work: Work) -> int | None:
        """Bytes to keep free for ``work``: the largest of its latest peaks and a margin; ``None`` if it is new.

        New work lives on what the budget leaves of the machine (``machine.RESERVE_BYTES``).
        """
        with self._lock:
            peaks = self._peaks.get(work)
            return int(MARGIN * max(peaks)) if peaks else None

    def learn(self, work: Work, peak_bytes: int) -> None:
        with self._lock:
            self._peaks[work].append(max(0, peak_bytes))

    def micro_batch(self, work: Work, wanted: int) -> int:
        """How many of the things that ``work`` computes to compute at once: fewer than ``wanted`` if that was needed.

        After :data:`RUNS_BEFORE_MORE` runs twice as many are tried, because other programs' needs change.
        """
        with self._lock:
            known = self._micro_batches.get(_without_count(work))
            return wanted if known is None else min(wanted, known.things)

    def worked(self, work: Work, micro_batch: int, wanted: int) -> None:
        """``work`` was done with ``micro_batch`` things at once, where ``wanted`` would have been better."""
        kind = _without_count(work)
        with self._lock:
            known = self._micro_batches.get(kind)
            tried = wanted if known is None else min(wanted, known.things)
            if micro_batch < tried:
                self._micro_batches[kind] = MicroBatch(micro_batch)
            elif known is not None and min(micro_batch, work.shape[0]) >= known.things:
                known.runs += 1
                if known.runs == RUNS_BEFORE_MORE:
                    self._micro_batches[kind] = MicroBatch(2 * known.things)

    @contextmanager
    def measured(self, work: Work) -> Iterator[Measuring]:
        """Learn the peak of what happens inside, if it is still ``valid`` at the end.

        Nothing is learnt where the peak cannot be read (a CPU outside Linux) and from work that raises.
        """
        started, measuring = _restart_peak(self._device), Measuring()
        yield measuring
        if measuring.valid and started is not None and (peak := _peak(self._device)) is not None:
            self.learn(work, peak - started)


def _without_count(work: Work) -> Work:
    """Micro-batches are remembered for work of every length: the first of its shape is how many things it computes."""
    return replace(work, shape=work.shape[1:])


def _restart_peak(device: torch.device) -> int | None:
    """Bytes in use now; from here on :func:`_peak` counts anew. ``None`` where that cannot be had."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        CLEAR.write_text("5")  # resets VmHWM, the high-water mark of resident memory
    except OSError:
        return None
    return _kilobytes("VmRSS")


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _kilobytes("VmHWM")


def _kilobytes(name: str) -> int | None:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    return None
