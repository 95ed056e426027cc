"""The one thread that brings models in, sends them to the host's memory, and gives back what dropped ones took.

Only one load at a time. Public methods are called with the lock held; what runs in the thread takes it for itself.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psutil
import torch
from threadpoolctl import threadpool_limits

from models.accounts import Kind
from models.errors import UserError
from models.eviction import Choose
from models.ledger import Evicted, Ledger
from models.licences import require_licence
from models.loading import build, first_line, is_out_of_memory, trim_heap
from models.modules import bytes_of
from models.precision import Precision
from models.quantize import bytes_at, least_bytes_at
from models.resident import Resident, Superseded, move, pinned_bytes_of
from models.sources import Files
from models.spec import ModelSpec

log = logging.getLogger(__name__)

PINNED_SHARE = 0.25  # of the machine's memory: locked pages are taken from every other program


def compute_alone() -> None:
    """Let the calling thread compute on one core from now on.

    OpenMP keeps helpers for every thread that ever computed on several. As soon as there are more of them than cores,
    those of all threads sleep between operations instead of waiting awake, and small models take twice as long.
    """
    torch.get_num_threads()  # torch sets its own number for a thread when that first asks, and would undo ours
    threadpool_limits(limits=1, user_api="openmp")


def _builds_the_same(one: ModelSpec, other: ModelSpec) -> bool:
    return (one.source, one.load) == (other.source, other.load)


class Loader:
    """Loads for the ledger that it makes. ``changed`` is notified when a load moves on or ends."""

    def __init__(
        self,
        specs: Mapping[str, ModelSpec],
        device: torch.device,
        budget_bytes: int,
        host_bytes: int,
        precisions: dict[str, Precision],
        choose: Choose,
        changed: threading.Condition,
    ) -> None:
        self.specs = specs
        self.device = device
        self.precisions = precisions
        self.ledger = Ledger(device, budget_bytes, host_bytes, choose, self._schedule_send_off)
        self._changed = changed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model-loader", initializer=compute_alone)

    def find(self, spec: ModelSpec) -> Resident | None:
        """What is in memory or on its way for ``spec``, under this key or another of the same source."""
        precision = self.precisions[spec.key]
        resident = self.ledger.get(spec.key)
        if resident is not None and resident.precision != precision and resident.idle:
            self.ledger.drop([resident], "lower precision")
            resident = None
        if resident is None:
            same = (r for r in self.ledger.residents() if _builds_the_same(r.spec, spec))
            resident = next((r for r in same if r.precision == precision), None)
            if resident is not None:
                self.ledger.name(resident, spec.key)
        return resident

    def start(self, spec: ModelSpec, *, ahead: bool) -> Resident:
        """Make room and begin to load. Raises :class:`UserError` if there is no room to be had."""
        need = self._size(spec.key) if ahead else self._claim(spec.key)
        evicted = self.ledger.make_room(spec.key, need, self._coming(spec))
        resident = Resident(spec, self.precisions[spec.key], need, ahead=ahead)
        self.ledger.enter(resident)
        self._thread.submit(self._load, resident, evicted)
        return resident

    def bring_back(self, resident: Resident) -> None:
        """From the host's memory to the device again. Raises as :meth:`start`."""
        there = resident.model
        resident.return_to_device()  # first, so that it leaves the host's room to what goes for it
        try:
            evicted = self.ledger.settle(resident, resident.bytes, self._coming(resident.spec))
        except UserError:
            resident.on_device, resident.model = False, there
            raise
        self._thread.submit(self._bring, resident, there.result(), evicted)

    def load_ahead(self) -> None:
        """Begin with the next expected model, if the thread is free and nothing that is needed would have to go."""
        if any(not resident.model.done() for resident in self.ledger.residents()):
            return
        for key in self.ledger.expected:
            resident = self.find(self.specs[key])
            if (resident is not None and resident.on_device) or key in self.ledger.failed_ahead:
                continue
            if resident is None and self.ledger.fits_without_harm(self._size(key)):
                self.start(self.specs[key], ahead=True)
            elif resident is not None and self.ledger.fits_without_harm(resident.bytes):
                resident.ahead = True
                self.bring_back(resident)
            return

    def trim(self) -> None:
        """Give back what dropped models took. Called without the lock, by whoever dropped them."""
        with self._changed:
            dropped = self.ledger.take_dropped()
        trim_heap(self.device, dropped)

    def _coming(self, after: ModelSpec) -> list[int]:
        """Bytes of the expected models that are still to be brought in ``after`` this one, soonest first."""
        coming = [after]
        here = [resident.spec for resident in self.ledger.residents() if resident.on_device]
        for spec in (self.specs[key] for key in self.ledger.expected):
            if not any(_builds_the_same(spec, other) for other in (*here, *coming)):
                coming.append(spec)
        return [self._size(spec.key) for spec in coming[1:]]

    def _size(self, key: str) -> int:
        """Bytes that the model took when it was last loaded, else about what it will take."""
        precision = self.precisions[key]
        return self.ledger.sizes.get((key, precision)) or bytes_at(self.specs[key].bytes, precision)

    def _claim(self, key: str) -> int:
        """As :meth:`_size`, but all the room that can be had for a model that would never be let in otherwise.

        What is thought of a model that was never loaded is rather too much; once it is built, it is weighed.
        """
        size, budget = self._size(key), self.ledger.budget_bytes
        known = (key, self.precisions[key]) in self.ledger.sizes
        least, room = least_bytes_at(self.specs[key].bytes, self.precisions[key]), budget - self.ledger.in_use
        return room if size > budget and not known and least <= room else size

    # ------------------------------------------------------------------------------------------- in the thread

    def _load(self, resident: Resident, evicted: Evicted) -> None:
        """Fetch, build, move and weigh; whoever waits gets the model or the error."""
        model: object = None
        left_pieces = False
        try:
            started = time.perf_counter()
            self._raise_if_unwanted(resident)
            require_licence(resident.spec)
            files = resident.spec.source.resolve(partial(self._report, resident))
            resolved, modules = time.perf_counter(), len(sys.modules)
            self._hand_over_to_equal(resident, files.checksum)
            self._report(resident, 1.0, f"Loading {resident.key}")
            model = self._built(resident, files)
            with self._changed:
                more = self._settle(resident, bytes_of(model))
                resident.checksum = files.checksum
                evicted = Evicted(
                    evicted.candidates or more.candidates, evicted.chosen + more.chosen, evicted.bytes + more.bytes
                )
                ended = time.perf_counter()
                if len(sys.modules) == modules:  # else it waited for imports, which the next load need not
                    self.ledger.seconds[resident.key, "disk"] = ended - resolved
                self._arrived(resident, model, ended - started, evicted)
        except BaseException as error:
            left_pieces = model is not None or not isinstance(error, Superseded)
            # This frame and those of the failed load would hold its weights for as long as somebody holds the error.
            model = None
            traceback.clear_frames(error.__traceback__)
            with self._changed:
                if not isinstance(error, Superseded):
                    self.ledger.metrics.failures += 1
                    self.ledger.decide("failed", resident.key, evicted, note=first_line(error))
                    if resident.ahead:
                        self.ledger.failed_ahead.update(resident.keys)
                self._fail(resident, error)
        if left_pieces:
            trim_heap(self.device)
        with self._changed:
            self.load_ahead()

    def _built(self, resident: Resident, files: Files) -> object:
        """Build once more after dropping what is idle, if memory runs out the first time for a model that is needed."""
        try:
            return build(resident.spec, files, resident.precision, self.device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            said = first_line(error)
        if resident.ahead:
            raise Superseded
        log.warning("memory ran out while loading '%s'", resident.key)
        with self._changed:
            self.ledger.relieve(resident.key, said)
        trim_heap(self.device)
        try:
            return build(resident.spec, files, resident.precision, self.device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            with self._changed:
                holders = self.ledger.largest_holders(resident)
                raise self.ledger.out_of_memory(f"loading '{resident.key}'", resident.bytes, holders) from error

    def _settle(self, resident: Resident, measured: int) -> Evicted:
        """Put what the model takes into the accounts; one ahead of its turn ends here if something would have to go."""
        self.ledger.sizes[resident.key, resident.precision] = measured
        if resident.ahead and not self.ledger.fits_without_harm(measured - resident.bytes):
            raise Superseded
        return self.ledger.settle(resident, measured, self._coming(resident.spec))

    def _hand_over_to_equal(self, resident: Resident, checksum: str) -> None:
        """If an equal model, by files, loader and precision, is there already, it takes over the leases and names."""
        with self._changed:
            equals = (o for o in self.ledger.residents() if o.model.done() and o.equals(resident, checksum))
            other = next(equals, None)
            if other is not None:
                if resident.leases and not other.on_device:
                    self.bring_back(other)
                self.ledger.forget(resident)
                for key in resident.keys:
                    self.ledger.name(other, key)
                for lease in resident.leases:
                    lease.resident = other
                other.leases += resident.leases
                resident.leases = []
                self.ledger.decide("shared", resident.key, note=f"its files are those of {other.key}")
                raise Superseded
        self._raise_if_unwanted(resident)

    def _raise_if_unwanted(self, resident: Resident) -> None:
        with self._changed:
            if resident.unwanted and not resident.leases:
                raise Superseded

    def _report(self, resident: Resident, fraction: float, message: str) -> None:
        with self._changed:
            resident.progress = (fraction, message)
            self._changed.notify_all()
        self._raise_if_unwanted(resident)  # a fetch that nobody waits for any more ends between two reports

    def _bring(self, resident: Resident, model: object, evicted: Evicted) -> None:
        try:
            started = time.perf_counter()
            move(model, self.device)
            with self._changed:
                resident.pinned_bytes = 0
                seconds = self.ledger.seconds[resident.key, "host"] = time.perf_counter() - started
                self._arrived(resident, model, seconds, evicted)
        except BaseException as error:
            with self._changed:
                self.ledger.metrics.failures += 1
                self.ledger.decide("failed", resident.key, evicted, note=first_line(error))
                self._fail(resident, error)
        with self._changed:
            self.load_ahead()

    def _arrived(self, resident: Resident, model: object, seconds: float, evicted: Evicted) -> None:
        metrics = self.ledger.metrics
        resident.seconds_to_load = seconds
        metrics.loads += not resident.ahead
        metrics.prefetches += resident.ahead
        metrics.load_seconds += seconds
        metrics.bytes_moved["host" if self.device.type == "cpu" else "accelerator"] += resident.bytes
        kind: Kind = "prefetch" if resident.ahead else "load"
        self.ledger.decide(kind, resident.key, evicted, need=resident.bytes, seconds=seconds)
        resident.model.set_result(model)
        self._changed.notify_all()

    def _fail(self, resident: Resident, error: BaseException) -> None:
        """End the load in the same breath in which nobody can lease it any more; a late lease starts it anew."""
        if isinstance(error, Superseded) and resident.leases:
            resident.ahead = resident.unwanted = False
            self._thread.submit(self._load, resident, Evicted())
            return
        self.ledger.forget(resident)
        resident.model.set_exception(error)
        self._changed.notify_all()

    def _schedule_send_off(self, evicted: Sequence[Resident]) -> None:
        self._thread.submit(self._send_off, evicted)

    def _send_off(self, evicted: Sequence[Resident]) -> None:
        """Ahead of the load that wants the room: move models to the host, give back what dropped ones took."""
        for resident in evicted:
            with self._changed:
                if resident.on_device or self.ledger.get(resident.key) is not resident:
                    continue  # asked for again meanwhile, or dropped
                model = resident.model.result()
                pinned = self._pinned(resident, pinned_bytes_of(model))
            try:
                move(model, torch.device("cpu"), pinned=pinned > 0)
            except (UserError, RuntimeError, MemoryError) as error:
                log.warning("'%s' could not be kept in the host's memory: %s", resident.key, first_line(error))
                with self._changed:
                    self.ledger.drop([resident], "no room on the host")
                continue
            with self._changed:
                resident.pinned_bytes = pinned
                self.ledger.metrics.bytes_moved["pinned" if pinned else "host"] += resident.bytes
        self.trim()

    def _pinned(self, resident: Resident, need: int) -> int:
        """``need``, the bytes of pinned memory for the resident, if it may lie there, else 0."""
        held = sum(other.pinned_bytes for other in self.ledger.residents())
        fits = held + need <= PINNED_SHARE * psutil.virtual_memory().total
        fits_host = self.ledger.used_on_host - resident.bytes_on_host + need <= self.ledger.host_bytes
        return need if self.device.type == "cuda" and fits and fits_host else 0
