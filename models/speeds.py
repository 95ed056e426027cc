"""Which of the visually lossless precisions this machine computes fastest, measured once and remembered."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.machine import compute_dtype
from models.quantized_layers import RoundingInt8Linear

log = logging.getLogger(__name__)

# A stack of layers larger than the caches, as a model is, each of a small model's size and number of tokens.
LAYERS, TOKENS, WIDTH, HIDDEN = 16, 128, 384, 1152
PASSES = 7


@dataclass(frozen=True)
class Speeds:
    """Seconds of the same pass with weights held in each precision."""

    float32: float
    float16: float
    bfloat16: float
    int8: float


# Its matrix units take bfloat16, which is what models compute in there (machine.compute_dtype), and whole numbers;
# nothing to measure.
ACCELERATOR = Speeds(float32=1.0, float16=1.0, bfloat16=0.5, int8=0.5)


def measured_speeds(device: torch.device, folder: Path | None = None) -> Speeds:
    """This machine's speeds: measured in well under a second the first time, later read from ``folder``.

    ``folder`` is ``synesthete`` in the user's cache folder unless given. What is remembered holds for the same
    processor, torch and number of threads, so that equal requests keep giving equal files.
    """
    if device.type == "cuda":
        return ACCELERATOR
    path = (folder or cache_folder()) / "speeds.json"
    known = _read(path)
    machine = describe_machine()
    if machine not in known:
        # In a thread that ends: the helpers that it computes with would slow others down (loader.compute_alone).
        with ThreadPoolExecutor(1) as passing:
            known[machine] = passing.submit(measure, device).result()
        _write(path, known)
    return known[machine]


def cache_folder() -> Path:
    """Where this program may keep what it can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "synesthete"


def describe_machine() -> str:
    """What speeds hang on: the processor and what it can do, torch, and the number of threads."""
    abilities = torch.cpu.get_capabilities()
    flags = " ".join(sorted(name for name, value in abilities.items() if value is True))
    return f"{abilities.get('cpu_name', '')}; {flags}; torch {torch.__version__}; {torch.get_num_threads()} threads"


@torch.no_grad()
def measure(device: torch.device) -> Speeds:
    """Medians over passes that take turns, so that whatever else the machine does meanwhile hits all alike."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, WIDTH, generator=generator).to(device)
    weights = [torch.randn(HIDDEN, WIDTH, generator=generator) for _ in range(LAYERS)]
    autocast = compute_dtype(device)
    stacks: dict[str, list[Callable[[Tensor], Tensor]]] = {
        name: [_held(weight.to(device, getattr(torch, name)), autocast) for weight in weights]
        for name in ("float32", "float16", "bfloat16")
    }
    stacks["int8"] = [_held_in_int8(weight).to(device) for weight in weights]
    seconds: dict[str, list[float]] = {name: [] for name in stacks}
    with torch.autocast(device.type, autocast, enabled=autocast != torch.float32):
        for _ in range(1 + PASSES):
            for name, stack in stacks.items():
                seconds[name].append(_seconds_of_pass(x, stack))
    return Speeds(**{name: median(values[1:]) for name, values in seconds.items()})


def _held(weight: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, weight.to(dtype))


def _held_in_int8(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(WIDTH, HIDDEN, bias=False)
    layer.weight.copy_(weight)
    RoundingInt8Linear.hold(layer)
    return layer


def _seconds_of_pass(x: Tensor, stack: Sequence[Callable[[Tensor], Tensor]]) -> float:
    started = time.perf_counter()
    for layer in stack:
        layer(x)
    return time.perf_counter() - started


def _read(path: Path) -> dict[str, Speeds]:
    """What was measured before; nothing if that was never written, or cannot be understood."""
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
        speeds = {str(machine): Speeds(**values) for machine, values in stored.items()}
        if not all(math.isfinite(s) and s > 0 for speed in speeds.values() for s in asdict(speed).values()):
            raise ValueError("a time is not a positive number")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        log.warning("'%s' is damaged (%s): the machine's speed is measured again", path, error)
        return {}
    return speeds


def _write(path: Path, speeds: dict[str, Speeds]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({machine: asdict(speed) for machine, speed in speeds.items()}, indent=2) + "\n")
        partial.replace(path)
    except OSError as error:
        log.info("the machine's speed cannot be remembered (%s): it is measured at each start", error)
