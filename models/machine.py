"""What this machine offers models: a device, the precision that is fast on it, and memory."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import psutil
import torch
from torch.nn import functional as F

from models.errors import UserError

# What activations, the interpreter and the page need beside the weights.
RESERVE_BYTES = 1024**3
CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
# Processors with bfloat16 instructions but no matrix units are of two kinds, far apart: 0.5 to 1, and 3 to 4.
WORTHWHILE_GAIN = 1.7
ROWS, WIDTH, HIDDEN, PASSES = 256, 384, 1152, 9  # of the product that tells them apart


def choose_device(name: str) -> torch.device:
    """``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"`` as a device; raises :class:`UserError` if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"The device '{name}' is not on this machine.", "Use --device cpu or --device auto.")
    return device


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it faster than float32, else float32.

    So do matrix units. AVX512-BF16 alone does not say: there a bfloat16 product takes twice as long as a float32 one
    or, on another maker's processors, a quarter of it; so it is measured.
    """
    if device.type == "cuda":
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
    elif torch.cpu._is_amx_tile_supported():
        faster = True
    else:
        faster = bool(torch.cpu.get_capabilities().get("avx512_bf16")) and bfloat16_gain() > WORTHWHILE_GAIN
    return torch.bfloat16 if faster else torch.float32


@cache
def bfloat16_gain() -> float:
    """Of the processor: how often a product in bfloat16 fits into the time of one in float32. Takes some 10 ms."""
    # In a thread that ends: the helpers that it computes with would slow others down (loader.compute_alone).
    with ThreadPoolExecutor(1) as passing:
        return passing.submit(_measured_gain).result()


def _measured_gain() -> float:
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    pairs = {dtype: (torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(HIDDEN, WIDTH, dtype=dtype)) for dtype in seconds}
    for _ in range(PASSES):  # in turns, so that whatever else the machine does meanwhile hits both alike
        for dtype, pair in pairs.items():
            started = time.perf_counter()
            F.linear(*pair)
            seconds[dtype].append(time.perf_counter() - started)
    return min(seconds[torch.float32]) / min(seconds[torch.bfloat16])


def memory_budget(device: torch.device) -> int:
    """Bytes that models may hold: what is free now, within the container's limit, less a reserve; at least 0."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = min([psutil.virtual_memory().available, *container_room(OWN_CGROUPS, CGROUP_ROOT)])
    return max(0, free - RESERVE_BYTES)


def container_room(own_cgroups: Path, root: Path) -> list[int]:
    """Bytes left under each memory limit above this process, for control groups of version 1 and 2."""
    if not own_cgroups.exists():
        return []
    room = []
    for line in own_cgroups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit_name, usage_name, cache_name = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit_name = root / "memory", "memory.limit_in_bytes"
            usage_name, cache_name = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        inside = base / path.lstrip("/")
        for folder in (inside, *inside.parents):
            if not folder.is_relative_to(base):
                break
            limit = _number(folder / limit_name)
            if limit is not None:
                # The kernel drops cached files when memory runs short, so they count as free.
                room.append(
                    limit - (_number(folder / usage_name) or 0) + _statistic(folder / "memory.stat", cache_name)
                )
    return room


def _number(path: Path) -> int | None:
    text = path.read_text().strip() if path.exists() else "max"
    return None if text == "max" else int(text)


def _statistic(path: Path, name: str) -> int:
    if not path.exists():
        return 0
    return next((int(line.split()[1]) for line in path.read_text().splitlines() if line.split()[0] == name), 0)
