"""Plans that run: events in order, failures that stay where they are, results that are not made twice."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from pydantic import Field, JsonValue

from app.controller.executor import Done, Failed, Running, Skipped, StepEvent, execute
from app.controller.plan import Plan, PlanError, Step
from app.settings import Settings
from app.studio import InternalError, Saved, Studio
from models.catalog import ModelSpec
from models.errors import Cancelled, UserError
from models.manager import ModelManager
from models.sources import Folder
from pipelines.base import Event, Params, Pipeline, Produced, Progress, Registry, Route, Runtime, provenance
from pipelines.media import Artifact, Audio, Image, Mesh, Text, Video
from tests.tiny import Blend, Hum, Paint, write_sums
from tests.tiny_models import CPU, spec_of, wait_until


class Count(Params):
    count: int = Field(1, ge=1, le=9, description="How many to make.")


class Watched(Pipeline):
    """Counts its runs and steps, and lets a test do something ``in_step`` or ``before_result``, such as raise."""

    summary = ""
    params_type = Count
    models: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.runs = self.steps = 0
        self.in_step: Callable[[], None] = lambda: None
        self.before_result: Callable[[], None] = lambda: None

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        assert isinstance(params, Count)
        self.runs += 1
        for key in self.models:
            with runtime.lease(key):
                for number in range(3):
                    runtime.raise_if_cancelled()
                    self.steps += 1
                    self.in_step()
                    yield Progress(number + 1, 3, "Working")
        for item in inputs:
            for index in range(params.count):
                self.before_result()
                made_by = provenance(self, item, params, runtime.models, index)
                yield Produced(self.result(item, params.seed + index).with_provenance(made_by))

    def result(self, inputs: Sequence[Artifact], seed: int) -> Artifact:
        raise NotImplementedError


class Tone(Watched):
    name = "tone"
    title = "Tone"
    routes = (Route(("image",), "audio"), Route(("video",), "audio"))
    models: ClassVar[tuple[str, ...]] = ("toner",)

    def result(self, inputs: Sequence[Artifact], seed: int) -> Artifact:
        [seen] = inputs
        pixels = seen.pixels if isinstance(seen, Image) else seen.frames if isinstance(seen, Video) else None
        assert pixels is not None
        return Audio((np.resize(pixels, (1, 800)) / np.float32(300 + seed)).astype(np.float32), 8000)


class Carve(Watched):
    name = "carve"
    title = "Carve"
    routes = (Route(("audio",), "mesh"), Route(("mesh",), "mesh"))
    models: ClassVar[tuple[str, ...]] = ("carver",)

    def result(self, inputs: Sequence[Artifact], seed: int) -> Artifact:
        [heard] = inputs
        assert isinstance(heard, Audio)  # the route from a mesh is only ever skipped
        return Mesh(heard.samples[0, :9].reshape(3, 3).copy() + np.float32(seed), np.array([[0, 1, 2]], np.int32))


class Flicker(Watched):
    """A clip, whose file holds less than the frames in memory."""

    name = "flicker"
    title = "Flicker"
    routes = (Route(("text",), "video"),)

    def result(self, inputs: Sequence[Artifact], seed: int) -> Artifact:
        noise = np.random.default_rng(seed).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
        return Video(noise, 12.0)


class Liar(Watched):
    """Says that it makes pictures."""

    name = "liar"
    title = "Liar"
    routes = (Route(("text",), "image"),)

    def result(self, inputs: Sequence[Artifact], seed: int) -> Artifact:
        return Text("a picture")


class Attentive(ModelManager):
    """Keeps what it was told to expect."""

    told: list[tuple[str, ...]]

    def expect(self, keys: Sequence[str]) -> None:
        self.told = [*getattr(self, "told", []), tuple(dict.fromkeys(keys))]
        super().expect(keys)


@pytest.fixture
def tone() -> Tone:
    return Tone()


@pytest.fixture
def carve() -> Carve:
    return Carve()


@pytest.fixture
def flicker() -> Flicker:
    return Flicker()


@pytest.fixture
def specs(tiny_specs: dict[str, ModelSpec], tmp_path: Path) -> dict[str, ModelSpec]:
    """Models whose files a test may change."""
    folder = tmp_path / "weights"
    folder.mkdir()
    painter = tiny_specs["painter"]
    assert isinstance(painter.source, Folder)
    shutil.copytree(painter.source.path, folder / "painter")
    specs = [spec_of("toner", folder), spec_of("carver", folder)]
    return {spec.key: spec for spec in (replace(painter, source=Folder(folder / "painter")), *specs)}


@pytest.fixture
def manager(specs: dict[str, ModelSpec]) -> Attentive:
    return Attentive(specs, CPU, 10_000_000)


@pytest.fixture
def studio(tiny_settings: Settings, manager: Attentive, tone: Tone, carve: Carve, flicker: Flicker) -> Studio:
    return Studio(tiny_settings, Registry([Paint(), Blend(), Hum(), tone, carve, flicker, Liar()]), manager)


def step(id: str, op: str, *inputs: str, output: str, **params: JsonValue) -> Step:
    return Step(id=id, op=op, inputs=inputs, output=output, params=params)


def plan_of(*steps: Step) -> Plan:
    return Plan(steps=steps, outputs=tuple(f"${step.id}" for step in steps))


APPLE = step("a", "tiny-paint", "text:a red apple", output="image")
SOUND = step("b", "tone", "$a", output="audio")
OBJECT = step("c", "carve", "$b", output="mesh")
PEAR = step("d", "tiny-paint", "text:a pear", output="image", steps=1)
BOTH = step("e", "tiny-blend", "$a", "$d", output="image")
CHAIN = plan_of(APPLE, SOUND, OBJECT)


def told(events: Sequence[StepEvent]) -> list[tuple[str, str]]:
    """Kind and step of each event, without progress."""
    return [(type(event).__name__, event.step.id) for event in events if not isinstance(event, Running)]


def done(events: Sequence[StepEvent]) -> dict[str, Done]:
    return {event.step.id: event for event in events if isinstance(event, Done)}


def run(studio: Studio, plan: Plan) -> dict[str, Done]:
    return done(list(execute(studio, plan, {})))


def bug() -> None:
    raise ZeroDivisionError("a bug")


def uses(manager: ModelManager) -> int:
    return manager.metrics.hits + manager.metrics.misses


# What a plan comes to.


def test_steps_run_in_order_and_hand_on_what_they_made(studio: Studio, manager: Attentive) -> None:
    events = list(execute(studio, CHAIN, {}))
    assert told(events) == [(kind, id) for id in "abc" for kind in ("Started", "Done")]
    assert [event.step.id for event in events if isinstance(event, Running)] == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
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


# What is there already.


def test_a_hit_is_the_same_bytes_and_runs_nothing(studio: Studio, manager: Attentive, tone: Tone, carve: Carve) -> None:
    many = plan_of(APPLE.model_copy(update={"params": {"num_images": 3}}), SOUND, OBJECT)
    first = run(studio, many)
    files = {entry.id: entry.path.read_bytes() for entry in studio.library.entries()}
    before, expected = uses(manager), len(manager.told)
    events = list(execute(studio, many, {}))
    assert told(events) == [(kind, id) for id in "abc" for kind in ("Started", "Done")]
    assert not any(isinstance(event, Running) for event in events)
    for id, event in done(events).items():
        assert event.cached and [s.entry for s in event.saved] == [s.entry for s in first[id].saved]
        for now, then in zip(event.saved, first[id].saved, strict=True):
            assert now.artifact.content_hash() == then.artifact.content_hash()
            assert now.artifact.provenance == then.artifact.provenance
    assert len(done(events)["a"].saved) == 3
    assert {entry.id: entry.path.read_bytes() for entry in studio.library.entries()} == files
    assert uses(manager) == before and (tone.runs, carve.runs) == (1, 1)
    assert manager.told[expected:] == [()], "no model is fetched for what does not run"


def test_params_are_compared_with_their_defaults_and_everything_counts(studio: Studio) -> None:
    def is_cached(text: str = "a red apple", **params: JsonValue) -> bool:
        return run(studio, plan_of(step("s", "tiny-paint", f"text:{text}", output="image", **params)))["s"].cached

    assert not is_cached()
    assert is_cached(seed=0, steps=3, strength=1, num_images=1)
    for changes in ({"seed": 1}, {"steps": 4}, {"num_images": 2}, {"text": "a red apple "}, {"note": ""}):
        assert not is_cached(**changes)
        assert is_cached(**changes)


def test_words_of_an_earlier_step_count_by_what_they_say(studio: Studio) -> None:
    text = {"upload:1": Text("a red apple")}
    list(execute(studio, plan_of(APPLE), {}))
    [event] = done(list(execute(studio, plan_of(step("u", "tiny-paint", "upload:1", output="image")), text))).values()
    assert event.cached


def test_changed_weights_are_run_again(studio: Studio, specs: dict[str, ModelSpec], painter_folder: Path) -> None:
    list(execute(studio, plan_of(APPLE), {}))
    source = specs["painter"].source
    assert isinstance(source, Folder)
    (source.path / "config.json").write_text('{"changed": true}')
    write_sums(source.path)
    changed = run(studio, plan_of(APPLE))["a"]
    assert not changed.cached
    shutil.copytree(painter_folder, source.path, dirs_exist_ok=True)
    assert run(studio, plan_of(APPLE))["a"].cached, "the old ones are remembered"


def test_missing_weights_are_the_runs_own_business(studio: Studio, specs: dict[str, ModelSpec]) -> None:
    list(execute(studio, plan_of(APPLE), {}))
    studio.free()
    source = specs["painter"].source
    assert isinstance(source, Folder)
    shutil.rmtree(source.path)
    [failed] = [event for event in execute(studio, plan_of(APPLE), {}) if isinstance(event, Failed)]
    assert isinstance(failed.error, UserError) and "painter" in failed.error.sentence


def test_another_precision_is_run_again(studio: Studio, tiny_settings: Settings, specs: dict[str, ModelSpec]) -> None:
    plan = plan_of(APPLE, SOUND)
    run(studio, plan)
    half = Studio(tiny_settings, studio.registry, ModelManager(specs, CPU, 10_000_000, precisions={"toner": "float16"}))
    assert [event.cached for event in run(half, plan).values()] == [True, False]
    assert [event.cached for event in run(half, plan).values()] == [True, True]
    assert [event.cached for event in run(studio, plan).values()] == [True, True]


@pytest.mark.parametrize("harm", ["deleted", "damaged", "edited", "removed"])
def test_a_result_that_is_gone_is_made_again(studio: Studio, tone: Tone, harm: str) -> None:
    twice = plan_of(APPLE.model_copy(update={"params": {"num_images": 2}}), SOUND)
    gone = run(studio, twice)["a"].saved[1].entry
    original = gone.path.read_bytes()
    if harm == "removed":
        studio.library.remove(gone.id)
    elif harm == "deleted":
        gone.path.unlink()
    elif harm == "damaged":
        gone.path.write_bytes(b"no picture")
    else:
        gone.path.write_bytes(Image(np.zeros((4, 4, 3), np.uint8)).encode(".png"))
    again = run(studio, twice)
    assert not again["a"].cached and len(again["a"].saved) == 2
    assert again["a"].saved[1].entry.path.read_bytes() == original
    assert again["b"].cached and tone.runs == 1, "what was made of it is the same"
    assert run(studio, twice)["a"].cached


def test_half_a_run_is_no_result(studio: Studio, tone: Tone) -> None:
    several = plan_of(APPLE, SOUND.model_copy(update={"params": {"count": 3}}))
    calls: list[int] = []

    def fail_at_the_third() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise UserError("That is enough.", "Ask for less.")

    tone.before_result = fail_at_the_third
    assert set(run(studio, several)) == {"a"}
    assert studio.library.count() == 3, "what came before the failure is kept"
    again = run(studio, several)
    assert not again["b"].cached and len(again["b"].saved) == 3


def test_what_is_made_of_a_clip_is_found_again_although_its_file_is_lossy(studio: Studio, tone: Tone) -> None:
    plan = plan_of(step("v", "flicker", "text:light", output="video"), step("b", "tone", "$v", output="audio"))
    first = run(studio, plan)
    second = run(studio, plan)
    assert [second[id].cached for id in "vb"] == [True, True] and tone.runs == 1
    assert second["b"].result.entry == first["b"].result.entry


# What the manager is told.


def test_the_next_models_come_in_while_a_step_computes(studio: Studio, manager: Attentive, tone: Tone) -> None:
    waited: list[bool] = []

    def until_the_carver_is_there() -> None:
        wait_until(lambda: any(row.key == "carver" and not row.loading for row in manager.status()))
        waited.append(any(row.key == "toner" and row.leases == 1 for row in manager.status()))

    tone.in_step = until_the_carver_is_there
    results = run(studio, CHAIN)
    assert set(results) == set("abc") and waited == [True] * 3
    assert manager.metrics.prefetch_hits >= 1


def test_the_manager_knows_the_running_step_and_those_to_come_and_no_others(
    studio: Studio, manager: Attentive, tone: Tone
) -> None:
    list(execute(studio, plan_of(APPLE), {}))
    manager.told = []
    list(execute(studio, plan_of(APPLE, SOUND, PEAR, OBJECT), {}))
    to_come = [("toner", "painter", "carver"), ("painter", "carver"), ("carver",)]
    assert list(dict.fromkeys(manager.told)) == [*to_come, ()]
    assert manager.told[-1] == () and () not in manager.told[:-1], "never in between"


def test_models_of_skipped_steps_are_not_expected(studio: Studio, manager: Attentive, tone: Tone) -> None:
    tone.before_result = bug
    list(execute(studio, plan_of(APPLE, SOUND, OBJECT, PEAR), {}))
    assert ("toner", "carver", "painter") in manager.told
    assert manager.told[-2:] == [("painter",), ()]


def test_another_request_that_waits_comes_before_the_later_steps(
    studio: Studio, manager: Attentive, tone: Tone
) -> None:
    silence = Audio(np.zeros((1, 800), np.float32), 8000)
    other = threading.Thread(target=lambda: list(studio.run("carve", [silence], {})))

    def let_another_wait() -> None:
        if tone.steps == 1:
            other.start()
            wait_until(lambda: manager.told[-1] == ("toner", "carver", "painter"))

    tone.in_step = let_another_wait
    assert set(run(studio, plan_of(APPLE, SOUND, PEAR))) == set("abd")
    other.join(30)
    assert not other.is_alive()
