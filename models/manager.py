"""Brings in the models that a run needs and keeps them within a memory budget.

``with manager.lease(key) as model:`` is the only way to a model. A leased model is never evicted; of the others those
go whose loss is expected to cost the fewest seconds (``eviction.py``). Given the keys that queued plans will ask for
(:meth:`ModelManager.expect`), it keeps those longest and loads the next of them while the current step computes. Equal
files in equal precision are one model, whatever they are called. Beside an accelerator, models that have to go stay in
the host's memory while there is room. Every decision is kept, with what there was to choose from (``ledger.py``); the
loads themselves are in ``loader.py``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from models.accounts import Decision, Freed, Metrics, ModelStatus
from models.errors import UserError
from models.eviction import Choose, value_cover
from models.licences import require_licence
from models.loader import Loader
from models.loading import trim_heap
from models.machine import compute_dtype
from models.precision import PRECISIONS, Precision
from models.quantize import bytes_at
from models.records import ModelRecord
from models.resident import Lease, Resident, Superseded
from models.sources import OnProgress
from models.spec import ModelSpec
from models.working_memory import Work, WorkingMemory

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 0.5


class ModelManager:
    """Leases of the models in ``specs``, which together take at most ``budget_bytes`` on ``device``. Thread-safe.

    ``precisions``: of each model, float32 where none is given; ``may_be_lowered``: keys of models that may be held in
    less when memory runs out; ``host_bytes``: what evicted models may take of the host's memory beside an accelerator;
    ``idle_seconds``: after which an unused model goes by itself; ``choose``: who goes when room is needed.
    """

    def __init__(
        self,
        specs: Mapping[str, ModelSpec],
        device: torch.device,
        budget_bytes: int,
        *,
        precisions: Mapping[str, Precision] | None = None,
        may_be_lowered: Collection[str] = (),
        host_bytes: int = 0,
        idle_seconds: float | None = None,
        choose: Choose = value_cover,
    ) -> None:
        if budget_bytes < 0:
            raise UserError("The memory budget is negative.", "Give it in gigabytes, such as 4.")
        self.specs = dict(specs)
        self.device = device
        self.dtype = compute_dtype(device)
        self.precisions: dict[str, Precision] = {key: (precisions or {}).get(key, "float32") for key in specs}
        self.may_be_lowered = frozenset(may_be_lowered)
        self.idle_seconds = idle_seconds
        self.working_memory = WorkingMemory(device)
        self._changed = threading.Condition()  # guards the ledger; notified when a load moves on or ends
        self._loader = Loader(self.specs, device, budget_bytes, host_bytes, self.precisions, choose, self._changed)
        self._ledger = self._loader.ledger
        self._queued: tuple[str, ...] = ()
        self._working: list[Collection[str]] = []  # the models of each work in progress
        self._sweeper: threading.Timer | None = None

    # ------------------------------------------------------------------------------------------- for pipelines

    @contextmanager
    def lease(self, key: str, on_progress: OnProgress | None = None) -> Iterator[Any]:
        """The model ``key``, on :attr:`device`, for as long as the context lasts.

        Threads that want the same model share one load. ``on_progress(fraction, message)`` is called in the caller's
        own thread while it waits. Raises :class:`UserError` for an unknown key, weights that cannot be had or are no
        numbers, and a model that does not fit beside those in use; whatever a load raises, the next lease tries anew.
        """
        self._drop_if_changed(self._spec(key))
        lease = self._enter(key)
        try:
            yield self._wait(lease, on_progress)
        finally:
            self._end(lease)

    def record(self, key: str) -> ModelRecord:
        """What an artifact's provenance says of the model; fetches and verifies its files if that is still to do."""
        spec = self._spec(key)
        with self._changed:
            resident = self._ledger.get(key)
        if resident is not None and resident.checksum:
            return ModelRecord(key, resident.checksum, resident.precision)
        require_licence(spec)
        files = spec.source.resolve(lambda fraction, message: None)
        return ModelRecord(key, files.checksum, self.precisions[key])

    @contextmanager
    def working(self, work: Work, keys: Collection[str] = ()) -> Iterator[None]:
        """Keep free what ``work`` is known to need beside weights, and measure what it really takes.

        ``keys``: the models that it is going to lease. They do not go for it, and are expected until it has ended,
        whatever happens to the plan that named them.
        """
        with self._changed:
            self._working.append(keys)
            self._follow_plans()
            reserved = self._ledger.reserve(work.operation, self.working_memory.expected(work) or 0, keys)
            before = self._ledger.traffic
        try:
            with self.working_memory.measured(work) as measuring:
                yield
                with self._changed:
                    # A load's own peak and an evicted model's room would be taken for the work's.
                    measuring.valid = self._ledger.traffic == before
        finally:
            with self._changed:
                self._ledger.reserved -= reserved
                self._working.remove(keys)
                self._follow_plans()
                self._loader.load_ahead()

    def expect(self, keys: Sequence[str]) -> None:
        """What queued plans will lease, soonest first; replaces what was expected before.

        The first of them that is not in memory is loaded ahead, into room that nothing in use or expected needs.
        """
        with self._changed:
            self._queued = tuple(keys)
            self._follow_plans()
            self._loader.load_ahead()

    def relieve(self, said: str) -> int:
        """After an allocation failed in a run (``said``: the error): drop idle models; returns the bytes of them.

        Those that nobody expects go first, and the others only if there were none.
        """
        with self._changed:
            freed = self._ledger.relieve("a run", said)
        trim_heap(self.device)  # the failed run has left pieces too
        return freed

    def out_of_memory(self, work: Work, keys: Collection[str]) -> UserError:
        """What to tell the user when ``work``, which leases ``keys``, cannot be done in this machine's memory."""
        with self._changed:
            return self._ledger.out_of_memory(
                work.operation, self.working_memory.expected(work), self._ledger.sizes_of(keys)
            )

    def lower_precision(self, keys: Collection[str]) -> bool:
        """Hold those of ``keys`` that may be lowered in less from now on; ``False`` if nothing can be."""
        with self._changed:
            before = dict(self.precisions)
            for key in self.may_be_lowered & set(keys):
                smaller = (p for p in PRECISIONS if bytes_at(1000, p) < bytes_at(1000, before[key]))
                self.precisions[key] = next(smaller, before[key])
            changed = [key for key in before if self.precisions[key] != before[key]]
            stale = [r for r in self._ledger.residents() if r.idle and set(r.keys) & set(changed)]
            evicted = self._ledger.drop(stale, "lower precision")
            if changed:
                note = ", ".join(f"{key} is held as {self.precisions[key]} from now on" for key in changed)
                self._ledger.decide("out of memory", "a run", evicted, note=note)
            del stale
        self._loader.trim()
        return bool(changed)

    # ------------------------------------------------------------------------------------------- for people

    def status(self) -> list[ModelStatus]:
        """The models in memory or on their way there, most recently used first."""
        with self._changed:
            self._ledger.forget_dead_holders()
            rows = sorted(self._ledger.residents(), key=lambda resident: resident.last_used, reverse=True)
            return [resident.status(self._ledger.expected, self.device) for resident in rows]

    def decisions(self) -> list[Decision]:
        """The latest decisions, oldest first."""
        with self._changed:
            return list(self._ledger.decisions)

    @property
    def metrics(self) -> Metrics:
        return self._ledger.metrics

    @property
    def budget_bytes(self) -> int:
        return self._ledger.budget_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of the models on :attr:`device`, with those on their way there as expected."""
        with self._changed:
            return self._ledger.used

    def free(self, key: str | None = None, *, keep_expected: bool = False) -> Freed:
        """Drop a model, or with ``None`` every one that is not in use, from all memory, before this returns.

        ``keep_expected`` spares those that queued plans need. Raises :class:`UserError` for an unknown key and for a
        model in use.
        """
        if key is not None:
            self._spec(key)
        with self._changed:
            self._ledger.forget_dead_holders()
            before = self._ledger.by_device()
            wanted = [r for r in self._ledger.residents() if key is None or key in r.keys]
            spared = set(self._ledger.expected) if keep_expected else set()
            gone = [r for r in wanted if r.idle and not spared & set(r.keys)]
            kept = tuple(resident.key for resident in wanted if resident not in gone)
            if key is not None and kept:
                raise UserError(f"The model '{key}' is in use.", "Wait until the generation is done, or stop it.")
            evicted = self._ledger.drop(gone, "freed")
            if evicted.chosen:
                self._ledger.decide("freed", key or "", evicted)
            after = self._ledger.by_device()
            del wanted, gone
        self._loader.trim()
        return Freed(before, after, kept)

    # ------------------------------------------------------------------------------------------- leases

    def _follow_plans(self) -> None:
        keys = [key for working in self._working for key in working] + list(self._queued)
        self._ledger.expected = tuple(dict.fromkeys(key for key in keys if key in self.specs))
        for resident in self._ledger.residents():
            # The loader looks at this between its steps.
            resident.unwanted = not resident.leases and not set(resident.keys) & set(self._ledger.expected)

    def _spec(self, key: str) -> ModelSpec:
        if key not in self.specs:
            raise UserError(f"There is no model called {key[:60]!r}.", f"Choose one of: {', '.join(self.specs)}.")
        return self.specs[key]

    def _enter(self, key: str) -> Lease:
        """Count one more lease of the model, and start its load if nobody has."""
        spec = self._spec(key)
        with self._changed:
            self._ledger.reuse.note(key)
            self._ledger.failed_ahead.discard(key)
            resident = self._loader.find(spec)
            hit = resident is not None and resident.model.done() and resident.on_device
            self.metrics.hits += hit
            self.metrics.misses += not hit
            resident = self._on_its_way(spec)
            if resident.ahead:
                self.metrics.prefetch_hits += 1
                resident.ahead = False
            lease = Lease(resident, threading.current_thread())
            resident.leases.append(lease)
            resident.last_used = time.time()
            return lease

    def _on_its_way(self, spec: ModelSpec) -> Resident:
        """The model on the device, or being loaded. Loads that nobody waits for give way to it."""
        while True:
            resident = self._loader.find(spec)
            try:
                if resident is None:
                    return self._loader.start(spec, ahead=False)
                if not resident.on_device:
                    self._loader.bring_back(resident)
                return resident
            except UserError:
                in_the_way = [r for r in self._ledger.residents() if not r.leases and not r.model.done()]
                if not in_the_way:
                    raise
                for other in in_the_way:
                    other.unwanted = True
                self._changed.wait_for(lambda: all(other.model.done() for other in in_the_way))  # noqa: B023

    def _drop_if_changed(self, spec: ModelSpec) -> None:
        """Let go of a model whose files are not what they were when it was loaded; in use, it stays until then."""
        with self._changed:
            resident = self._ledger.get(spec.key)
            if resident is None or not resident.checksum or not resident.idle:
                return
        try:
            checksum = spec.source.resolve(lambda fraction, message: None).checksum
        except UserError as error:
            log.warning("'%s' stays as it was loaded: %s", spec.key, error)
            return
        with self._changed:
            if checksum != resident.checksum and resident.idle:
                evicted = self._ledger.drop([resident], "changed files")
                self._ledger.decide("freed", spec.key, evicted, note="its files have changed")

    def _wait(self, lease: Lease, on_progress: OnProgress | None) -> object:
        """The loaded model; on the way there the caller is told every step, and that it goes on where there is none.

        So a caller that does not want it any more can raise from ``on_progress`` at any time.
        """
        started = time.monotonic()
        seen = (0.0, "")
        while True:
            with self._changed:
                if lease.resident.progress == seen and not lease.resident.model.done():
                    self._changed.wait(HEARTBEAT_SECONDS)
                resident = lease.resident
                seen = resident.progress
            if not resident.model.done():
                if on_progress:
                    on_progress(*seen)
            else:
                try:
                    model = resident.model.result()
                except Superseded:
                    continue  # an equal model was there already, to which the lease has been handed
                with self._changed:
                    self.metrics.wait_seconds += time.monotonic() - started
                    self._loader.load_ahead()
                return model

    def _end(self, lease: Lease) -> None:
        with self._changed:
            resident = lease.resident
            if lease in resident.leases:
                resident.leases.remove(lease)
            resident.last_used = time.time()
            # A load that its last waiter has given up, and that nobody expects, ends at its next step.
            resident.unwanted = not resident.leases and not set(resident.keys) & set(self._ledger.expected)
            self._loader.load_ahead()
            self._sweep_later()

    def _sweep_later(self) -> None:
        if self.idle_seconds is not None and self._sweeper is None:
            self._sweeper = threading.Timer(self.idle_seconds, self._sweep)
            self._sweeper.daemon = True
            self._sweeper.start()

    def _sweep(self) -> None:
        """Drop what nobody used for :attr:`idle_seconds`; comes again as long as there is something to drop."""
        assert self.idle_seconds is not None
        with self._changed:
            self._sweeper = None
            since = time.time() - self.idle_seconds
            unused = [r for r in self._ledger.residents() if r.idle and r.last_used <= since]
            if unused:
                evicted = self._ledger.drop(unused, "idle too long")
                self._ledger.decide("idle too long", unused[0].spec.key, evicted)
            del unused
            if self._ledger.residents():
                self._sweep_later()
        self._loader.trim()
