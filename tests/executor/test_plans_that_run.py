"""Plans that run: events in order, failures that stay where they are, and stopping."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from app.controller.executor import Failed, Running, Skipped, StepEvent, execute
from app.controller.plan import PlanError
from app.studio import InternalError, Saved, Studio
from models.errors import Cancelled, UserError
from pipelines.media import Image, Mesh, Text
from tests.watched_pipelines import (
    APPLE,
    BOTH,
    CHAIN,
    OBJECT,
    PEAR,
    SOUND,
    Attentive,
    Carve,
    Tone,
    bug,
    done,
    plan_of,
    run,
    step,
    told,
    uses,
)

# What a plan comes to.


def test_steps_run_in_order_and_hand_on_what_they_made(studio: Studio, manager: Attentive) -> None:
    events = list(execute(studio, CHAIN, {}))
    assert told(events) == [(kind, id) for id in "abc" for kind in ("Started", "Done")]
    steps = [event.step.id for event in events if isinstance(event, Running) and event.progress.step]
    assert steps == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    results = done(events)
    assert not any(event.cached for event in results.values()) and all(e.seconds > 0 for e in results.values())
    assert [results[id].result.artifact.medium for id in "abc"] == ["image", "audio", "mesh"]
    for earlier, later in ("ab", "bc"):
        parents = results[later].result.entry.provenance.parents
        assert parents == (results[earlier].result.artifact.content_hash(),)
    gallery = studio.library.entries()
    assert [entry.id for entry in gallery] == [results[id].result.entry.id for id in "cba"]
    assert [entry.title for entry in gallery] == ["a red apple"] * 3, "named by the words that it all started from"
    assert all(row.leases == 0 and not row.expected for row in manager.status())


def test_the_result_is_the_first_of_the_medium_that_was_asked_for(studio: Studio) -> None:
    hum = step("h", "tiny-hum", "text:low", "text:high", output="image")
    results = run(studio, plan_of(hum, step("b", "tone", "$h", output="audio")))
    hummed, toned = results["h"], results["b"]
    assert [saved.artifact.medium for saved in hummed.saved] == ["audio", "image"]
    assert hummed.result.artifact.medium == "image"
    assert toned.result.entry.provenance.parents == (hummed.result.artifact.content_hash(),)
    assert toned.result.entry.title == "low → high"


def test_what_is_attached_or_was_made_before_is_given_by_reference(studio: Studio) -> None:
    attached = Image(np.full((16, 16, 3), 40, np.uint8))
    [apple] = run(studio, plan_of(APPLE)).values()
    earlier = studio.library.load(apple.result.entry.id)
    steps = [
        step("b", "tone", "upload:1", output="audio"),
        step("m", "tiny-blend", "upload:1", "@3", output="image"),
    ]
    results = done(list(execute(studio, plan_of(*steps), {"upload:1": attached, "@3": earlier})))
    assert results["b"].result.entry.title == "Tone", "there are no words"
    assert results["m"].result.entry.title == "a red apple"
    name, inputs, params = studio.remix(results["m"].result.entry.id)
    assert [item.content_hash() for item in inputs] == [attached.content_hash(), earlier.content_hash()]
    [again] = [event for event in studio.generate(name, inputs, params) if isinstance(event, Saved)]
    assert again.artifact.content_hash() == results["m"].result.artifact.content_hash()


def test_a_plan_that_cannot_run_raises_before_anything_runs(studio: Studio, tone: Tone) -> None:
    with pytest.raises(PlanError, match="'@9', which does not exist"):
        list(execute(studio, plan_of(APPLE, step("m", "tone", "@9", output="audio")), {}))
    with pytest.raises(PlanError, match="gives mesh to 'tone'"):
        mesh = Mesh(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]], np.int32))
        list(execute(studio, plan_of(step("b", "tone", "upload:1", output="audio")), {"upload:1": mesh}))
    assert studio.library.count() == 0 and tone.runs == 0


# Failures.


@pytest.mark.parametrize("error", [UserError("It is too loud.", "Turn it down."), ZeroDivisionError("a bug")])
def test_a_failed_step_takes_only_those_with_it_that_need_it(
    studio: Studio, tone: Tone, carve: Carve, error: Exception
) -> None:
    def fail() -> None:
        raise error

    tone.before_result = fail
    finer = step("f", "carve", "$c", output="mesh")
    events = list(execute(studio, plan_of(APPLE, SOUND, OBJECT, finer, PEAR, BOTH), {}))
    assert told(events) == [
        ("Started", "a"),
        ("Done", "a"),
        ("Started", "b"),
        ("Failed", "b"),
        ("Skipped", "c"),
        ("Skipped", "f"),
        ("Started", "d"),
        ("Done", "d"),
        ("Started", "e"),
        ("Done", "e"),
    ]
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert failed.error is error if isinstance(error, UserError) else isinstance(failed.error, InternalError)
    assert [event.because for event in events if isinstance(event, Skipped)] == ["b", "b"]
    assert studio.library.count() == 3 and carve.runs == 0


def test_words_that_are_no_text_fail_their_step_alone(studio: Studio) -> None:
    bad = step("n", "tiny-paint", "text:nul \0", output="image")
    events = list(execute(studio, plan_of(bad, APPLE), {}))
    assert told(events) == [("Started", "n"), ("Failed", "n"), ("Started", "a"), ("Done", "a")]


def test_a_pipeline_that_breaks_its_promise_is_a_bug_of_its_step(studio: Studio) -> None:
    for _ in range(2):
        events = list(execute(studio, plan_of(step("l", "liar", "text:x", output="image"), APPLE), {}))
        [failed] = [event for event in events if isinstance(event, Failed)]
        assert failed.step.id == "l" and isinstance(failed.error, InternalError)
        assert set(done(events)) == {"a"}


def test_trying_again_runs_only_what_failed_and_what_needs_it(studio: Studio, tone: Tone, carve: Carve) -> None:
    tone.before_result = bug
    plan = plan_of(APPLE, SOUND, OBJECT, PEAR, BOTH)
    first = run(studio, plan)
    tone.before_result = lambda: None
    second = run(studio, plan)
    assert {id: event.cached for id, event in second.items()} == dict(a=True, b=False, c=False, d=True, e=True)
    assert all(second[id].result.entry == first[id].result.entry for id in "ade")
    assert (tone.runs, carve.runs) == (2, 1) and studio.library.count() == 5


# Cancelling.


def test_cancelling_stops_within_a_step_and_what_is_finished_stays(studio: Studio, tone: Tone) -> None:
    cancelled = threading.Event()
    tone.in_step = cancelled.set
    seen: list[StepEvent] = []
    with pytest.raises(Cancelled):
        for event in execute(studio, CHAIN, {}, cancelled):
            seen.append(event)
    assert tone.steps == 1 and told(seen) == [("Started", "a"), ("Done", "a"), ("Started", "b")]
    assert [entry.medium for entry in studio.library.entries()] == ["image"]
    assert all(row.leases == 0 and not row.expected for row in studio.manager.status())
    tone.in_step = lambda: None
    again = run(studio, CHAIN)
    assert [again[id].cached for id in "abc"] == [True, False, False]


def test_what_is_cancelled_already_starts_nothing(studio: Studio) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        next(execute(studio, CHAIN, {}, cancelled))
    assert uses(studio.manager) == 0


def test_a_reader_who_leaves_stops_the_run(studio: Studio, tone: Tone) -> None:
    events = execute(studio, CHAIN, {})
    for event in events:
        if isinstance(event, Running) and event.step.id == "b":
            break
    events.close()
    list(execute(studio, plan_of(PEAR), {}))
    assert tone.runs == 1 and sorted(entry.medium for entry in studio.library.entries()) == ["image", "image"]
    assert all(row.leases == 0 and not row.expected for row in studio.manager.status())


def test_of_words_that_a_pipeline_made_the_first_line_is_painted(studio: Studio) -> None:
    [apple] = run(studio, plan_of(APPLE)).values()
    made_by = apple.result.artifact.provenance
    said = "a deer\nConfidence 8 %. Nearest concepts: deer 0.31."
    painted = step("p", "tiny-paint", "@1", output="image")
    for given, read in ((Text(said, provenance=made_by), "a deer"), (Text(said), said)):
        [event] = done(list(execute(studio, plan_of(painted), {"@1": given}))).values()
        provenance = event.result.artifact.provenance
        assert provenance is not None and provenance.inputs[0]["text"] == read
        assert event.result.entry.title == "a deer"
