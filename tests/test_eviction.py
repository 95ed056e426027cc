"""Which models go: by value per byte, nothing superfluous, planned ones last."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.accounts import Candidate
from models.eviction import LEASES_PER_REQUEST, Reuse, value_cover


def names(chosen: list[Candidate]) -> set[str]:
    return {item.key for item in chosen}


def test_the_cheapest_to_bring_back_goes_first() -> None:
    cheap, dear = Candidate("cheap", 10, 1.0), Candidate("dear", 10, 2.0)
    assert names(value_cover([dear, cheap], 10)) == {"cheap"}


def test_value_counts_per_byte_so_small_shared_parts_stay() -> None:
    small, large = Candidate("small", 10, 1.0), Candidate("large", 1000, 2.0)
    assert names(value_cover([small, large], 500)) == {"large"}


def test_what_turned_out_superfluous_is_taken_back() -> None:
    first, second = Candidate("first", 10, 0.1), Candidate("second", 100, 5.0)
    assert names(value_cover([first, second], 100)) == {"second"}


def test_one_large_model_may_be_better_than_several_small_ones() -> None:
    small = [Candidate(f"small{i}", 40, 1.0) for i in range(3)]
    large = Candidate("large", 110, 2.9)
    assert names(value_cover([*small, large], 105)) == {"large"}


def test_planned_models_go_last_and_the_furthest_first() -> None:
    planned = [Candidate("next", 10, 0.1), Candidate("later", 10, 9.0)]
    idle = Candidate("idle", 10, 99.0)
    expected = ("next", "later")
    assert names(value_cover([*planned, idle], 10, expected)) == {"idle"}
    assert names(value_cover([*planned, idle], 20, expected)) == {"idle", "later"}
    assert names(value_cover([*planned, idle], 30, expected)) == {"idle", "next", "later"}


def test_a_planned_model_that_suffices_alone_does_not_drag_others_along() -> None:
    idle, planned = Candidate("idle", 5, 1.0), Candidate("planned", 50, 1.0)
    assert names(value_cover([idle, planned], 50, ("planned",))) == {"planned"}


candidates = st.lists(st.tuples(st.integers(1, 50), st.floats(0.01, 10)), min_size=1, max_size=7).map(
    lambda rows: [Candidate(f"m{i}", size, value) for i, (size, value) in enumerate(rows)]
)


@given(candidates, st.integers(1, 400), st.integers(0, 3))
def test_the_need_is_covered_with_nothing_to_spare(items: list[Candidate], need: int, planned: int) -> None:
    expected = tuple(item.key for item in items[:planned])
    chosen = value_cover(items, need, expected)
    room = sum(item.bytes for item in chosen)
    if sum(item.bytes for item in items) < need:
        assert names(chosen) == names(items)
        return
    assert room >= need
    assert all(room - item.bytes < need for item in chosen), "each one was needed"
    if sum(item.bytes for item in items if item.key not in expected) >= need:
        assert not names(chosen) & set(expected)


@given(candidates, st.integers(1, 100))
def test_the_greedy_choice_is_never_far_from_the_best(items: list[Candidate], need: int) -> None:
    subsets = [c for n in range(1, len(items) + 1) for c in combinations(items, n) if sum(i.bytes for i in c) >= need]
    if subsets:
        best = min(sum(item.value for item in subset) for subset in subsets)
        assert sum(item.value for item in value_cover(items, need)) <= 2 * best + 1e-9


def test_an_old_use_counts_for_less_and_several_count_for_more() -> None:
    reuse = Reuse()
    reuse.note("old")
    for _ in range(LEASES_PER_REQUEST):
        reuse.note("other")
    reuse.note("new")
    assert reuse.rate("never") == 0
    assert reuse.rate("old") < reuse.rate("new") < reuse.rate("other") <= 1


def test_what_is_asked_for_twice_as_often_counts_twice() -> None:
    reuse = Reuse()
    for _ in range(500):
        for key in ("often", "seldom", "often"):
            reuse.note(key)
    assert reuse.rate("often") == pytest.approx(2 * reuse.rate("seldom"), rel=0.1)
    assert reuse.rate("often") + reuse.rate("seldom") == pytest.approx(1, rel=0.1)


def test_a_habit_outlives_one_odd_request() -> None:
    reuse = Reuse()
    for _ in range(5 * LEASES_PER_REQUEST):
        reuse.note("habit")
        reuse.note("other")
    for _ in range(LEASES_PER_REQUEST // 2):
        reuse.note("odd")
    assert reuse.rate("habit") > reuse.rate("odd") > 0
