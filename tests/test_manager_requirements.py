"""The fourteen requirements of the house plan's sheet on model managers (section 3.7), each with its test."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.studio import Saved, Studio
from models.accounts import Candidate
from models.catalog import ModelSpec
from models.errors import UserError
from models.machine import container_room
from models.manager import ModelManager
from models.sources import Files, Folder, OnProgress
from models.working_memory import Work
from pipelines.media import Text
from tests.tiny_models import UNIT, Weights, manager_of, resident, spec_of, use, wait_until

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=CUDA)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def manager_on(device: torch.device, budget: int, *specs: ModelSpec, **options: Any) -> ModelManager:
    return ModelManager({spec.key: spec for spec in specs}, device, budget * UNIT, **options)


def oldest(candidates: Sequence[Candidate], need: int, expected: Sequence[str]) -> list[Candidate]:
    """A rule whose choice does not hang on measured seconds."""
    ordered = sorted(candidates, key=lambda item: item.last_used)
    count = next(n for n in range(len(ordered) + 1) if sum(item.bytes for item in ordered[:n]) >= need)
    return ordered[:count]


# 1. Budgets in bytes per device for weights, working memory, pinned memory; from the cgroup limit where one is set.


def test_01_the_budget_holds_weights_and_working_memory(tmp_path: Path, device: torch.device) -> None:
    manager = manager_on(device, 4, *(spec_of(key, tmp_path, 2) for key in "abc"))
    work = Work("paint", (1,))
    manager.working_memory.learn(work, int(1.8 * UNIT))
    use(manager, "a", "b")
    with manager.working(work):
        assert len(resident(manager)) == 1, "one had to go, so that the work has room"
    use(manager, "c")
    assert manager.used_bytes <= manager.budget_bytes


def test_01_work_that_was_never_measured_is_given_what_there_is(tmp_path: Path, device: torch.device) -> None:
    manager = manager_on(device, 4, spec_of("a", tmp_path, 4))
    with manager.working(Work("new")), manager.lease("a") as model:
        assert model.values.numel() == 4000, "nobody is refused a model for a guess"
    assert manager.working_memory.expected(Work("newer")) is None
    with manager.working(Work("newer")):
        assert resident(manager) == ["a"], "and none goes for it"


def test_01_work_does_not_evict_the_models_that_it_is_about_to_lease(tmp_path: Path, device: torch.device) -> None:
    manager = manager_on(device, 4, spec_of("a", tmp_path, 3))
    work = Work("paint", (1,))
    manager.working_memory.learn(work, 3 * UNIT)
    for _ in range(3):
        manager.expect(["a"])
        with manager.working(work, ["a"]):
            use(manager, "a")
    assert manager.metrics.loads + manager.metrics.prefetches == 1


def test_01_working_memory_is_learnt_from_what_the_work_took(tmp_path: Path, device: torch.device) -> None:
    manager = manager_on(device, 4, spec_of("a", tmp_path))
    work = Work("fill", (64,))
    with manager.working(work):
        block = torch.ones(64 * 1024 * 1024 // 4, device=device)
    del block
    learnt = manager.working_memory.expected(work)
    assert learnt is not None and 60e6 < learnt < 120e6


def test_01_a_container_limit_is_the_budget(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/box\n")
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "memory.max").write_text("1000")
    (tmp_path / "box" / "memory.current").write_text("400")
    assert container_room(own, tmp_path) == [600]


# 2. A running step's models cannot be evicted; a leaked lease is named in the log.


def test_02_a_leased_model_is_not_evicted(tmp_path: Path, device: torch.device) -> None:
    manager = manager_on(device, 2, spec_of("a", tmp_path), spec_of("b", tmp_path, 2))
    with manager.lease("a"):
        with pytest.raises(UserError, match="in use: a with"), manager.lease("b"):
            pass
        assert resident(manager) == ["a"]


def test_02_the_lease_of_a_dead_thread_is_named_and_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, device: torch.device
) -> None:
    manager = manager_on(device, 2, spec_of("a", tmp_path), spec_of("b", tmp_path, 2))
    kept = []

    def leak() -> None:
        kept.append(manager.lease("a"))
        kept[0].__enter__()

    thread = threading.Thread(target=leak, name="leaky")
    thread.start()
    thread.join()
    with caplog.at_level(logging.WARNING):
        use(manager, "b")
    assert resident(manager) == ["b"]
    assert "'leaky'" in caplog.text and "'a'" in caplog.text


# 3. Loads of one model coalesce; loads that touch global torch state are serialised.


def test_03_two_waiters_share_one_load_and_loads_are_serial(tmp_path: Path, device: torch.device) -> None:
    running: list[int] = []
    most = []
    loads: Counter[str] = Counter()

    def load_as(key: str) -> object:
        def load(_: Path) -> Weights:
            running.append(1)
            loads[key] += 1
            most.append(len(running))
            time.sleep(0.01)
            running.pop()
            return Weights(1)

        return load

    manager = manager_on(device, 9, *(spec_of(key, tmp_path, load=load_as(key)) for key in "abc"))  # type: ignore[arg-type]
    threads = [threading.Thread(target=use, args=(manager, key)) for key in "abcabcabc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert loads == {"a": 1, "b": 1, "c": 1} and max(most) == 1


def test_03_loads_leave_the_cores_to_the_thread_that_computes(tmp_path: Path) -> None:
    threads = []

    def load(_: Path) -> Weights:
        threads.append(torch.get_num_threads())
        return Weights(1)

    before = torch.get_num_threads()
    use(manager_of(1, spec_of("a", tmp_path, load=load)), "a")
    assert threads == [1] and torch.get_num_threads() == before


# 4. Eviction frees for real. 5. Two hundred cycles do not grow memory.

CYCLES = """
import gc, sys, threading
from pathlib import Path
import psutil, torch
from tests.tiny_models import Weights, spec_of
from models.manager import ModelManager

