"""Results that are not made twice, and those that are not trusted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from pydantic import JsonValue

from app.controller.executor import Failed, Running, execute
from app.settings import Settings
from app.studio import Studio
from models.errors import UserError
from models.manager import ModelManager
from models.sources import Folder
from models.spec import ModelSpec
from pipelines.media import Image, Text
from tests.tiny import write_sums
from tests.tiny_models import CPU
from tests.watched_pipelines import (
    APPLE,
    OBJECT,
    SOUND,
    Attentive,
    Carve,
    Tone,
    done,
    plan_of,
    run,
    step,
    told,
    uses,
)


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
