"""The model manager's books: what is in memory, what may take how much, who goes when another needs room, and why.

Nothing here loads or waits; the manager holds its lock around every call.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import NamedTuple
from weakref import ref

import torch
from torch import nn

from models.accounts import Candidate, Decision, Kind, Metrics, readable_bytes
from models.errors import OutOfMemory, UserError
from models.eviction import Choose, Reuse, expected_reload_seconds
from models.modules import watched
from models.precision import Precision
from models.resident import Resident

log = logging.getLogger(__name__)

DECISIONS_KEPT = 200


class Evicted(NamedTuple):
    """What there was to choose from, what went, and its bytes."""

    candidates: tuple[Candidate, ...] = ()
    chosen: tuple[str, ...] = ()
    bytes: int = 0


NOTHING = Evicted()


class Ledger:
    """The books of one device.

    ``send_off(residents)`` is called with those that were evicted to the host's memory, an empty list if all were
    dropped; by then the accounts have it already.
    """

    def __init__(
        self,
        device: torch.device,
        budget_bytes: int,
        host_bytes: int,
        choose: Choose,
        send_off: Callable[[Sequence[Resident]], None],
    ) -> None:
        self.device = device
        self.budget_bytes = budget_bytes
        self.host_bytes = host_bytes
        self.reserved = 0  # bytes that running work needs beside weights
        self.expected: tuple[str, ...] = ()  # keys that queued plans will lease, soonest first
        self.reuse = Reuse()
        self.seconds: dict[tuple[str, str], float] = {}  # a reload's, by key and the tier that it started from
        self.sizes: dict[tuple[str, Precision], int] = {}  # measured, by key and precision
        self.failed_ahead: set[str] = set()  # not to be tried again before somebody wants them
        self.metrics = Metrics()
        self.decisions: deque[Decision] = deque(maxlen=DECISIONS_KEPT)
        self._by_key: dict[str, Resident] = {}  # several keys may share one
        self._dropped: list[ref[nn.Module]] = []
        self._choose = choose
        self._send_off = send_off

    # ------------------------------------------------------------------------------------------- who is there

    def residents(self) -> list[Resident]:
        return list(dict.fromkeys(self._by_key.values()))

    def get(self, key: str) -> Resident | None:
        return self._by_key.get(key)

    def enter(self, resident: Resident) -> None:
        self._by_key[resident.key] = resident
        self._high_water()

    def name(self, resident: Resident, key: str) -> None:
        """Let ``key`` be one more name of the resident."""
        self._by_key[key] = resident
        resident.keys.append(key)

    def forget(self, resident: Resident) -> None:
        for key in resident.keys:
            if self._by_key.get(key) is resident:
                del self._by_key[key]

    def forget_dead_holders(self) -> None:
        """End the leases of threads that ended without ending them, and say whose they were."""
        for resident in self.residents():
            for lease in [lease for lease in resident.leases if not lease.thread.is_alive()]:
                log.warning("the thread '%s' ended without giving back the model '%s'", lease.owner, resident.key)
                resident.leases.remove(lease)

    # ------------------------------------------------------------------------------------------- bytes

    @property
    def used(self) -> int:
        """Bytes on the device, with models on their way there as expected."""
        return sum(resident.bytes for resident in self.residents() if resident.on_device)

    @property
    def used_on_host(self) -> int:
        """Bytes of evicted models beside an accelerator."""
        return sum(resident.bytes_on_host for resident in self.residents() if not resident.on_device)

    @property
    def traffic(self) -> int:
        """How many models have come and gone."""
        return self.metrics.loads + self.metrics.prefetches + self.metrics.evictions.total()

    @property
    def in_use(self) -> int:
        """Bytes of models that cannot go: leased, or loading."""
        return sum(resident.bytes for resident in self.residents() if resident.on_device and not resident.idle)

    def by_device(self) -> dict[str, int]:
        held = {str(self.device): self.used}
        if self.host_bytes:
            held["host"] = self.used_on_host
        return held

    def fits_without_harm(self, need: int) -> bool:
        """Whether ``need`` bytes could be had from free room and models that nobody uses or expects."""
        useless = sum(item.bytes for item in self.candidates() if item.key not in self.expected)
        return need <= self.budget_bytes - self.reserved - self.used + useless

    def reserve(self, operation: str, need: int, keys: Collection[str]) -> int:
        """Keep up to ``need`` bytes free for work beside weights; returns how many could be kept.

        ``keys``: the models that the work itself is going to lease, which do not go for it.
        """
        own = sum(r.bytes for r in self.residents() if r.idle and r.on_device and set(r.keys) & set(keys))
        need = min(need, max(0, self.budget_bytes - self.reserved - self.in_use - own))
        self.reserved += need
        short = self.used + self.reserved - self.budget_bytes
        if short > 0:
            self.decide("made room", operation, self._evict(short, "room for work"), need=need)
        return need

    def make_room(self, key: str, need: int, soon: Sequence[int] = ()) -> Evicted:
        """Evict idle models until ``need`` bytes fit; none at all if they cannot: then it raises :class:`UserError`.

        ``soon``: bytes of the models that come after it, next one first, which the choice has in view.
        """
        self.forget_dead_holders()
        if self.in_use + need > self.budget_bytes:
            self.decide("refused", key, need=need)
            raise self._too_big(key, need)
        # Work in progress keeps its reserve where it can; models that are leased or expected come first.
        awaited = sum(item.bytes for item in self.candidates() if item.key in self.expected)
        reserved = max(0, min(self.reserved, self.budget_bytes - self.in_use - need - awaited))
        short = self.used + reserved + need - self.budget_bytes
        return self._evict(short, "room for a model", soon) if short > 0 else NOTHING

    def settle(self, resident: Resident, measured: int, soon: Sequence[int] = ()) -> Evicted:
        """Replace what was expected of a model in the accounts by what it takes; ``soon`` as in :meth:`make_room`."""
        expected, resident.bytes = resident.bytes, 0
        try:
            evicted = self.make_room(resident.key, measured, soon)
        except UserError:
            resident.bytes = expected
            raise
        resident.bytes = measured
        self._high_water()
        return evicted

    def relieve(self, what: str, said: str) -> int:
        """Drop the idle models that nobody expects, or all of them if there are none; returns their bytes."""
        idle = [resident for resident in self.residents() if resident.idle]
        useless = [resident for resident in idle if not set(resident.keys) & set(self.expected)]
        self.metrics.out_of_memory += 1
        evicted = self.drop(useless or idle, "out of memory")
        self.decide("out of memory", what, evicted, note=said)
        return evicted.bytes

    def drop(self, gone: Sequence[Resident], reason: str) -> Evicted:
        """Let go of idle models altogether."""
        for resident in gone:
            self.forget(resident)
            self._dropped += watched(resident.model.result())
        self.metrics.evictions[reason] += len(gone)
        return Evicted((), tuple(resident.key for resident in gone), sum(resident.bytes for resident in gone))

    def take_dropped(self) -> list[ref[nn.Module]]:
        """The parts of the models that were dropped since this was last asked."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def _evict(self, short: int, reason: str, soon: Sequence[int] = ()) -> Evicted:
        """Give up idle models for ``short`` bytes: to the host's memory, which gives up what is worth least there."""
        candidates = self.candidates()
        # One large model may go for all that comes, where several small ones would go for one after another.
        room = sum(item.bytes for item in candidates if item.key not in self.expected)
        together = max((total for total in accumulate(soon, initial=short) if total <= room), default=short)
        going = self._choose(self._choose(candidates, together, self.expected), short, self.expected)
        gone = [self._by_key[item.key] for item in going]
        for resident in gone:
            resident.on_device = False
        lost = self._too_much_for_the_host()
        kept = [resident for resident in gone if resident not in lost]
        self.metrics.evictions[reason] += len(kept)
        self.drop([resident for resident in gone if resident in lost], reason)
        replaced = self.drop([resident for resident in lost if resident not in gone], "room on the host")
        if replaced.chosen:
            self.decide("made room", "evicted models", replaced, need=sum(r.bytes for r in kept), note="on the host")
        self._send_off(kept)
        return Evicted(tuple(candidates), tuple(r.key for r in gone), sum(r.bytes for r in gone))

    def _too_much_for_the_host(self) -> list[Resident]:
        """Of the evicted models, those that have to go altogether; all of them where the host is the device."""
        over = self.used_on_host - self.host_bytes
        if over <= 0:
            return []
        evicted = [resident for resident in self.residents() if not resident.on_device]
        candidates = [self._candidate(resident, resident.bytes_on_host, "disk") for resident in evicted]
        return [self._by_key[item.key] for item in self._choose(candidates, over, self.expected)]

    # ------------------------------------------------------------------------------------------- values and words

    def candidates(self) -> list[Candidate]:
        """Idle models on the device."""
        idle = [resident for resident in self.residents() if resident.idle and resident.on_device]
        origin = "host" if self.host_bytes else "disk"
        return [self._candidate(resident, resident.bytes, origin) for resident in idle]

    def _candidate(self, resident: Resident, size: int, origin: str) -> Candidate:
        """Under the name by which a plan expects it, if one does. ``origin``: the tier that it would come back from."""
        name = next((key for key in resident.keys if key in self.expected), resident.key)
        seconds = expected_reload_seconds(resident.bytes, self.seconds.get((resident.key, origin)))
        rate = sum(self.reuse.rate(key) for key in resident.keys)
        return Candidate(name, size, seconds * rate, resident.last_used)

    def decide(
        self, kind: Kind, key: str, evicted: Evicted = NOTHING, *, need: int = 0, seconds: float = 0.0, note: str = ""
    ) -> None:
        """Keep a record of a decision."""
        room = max(0, self.budget_bytes - self.in_use)
        self.decisions.append(Decision(kind, key, need, room, *evicted, seconds, note))

    def out_of_memory(self, what: str, need: int | None, held: Sequence[tuple[int, str]]) -> UserError:
        """Memory ran out in ``what``, which needs ``need`` bytes if that is known, beside models of these sizes."""
        needs = f"it needs {readable_bytes(need)}" if need is not None else "what it needs was never measured"
        budget, holders = readable_bytes(self.budget_bytes), _listed(held) or "none"
        return OutOfMemory(
            f"Memory ran out in {what}: {needs}, the memory budget is {budget}, models in use: {holders}.",
            "Close other programs, ask for less at once, or choose a smaller precision.",
        )

    def sizes_of(self, keys: Collection[str]) -> list[tuple[int, str]]:
        """Bytes and name of each of these models, as last measured."""
        return [(size, name) for (name, _), size in self.sizes.items() if name in keys]

    def largest_holders(self, but: Resident | None = None) -> list[tuple[int, str]]:
        """Bytes and name of what cannot go, ``but`` for one."""
        return [(r.bytes, r.key) for r in self.residents() if not r.idle and r is not but and r.bytes]

    def _too_big(self, key: str, need: int) -> UserError:
        budget = readable_bytes(self.budget_bytes)
        sentence = f"The model '{key}' needs {readable_bytes(need)}, and the memory budget is {budget}"
        if need > self.budget_bytes:
            return UserError(f"{sentence}.", "Raise the memory budget, or use smaller models: the lite profile.")
        return UserError(
            f"{sentence}, of which these are in use: {_listed(self.largest_holders())}.",
            "Wait until they are free, or raise the budget.",
        )

    def _high_water(self) -> None:
        self.metrics.high_water_bytes = max(self.metrics.high_water_bytes, self.used)


def _listed(held: Sequence[tuple[int, str]]) -> str:
    """The three largest."""
    return ", ".join(f"{name} with {readable_bytes(size)}" for size, name in sorted(held, reverse=True)[:3])
