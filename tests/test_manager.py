"""Leases, eviction, coalesced loads and exact accounts, with real modules of a few kilobytes."""

from __future__ import annotations

import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from torch import nn

from models.errors import UserError
from models.modules import bytes_of
from tests.tiny_models import UNIT, Weights, manager_of, resident, spec_of, use


def test_a_lease_gives_the_model_ready_for_inference_and_keeps_it(tmp_path: Path) -> None:
    manager = manager_of(1, spec_of("a", tmp_path))
    with manager.lease("a") as first:
        assert not first.training and not first.values.requires_grad
        assert [(row.key, row.leases, row.loading) for row in manager.status()] == [("a", 1, False)]
    with manager.lease("a") as second:
        assert second is first
    assert manager.status()[0].leases == 0


def test_an_object_that_holds_modules_is_weighed_and_prepared_too(tmp_path: Path) -> None:
    class Pair:
        def __init__(self) -> None:
            self.left, self.right, self.name = Weights(1), Weights(2), "pair"

    manager = manager_of(3, spec_of("pair", tmp_path, expected=1, load=lambda _: Pair()))
    with manager.lease("pair") as pair:
        assert not pair.left.training and not pair.right.values.requires_grad
    assert manager.used_bytes == 3 * UNIT


def test_shared_storage_counts_once() -> None:
    model = nn.Module()
    model.one, model.other = Weights(1), Weights(1)
    assert bytes_of(model) == 2 * UNIT
    model.other.values = nn.Parameter(model.one.values.detach()[:10])
    assert bytes_of(model) == UNIT


