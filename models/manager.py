"""Brings in the models that a run needs and keeps them within a memory budget.

``with manager.lease(key) as model:`` is the only way to a model. A leased model is never evicted; of the others the
least recently used goes first. The accounts never exceed the budget, and an entry is gone from them if its load fails.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from models.catalog import ModelSpec
from models.errors import UserError
from models.machine import compute_dtype
from models.records import ModelRecord
from models.sources import Files, OnProgress


@dataclass(frozen=True)
class ModelStatus:
    """One row of the accounts. ``last_used`` is in seconds since the epoch; ``seconds_to_load`` is 0 while loading."""

    key: str
    loading: bool
    bytes: int
    leases: int
    last_used: float
    seconds_to_load: float


@dataclass(eq=False)
class _Entry:
    bytes: int
    model: Future[object] = field(default_factory=Future)
    progress: tuple[float, str] = (0.0, "")
    leases: int = 0
    last_used: float = field(default_factory=time.time)
    seconds_to_load: float = 0.0

    @property
    def idle(self) -> bool:
        return self.leases == 0 and self.model.done()


class ModelManager:
    """Leases of the models in ``specs``, which together take at most ``budget_bytes`` on ``device``. Thread-safe."""

    def __init__(self, specs: Mapping[str, ModelSpec], device: torch.device, budget_bytes: int) -> None:
        self.specs = dict(specs)
        self.device = device
        self.dtype = compute_dtype(device)
        self.budget_bytes = budget_bytes
        self._entries: dict[str, _Entry] = {}  # least recently used first
        self._files: dict[str, Files] = {}  # of the latest load: what a record has to name
        self._changed = threading.Condition()  # guards the entries; notified when a load moves on or ends
        # One load at a time: transformers and diffusers patch torch's global state while they build a model.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="model-loader")

    @contextmanager
    def lease(self, key: str, on_progress: OnProgress | None = None) -> Iterator[Any]:
        """The model ``key``, on :attr:`device` in float32, for as long as the context lasts.

        Threads that want the same model share one load. ``on_progress(fraction, message)`` is called in the caller's
        own thread while it waits. Raises :class:`UserError` for an unknown key, weights that cannot be had, and a
        model that does not fit beside those in use; whatever a load raises, the next lease tries anew.
        """
        entry = self._enter(key)
        try:
            yield self._wait(entry, on_progress)
        finally:
            with self._changed:
                entry.leases -= 1
                self._touch(key, entry)

    def record(self, key: str) -> ModelRecord:
        """What an artifact's provenance says of the model; fetches and verifies its files if that is still to do."""
        spec = self._spec(key)
        files = self._files.get(key) or spec.source.resolve(lambda fraction, message: None)
        return ModelRecord(key, files.checksum, str(self.dtype).removeprefix("torch."))

    def status(self) -> list[ModelStatus]:
        """The models in memory or on their way there, most recently used first."""
        with self._changed:
            return [
                ModelStatus(
                    key, not entry.model.done(), entry.bytes, entry.leases, entry.last_used, entry.seconds_to_load
                )
                for key, entry in reversed(self._entries.items())
            ]

    @property
    def used_bytes(self) -> int:
        """Bytes of the models in memory, with those on their way there as expected."""
        with self._changed:
            return self._used()

    def free(self, key: str | None = None) -> int:
        """Drop a model, or with ``None`` every one that is not in use; returns the bytes that this gave back.

        Raises :class:`UserError` for an unknown key and for a model in use.
        """
        with self._changed:
            entry = self._entries.get(self._spec(key).key) if key is not None else None
            if entry is not None and not entry.idle:
                raise UserError(f"The model '{key}' is in use.", "Wait until the generation is done, or stop it.")
            keys = [name for name, held in self._entries.items() if held.idle and key in (None, name)]
            freed = sum(self._entries.pop(name).bytes for name in keys)
        if freed:
            self._reclaim()
        return freed

    def _spec(self, key: str) -> ModelSpec:
        if key not in self.specs:
            raise UserError(f"There is no model called {key[:60]!r}.", f"Choose one of: {', '.join(self.specs)}.")
        return self.specs[key]

    def _enter(self, key: str) -> _Entry:
        """Count one more lease of the model, and start its load if nobody has."""
        spec = self._spec(key)
        with self._changed:
            entry = self._entries.get(key)
            if entry is None:
                self._make_room(key, spec.bytes)
                entry = self._entries[key] = _Entry(spec.bytes)
                self._loader.submit(self._load, spec, entry)
            entry.leases += 1
            self._touch(key, entry)
            return entry

    def _wait(self, entry: _Entry, on_progress: OnProgress | None) -> object:
        """The loaded model; on the way there every step of the load is shown to the caller."""
        if not entry.model.done():
            seen = _Entry.progress
            while True:
                with self._changed:
                    while entry.progress == seen and not entry.model.done():
                        self._changed.wait()
                    if entry.progress == seen:
                        break
                    seen = entry.progress
                if on_progress:
                    on_progress(*seen)
        return entry.model.result()

    def _load(self, spec: ModelSpec, entry: _Entry) -> None:
        """In the loader's thread: fetch, build, move and weigh; whoever waits gets the model or the error."""
        started = time.perf_counter()
        report = partial(self._report, entry)
        try:
            files = self._files[spec.key] = spec.source.resolve(report)
            report(1.0, f"Loading {spec.key}")
            model = spec.load(files.folder)
            for module in modules_of(model):
                module.eval().requires_grad_(False).to(self.device)
            with self._changed:
                self._settle(spec.key, entry, bytes_of(model))
                entry.seconds_to_load = time.perf_counter() - started
                entry.model.set_result(model)
                self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                del self._entries[spec.key]
                entry.model.set_exception(error)
                self._changed.notify_all()

    def _report(self, entry: _Entry, fraction: float, message: str) -> None:
        with self._changed:
            entry.progress = (fraction, message)
            self._changed.notify_all()

    def _settle(self, key: str, entry: _Entry, measured: int) -> None:
        """Replace what was expected of a model in the accounts by what it takes."""
        expected, entry.bytes = entry.bytes, 0
        try:
            self._make_room(key, measured)
        except UserError:
            entry.bytes = expected
            raise
        entry.bytes = measured

    def _make_room(self, key: str, need: int) -> None:
        """Evict idle models, least recently used first, until ``need`` bytes fit; none at all if they cannot."""
        idle = [name for name, entry in self._entries.items() if entry.idle]
        in_use = self._used() - sum(self._entries[name].bytes for name in idle)
        if in_use + need > self.budget_bytes:
            raise self._too_big(key, need)
        evicted = False
        while self._used() + need > self.budget_bytes:
            del self._entries[idle.pop(0)]
            evicted = True
        if evicted:
            self._loader.submit(self._reclaim)  # ahead of the load that wants the room

    def _too_big(self, key: str, need: int) -> UserError:
        holders = sorted((entry.bytes, name) for name, entry in self._entries.items() if not entry.idle and entry.bytes)
        held = ", ".join(f"{name} with {readable_bytes(size)}" for size, name in reversed(holders[-3:]))
        budget = readable_bytes(self.budget_bytes)
        sentence = f"The model '{key}' needs {readable_bytes(need)}, and the memory budget is {budget}"
        if need > self.budget_bytes:
            return UserError(f"{sentence}.", "Raise the memory budget, or use smaller models: the lite profile.")
        return UserError(
            f"{sentence}, of which these are in use: {held}.", "Wait until they are free, or raise the budget."
        )

    def _used(self) -> int:
        return sum(entry.bytes for entry in self._entries.values())

    def _touch(self, key: str, entry: _Entry) -> None:
        """Make the entry the most recently used one, unless its failed load has removed it."""
        if self._entries.get(key) is entry:
            entry.last_used = time.time()
            self._entries[key] = self._entries.pop(key)

    def _reclaim(self) -> None:
        """Give the memory of dropped models back, those in reference cycles included."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def modules_of(model: object) -> list[nn.Module]:
    """A model is a module itself, or an object whose attributes are."""
    if isinstance(model, nn.Module):
        return [model]
    return [value for value in vars(model).values() if isinstance(value, nn.Module)]


def bytes_of(model: object) -> int:
    """Bytes of a model's parameters and buffers; storage that several of them share counts once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for module in modules_of(model)
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(storages.values())


def readable_bytes(size: int) -> str:
    """``1_530_000_000`` -> ``"1.53 GB"``, ``3_900_000`` -> ``"3.9 MB"``."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
