"""The books: whose room is taken when more than one model is about to come."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import UserError
from models.eviction import value_cover
from models.ledger import Ledger
from models.resident import Resident
from tests.tiny_models import CPU, Weights, spec_of


def ledger_of(budget: int, *models: tuple[str, int, float]) -> Ledger:
    """With idle models of that size, that take so many seconds to load, each used once."""
    ledger = Ledger(CPU, budget, 0, value_cover, lambda residents: None)
    for key, size, seconds in models:
        there = Resident(spec_of(key, Path("nowhere")), "float32", size)
        there.model.set_result(Weights(1))
        ledger.seconds[key, "disk"] = seconds
        ledger.enter(there)
    for key, _, _ in models:
        ledger.reuse.note(key)
    return ledger


def keys(ledger: Ledger) -> set[str]:
    return {resident.key for resident in ledger.residents()}


SMALL_AND_LARGE = (("small 1", 10, 1.0), ("small 2", 10, 1.0), ("small 3", 10, 1.0), ("large", 30, 2.5))


def test_one_large_model_goes_for_all_that_comes_instead_of_small_ones_one_by_one() -> None:
    alone = ledger_of(60, *SMALL_AND_LARGE)
    alone.make_room("first", 10)
    assert "large" in keys(alone) and len(keys(alone)) == 3
    together = ledger_of(60, *SMALL_AND_LARGE)
    together.make_room("first", 10, soon=[10, 10])
    assert keys(together) == {"small 1", "small 2", "small 3"}


def test_uses_under_all_its_names_make_a_model_worth_keeping() -> None:
    ledger = ledger_of(10, ("shared", 5, 1.0), ("single", 5, 1.0))
    shared = next(resident for resident in ledger.residents() if resident.key == "shared")
    ledger.name(shared, "alias")
    for key in ("shared", "single", "alias", "single", "shared", "single", "alias"):
        ledger.reuse.note(key)
    value = {candidate.key: candidate.value for candidate in ledger.candidates()}
    assert value["shared"] > value["single"]


def test_what_comes_later_takes_nothing_by_itself() -> None:
    ledger = ledger_of(100, *SMALL_AND_LARGE)
    assert ledger.make_room("first", 40, soon=[10, 10]).chosen == ()
    ledger = ledger_of(60, *SMALL_AND_LARGE)
    assert len(ledger.make_room("first", 10, soon=[1000]).chosen) == 1, "what can never come beside it does not count"


def test_no_expected_model_goes_for_one_that_comes_later() -> None:
    ledger = ledger_of(60, *SMALL_AND_LARGE)
    ledger.expected = ("large", "small 1", "first", "second")
    assert set(ledger.make_room("first", 10, soon=[20]).chosen) <= {"small 2", "small 3"}


sizes = st.lists(st.integers(1, 20), max_size=5)


@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0.01, 10)), min_size=1, max_size=7), st.integers(1, 60), sizes)
def test_room_is_made_with_nothing_to_spare_whatever_comes_later(
    models: list[tuple[int, float]], need: int, soon: list[int]
) -> None:
    budget = sum(size for size, _ in models)
    ledger = ledger_of(budget, *((str(number), size, seconds) for number, (size, seconds) in enumerate(models)))
    if need > budget:
        with pytest.raises(UserError, match="needs"):
            ledger.make_room("new", need, soon)
        assert ledger.used == budget
        return
    gone = ledger.make_room("new", need, soon)
    freed = [models[int(key)][0] for key in gone.chosen]
    assert ledger.used + need <= budget and gone.bytes == sum(freed)
    assert all(sum(freed) - size < need for size in freed), "each one had to go"
