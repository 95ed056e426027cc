"""Memory that runs out in the middle of a run: less at once, then lower precision, then one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.recovery import events_of
from models.errors import UserError
from models.manager import ModelManager
from models.modules import bytes_of
from models.working_memory import RUNS_BEFORE_MORE, Work, WorkingMemory
from pipelines.base import Event, Params, Pipeline, Produced, Progress, Route, Runtime, provenance
from pipelines.media import Artifact, Image, Text
from tests.tiny_models import manager_of, resident, spec_of, use


class Greedy(Pipeline):
    """Makes two pictures; the second needs more memory than there is, unless ``enough(runtime, manager)``."""

    name = "greedy"
    title = "Greedy"
    summary = "Wants memory."
    routes = (Route(("text",), "image"),)
    params_type = Params
    models = ("a",)

    def shape_of_work(self, inputs: Sequence[Artifact], params: Params) -> tuple[int, ...]:
        return (8,)

    def __init__(self, enough: object) -> None:
        self.enough = enough
        self.runs: list[int] = []

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        self.runs.append(runtime.micro_batch)
        with runtime.models.lease("a"):
            for number in range(2):
                yield Progress(number, 2, "Painting")
                assert callable(self.enough)
                if number == 1 and not self.enough(runtime, runtime.models):
                    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1e12 bytes.")
                made_by = provenance(self, inputs[0], params, runtime.models, number)
                yield Produced(Image(np.full((4, 4, 3), number, np.uint8), provenance=made_by))


def run(pipeline: Greedy, manager: ModelManager) -> list[int]:
    """Which pictures came, by their grey."""
    runtime = Runtime(manager)
    events = events_of(pipeline, [Text("x")], Params(), runtime, manager)
    return [int(event.artifact.pixels[0, 0, 0]) for event in events if isinstance(event, Produced)]  # type: ignore[attr-defined]


def manager(folder: Path, **options: object) -> ModelManager:
    linear = spec_of("a", folder, 300, load=lambda _: torch.nn.Linear(256, 256))
    return manager_of(1000, linear, spec_of("idle", folder), **options)


def test_idle_models_go_first_and_nothing_is_made_twice(tmp_path: Path) -> None:
    models = manager(tmp_path)
    use(models, "idle")
    pipeline = Greedy(lambda runtime, manager: "idle" not in resident(manager))
    assert run(pipeline, models) == [0, 1]
    assert pipeline.runs == [16, 16]
    assert any(decision.kind == "out of memory" and "idle" in decision.chosen for decision in models.decisions())


def test_then_less_is_computed_at_once(tmp_path: Path) -> None:
    pipeline = Greedy(lambda runtime, manager: runtime.micro_batch <= 2)
    assert run(pipeline, manager(tmp_path)) == [0, 1]
    assert pipeline.runs == [16, 16, 4, 2], "the run computes 8 things, so the first half is 4"


def test_the_next_run_begins_with_the_micro_batch_that_worked(tmp_path: Path) -> None:
    models = manager(tmp_path)
    pipeline = Greedy(lambda runtime, manager: runtime.micro_batch <= 2)
    run(pipeline, models)
    pipeline.runs.clear()
    assert run(pipeline, models) == [0, 1] and pipeline.runs == [2]

    class Another(Greedy):
        name = "another"

    other = Another(lambda runtime, manager: True)
    assert run(other, models) == [0, 1] and other.runs == [16]


def test_after_some_runs_more_is_tried_again_up_to_what_was_wanted(tmp_path: Path) -> None:
    models = manager(tmp_path)
    run(Greedy(lambda runtime, manager: runtime.micro_batch <= 2), models)
    pipeline = Greedy(lambda runtime, manager: True)
    for _ in range(2 * RUNS_BEFORE_MORE + 1):
        run(pipeline, models)
    assert pipeline.runs == [2] * RUNS_BEFORE_MORE + [4] * RUNS_BEFORE_MORE + [8]


def test_a_micro_batch_that_fails_to_do_anything_is_not_remembered(tmp_path: Path) -> None:
    models = manager(tmp_path)
    with pytest.raises(UserError):
        run(Greedy(lambda runtime, manager: False), models)
    pipeline = Greedy(lambda runtime, manager: True)
    assert run(pipeline, models) == [0, 1] and pipeline.runs == [16]


@pytest.mark.parametrize(("count", "wanted"), [(32, 4), (1, 16)])
def test_a_run_that_wants_or_computes_less_says_nothing_of_what_could_be_done(count: int, wanted: int) -> None:
    memory = WorkingMemory(torch.device("cpu"))
    memory.worked(Work("paint", (32, 256)), 8, 16)
    less = Work("paint", (count, 256))
    for _ in range(2 * RUNS_BEFORE_MORE):
        memory.worked(less, memory.micro_batch(less, wanted), wanted)
    assert memory.micro_batch(Work("paint", (64, 256)), 16) == 8
    assert memory.micro_batch(Work("paint", (64, 512)), 16) == 16, "larger things are other work"


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 32)), max_size=80))
def test_a_remembered_micro_batch_is_never_none_nor_more_than_is_wanted(runs: list[tuple[int, int, int]]) -> None:
    memory = WorkingMemory(torch.device("cpu"))
    for count, enough, wanted in runs:
        work = Work("paint", (count, 256))
        size = memory.micro_batch(work, wanted)
        assert 1 <= size <= wanted
        while size > enough and min(size, count) > 1:
            size = min(size, count) // 2
        memory.worked(work, size, wanted)
        assert memory.micro_batch(work, size) == size, "what worked is tried again"


def test_a_model_that_cannot_be_loaded_at_full_precision_is_loaded_in_less(tmp_path: Path) -> None:
    attempts = []

    def load(_: Path) -> torch.nn.Module:
        attempts.append(models.precisions["a"])
        if models.precisions["a"] == "float32":
            raise MemoryError
        return torch.nn.Linear(256, 256)

    models = manager_of(1000, spec_of("a", tmp_path, 300, load=load), may_be_lowered=["a"])
    pipeline = Greedy(lambda runtime, manager: True)
    assert run(pipeline, models) == [0, 1]
    assert attempts[-1] == models.record("a").precision == "float16" and pipeline.runs == [16, 16, 16]


def test_then_the_precision_is_lowered_if_that_is_left_to_us(tmp_path: Path) -> None:
    pipeline = Greedy(lambda runtime, manager: manager.precisions["a"] == "int8")
    models = manager(tmp_path, may_be_lowered=["a"])
    assert run(pipeline, models) == [0, 1]
    assert models.record("a").precision == "int8"


def test_then_the_user_is_told_and_the_accounts_are_exact(tmp_path: Path) -> None:
    models = manager(tmp_path)
    with pytest.raises(UserError, match="Memory ran out in greedy") as caught:
        run(Greedy(lambda runtime, manager: False), models)
    assert "budget is 4.0 MB, models in use: a with 0.3 MB" in caught.value.sentence
    assert all(row.leases == 0 for row in models.status()) and models.used_bytes in (
        0,
        bytes_of(torch.nn.Linear(256, 256)),
    )
    assert run(Greedy(lambda runtime, manager: True), models) == [0, 1]


def test_any_other_error_is_not_tried_again(tmp_path: Path) -> None:
    def broken(runtime: Runtime, manager: ModelManager) -> bool:
        raise RuntimeError("shapes do not match")

    pipeline = Greedy(broken)
    with pytest.raises(RuntimeError, match="shapes"):
        run(pipeline, manager(tmp_path))
    assert pipeline.runs == [16]