def test_threads_share_one_load_and_each_hears_its_progress(tmp_path: Path) -> None:
    loads, may_finish = [], threading.Event()

    def load(_: Path) -> Weights:
        loads.append(threading.get_ident())
        assert may_finish.wait(10)
        return Weights(1)

    manager = manager_of(1, spec_of("a", tmp_path, load=load))
    models: list[Any] = []
    heard: list[list[tuple[float, str]]] = [[] for _ in range(4)]
    callers: list[list[int]] = [[] for _ in range(4)]

    def lease(number: int) -> None:
        def on_progress(fraction: float, message: str) -> None:
            heard[number].append((fraction, message))
            callers[number].append(threading.get_ident())

        with manager.lease("a", on_progress) as model:
            models.append(model)

    threads = [threading.Thread(target=lease, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while not all((1.0, "Loading a") in messages for messages in heard) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert manager.status()[0].leases == 4 and manager.status()[0].loading
    may_finish.set()
    for thread in threads:
        thread.join(10)
    assert len(loads) == 1
    assert len({id(model) for model in models}) == 1 and len(models) == 4
    assert [set(idents) for idents in callers] == [{thread.ident} for thread in threads]
    assert manager.status()[0].leases == 0


def test_a_model_in_memory_is_not_announced_again(tmp_path: Path) -> None:
    manager = manager_of(1, spec_of("a", tmp_path))
    use(manager, "a")
    heard: list[float] = []
    with manager.lease("a", lambda fraction, message: heard.append(fraction)):
        assert heard == []


def test_one_waiter_whose_callback_fails_does_not_spoil_the_load_of_another(tmp_path: Path) -> None:
    release = threading.Event()

    def load(_: Path) -> Weights:
        assert release.wait(10)
        return Weights(1)

    manager = manager_of(1, spec_of("a", tmp_path, load=load))

    def fails(fraction: float, message: str) -> None:
        raise KeyError("a bug in the page")

    with pytest.raises(KeyError), manager.lease("a", fails):
        pass
    release.set()
    with manager.lease("a") as model:
        assert isinstance(model, Weights)
    assert manager.status()[0].leases == 0


def test_what_is_asked_for_most_often_stays(tmp_path: Path) -> None:
    manager = manager_of(3, *(spec_of(key, tmp_path) for key in "abcd"))
    use(manager, "a", "b", "c")
    use(manager, *"ac" * 20, "d")
    assert sorted(resident(manager)) == ["a", "c", "d"]


def test_a_leased_model_is_never_evicted_and_the_sentence_names_what_is_in_the_way(tmp_path: Path) -> None:
    manager = manager_of(3, spec_of("a", tmp_path, 2), spec_of("b", tmp_path, 1), spec_of("c", tmp_path, 2))
    use(manager, "b")
    with manager.lease("a") as model:
        with pytest.raises(UserError) as caught, manager.lease("c"):
            pass
        assert "'c'" in caught.value.sentence and "a with" in caught.value.sentence
        assert resident(manager) == ["a", "b"], "nothing is evicted for a lease that cannot be given"
        assert model.values.numel() == 2000
    use(manager, "c")
    assert "a" not in resident(manager)


def test_a_model_larger_than_the_whole_budget_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    def load(_: Path) -> Weights:
        raise AssertionError("must not be loaded")

    manager = manager_of(1, spec_of("a", tmp_path, 2, load=load))
    with pytest.raises(UserError, match="memory budget"), manager.lease("a"):
        pass
    assert manager.status() == [] and manager.used_bytes == 0


def test_the_account_holds_what_was_measured_not_what_was_expected(tmp_path: Path) -> None:
    manager = manager_of(4, spec_of("a", tmp_path, 2, expected=1), spec_of("b", tmp_path, 2, expected=1))
    use(manager, "a", "b")
    assert manager.used_bytes == 4 * UNIT
    manager = manager_of(3, spec_of("a", tmp_path, 2, expected=1), spec_of("b", tmp_path, 2, expected=1))
    use(manager, "a", "b")
    assert resident(manager) == ["b"], "a model that turned out bigger evicts too"
    with manager.lease("b"), pytest.raises(UserError), manager.lease("a"):
        pass
    assert resident(manager) == ["b"] and manager.used_bytes == 2 * UNIT


def test_a_failed_load_leaves_exact_accounts_and_is_tried_again(tmp_path: Path) -> None:
    attempts: list[int] = []

    def load(_: Path) -> Weights:
        attempts.append(1)
        if len(attempts) == 1:
            raise RuntimeError("a layer is missing")
        return Weights(1)

    manager = manager_of(1, spec_of("a", tmp_path, load=load))
    with pytest.raises(RuntimeError, match="a layer is missing"), manager.lease("a"):
        pass
    assert manager.used_bytes == 0 and manager.status() == []
    use(manager, "a")
    assert manager.used_bytes == UNIT and len(attempts) == 2


def test_missing_weights_reach_the_user_as_a_sentence(tmp_path: Path) -> None:
    manager = manager_of(1, spec_of("a", tmp_path / "nowhere"))
    with pytest.raises(UserError, match="missing"), manager.lease("a"):
        pass
    assert manager.used_bytes == 0


@pytest.mark.parametrize("key", ["", "nobody", "x" * 10_000, "a\0b"])
def test_an_unknown_model_is_refused_in_one_sentence(tmp_path: Path, key: str) -> None:
    manager = manager_of(1, spec_of("a", tmp_path))
    for action in (lambda: use(manager, key), lambda: manager.record(key), lambda: manager.free(key)):
        with pytest.raises(UserError) as caught:
            action()
        assert len(caught.value.sentence) < 200 and "a" in caught.value.hint


def test_free_drops_what_is_idle_and_says_how_much_that_was(tmp_path: Path) -> None:
    manager = manager_of(6, spec_of("a", tmp_path, 1), spec_of("b", tmp_path, 2), spec_of("c", tmp_path, 3))
    use(manager, "a", "b")
    with manager.lease("c"):
        with pytest.raises(UserError, match="in use"):
            manager.free("c")
        freed = manager.free("a")
        assert (freed.before, freed.after) == ({"cpu": 6 * UNIT}, {"cpu": 5 * UNIT})
        assert manager.free("a").bytes == 0
        freed = manager.free()
        assert freed.bytes == 2 * UNIT and freed.kept == ("c",)
        assert resident(manager) == ["c"]
    assert manager.free().bytes == 3 * UNIT and manager.used_bytes == 0


def test_a_dropped_model_is_really_gone(tmp_path: Path) -> None:
    def load(_: Path) -> Weights:
        model = Weights(1)
        model.circle = [model]  # type: ignore[assignment]
        return model

    manager = manager_of(1, spec_of("a", tmp_path, load=load), spec_of("b", tmp_path))
    with manager.lease("a") as model:
        ghost = weakref.ref(model)
    del model
    time.sleep(0.05)  # the thread that loaded it holds it for a moment longer
    use(manager, "b")
    assert ghost() is None


def test_a_record_names_files_and_precision(tmp_path: Path) -> None:
    manager = manager_of(2, spec_of("one", tmp_path), spec_of("two", tmp_path), precisions={"two": "bfloat16"})
    one, two = manager.record("one"), manager.record("two")
    assert one.key == "one" and (one.precision, two.precision) == ("float32", "bfloat16")
    assert len(one.checksum) == 64 and one.checksum != two.checksum
    use(manager, "one")
    assert manager.record("one") == one


class Accounts(RuleBasedStateMachine):
    """Whatever is leased, ended, freed or fails: the accounts are the sum of what is there, within the budget."""

    budget = 6

    def __init__(self) -> None:
        super().__init__()
        self.sizes = {"a": 1, "b": 2, "c": 3, "d": 4}
        self.temporary = tempfile.TemporaryDirectory()
        folder = Path(self.temporary.name)
        self.failing: set[str] = set()
        self.held: list[tuple[str, AbstractContextManager[Any]]] = []
        specs = [spec_of(key, folder, size, load=self._loader(key, size)) for key, size in self.sizes.items()]
        self.manager = manager_of(self.budget, *specs)

    def _loader(self, key: str, size: int) -> Callable[[Path], Weights]:
        def load(_: Path) -> Weights:
            if key in self.failing:
                raise OSError("disk")
            return Weights(size)

        return load

    @rule(key=st.sampled_from("abcd"))
    def lease(self, key: str) -> None:
        leased = {name for name, _ in self.held} | {key}
        fits = sum(self.sizes[name] for name in leased) <= self.budget
        loads = key not in resident(self.manager)
        context = self.manager.lease(key)
        if not fits:
            with pytest.raises(UserError):
                context.__enter__()
        elif loads and key in self.failing:
            with pytest.raises(OSError, match="disk"):
                context.__enter__()
        else:
            assert bytes_of(context.__enter__()) == self.sizes[key] * UNIT
            self.held.append((key, context))

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.held:
            number = data.draw(st.integers(0, len(self.held) - 1))
            self.held.pop(number)[1].__exit__(None, None, None)

    @rule(key=st.sampled_from("abcd"))
    def break_or_mend(self, key: str) -> None:
        self.failing ^= {key}

    @rule(key=st.sampled_from("abcd"))
    def free(self, key: str) -> None:
        if any(name == key for name, _ in self.held):
            with pytest.raises(UserError):
                self.manager.free(key)
        else:
            there = key in resident(self.manager)
            assert self.manager.free(key).bytes == (self.sizes[key] * UNIT if there else 0)

    @invariant()
    def accounts_are_exact(self) -> None:
        rows = {row.key: row for row in self.manager.status()}
        assert self.manager.used_bytes == sum(self.sizes[key] * UNIT for key in rows) <= self.budget * UNIT
        for key in self.sizes:
            leases = sum(name == key for name, _ in self.held)
            assert (rows[key].leases if key in rows else 0) == leases

    def teardown(self) -> None:
        for _, context in self.held:
            context.__exit__(None, None, None)
        self.temporary.cleanup()


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(max_examples=15, stateful_step_count=20)
