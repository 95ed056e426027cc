"""The one door: requests become saved artifacts, and everything that can go wrong has its own kind of answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.settings import Settings
from app.studio import InternalError, Saved, Studio, title_of
from models.errors import Cancelled, UserError
from models.manager import ModelManager
from models.spec import ModelSpec
from pipelines.base import Event, Params, Pipeline, Produced, Progress, Registry, Route, Runtime
from pipelines.media import Artifact, Image, Text
from tests.tiny import Blend, Paint, Painter, PaintParams, load_painter
from tests.tiny_models import wait_until

APPLE = [Text("a red apple")]


def saved(studio: Studio, name: str, inputs: Sequence[Artifact], **params: object) -> list[Saved]:
    return [event for event in studio.generate(name, inputs, params) if isinstance(event, Saved)]


def test_a_request_shows_progress_and_ends_in_the_gallery(tiny_studio: Studio) -> None:
    events = list(tiny_studio.generate("tiny-paint", APPLE, {"steps": 4, "num_images": 2}))
    steps = [event.step for event in events if isinstance(event, Progress) and event.message == "Painting"]
    assert steps == [1, 2, 3, 4, 1, 2, 3, 4]
    made = [event for event in events if isinstance(event, Saved)]
    assert [entry.id for entry in tiny_studio.library.entries()] == [made[1].entry.id, made[0].entry.id]
    for event in made:
        assert event.entry.title == "a red apple"
        assert tiny_studio.library.load(event.entry.id).content_hash() == event.artifact.content_hash()
        assert event.entry.provenance.pipeline == "tiny-paint"
        assert [record.key for record in event.entry.provenance.models] == ["painter"]


def test_running_without_saving_leaves_no_gallery(tiny_studio: Studio, tiny_settings: Settings) -> None:
    events = list(tiny_studio.run("tiny-paint", APPLE, {}))
    assert sum(isinstance(event, Produced) for event in events) == 1
    assert not tiny_settings.output_folder.exists()


def test_a_remix_is_the_same_bytes_and_another_seed_is_not(tiny_studio: Studio) -> None:
    [_, second] = saved(tiny_studio, "tiny-paint", APPLE, seed=7, strength=1.5, num_images=2)
    name, inputs, params = tiny_studio.remix(second.entry.id)
    [_, again] = saved(tiny_studio, name, inputs, **params)
    assert again.entry.path.read_bytes() == second.entry.path.read_bytes()
    assert again.artifact.content_hash() == second.artifact.content_hash()
    [_, other] = saved(tiny_studio, name, inputs, **{**params, "seed": 8})
    assert other.artifact.content_hash() != second.artifact.content_hash()


def test_a_remix_finds_its_pictures_by_content(tiny_studio: Studio) -> None:
    [first] = saved(tiny_studio, "tiny-paint", APPLE)
    [second] = saved(tiny_studio, "tiny-paint", [Text("a pear")])
    [blend] = saved(tiny_studio, "tiny-blend", [first.artifact, second.artifact], share=0.25)
    assert blend.entry.title == "Tiny blend"
    assert blend.entry.provenance.parents == (first.artifact.content_hash(), second.artifact.content_hash())
    name, inputs, params = tiny_studio.remix(blend.entry.id)
    [again] = saved(tiny_studio, name, inputs, **params)
    assert again.artifact.content_hash() == blend.artifact.content_hash()
    tiny_studio.library.remove(first.entry.id)
    with pytest.raises(UserError, match="not in the gallery"):
        tiny_studio.remix(blend.entry.id)


@pytest.mark.parametrize(
    ("name", "inputs", "params", "names"),
    [
        ("nobody", APPLE, {}, "nobody"),
        ("tiny-paint", [], {}, "nothing"),
        ("tiny-paint", APPLE * 2, {}, "text + text"),
        ("tiny-blend", APPLE, {}, "text"),
        ("tiny-paint", APPLE, {"colour": "red"}, "colour"),
        ("tiny-paint", APPLE, {"steps": 0}, "steps"),
        ("tiny-paint", APPLE, {"steps": -1}, "steps"),
        ("tiny-paint", APPLE, {"steps": 10**9}, "steps"),
        ("tiny-paint", APPLE, {"steps": 10**400}, "steps"),
        ("tiny-paint", APPLE, {"strength": float("nan")}, "strength"),
        ("tiny-paint", APPLE, {"strength": float("inf")}, "strength"),
        ("tiny-paint", APPLE, {"seed": -1}, "seed"),
        ("tiny-paint", APPLE, {"note": ["a", "list"]}, "note"),
        ("tiny-paint", [Text(" \t")], {}, "prompt"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_leaves_nothing(
    tiny_studio: Studio, name: str, inputs: list[Artifact], params: dict[str, object], names: str
) -> None:
    with pytest.raises(UserError) as caught:
        list(tiny_studio.generate(name, inputs, params))
    assert names in caught.value.sentence and len(caught.value.sentence) < 250 and caught.value.hint
    assert tiny_studio.library.count() == 0
    assert saved(tiny_studio, "tiny-paint", APPLE), "and the next request works"


@pytest.mark.parametrize("note", ["nul \0 inside", "مرحبا 🍎", "x" * 100_000])
def test_any_text_passes_through_a_text_setting(tiny_studio: Studio, note: str) -> None:
    [made] = saved(tiny_studio, "tiny-paint", APPLE, note=note)
    assert tiny_studio.remix(made.entry.id)[2]["note"] == note


def test_a_bug_is_logged_whole_under_the_id_that_the_user_sees(
    tiny_studio: Studio, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(InternalError) as caught:
        list(tiny_studio.generate("tiny-paint", APPLE, {"fail": True}))
    assert caught.value.id in str(caught.value)
    [record] = [record for record in caplog.records if caught.value.id in record.getMessage()]
    assert record.exc_info is not None and isinstance(record.exc_info[1], ZeroDivisionError)
    assert tiny_studio.manager.status()[0].leases == 0
    assert saved(tiny_studio, "tiny-paint", APPLE), "and the next request works"


class SetWhileItRuns(threading.Event):
    """Is set from the twentieth look at it on: in the middle of a run of a hundred steps, however fast they are."""

    looks = 0

    def is_set(self) -> bool:
        self.looks += 1
        return self.looks > 20


def test_cancelling_stops_between_steps_and_saves_nothing(tiny_studio: Studio) -> None:
    cancelled = SetWhileItRuns()
    with pytest.raises(Cancelled):
        list(tiny_studio.generate("tiny-paint", APPLE, {"steps": 100}, cancelled))
    assert cancelled.looks < 100
    assert tiny_studio.library.count() == 0 and tiny_studio.manager.status()[0].leases == 0


class Slow(Pipeline):
    """Never looks at ``cancelled``; notes in which threads and how many at once it runs."""

    name = "slow"
    title = "Slow"
    summary = "Waits."
    routes = (Route(("text",), "image"),)
    params_type = Params
    models = ()

    def __init__(self) -> None:
        self.threads: set[str] = set()
        self.running = self.most = self.closed = 0
        self.go = threading.Event()

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for step in range(1000):
                self.threads.add(threading.current_thread().name)
                yield Progress(step, 1000, "Waiting")
                if self.go.wait(0.01):
                    return
        finally:
            self.threads.add(threading.current_thread().name)
            self.running -= 1
            self.closed += 1


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def slow_studio(tiny_settings: Settings, slow: Slow, tiny_studio: Studio) -> Studio:
    return Studio(tiny_settings, Registry([slow, Paint()]), tiny_studio.manager)


def test_two_generations_never_run_at_once_and_the_second_is_told_to_wait(slow_studio: Studio, slow: Slow) -> None:
    first = slow_studio.run("slow", APPLE, {})
    next(first)
    second = slow_studio.run("slow", APPLE, {})
    waiting = next(second)
    assert isinstance(waiting, Progress) and "Waiting for another" in waiting.message
    slow.go.set()
    list(first)
    assert len(list(second)) == 1
    assert slow.most == 1 and slow.closed == 2
    assert len(slow.threads) == 1 and threading.current_thread().name not in slow.threads


def test_cancelling_while_waiting_does_not_wait_for_the_lane(slow_studio: Studio, slow: Slow) -> None:
    first = slow_studio.run("slow", APPLE, {})
    next(first)
    cancelled = threading.Event()
    second = slow_studio.run("slow", APPLE, {}, cancelled)
    next(second)
    cancelled.set()
    with pytest.raises(Cancelled):
        next(second)
    assert slow.running == 1
    first.close()  # type: ignore[attr-defined]


def test_a_reader_who_leaves_frees_the_lane(slow_studio: Studio, slow: Slow) -> None:
    cancelled = threading.Event()
    events = slow_studio.run("slow", APPLE, {}, cancelled)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert cancelled.is_set()
    assert any(isinstance(event, Produced) for event in slow_studio.run("tiny-paint", APPLE, {}))
    assert slow.closed == 1 and slow.running == 0


def test_a_pipeline_that_never_looks_is_stopped_all_the_same(slow_studio: Studio, slow: Slow) -> None:
    cancelled = threading.Event()
    events = slow_studio.run("slow", APPLE, {}, cancelled)
    next(events)
    cancelled.set()
    with pytest.raises(Cancelled):
        list(events)
    assert slow.closed == 1


def test_a_gallery_that_cannot_be_opened_is_a_sentence_before_any_work(
    tiny_settings: Settings, tiny_registry: Registry, tiny_studio: Studio
) -> None:
    tiny_settings.output_folder.write_text("a file where the folder should be")
    with pytest.raises(UserError):
        next(tiny_studio.generate("tiny-paint", APPLE, {}))
    assert tiny_studio.manager.status() == []


def test_many_threads_share_one_studio(tiny_studio: Studio) -> None:
    made: dict[int, list[Saved]] = {}

    def request(seed: int) -> None:
        made[seed] = saved(tiny_studio, "tiny-paint", APPLE, seed=seed)

    threads = [threading.Thread(target=request, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert tiny_studio.library.count() == 6
    hashes = {seed: events[0].artifact.content_hash() for seed, events in made.items()}
    assert len(set(hashes.values())) == 6
    assert saved(tiny_studio, "tiny-paint", APPLE, seed=3)[0].artifact.content_hash() == hashes[3]


def test_titles_are_one_short_line() -> None:
    assert title_of([Text("a\n red\tapple")]) == "a red apple"
    assert title_of([Text("a cat"), Text("a dog")]) == "a cat → a dog"
    assert title_of([]) == ""
    assert len(title_of([Text("word " * 10_000)])) == 120


def test_the_default_studio_is_built_from_settings(tiny_settings: Settings, tiny_registry: Registry) -> None:
    studio = Studio(tiny_settings.model_copy(update={"device": "cpu", "memory_budget_gb": 0.5}), tiny_registry)
    assert isinstance(studio.manager, ModelManager)
    assert studio.manager.budget_bytes == 500_000_000 and studio.manager.device.type == "cpu"
    assert "crossflow" in studio.manager.specs


def test_a_remix_finds_the_files_that_were_attached(tiny_studio: Studio) -> None:
    attached = [Image(np.full((16, 16, 3), grey, np.uint8)) for grey in (10, 200)]
    [blend] = saved(tiny_studio, "tiny-blend", attached, share=0.25)
    assert tiny_studio.library.count() == 1, "what was attached is kept, but is no entry of its own"
    name, inputs, params = tiny_studio.remix(blend.entry.id)
    [again] = saved(tiny_studio, name, inputs, **params)
    assert again.artifact.content_hash() == blend.artifact.content_hash()
    assert again.entry.path.read_bytes() == blend.entry.path.read_bytes()


def test_the_manager_is_told_what_waits_and_forgets_it_when_done(tiny_studio: Studio) -> None:
    events = tiny_studio.run("tiny-paint", APPLE, {"steps": 2})
    next(events)
    assert [(row.key, row.expected) for row in tiny_studio.manager.status()] == [("painter", True)]
    list(events)
    assert [(row.key, row.expected) for row in tiny_studio.manager.status()] == [("painter", False)]


class Effortful(Paint):
    """Takes longer the more steps there are, as most do."""

    name = "effortful"

    def effort(self, inputs: Sequence[Artifact], params: Params) -> float:
        assert isinstance(params, PaintParams)
        return float(params.steps)


def test_what_runs_took_is_noted_and_estimates_the_next(tiny_settings: Settings, tiny_studio: Studio) -> None:
    pipeline = Effortful()
    studio = Studio(tiny_settings, Registry([pipeline]), tiny_studio.manager)
    guess = studio.seconds(pipeline)
    assert guess > 0 and studio.durations.expected("effortful") is None
    saved(studio, "effortful", APPLE, steps=30)
    seconds = studio.durations.expected("effortful", 30)
    assert seconds is not None and seconds > 0
    assert studio.seconds(pipeline) == pytest.approx(seconds / 10), "three steps are the default"
    assert Studio(tiny_settings, Registry([pipeline]), tiny_studio.manager).seconds(pipeline) == studio.seconds(
        pipeline
    )


def test_only_runs_that_come_to_their_end_are_noted(tiny_studio: Studio) -> None:
    list(tiny_studio.run("tiny-paint", APPLE, {}))
    with pytest.raises(InternalError):
        saved(tiny_studio, "tiny-paint", APPLE, fail=True)
    with pytest.raises(Cancelled):
        list(tiny_studio.generate("tiny-paint", APPLE, {"steps": 100}, SetWhileItRuns()))
    assert tiny_studio.durations.expected("tiny-paint") is None


def test_waiting_for_models_is_no_part_of_what_a_run_takes(
    tiny_settings: Settings, tiny_specs: dict[str, ModelSpec]
) -> None:
    def load_slowly(folder: Path) -> Painter:
        time.sleep(0.5)
        return load_painter(folder)

    specs = {"painter": replace(tiny_specs["painter"], load=load_slowly)}
    studio = Studio(tiny_settings, Registry([Paint()]), ModelManager(specs, torch.device("cpu"), 10_000_000))
    started = time.perf_counter()
    saved(studio, "tiny-paint", APPLE)
    whole = time.perf_counter() - started
    waited = studio.manager.metrics.wait_seconds
    assert waited >= 0.5
    assert studio.seconds(Paint()) <= whole - waited


def test_what_others_wait_for_meanwhile_counts(tiny_studio: Studio) -> None:
    class Beside(Paint):
        name = "beside"

        def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
            yield from super().run_batch(inputs, params, runtime)
            tiny_studio.manager.metrics.wait_seconds += 100  # as a reader's of another conversation

    studio = Studio(tiny_studio.settings, Registry([Beside()]), tiny_studio.manager)
    saved(studio, "beside", APPLE)
    assert studio.seconds(Beside()) > 0


def test_a_pipeline_that_never_ran_is_guessed_by_whether_it_has_models(tiny_studio: Studio) -> None:
    assert tiny_studio.seconds(Paint()) > tiny_studio.seconds(Blend()) > 0


def test_a_title_can_be_given(tiny_studio: Studio) -> None:
    [made] = [e for e in tiny_studio.generate("tiny-paint", APPLE, {}, title="An ode") if isinstance(e, Saved)]
    assert made.entry.title == "An ode"


def test_the_models_of_a_plan_are_brought_in_and_expected_until_it_ends(tiny_studio: Studio) -> None:
    def painter() -> list[tuple[bool, bool]]:
        return [(row.loading, row.expected) for row in tiny_studio.manager.status()]

    with tiny_studio.upcoming() as tell:
        tell([])
        assert painter() == []
        tell(["painter"])
        wait_until(lambda: painter() == [(False, True)])
        tell([])
        assert painter() == [(False, False)]
        tell(["painter"])
    assert painter() == [(False, False)]


def test_the_machine_tells_what_is_in_memory_and_frees_it(tiny_studio: Studio) -> None:
    saved(tiny_studio, "tiny-paint", APPLE)
    state = tiny_studio.machine()
    assert [row.key for row in state.models] == ["painter"] and state.used_bytes == state.models[0].bytes > 0
    assert state.rss_bytes > state.used_bytes and "Loaded painter" in state.decisions[-1].sentence()
    assert tiny_studio.free("painter").bytes == state.used_bytes
    assert tiny_studio.machine().models == []
    with pytest.raises(UserError, match="no model called"):
        tiny_studio.free("nobody")
