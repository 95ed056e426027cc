"""What this machine offers models: a device, the precision that is fast on it, and memory."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from models.errors import UserError

# What activations, the interpreter and the page need beside the weights.
RESERVE_BYTES = 1024**3
CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def choose_device(name: str) -> torch.device:
    """``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"`` as a device; raises :class:`UserError` if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"The device '{name}' is not on this machine.", "Use --device cpu or --device auto.")
    return device


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware has matrix units for it, else float32.

    AVX512-BF16 alone does not count: there a bfloat16 product takes as long as a float32 one, or twice as long.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


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
