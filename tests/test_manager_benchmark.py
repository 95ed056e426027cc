"""The measurement of rules for making room: the rules themselves, the virtual clock, the replay and the recording."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.studio import Studio
from benchmarks.manager_record import Recorder, _joined
from benchmarks.manager_replay import Replay, Worker
from benchmarks.manager_rules import (
    LRU,
    OURS,
    PLANNED,
    QUEUED,
    Request,
    budgets,
    leased_at_once,
    least_recent,
    rules,
    smallest,
    tightest_subset,
)
from benchmarks.manager_simulation import SHEET, Machine, Simulation, compared, sheet_trace
from models.accounts import Candidate
from pipelines.media import Text
from tests.tiny_models import CPU, UNIT, spec_of, wait_until

ITEMS = [Candidate("old", 10, 9.0, 1.0), Candidate("small", 2, 9.0, 3.0), Candidate("new", 7, 9.0, 2.0)]
ONE: Request = [("work", ["a"]), ("lease", "a"), ("compute", 2.0), ("release", "a"), ("done", ["a"])]
OTHER: Request = [("work", ["b"]), ("lease", "b"), ("compute", 2.0), ("release", "b"), ("done", ["b"])]
TWO_STEPS: Request = [("expect", ["a", "b"]), *ONE, ("expect", ["b"]), *OTHER, ("expect", [])]


def test_each_rule_makes_room_in_its_own_order_and_spares_what_is_expected() -> None:
    for rule, first in ((least_recent, "old"), (smallest, "small"), (tightest_subset, "small")):
        assert [item.key for item in rule(ITEMS, 1, ())] == [first]
    assert {item.key for item in tightest_subset(ITEMS, 9, ())} == {"small", "new"}
    for rule in (least_recent, smallest, tightest_subset):
        assert "old" not in {item.key for item in rule(ITEMS, 3, ("old",))}
        assert {item.key for item in rule(ITEMS, 19, ("old",))} == {"old", "small", "new"}


def test_budgets_hold_at_least_what_is_leased_at_once() -> None:
    assert leased_at_once(TWO_STEPS) == [{"a"}, {"b"}]
    assert budgets({"a": 8, "b": 2, "unused": 50}, [TWO_STEPS]) == {
        "all": 10, "two thirds": 8, "half": 8, "largest set": 8
    }  # fmt: skip


def machine(**drag: float) -> Machine:
    return Machine({"a": 10, "b": 10}, {"a": 1.0, "b": 1.5}, **drag)


def test_the_virtual_clock_counts_loads_that_nobody_computes_beside() -> None:
    outcome = Simulation(machine(), 10, LRU).run([TWO_STEPS, TWO_STEPS])
    assert (outcome.loads, outcome.hits, outcome.leases) == (4, 0, 4)
    assert outcome.reload_seconds == outcome.wait_seconds == pytest.approx(5.0)
    assert outcome.wall_seconds == pytest.approx(5 + 8)


def test_the_virtual_clock_overlaps_loads_ahead_with_computing() -> None:
    outcome = Simulation(machine(), 20, PLANNED).run([TWO_STEPS])
    assert (outcome.reload_seconds, outcome.wait_seconds) == (2.5, 1.0)
    assert outcome.wall_seconds == pytest.approx(1 + 4)
    dragged = Simulation(machine(load_drag=1.2, compute_drag=1.5), 20, PLANNED).run([TWO_STEPS])
    # The load of 1.5 s takes 1.8 s beside computing, of which 1.2 s get done meanwhile.
    assert dragged.wall_seconds == pytest.approx(1 + 1.8 + 0.8 + 2)
    assert dragged.wait_seconds == 1.0


def test_ours_waits_less_than_any_other_rule_and_plans_help() -> None:
    """A small part of ``python -m benchmarks.manager_simulation``, on seeds that it does not use."""
    traces = [sheet_trace(200, 0.3, seed) for seed in (100, 101)]
    shares = compared(traces, int(6.7e9))
    assert shares["ours: wait"] < 0.9 < 1 < shares["smallest first: wait"]
    assert shares["queued: wait"] < shares["with plans: wait"] < shares["ours: wait"]


def test_every_rule_serves_a_trace_within_every_budget() -> None:
    trace = sheet_trace(12, 0.3, 5)
    for budget in budgets(SHEET.bytes, trace).values():
        for rule in rules(SHEET.bytes, budget, trace):
            simulation = Simulation(SHEET, budget, rule)
            outcome = simulation.run(trace)
            assert simulation.ledger.metrics.high_water_bytes <= budget
            assert outcome.wall_seconds == pytest.approx(outcome.compute_seconds + outcome.wait_seconds)


@pytest.mark.parametrize("rule", [LRU, OURS, PLANNED, QUEUED])
def test_the_replay_really_loads_and_counts_what_it_need_not_compute(tmp_path: Path, rule: object) -> None:
    specs = {key: spec_of(key, tmp_path) for key in "ab"}
    worker = Worker()
    again = Replay(specs, {}, UNIT, rule, worker)  # type: ignore[arg-type]
    row = again.run([TWO_STEPS, TWO_STEPS])
    assert row["loads"] == 4 and not any(again.held.values())
    assert 8.0 * 0.5 < again.counted <= 8.0 and row["wall_seconds"] > 8.0 * 0.5


def test_a_recording_holds_every_lease_and_the_seconds_between(tiny_studio: Studio) -> None:
    plain = tiny_studio.manager
    recorder = Recorder(plain.specs, CPU, plain.budget_bytes)
    studio = Studio(tiny_studio.settings, tiny_studio.registry, recorder)
    list(studio.run("tiny-paint", [Text("a")], {}))
    recorder.start()
    list(studio.run("tiny-paint", [Text("a")], {}))
    wait_until(lambda: not any(row.leases for row in recorder.status()))
    events = _joined(recorder.stop())
    kinds = [kind for kind, _ in events if kind != "compute"]
    assert kinds == ["expect", "work", "lease", "release", "done", "expect"]
    assert dict(events)["expect"] == [] and dict(events)["lease"] == "painter"
    assert 0 < sum(said for kind, said in events if kind == "compute") < 60
    list(studio.run("tiny-paint", [Text("a")], {}))
    assert recorder.stop() == [], "nothing is noted when nobody asked for it"
