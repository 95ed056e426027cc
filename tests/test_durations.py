"""What runs took is remembered, and estimated from."""

from __future__ import annotations

import logging
import math
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.durations import RUNS_KEPT, Durations


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "durations.json"


def test_a_pipeline_that_never_ran_has_no_estimate(path: Path) -> None:
    assert Durations(path).expected("crossflow") is None
    assert not path.exists()


def test_the_estimate_grows_with_the_effort_and_is_the_median_run(path: Path) -> None:
    durations = Durations(path)
    for effort, seconds in ((50, 2.0), (25, 1.0), (25, 60.0)):
        durations.note("crossflow", effort, 25, seconds)
    assert durations.expected("crossflow") == pytest.approx(1.0)
    assert durations.expected("crossflow", 100) == pytest.approx(4.0)
    assert durations.expected("other") is None


def test_old_runs_are_forgotten(path: Path) -> None:
    durations = Durations(path)
    durations.note("a", 1, 1, 100.0)
    for _ in range(RUNS_KEPT):
        durations.note("a", 1, 1, 2.0)
    assert durations.expected("a") == 2.0
    for _ in range(RUNS_KEPT // 2 + 1):
        durations.note("a", 1, 1, 4.0)
    assert durations.expected("a") == 4.0


def test_they_outlive_the_program(path: Path) -> None:
    Durations(path).note("a", 2, 4, 3.0)
    again = Durations(path)
    assert again.expected("a") == 6.0 and again.expected("a", 1) == 1.5
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-1, 1, 1), (math.nan, 1, 1), (1, 1, math.inf)])
def test_what_cannot_be_a_run_is_left_out(path: Path, numbers: tuple[float, float, float]) -> None:
    durations = Durations(path)
    durations.note("a", *numbers)
    assert durations.expected("a") is None


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"[]", b'{"a": 3}', b'{"a": [[1, 2]]}', b'{"a": [[1, 1, -1]]}', b'{"a": [[0, 1, 1]]}', b"[" * 99999],
)
def test_a_damaged_file_is_said_and_learnt_anew(path: Path, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        durations = Durations(path)
    assert str(path) in caplog.text
    assert durations.expected("a") is None
    durations.note("a", 1, 1, 2.0)
    assert Durations(path).expected("a") == 2.0


def test_a_folder_that_is_gone_is_said_and_fails_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    durations = Durations(tmp_path / "nowhere" / "durations.json")
    with caplog.at_level(logging.WARNING):
        durations.note("a", 1, 1, 2.0)
    assert "does not exist" in caplog.text
    assert durations.expected("a") == 2.0


def test_threads_may_note_at_once(path: Path) -> None:
    durations = Durations(path)

    def work(name: str) -> None:
        for _ in range(5):
            durations.note(name, 1, 1, 1.0)
            durations.expected(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    again = Durations(path)
    assert [again.expected(name) for name in "abcd"] == [1.0] * 4


positive = st.floats(0.01, 1000)


@given(st.lists(st.tuples(positive, positive, positive), min_size=1, max_size=RUNS_KEPT), positive)
def test_an_estimate_lies_between_the_slowest_and_the_fastest_run(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[float, float, float]], effort: float
) -> None:
    durations = Durations(tmp_path_factory.getbasetemp() / "nowhere" / "durations.json")
    for run in runs:
        durations.note("a", *run)
    paces = [seconds / of_run for of_run, _, seconds in runs]
    expected = durations.expected("a", effort)
    assert expected is not None
    assert min(paces) * effort * 0.999 <= expected <= max(paces) * effort * 1.001
