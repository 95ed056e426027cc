"""Evicted models in the host's memory beside an accelerator: which of them stay when there is no room for all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.eviction import value_cover
from models.ledger import Ledger
from models.resident import Resident
from tests.tiny_models import UNIT, Weights, manager_of, resident, spec_of, use


def ledger_of(budget: int, host: int) -> Ledger:
    return Ledger(torch.device("cpu"), budget, host, value_cover, lambda residents: None)


def bring_in(ledger: Ledger, key: str, size: int, seconds: float = 1.0) -> None:
    """A model that was loaded from disk in ``seconds``, and is used once."""
    ledger.make_room(key, size)
    arrived = Resident(spec_of(key, Path("nowhere")), "float32", size)
    arrived.model.set_result(Weights(1))
    ledger.seconds[key, "disk"] = seconds
    ledger.reuse.note(key)
    ledger.enter(arrived)


def on_host(ledger: Ledger) -> set[str]:
    return {item.key for item in ledger.residents() if not item.on_device}


def test_what_is_cheap_to_load_again_goes_for_what_is_not() -> None:
    ledger = ledger_of(10, 20)
    for key, seconds in (("dear", 50.0), ("cheap", 0.1), ("middle", 5.0), ("last", 1.0)):
        bring_in(ledger, key, 10, seconds)
    assert on_host(ledger) == {"dear", "middle"}
    assert ledger.decisions[-1].chosen == ("cheap",) and "on the host" in ledger.decisions[-1].sentence()


def test_a_newcomer_that_is_worth_less_than_what_is_there_goes_itself() -> None:
    ledger = ledger_of(10, 10)
    for key, seconds in (("dear", 50.0), ("cheap", 0.1), ("last", 1.0)):
        bring_in(ledger, key, 10, seconds)
    assert on_host(ledger) == {"dear"}


def test_what_a_plan_expects_stays_whatever_it_costs() -> None:
    ledger = ledger_of(10, 10)
    ledger.expected = ("cheap",)
    for key, seconds in (("cheap", 0.1), ("dear", 50.0), ("last", 1.0)):
        bring_in(ledger, key, 10, seconds)
    assert on_host(ledger) == {"cheap"}


def test_a_model_too_large_for_the_host_drives_nothing_out() -> None:
    ledger = ledger_of(30, 10)
    ledger.expected = ("large",)
    for key, size in (("small", 10), ("large", 30), ("last", 30)):
        bring_in(ledger, key, size)
    assert on_host(ledger) == {"small"}


@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0.01, 100)), max_size=12), st.integers(0, 40))
def test_neither_memory_is_ever_overfull_and_what_fits_is_kept(models: Sequence[tuple[int, float]], host: int) -> None:
    ledger = ledger_of(20, host)
    for number, (size, seconds) in enumerate(models):
        before = {item.key: item.bytes for item in ledger.residents()}
        bring_in(ledger, str(number), size, seconds)
        there = {item.key for item in ledger.residents()}
        assert ledger.used <= 20 and ledger.used_on_host <= host
        for key in before.keys() - there:
            assert before[key] > host - ledger.used_on_host, f"there was room for {key}"


def test_two_models_change_places_without_another_look_at_the_disk(tmp_path: Path) -> None:
    loads = []

    def load(folder: Path) -> Weights:
        loads.append(folder.name)
        return Weights(2)

    specs = [spec_of(key, tmp_path, 2, load=load) for key in "ab"]
    manager = manager_of(2, *specs, host_bytes=2 * UNIT)
    for _ in range(4):
        use(manager, "a", "b")
        assert sorted(resident(manager)) == ["a", "b"] and manager.used_bytes == 2 * UNIT
    assert loads == ["a", "b"]


def test_a_model_that_cannot_come_back_stays_where_it_is(tmp_path: Path) -> None:
    manager = manager_of(2, spec_of("a", tmp_path, 2), spec_of("b", tmp_path, 1), host_bytes=9 * UNIT)
    use(manager, "a")
    with manager.lease("b"):
        assert manager.used_bytes == UNIT
        with pytest.raises(Exception, match="in use: b"):
            use(manager, "a")
        assert sorted(resident(manager)) == ["a", "b"] and manager.used_bytes == UNIT
    with manager.lease("a") as model:
        assert isinstance(model, Weights)
