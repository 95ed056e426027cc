"""Shared parts, waits that are given up, changed and broken files, lower precision, and threads at random."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import psutil
import pytest
import torch

from app.settings import Settings
from app.studio import Studio
from models.errors import Cancelled, UserError
from models.manager import ModelManager
from models.modules import bytes_of
from models.precision import Precision
from models.quantize import bytes_at
from models.sources import Files, Folder, OnProgress
from pipelines.base import Event, Params, Progress, Registry, Runtime
from pipelines.media import Artifact, Text
from tests.tiny import Paint
from tests.tiny_models import CPU, UNIT, Weights, manager_of, resident, spec_of, use, wait_until


def test_a_wait_can_be_given_up_and_the_load_then_ends(tmp_path: Path) -> None:
    may_go_on = threading.Event()
    built = []

    class Slow(Folder):
        def resolve(self, on_progress: OnProgress) -> Files:
            while not may_go_on.wait(0.01):
                on_progress(0.5, "Fetching")  # as a download does
            return super().resolve(on_progress)

    def load(_: Path) -> Weights:
        built.append(1)
        return Weights(1)

    slow = replace(spec_of("a", tmp_path, load=load), source=Slow(tmp_path / "a"))
    manager = manager_of(1, slow, spec_of("b", tmp_path))

    def give_up(fraction: float, message: str) -> None:
        raise Cancelled

    with pytest.raises(Cancelled), manager.lease("a", give_up):
        pass
    use(manager, "b")
    assert resident(manager) == ["b"] and not built
    may_go_on.set()
    use(manager, "a")
    assert resident(manager) == ["a"]


def test_equal_files_are_one_model_whatever_they_are_called(tmp_path: Path) -> None:
    loads = []

    def load(_: Path) -> Weights:
        loads.append(1)
        return Weights(1)

    for name in ("one", "other", "third"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"equal" if name != "third" else b"different")
    specs = [replace(spec_of(name, tmp_path, load=load)) for name in ("one", "other", "third")]
    for name in ("one", "other", "third"):
        (tmp_path / name / "name.txt").unlink()
    manager = manager_of(3, *specs)
    use(manager, "one", "other", "third")
    assert manager.used_bytes == 2 * UNIT and len(loads) == 2
    assert sorted(row.keys for row in manager.status()) == [("one", "other"), ("third",)]
    with manager.lease("one") as one, manager.lease("other") as other:
        assert one is other
        assert manager.status()[0].leases == 2
    assert manager.free("other").bytes == UNIT and resident(manager) == ["third"]


def test_equal_files_in_another_precision_are_another_model(tmp_path: Path) -> None:
    spec = spec_of("one", tmp_path, load=lambda _: torch.nn.Linear(64, 64))
    manager = manager_of(40, spec, replace(spec, key="other"), precisions={"other": "float16"})
    use(manager, "one", "other")
    assert len(manager.status()) == 2


def test_a_model_that_is_unused_for_long_goes_by_itself(tmp_path: Path) -> None:
    manager = manager_of(2, spec_of("a", tmp_path), idle_seconds=0.05)
    use(manager, "a")
    wait_until(lambda: resident(manager) == [])
    assert manager.decisions()[-1].kind == "idle too long"


class Stubborn(Paint):
    """Looks at nothing for as long as ``may_end`` is not set."""

    def __init__(self) -> None:
        self.inside, self.may_end = threading.Event(), threading.Event()

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        yield Progress(0, 1, "Painting")
        with runtime.models.lease("painter"):
            pass
        self.inside.set()
        assert self.may_end.wait(10)
        yield Progress(1, 1, "Painting")


def test_a_run_whose_reader_has_left_stays_on_the_plan_until_it_has_stopped(
    tiny_studio: Studio, tiny_settings: Settings
) -> None:
    stubborn, manager = Stubborn(), tiny_studio.manager
    events = Studio(tiny_settings, Registry([stubborn]), manager).run("tiny-paint", [Text("x")], {})
    next(events)
    assert stubborn.inside.wait(10)
    events.close()  # type: ignore[attr-defined]
    assert [(row.key, row.expected) for row in manager.status()] == [("painter", True)]
    stubborn.may_end.set()
    wait_until(lambda: [row.expected for row in manager.status()] == [False])


def test_weights_that_change_on_disk_are_loaded_anew_and_a_lease_keeps_what_it_has(tmp_path: Path) -> None:
    manager = manager_of(2, spec_of("a", tmp_path))
    with manager.lease("a") as first:
        before = manager.record("a").checksum
        (tmp_path / "a" / "name.txt").write_text("other weights")
        with manager.lease("a") as meanwhile:
            assert meanwhile is first
    with manager.lease("a") as second:
        assert second is not first
    assert manager.record("a").checksum != before
    (tmp_path / "a" / "name.txt").unlink()
    (tmp_path / "a").rmdir()
    with manager.lease("a") as third:
        assert third is second, "what was loaded still works when its files are gone"


def test_a_failed_load_leaves_nothing_behind_even_while_somebody_holds_the_error(tmp_path: Path) -> None:
    built: list[weakref.ref[Weights]] = []

    def load(_: Path) -> Weights:
        model = Weights(9)
        built.append(weakref.ref(model))
        return model

    manager = manager_of(5, spec_of("a", tmp_path, 9, expected=1, load=load))
    with pytest.raises(UserError, match="budget") as held, manager.lease("a"):
        pass
    assert held.value is not None
    wait_until(lambda: built[0]() is None)


def test_a_negative_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="negative"):
        manager_of(-1, spec_of("a", tmp_path))


def test_weights_that_are_not_numbers_are_refused_by_the_tensors_name(tmp_path: Path) -> None:
    def load(_: Path) -> Weights:
        broken = Weights(1)
        broken.values.data[7] = float("nan")
        return broken

    manager = manager_of(1, spec_of("a", tmp_path, load=load))
    with pytest.raises(UserError, match="'values' holds values that are not numbers"), manager.lease("a"):
        pass
    assert manager.used_bytes == 0


def test_a_lower_precision_is_only_taken_where_the_settings_leave_the_choice(tmp_path: Path) -> None:
    spec = spec_of("a", tmp_path, 100, load=lambda _: torch.nn.Linear(256, 256))
    fixed = manager_of(100, spec)
    assert not fixed.lower_precision(["a"])
    free = manager_of(100, spec, may_be_lowered=["a"])
    assert not free.lower_precision(["b"])
    use(free, "a")
    sizes = [free.used_bytes]
    while free.lower_precision(["a"]):
        use(free, "a")
        sizes.append(free.used_bytes)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) >= 3
    assert free.record("a").precision == "nf4"


def test_a_model_that_may_be_smaller_than_thought_is_weighed_before_it_is_refused(tmp_path: Path) -> None:
    built: list[str] = []

    def build(_: Path) -> torch.nn.Linear:
        built.append("a")
        return torch.nn.Linear(256, 256)

    spec = spec_of("a", tmp_path, expected=4 * (256 * 256 + 256), load=build)
    halves: dict[str, Precision] = {"a": "bfloat16"}
    weight = 2 * 256 * 256 + 4 * 256  # between the thought 0.6 of float32 and its half
    fits = manager_of(35, spec, precisions=halves)
    assert bytes_at(spec.bytes, "bfloat16") > fits.budget_bytes > weight
    use(fits, "a")
    assert fits.used_bytes == weight
    tight, hopeless = (
        ModelManager({"a": spec}, CPU, budget, precisions=halves) for budget in (weight - 1, spec.bytes // 2 - 1)
    )
    for manager, times in ((tight, 2), (hopeless, 2)):
        with pytest.raises(UserError, match="'a'"):
            use(manager, "a")
        assert (len(built), manager.used_bytes) == (times, 0), "what cannot fit is not even built"


def test_what_a_first_load_imported_does_not_make_a_model_dear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(0.6)\n")
    monkeypatch.syspath_prepend(tmp_path)

    def load(_: Path) -> Weights:
        import_module("slow_to_import")
        return Weights(1)

    def load_slowly(_: Path) -> Weights:
        time.sleep(0.4)
        return Weights(1)

    specs = [spec_of("slow", tmp_path, load=load_slowly), spec_of("importer", tmp_path, load=load)]
    manager = manager_of(2, *specs, spec_of("new", tmp_path))
    use(manager, "new")  # brings in what every load needs
    manager.free()
    use(manager, "slow", "importer", "new")
    assert resident(manager) == ["new", "slow"]
    assert max(decision.seconds for decision in manager.decisions()) > 0.6, "what is told is what it took"


def test_threads_that_lease_at_random_under_a_tight_budget_keep_the_accounts_exact(tmp_path: Path) -> None:
    sizes = {"a": 1, "b": 2, "c": 3, "d": 2}
    over: list[int] = []
    ever: weakref.WeakSet[Weights] = weakref.WeakSet()

    def load_as(size: int) -> object:
        def load(_: Path) -> Weights:
            if random.random() < 0.1:
                raise OSError("injected")
            model = Weights(size)
            ever.add(model)
            return model

        return load

    specs = [spec_of(key, tmp_path, size, load=load_as(size)) for key, size in sizes.items()]  # type: ignore[arg-type]
    manager = manager_of(5, *specs)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            key = chance.choice("abcd")
            if chance.random() < 0.2:
                manager.expect([chance.choice("abcd") for _ in range(3)])
            try:
                with manager.lease(key) as model:
                    assert model.values.numel() == sizes[key] * 1000
                    over.append(manager.used_bytes)
                    if chance.random() < 0.1:
                        raise InterruptedError  # a cancelled run
            except (UserError, OSError):
                continue
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and not errors
    assert max(over) <= manager.budget_bytes
    manager.expect([])
    wait_until(lambda: not any(row.loading for row in manager.status()))

    def counted() -> bool:
        gc.collect()
        return manager.used_bytes == sum(bytes_of(model) for model in ever)

    wait_until(counted)  # a loader's thread may still hold what it was told to drop
    assert all(row.leases == 0 for row in manager.status())
    assert psutil.Process().num_threads() < 100
