"""Brings in the models that a run needs and keeps them within a memory budget.

``with manager.lease(key) as model:`` is the only way to a model. A leased model is never evicted; of the others those
go whose loss is expected to cost the fewest seconds (``eviction.py``). Given the keys that queued plans will ask for
(:meth:`ModelManager.expect`), it keeps those longest and loads the next of them while the current step computes. Equal
files in equal precision are one model, whatever they are called. Beside an accelerator, models that have to go stay in
the host's memory while there is room. Every decision is kept, with what there was to choose from (``ledger.py``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import psutil
import torch

from models.accounts import Decision, Freed, Kind, Metrics, ModelStatus
from models.catalog import ModelSpec
from models.errors import UserError
from models.eviction import Choose, value_cover
from models.ledger import Evicted, Ledger
from models.licences import require_licence
from models.loading import build, first_line, is_out_of_memory, trim_heap
from models.machine import compute_dtype
from models.modules import bytes_of
from models.quantize import PRECISIONS, Precision, bytes_at
from models.records import ModelRecord
from models.resident import Lease, Resident, Superseded, move
from models.sources import Files, OnProgress
from models.working_memory import Work, WorkingMemory

log = logging.getLogger(__name__)

PINNED_SHARE = 0.25  # of the machine's memory: locked pages are taken from every other program


class ModelManager:
    """Leases of the models in ``specs``, which together take at most ``budget_bytes`` on ``device``. Thread-safe.

    ``precisions``: of each model, float32 where none is given; ``may_lower_precision``: when memory runs out;
    ``host_bytes``: what evicted models may take of the host's memory beside an accelerator; ``idle_seconds``: after
    which an unused model goes by itself; ``choose``: who goes when room is needed.
    """

    def __init__(
        self,
        specs: Mapping[str, ModelSpec],
        device: torch.device,
        budget_bytes: int,
        *,
        precisions: Mapping[str, Precision] | None = None,
        may_lower_precision: bool = False,
        host_bytes: int = 0,
        idle_seconds: float | None = None,
        choose: Choose = value_cover,
    ) -> None:
        self.specs = dict(specs)
        self.device = device
        self.dtype = compute_dtype(device)
        self.idle_seconds = idle_seconds
        self.may_lower_precision = may_lower_precision
        self.precisions: dict[str, Precision] = {key: (precisions or {}).get(key, "float32") for key in specs}
        self.working_memory = WorkingMemory(device)
        # One load at a time: transformers and diffusers patch torch's global state while they build a model.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="model-loader")
        self._changed = threading.Condition()  # guards the ledger; notified when a load moves on or ends
        self._ledger = Ledger(device, budget_bytes, host_bytes, choose, self._schedule_send_off)

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
    def working(self, work: Work) -> Iterator[None]:
        """Keep free what ``work`` is known to need beside weights, and measure what it really takes."""
        with self._changed:
            reserved = self._ledger.reserve(work.operation, self.working_memory.expected(work) or 0)
            before = self._ledger.used
        try:
            with self.working_memory.measured(work) as loaded:
                yield
                loaded.append(self.used_bytes - before)
        finally:
            with self._changed:
                self._ledger.reserved -= reserved

    def expect(self, keys: Sequence[str]) -> None:
        """What queued plans will lease, soonest first; replaces what was expected before.

        The first of them that is not in memory is loaded ahead, into room that nothing in use or expected needs.
        """
        with self._changed:
            self._ledger.expected = tuple(dict.fromkeys(key for key in keys if key in self.specs))
            for resident in self._ledger.residents():
                # The loader looks at this between its steps.
                resident.unwanted = resident.ahead and not set(resident.keys) & set(self._ledger.expected)
            self._load_ahead()

    def relieve(self, error: BaseException) -> int:
        """After an allocation failed: drop everything that is not in use; returns the bytes of it."""
        with self._changed:
            self.metrics.out_of_memory += 1
            evicted = self._ledger.drop([r for r in self._ledger.residents() if r.idle], "out of memory")
            self._ledger.decide("out of memory", "a run", evicted, note=first_line(error))
        trim_heap(self.device)
        return evicted.bytes

    def out_of_memory(self, work: Work) -> UserError:
        """What to tell the user when ``work`` cannot be done in this machine's memory."""
        with self._changed:
            return self._ledger.out_of_memory(work.operation, self.working_memory.expected(work))

    def lower_precision(self) -> bool:
        """Load models in the next smaller precision from now on; ``False`` if that may not be, or cannot."""
        if not self.may_lower_precision:
            return False
        with self._changed:
            before = dict(self.precisions)
            for key, precision in before.items():
                smaller = (p for p in PRECISIONS if bytes_at(1000, p) < bytes_at(1000, precision))
                self.precisions[key] = next(smaller, precision)
            evicted = self._ledger.drop([r for r in self._ledger.residents() if r.idle], "lower precision")
            note = f"from now on models are held as {', '.join(sorted(set(self.precisions.values())))}"
            self._ledger.decide("out of memory", "a run", evicted, note=note)
            return self.precisions != before

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

    def free(self, key: str | None = None) -> Freed:
        """Drop a model, or with ``None`` every one that is not in use, from all memory, before this returns.

        Raises :class:`UserError` for an unknown key and for a model in use.
        """
        if key is not None:
            self._spec(key)
        with self._changed:
            self._ledger.forget_dead_holders()
            before = self._ledger.by_device()
            wanted = [r for r in self._ledger.residents() if key is None or key in r.keys]
            kept = tuple(resident.key for resident in wanted if not resident.idle)
            if key is not None and kept:
                raise UserError(f"The model '{key}' is in use.", "Wait until the generation is done, or stop it.")
            evicted = self._ledger.drop([resident for resident in wanted if resident.idle], "freed")
            if evicted.chosen:
                self._ledger.decide("freed", key or "", evicted)
            after = self._ledger.by_device()
            del wanted
        trim_heap(self.device)
        return Freed(before, after, kept)

    # ------------------------------------------------------------------------------------------- leases

    def _spec(self, key: str) -> ModelSpec:
        if key not in self.specs:
            raise UserError(f"There is no model called {key[:60]!r}.", f"Choose one of: {', '.join(self.specs)}.")
        return self.specs[key]

    def _enter(self, key: str) -> Lease:
        """Count one more lease of the model, and start its load if nobody has."""
        spec = self._spec(key)
        with self._changed:
            self._ledger.reuse.note(key)
            resident = self._ready_for(spec)
            hit = resident is not None and resident.model.done() and resident.on_device
            self.metrics.hits += hit
            self.metrics.misses += not hit
            if resident is None:
                resident = self._start(spec, ahead=False)
            elif resident.ahead:
                self.metrics.prefetch_hits += 1
                resident.ahead = False
            if not resident.on_device:
                self._bring_back(resident)
            lease = Lease(resident, threading.current_thread())
            resident.leases.append(lease)
            resident.last_used = time.time()
            return lease

    def _drop_if_changed(self, spec: ModelSpec) -> None:
        """Let go of a model whose files are not what they were when it was loaded; in use, it stays until then."""
        with self._changed:
            resident = self._ledger.get(spec.key)
            if resident is None or not resident.checksum or not resident.idle:
                return
        if spec.source.resolve(lambda fraction, message: None).checksum != resident.checksum:
            with self._changed:
                if resident.idle:
                    note = "its files have changed"
                    self._ledger.decide("freed", spec.key, self._ledger.drop([resident], "changed files"), note=note)

    def _ready_for(self, spec: ModelSpec) -> Resident | None:
        """What is in memory or on its way for ``spec``, under this key or another of the same source."""
        precision = self.precisions[spec.key]
        resident = self._ledger.get(spec.key)
        if resident is not None and resident.precision != precision and resident.idle:
            self._ledger.drop([resident], "lower precision")
            resident = None
        if resident is None:
            same = (r for r in self._ledger.residents() if (r.spec.source, r.spec.load) == (spec.source, spec.load))
            resident = next((r for r in same if r.precision == precision), None)
            if resident is not None:
                self._ledger.name(resident, spec.key)
        return resident

    def _wait(self, lease: Lease, on_progress: OnProgress | None) -> object:
        """The loaded model; on the way there every step of the load is shown to the caller."""
        started = time.monotonic()
        seen = (0.0, "")
        while True:
            with self._changed:
                while lease.resident.progress == seen and not lease.resident.model.done():
                    self._changed.wait()
                resident = lease.resident
                new, seen = resident.progress != seen, resident.progress
            if new and on_progress and not resident.model.done():
                on_progress(*seen)
            elif resident.model.done():
                try:
                    model = resident.model.result()
                except Superseded:
                    continue  # an equal model was there already, to which the lease has been handed
                with self._changed:
                    self.metrics.wait_seconds += time.monotonic() - started
                    self._load_ahead()
                return model

    def _end(self, lease: Lease) -> None:
        with self._changed:
            resident = lease.resident
            if lease in resident.leases:
                resident.leases.remove(lease)
            resident.last_used = time.time()
            self._load_ahead()
            if self.idle_seconds is not None and resident.idle:
                timer = threading.Timer(self.idle_seconds, self._drop_if_unused, [resident.key, resident.last_used])
                timer.daemon = True
                timer.start()

    def _drop_if_unused(self, key: str, since: float) -> None:
        with self._changed:
            resident = self._ledger.get(key)
            if resident is None or not resident.idle or resident.last_used != since:
                return
            self._ledger.decide("idle too long", key, self._ledger.drop([resident], "idle too long"))
            del resident
        trim_heap(self.device)

    # ------------------------------------------------------------------------------------------- loads

    def _start(self, spec: ModelSpec, *, ahead: bool) -> Resident:
        precision = self.precisions[spec.key]
        need = bytes_at(spec.bytes, precision)
        evicted = self._ledger.make_room(spec.key, need)
        resident = Resident(spec, precision, need, ahead=ahead)
        self._ledger.enter(resident)
        self._loader.submit(self._load, resident, evicted)
        return resident

    def _load(self, resident: Resident, evicted: Evicted) -> None:
        """In the loader's thread: fetch, build, move and weigh; whoever waits gets the model or the error."""
        try:
            if self._given_up(resident):
                return
            started = time.perf_counter()
            require_licence(resident.spec)
            files = resident.spec.source.resolve(partial(self._report, resident))
            if self._merged(resident, files.checksum) or self._given_up(resident):
                return
            self._report(resident, 1.0, f"Loading {resident.key}")
            model = self._built(resident, files)
            with self._changed:
                more = self._ledger.settle(resident, bytes_of(model))
                resident.checksum = files.checksum
                evicted = Evicted(
                    evicted.candidates or more.candidates, evicted.chosen + more.chosen, evicted.bytes + more.bytes
                )
                self._arrived(resident, model, "disk", time.perf_counter() - started, evicted)
                self._load_ahead()
        except BaseException as error:
            with self._changed:
                self.metrics.failures += 1
                self._ledger.decide("failed", resident.key, note=first_line(error))
                if resident.ahead:  # not to be tried again and again before somebody wants it
                    self._ledger.expected = tuple(k for k in self._ledger.expected if k not in resident.keys)
                self._fail(resident, error)

    def _built(self, resident: Resident, files: Files) -> object:
        """Build once more after dropping what is idle, if memory runs out the first time."""
        try:
            return build(resident.spec, files, resident.precision, self.device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("memory ran out while loading '%s'", resident.key)
            self.relieve(error)
        try:
            return build(resident.spec, files, resident.precision, self.device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            with self._changed:
                raise self._ledger.out_of_memory(f"loading '{resident.key}'", resident.bytes) from error

    def _arrived(self, resident: Resident, model: object, origin: str, seconds: float, evicted: Evicted) -> None:
        resident.seconds_to_load = self._ledger.seconds[resident.key, origin] = seconds
        self.metrics.loads += not resident.ahead
        self.metrics.prefetches += resident.ahead
        self.metrics.load_seconds += seconds
        self.metrics.bytes_moved["host" if self.device.type == "cpu" else "accelerator"] += resident.bytes
        kind: Kind = "prefetch" if resident.ahead else "load"
        self._ledger.decide(kind, resident.key, evicted, need=resident.bytes, seconds=seconds)
        resident.model.set_result(model)
        self._changed.notify_all()

    def _fail(self, resident: Resident, error: BaseException) -> None:
        self._ledger.forget(resident)
        resident.model.set_exception(error)
        self._changed.notify_all()

    def _merged(self, resident: Resident, checksum: str) -> bool:
        """Whether an equal model, by files, loader and precision, is there already; it then takes over the leases."""
        with self._changed:
            equals = (o for o in self._ledger.residents() if o.model.done() and o.equals(resident, checksum))
            other = next(equals, None)
            if other is None:
                return False
            self._ledger.forget(resident)
            for key in resident.keys:
                self._ledger.name(other, key)
            for lease in resident.leases:
                lease.resident = other
            other.leases += resident.leases
            resident.keys, resident.leases = [], []
            if not other.on_device:
                self._bring_back(other)
            self._fail(resident, Superseded())
            return True

    def _given_up(self, resident: Resident) -> bool:
        """Whether a load ahead of its turn is wanted by nobody any more; it then ends here."""
        with self._changed:
            if not resident.unwanted or resident.leases:
                return False
            self._fail(resident, Superseded())
            return True

    def _load_ahead(self) -> None:
        """Start loading the next expected model, if the loader is free and nothing that is needed would have to go."""
        if any(not resident.model.done() for resident in self._ledger.residents()):
            return
        for key in self._ledger.expected:
            if self._ready_for(self.specs[key]) is None:
                if self._ledger.fits_without_harm(bytes_at(self.specs[key].bytes, self.precisions[key])):
                    self._start(self.specs[key], ahead=True)
                return

    def _bring_back(self, resident: Resident) -> None:
        """From the host's memory to the device again."""
        evicted = self._ledger.make_room(resident.key, resident.bytes)
        model = resident.model.result()
        resident.return_to_device()
        self._loader.submit(self._bring, resident, model, evicted)

    def _bring(self, resident: Resident, model: object, evicted: Evicted) -> None:
        try:
            started = time.perf_counter()
            move(model, self.device)
            with self._changed:
                self._arrived(resident, model, "host", time.perf_counter() - started, evicted)
        except BaseException as error:
            with self._changed:
                self._fail(resident, error)

    def _schedule_send_off(self, evicted: Sequence[Resident]) -> None:
        self._loader.submit(self._send_off, evicted)

    def _send_off(self, evicted: Sequence[Resident]) -> None:
        """In the loader's thread, ahead of the load that wants the room: move models to the host's memory, and give
        back the memory of those that were dropped."""
        for resident in evicted:
            with self._changed:
                pinned = sum(r.bytes for r in self._ledger.residents() if r.pinned and not r.on_device)
                allowed = PINNED_SHARE * psutil.virtual_memory().total
                resident.pinned = self.device.type == "cuda" and pinned + resident.bytes <= allowed
                self.metrics.bytes_moved["pinned" if resident.pinned else "host"] += resident.bytes
            if not resident.on_device:  # it may have been asked for again meanwhile
                move(resident.model.result(), torch.device("cpu"), pinned=resident.pinned)
        trim_heap(self.device)

    def _report(self, resident: Resident, fraction: float, message: str) -> None:
        with self._changed:
            resident.progress = (fraction, message)
            self._changed.notify_all()
