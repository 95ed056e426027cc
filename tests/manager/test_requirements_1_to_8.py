"""The first eight of the fourteen requirements of the house plan's sheet on model managers (section 3.7), each with its
test: what is in memory, and what is not any more.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch

from app.studio import Saved, Studio
from models.errors import UserError
from models.machine import container_room
from models.working_memory import Work
from pipelines.media import Text
from tests.tiny_managers import manager_on
from tests.tiny_models import UNIT, Weights, manager_of, resident, spec_of, use

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
