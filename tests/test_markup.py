"""What several parts of the page say in one way: how far something is, what is wrong, when, and what media are."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.controller.plan import Plan, Step
from app.library import Entry, Library
from app.studio import InternalError
from app.ui import ask_markup, machine_markup, markup
from app.ui.talk import StepState, Talk, Turn
from models.accounts import Decision
from models.errors import UserError
from pipelines.base import Progress
from tests.library_examples import picture

STEP = Step(id="a", op="paint", inputs=("text:a <bee>",), output="image")


def running(progress: Progress | None) -> str:
    """A turn of the conversation with such a step."""
    state = StepState(STEP, "Painting", (), 1.0, state="running", progress=progress)
    turn = Turn(1, "a bee", [], "running", plan=Plan(steps=(STEP,), outputs=("$a",)), steps=[state])
    return ask_markup.conversation(Talk(turns=[turn]), {}, [])


@pytest.mark.parametrize(
    ("step", "total", "percent", "count"),
    [
        (0, 4, 0, ""),
        (1, 3, 33, "1 of 3"),
        (4, 3, 100, "4 of 3"),
        (0, 0, 0, ""),
        (3, 0, 0, "3 of 0"),
        (-1, 4, 0, "-1 of 4"),
    ],
)
def test_a_bar_stays_within_its_ends_wherever_it_is(step: int, total: int, percent: int, count: str) -> None:
    event = Progress(step, total, "Painting <it>")
    bars = [markup.bar(event)]
    for html in (markup.progress(event, 3.0), markup.underway(event), running(event)):
        bars += re.findall(r'<p class="meter-text">.*?</span></div>', html)
    assert len(bars) == 4 and set(bars) == {bars[0]}
    assert f'aria-valuenow="{percent}"' in bars[0] and f'style="width:{percent}%"' in bars[0]
    assert f'<span class="numbers">{count}</span>' in bars[0] and "Painting &lt;it&gt;" in bars[0]
    assert ("bar unknown" in bars[0]) == (step == 0)


def test_a_step_that_has_said_nothing_yet_begins() -> None:
    assert "Beginning" in running(None) and "bar unknown" in running(None)


@pytest.mark.parametrize(
    ("error", "sentence", "hint"),
    [
        (UserError("The file is <broken>.", "Use another."), "The file is &lt;broken&gt;.", "Use another."),
        (InternalError("ab12"), "Something went wrong on our side; the log has the details under ab12.", ""),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do_wherever_it_is(
    error: UserError | InternalError, sentence: str, hint: str
) -> None:
    state = StepState(STEP, "Painting", (), 1.0, state="failed", error=error)
    turn = Turn(1, "a bee", [], "ended", plan=Plan(steps=(STEP,), outputs=("$a",)), steps=[state], problem=error)
    page = ask_markup.conversation(Talk(turns=[turn]), {}, [])
    said = f"<strong>{sentence}</strong> {hint}</p>"
    assert f'<p class="complaint" role="alert">{said}' in page and f'<p class="trouble">{said}' in page
    assert f'<p class="sentence">{sentence}</p><p class="hint">{hint}</p>' in markup.explained(error)


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    return Library(tmp_path).add(picture(), "a red apple")


def test_times_are_by_the_clock_of_the_machine_which_is_named(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    made = datetime(2026, 3, 1, 23, 5, 9, tzinfo=UTC)
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert ">2 March 2026, 00:05 CET</dd>" in markup.provenance(replace(entry, created=made))
        decision = Decision("load", "painter", time=made.timestamp())
        assert '<time title="2 March 2026, 00:05 CET">00:05:09</time>' in machine_markup.decisions([decision])
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("medium", "noun"), [("mesh", "3-D object"), ("image", "picture"), ("scan", "scan"), ("smell", "smell")]
)
def test_a_medium_is_called_as_people_call_it(medium: str, noun: str, entry: Entry) -> None:
    recipe = entry.provenance.model_copy(update={"inputs": ({"medium": medium, "hash": "ab"},)})
    one = replace(entry, medium=medium, provenance=recipe)
    assert f'aria-label="a red apple, {noun}"' in markup.thumbnails([one], "")
    assert f"<dt>From {noun}</dt>" in markup.provenance(one) and f"Your {noun} will appear" in markup.idle(medium)
