"""A model in memory, or on its way there, and the leases on it: the manager's own records, guarded by its lock."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from models.accounts import ModelStatus, Tier
from models.modules import modules_of
from models.precision import Precision
from models.spec import ModelSpec


class Superseded(Exception):  # noqa: N818 - what became of a load, not an error
    """The load ended without a model: an equal one was there already, or nobody wants it any more."""


@dataclass(eq=False)
class Lease:
    """``thread`` is the one that took the model."""

    resident: Resident
    thread: threading.Thread

    @property
    def owner(self) -> str:
        return self.thread.name


@dataclass(eq=False)
class Resident:
    """``bytes`` are as expected while it loads, then as measured; ``ahead``: loaded for a plan, not leased yet;
    ``unwanted``: nobody leases or expects it, so its load may end; ``pinned_bytes``: of locked pages that it lies in.
    """

    spec: ModelSpec
    precision: Precision
    bytes: int
    ahead: bool = False
    unwanted: bool = False
    on_device: bool = True
    pinned_bytes: int = 0
    checksum: str = ""
    keys: list[str] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)
    model: Future[object] = field(default_factory=Future)
    progress: tuple[float, str] = (0.0, "")
    last_used: float = field(default_factory=time.time)
    seconds_to_load: float = 0.0

    def __post_init__(self) -> None:
        self.keys.append(self.spec.key)

    @property
    def key(self) -> str:
        return self.keys[0]

    @property
    def idle(self) -> bool:
        return not self.leases and self.model.done()

    @property
    def bytes_on_host(self) -> int:
        """What it takes there, or would take."""
        return self.pinned_bytes or self.bytes

    def equals(self, other: Resident, checksum: str) -> bool:
        """Same files, same way to build from them, same precision."""
        return (self.checksum, self.spec.load, self.precision) == (checksum, other.spec.load, other.precision)

    def return_to_device(self) -> None:
        """It counts as on the device from here on, and is waited for until it is there."""
        self.on_device, self.model = True, Future()

    def tier(self, device: torch.device) -> Tier:
        if device.type == "cpu":
            return "host"
        if self.on_device:
            return "accelerator"
        return "pinned" if self.pinned_bytes else "host"

    def status(self, expected: tuple[str, ...], device: torch.device) -> ModelStatus:
        done = self.model.done()
        return ModelStatus(
            keys=tuple(self.keys),
            tier=self.tier(device) if done else "disk",
            precision=self.precision,
            bytes=self.bytes,
            loading=not done,
            holders=tuple(lease.owner for lease in self.leases),
            idle_seconds=0.0 if self.leases else max(0.0, time.time() - self.last_used),
            seconds_to_load=self.seconds_to_load,
            expected=any(key in expected for key in self.keys),
        )


def move(model: object, device: torch.device, *, pinned: bool = False) -> None:
    """Move the model's modules in place; ``pinned`` locks their pages, so that the way back is faster."""
    for module in modules_of(model):
        for buffer in module.buffers():
            buffer.data = buffer.data.to(device)  # in place: Module.to would give each of several holders a copy
        module.to(device)
        if pinned:
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.data = tensor.data.pin_memory()


def pinned_bytes_of(model: object) -> int:
    """What the model takes in pinned memory, of which torch hands out blocks of a power of two each."""
    tensors = {tensor for module in modules_of(model) for tensor in (*module.parameters(), *module.buffers())}
    return sum(1 << (tensor.nbytes - 1).bit_length() for tensor in tensors if tensor.nbytes)
