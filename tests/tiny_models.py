"""Real modules of a few kilobytes, and managers of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from models.manager import ModelManager
from models.sources import Folder
from models.spec import ModelSpec

CPU = torch.device("cpu")
UNIT = 4 * 1000  # bytes of a model of size 1


class Weights(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(size * 1000))


def spec_of(
    key: str, folder: Path, size: int = 1, expected: int | None = None, load: Callable[[Path], object] | None = None
) -> ModelSpec:
    """A model of ``size`` units from files of its own, so that no two are equal."""
    own = folder / key[:20].replace("\0", "")
    if folder.is_dir():
        own.mkdir(exist_ok=True)
        (own / "name.txt").write_text(key)
    build = load or (lambda _: Weights(size))
    return ModelSpec(key, "lite", Folder(own), build, "Apache-2.0", UNIT * size if expected is None else expected)


def manager_of(budget: int, *specs: ModelSpec, **options: Any) -> ModelManager:
    return ModelManager({spec.key: spec for spec in specs}, CPU, budget * UNIT, **options)


def resident(manager: ModelManager) -> list[str]:
    """Keys in memory, most recently used first."""
    return [row.key for row in manager.status()]


def use(manager: ModelManager, *keys: str) -> None:
    for key in keys:
        with manager.lease(key):
            pass


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


@contextmanager
def another_being_built(folder: Path) -> Iterator[None]:
    """Begin while another thread builds a model as diffusers does, so that no module gets numbers for a while."""
    begun = threading.Event()

    def load(_: Path) -> Weights:
        with init_empty_weights():
            begun.set()
            time.sleep(0.3)
        return Weights(1)

    building = threading.Thread(target=use, args=(manager_of(1, spec_of("another", folder, load=load)), "another"))
    building.start()
    assert begun.wait(60)
    try:
        yield
    finally:
        building.join()
