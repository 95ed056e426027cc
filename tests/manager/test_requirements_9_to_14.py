"""The other six of the fourteen requirements of the house plan's sheet on model managers (section 3.7), each with its
test: what comes in ahead, what stays at hand, and what is told.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.errors import UserError
from models.manager import ModelManager
from models.sources import Files, Folder, OnProgress
from tests.tiny_managers import CUDA, manager_on, oldest
from tests.tiny_models import UNIT, Weights, resident, spec_of, use, wait_until

# 9. No reload when nothing changed.


def test_09_the_second_identical_request_loads_nothing(tmp_path: Path, device: torch.device) -> None:
    manager = manager_on(device, 3, *(spec_of(key, tmp_path) for key in "abc"))
    for _ in range(2):
        use(manager, "a", "b", "c")
        manager.expect(["a", "b", "c"])
    assert manager.metrics.loads == 3 and manager.metrics.prefetches == 0
    assert (manager.metrics.hits, manager.metrics.misses) == (3, 3)


# 10. The next step's load starts while this one runs, from spare budget only.


def test_10_the_next_model_is_loaded_while_the_current_one_is_in_use(tmp_path: Path, device: torch.device) -> None:
    manager = manager_on(device, 2, spec_of("a", tmp_path), spec_of("b", tmp_path))
    manager.expect(["a", "b"])
    with manager.lease("a"):
        wait_until(lambda: {row.key for row in manager.status() if not row.loading} == {"a", "b"})
        with manager.lease("b"):
            pass
    assert manager.metrics.prefetch_hits >= 1


def test_10_nothing_that_is_used_or_expected_goes_for_it(tmp_path: Path, device: torch.device) -> None:
    manager = manager_on(device, 2, *(spec_of(key, tmp_path) for key in "abc"))
    use(manager, "b")
    with manager.lease("a"):
        manager.expect(["b", "c"])
        assert sorted(resident(manager)) == ["a", "b"]
    assert "b" in resident(manager), "with room from 'a', which nobody expects, 'c' may come"
    wait_until(lambda: sorted(resident(manager)) == ["b", "c"])


def test_10_a_load_ahead_that_nobody_wants_any_more_ends(tmp_path: Path, device: torch.device) -> None:
    started, may_finish = threading.Event(), threading.Event()

    class Slow(Folder):
        def resolve(self, on_progress: OnProgress) -> Files:
            started.set()
            assert may_finish.wait(10)
            return super().resolve(on_progress)

    slow = replace(spec_of("a", tmp_path), source=Slow(tmp_path / "a"))
    manager = manager_on(device, 2, slow, spec_of("b", tmp_path))
    manager.expect(["a"])
    assert started.wait(10)
    manager.expect([])
    may_finish.set()
    use(manager, "b")
    assert resident(manager) == ["b"] and manager.metrics.prefetches == 0


def test_10_a_load_ahead_gives_way_to_a_model_that_is_needed_now(tmp_path: Path, device: torch.device) -> None:
    started, may_finish = threading.Event(), threading.Event()

    def load(_: Path) -> Weights:
        started.set()
        assert may_finish.wait(10)
        return Weights(1)

    manager = manager_on(device, 1, spec_of("a", tmp_path, load=load), spec_of("b", tmp_path))
    manager.expect(["a"])
    assert started.wait(10)
    there: list[list[str]] = []

    def want() -> None:
        with manager.lease("b"):
            there.append(resident(manager))

    wanted = threading.Thread(target=want)
    wanted.start()
    may_finish.set()
    wanted.join(10)
    assert there == [["b"]]


def test_10_models_larger_than_they_seemed_do_not_drive_each_other_out(tmp_path: Path, device: torch.device) -> None:
    loads: Counter[str] = Counter()

    def load_as(key: str, size: int) -> object:
        def load(_: Path) -> Weights:
            loads[key] += 1
            return Weights(size)

        return load

    sizes = {"a": 10, "b": 11}
    specs = [
        spec_of(key, tmp_path, size, expected=9 * UNIT, load=load_as(key, size))  # type: ignore[arg-type]
        for key, size in sizes.items()
    ]
    manager = manager_on(device, 20, *specs)
    manager.expect(["a", "b"])
    wait_until(lambda: loads["b"] == 1 and not any(row.loading for row in manager.status()))
    time.sleep(0.1)
    assert loads == {"a": 1, "b": 1} and resident(manager) == ["a"]


def test_10_a_load_ahead_that_fails_is_tried_again_only_when_wanted(tmp_path: Path, device: torch.device) -> None:
    attempts = []

    def load(_: Path) -> Weights:
        attempts.append(1)
        raise OSError("disk")

    manager = manager_on(device, 2, spec_of("a", tmp_path, load=load), spec_of("b", tmp_path))
    manager.expect(["a"])
    use(manager, "b", "b", "b")
    manager.expect(["a", "b"])
    use(manager, "b")
    assert len(attempts) == 1
    with pytest.raises(OSError, match="disk"), manager.lease("a"):
        pass
    assert len(attempts) == 2


# 11. The host tier is refused when room is short; nothing is pinned without an accelerator.


def test_11_evicted_models_stay_in_the_host_tier_only_while_it_has_room(tmp_path: Path, device: torch.device) -> None:
    specs = [spec_of(key, tmp_path, 2) for key in "abc"]
    manager = manager_on(device, 2, *specs, host_bytes=2 * UNIT, choose=oldest)
    use(manager, "a", "b")
    assert {row.key for row in manager.status()} == {"a", "b"} and manager.used_bytes == 2 * UNIT
    with manager.lease("a") as model:
        assert model.values.numel() == 2000 and model.values.device.type == device.type
    assert {row.key for row in manager.status()} == {"a", "b"}, "they changed places"
    use(manager, "c")
    assert {row.key for row in manager.status()} == {"a", "c"}, "the host has room for one, and 'b' was the older"
    assert [(d.kind, d.chosen) for d in manager.decisions()][-2:] == [("made room", ("b",)), ("load", ("a",))]
    if device.type == "cpu":
        assert manager.metrics.bytes_moved["pinned"] == 0
    assert manager.free().after == {str(device): 0, "host": 0}


@CUDA
def test_11_pinned_memory_is_used_on_the_way_out_of_an_accelerator(tmp_path: Path) -> None:
    specs = {key: spec_of(key, tmp_path, 2) for key in "ab"}
    manager = ModelManager(specs, torch.device("cuda"), 2 * UNIT, host_bytes=10 * UNIT)
    use(manager, "a", "b")
    assert {row.key: row.tier for row in manager.status()} == {"a": "pinned", "b": "accelerator"}
    with manager.lease("a") as model:
        assert model.values.is_cuda


# 12. A decision record per miss.


def test_12_every_miss_leaves_a_record(tmp_path: Path, device: torch.device) -> None:
    manager = manager_on(device, 2, *(spec_of(key, tmp_path) for key in "abc"), spec_of("huge", tmp_path, 9))
    use(manager, "a", "b", "c")
    with pytest.raises(UserError), manager.lease("huge"):
        pass
    *_, last, refused = manager.decisions()
    assert (last.kind, last.key, last.need_bytes, last.freed_bytes) == ("load", "c", UNIT, UNIT)
    assert {item.key for item in last.candidates} == {"a", "b"} and len(last.chosen) == 1
    assert last.chosen[0] in last.sentence() and "Loaded c" in last.sentence()
    assert refused.kind == "refused" and "huge" in refused.sentence()
    assert json.loads(json.dumps(last.as_json()))["chosen"] == list(last.chosen)


# 13. Metrics.


def test_13_metrics_count_and_are_valid_prometheus_text(tmp_path: Path, device: torch.device) -> None:
    manager = manager_on(device, 2, *(spec_of(key, tmp_path) for key in "abc"))
    use(manager, "a", "a", "b", "c")
    metrics, tier = manager.metrics, "host" if device.type == "cpu" else "accelerator"
    assert (metrics.hits, metrics.misses, metrics.loads, metrics.hit_rate) == (1, 3, 3, 0.25)
    assert metrics.high_water_bytes == 2 * UNIT and metrics.bytes_moved == {tier: 3 * UNIT}
    assert metrics.evictions["room for a model"] == 1 and metrics.load_seconds > 0
    text = metrics.prometheus({"model_bytes": 5.0})
    assert "synesthete_hits_total 1\n" in text and "synesthete_model_bytes 5.0\n" in text
    assert 'synesthete_evictions_total{reason="room for a model"} 1\n' in text
    for line in text.splitlines():
        assert line.startswith("# TYPE ") or float(line.rsplit(" ", 1)[1]) >= 0


# 14. Works without a GPU, and says which tier each model is in.


def test_14_each_model_says_its_tier(tmp_path: Path, device: torch.device) -> None:
    may_finish = threading.Event()
    tier = "host" if device.type == "cpu" else "accelerator"

    def load(_: Path) -> Weights:
        assert may_finish.wait(10)
        return Weights(1)

    manager = manager_on(device, 2, spec_of("a", tmp_path), spec_of("b", tmp_path, load=load))
    use(manager, "a")
    manager.expect(["b"])
    assert {row.key: (row.tier, row.expected) for row in manager.status()} == {
        "a": (tier, False),
        "b": ("disk", True),
    }
    may_finish.set()
    use(manager, "b")
    assert {row.tier for row in manager.status()} == {tier}