folder, kind, device = Path(sys.argv[1]), sys.argv[2], torch.device(sys.argv[3])
def taken():
    return torch.cuda.memory_reserved() if device.type == "cuda" else psutil.Process().memory_info().rss
if kind == "free":
    def load(_):
        return torch.nn.ModuleList(torch.nn.Linear(512, 512, bias=False) for _ in range(200))  # many blocks of 1 MB
    manager = ModelManager({"a": spec_of("a", folder, load=load), "b": spec_of("b", folder)}, device, 200 * 2**20)
    with manager.lease("a") as model:
        pass
    del model
    held, before = manager.used_bytes, taken()
    with manager.lease("b"):  # for which there is no room beside
        print(held, before - taken())
else:
    specs = {key: spec_of(key, folder, 2000) for key in "ab"}
    manager = ModelManager(specs, device, 9_000_000)
    def cycle():
        for key in "ab":
            with manager.lease(key):
                pass
    for _ in range(5):
        cycle()
    gc.collect()
    start, objects, threads = taken(), len(gc.get_objects()), threading.active_count()
    for _ in range(100):
        cycle()
    gc.collect()
    print(taken() - start, len(gc.get_objects()) - objects, threading.active_count() - threads)
"""


def _numbers(folder: Path, kind: str, device: torch.device) -> list[int]:
    command = [sys.executable, "-c", CYCLES, str(folder), kind, str(device)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


def test_04_an_evicted_model_leaves_memory(tmp_path: Path, device: torch.device) -> None:
    held, fell = _numbers(tmp_path, "free", device)
    assert held == 200 * 2**20
    assert fell >= 0.95 * held


def test_05_two_hundred_loads_and_evictions_do_not_grow(tmp_path: Path, device: torch.device) -> None:
    grown, objects, threads = _numbers(tmp_path, "cycles", device)
    assert grown < 50e6
    assert objects < 2000 and threads == 0, "containers grow by the bounded record of decisions only"


# 6. A failed load or out of memory leaves the accounts exact and the manager usable.


@pytest.mark.parametrize("error", [OSError("disk"), MemoryError(), KeyError("layer"), torch.OutOfMemoryError("CUDA")])
def test_06_after_a_failed_load_the_accounts_are_exact(tmp_path: Path, error: Exception, device: torch.device) -> None:
    failing = [True]

    def load(_: Path) -> Weights:
        if failing[0]:
            raise error
        return Weights(1)

    manager = manager_on(device, 3, spec_of("a", tmp_path, 2, load=load), spec_of("b", tmp_path))
    with manager.lease("b"):
        with pytest.raises((type(error), UserError)), manager.lease("a"):
            pass
        assert manager.used_bytes == UNIT and manager.metrics.failures == 1
        failing[0] = False
        use(manager, "a")
    assert manager.used_bytes == 2 * UNIT


def test_06_memory_that_runs_out_once_is_made_by_dropping_what_is_idle(tmp_path: Path, device: torch.device) -> None:
    attempts = []

    def load(_: Path) -> Weights:
        attempts.append(1)
        if len(attempts) == 1:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        return Weights(1)

    manager = manager_on(device, 3, spec_of("a", tmp_path, load=load), spec_of("b", tmp_path))
    use(manager, "b", "a")
    assert resident(manager) == ["a"] and manager.metrics.out_of_memory == 1
    assert any(decision.kind == "out of memory" and decision.chosen == ("b",) for decision in manager.decisions())


def test_06_memory_that_runs_out_twice_is_a_sentence_with_need_budget_and_holders(
    tmp_path: Path, device: torch.device
) -> None:
    def load(_: Path) -> Weights:
        raise MemoryError

    manager = manager_on(device, 3, spec_of("a", tmp_path, load=load), spec_of("b", tmp_path))
    with manager.lease("b"), pytest.raises(UserError) as caught, manager.lease("a"):
        pass
    sentence = caught.value.sentence
    assert "'a': it needs 4.0 KB" in sentence and "budget is 12.0 KB" in sentence and "b with 4.0 KB" in sentence


# 7. Free is synchronous, of one, the idle or all, and tells bytes before and after per device.


def test_07_free_has_freed_when_it_returns(tmp_path: Path, device: torch.device) -> None:
    manager = manager_on(device, 5, spec_of("a", tmp_path, 2), spec_of("b", tmp_path, 3))
    with manager.lease("a") as model:
        ghost = weakref.ref(model)
    del model
    use(manager, "b")
    freed = manager.free("a")
    assert ghost() is None
    assert (freed.before, freed.after, freed.kept) == ({str(device): 5 * UNIT}, {str(device): 3 * UNIT}, ())
    with manager.lease("b"):
        assert manager.free().kept == ("b",)
    assert manager.free().after == {str(device): 0}


# 8. Dropping models keeps what was made with them.


def test_08_what_was_made_outlives_the_models(tiny_studio: Studio) -> None:
    events = tiny_studio.generate("tiny-paint", [Text("an apple")], {})
    [made] = [event for event in events if isinstance(event, Saved)]
    assert tiny_studio.free().bytes > 0 and tiny_studio.machine().models == []
    assert tiny_studio.library.load(made.entry.id).content_hash() == made.artifact.content_hash()


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
