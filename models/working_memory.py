"""What computing needs beside weights, learnt from measured peaks per operation, shape and precision."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

MARGIN = 1.1
REMEMBERED = 20
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


class WorkingMemory:
    """Peaks of the work that was done on one device. Thread-safe."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._peaks: defaultdict[Work, deque[int]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
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

    @contextmanager
    def measured(self, work: Work) -> Iterator[Measuring]:
        """Learn the peak of what happens inside, if it is still ``valid`` at the end.

        Nothing is learnt where the peak cannot be read (a CPU outside Linux) and from work that raises.
        """
        started, measuring = _restart_peak(self._device), Measuring()
        yield measuring
        if measuring.valid and started is not None and (peak := _peak(self._device)) is not None:
            self.learn(work, peak - started)


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
