"""CLIPSonic's pipeline on tiny untrained models; what it shares with V2A-Mapper is tested there."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import Cancelled, UserError
from models.manager import ModelManager
from models.mel import AUDIOLDM_MEL
from pipelines.base import Produced, Progress, Runtime
from pipelines.clipsonic.pipeline import CLIPSonic, picture_phrase
from pipelines.media import Artifact, Audio, Text, Video
from tests.tiny_models import resident
from tests.tiny_sounds import clip, events, picture, produced, sound_manager

CLIPSONIC = CLIPSonic()
GENERATION = {"clipsonic", "audio-autoencoder", "vocoder"}
BRIDGES = ("prior", "zero_shot", "mean_shift")


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> ModelManager:
    return sound_manager(tmp_path_factory.mktemp("models"))


def samples(manager: ModelManager, *given: Artifact, **params: Any) -> np.ndarray:
    return produced(manager, CLIPSONIC, *given, **params)[0].samples


# -------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        ("rain", "a photo of rain"),
        ("the sound of rain", "a photo of rain"),
        ("The sounds of a busy street", "a photo of a busy street"),
        ("a noise of engines", "a photo of engines"),
        ("sound effect of a bell", "a photo of a bell"),
        ("dog barking", "a photo of dog barking"),
        ("soundly sleeping cat", "a photo of soundly sleeping cat"),
        ("a picture of the sea", "a picture of the sea"),
        ("A Photo of rain", "A Photo of rain"),
    ],
)
def test_words_become_a_caption(words: str, phrase: str) -> None:
    assert picture_phrase(words) == phrase


@given(st.text(min_size=1))
def test_a_caption_stays_as_it_is(words: str) -> None:
    assert picture_phrase(picture_phrase(words)) == picture_phrase(words)


def test_what_was_asked_is_shown_and_what_was_said_is_kept(manager: ModelManager) -> None:
    run = list(events(manager, CLIPSONIC, [Text("the sound of rain")]))
    assert 'Asked for "a photo of rain"' in {event.message for event in run if isinstance(event, Progress)}
    [sound] = [event.artifact for event in run if isinstance(event, Produced)]
    assert sound.provenance is not None
    assert sound.provenance.inputs == ({"medium": "text", "text": "the sound of rain"},)
    assert sound.provenance.params["bridge"] == "prior"


def test_ways_to_say_the_same_sound_the_same(manager: ModelManager) -> None:
    plain = samples(manager, Text("rain"))
    assert np.array_equal(plain, samples(manager, Text("  the sound of\nrain ")))
    assert not np.array_equal(plain, samples(manager, Text("dog")))


def test_of_a_long_text_the_first_words_are_asked_for(manager: ModelManager) -> None:
    long = "rain dog bell " * 40
    run = list(events(manager, CLIPSONIC, [Text(long)]))
    asked = {event.message for event in run if isinstance(event, Progress) and event.step}
    assert len(asked) == 1 and asked.pop().startswith('Asked for "a photo of rain dog bell')
    [sound] = [event.artifact for event in run if isinstance(event, Produced)]
    assert isinstance(sound, Audio)
    assert np.array_equal(sound.samples, samples(manager, Text(long + " a photo of a dog")))


# ------------------------------------------------------------------------------------------------------------ bridges


def test_bridges_differ_for_words_and_do_nothing_for_pictures(manager: ModelManager) -> None:
    said = [samples(manager, Text("rain"), bridge=bridge) for bridge in BRIDGES]
    shown = [samples(manager, picture(0), bridge=bridge) for bridge in BRIDGES]
    assert not any(np.array_equal(said[a], said[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert np.array_equal(shown[0], shown[1]) and np.array_equal(shown[0], shown[2])
    assert not np.array_equal(shown[0], samples(manager, picture(5)))


@pytest.mark.parametrize(
    ("query", "bridge", "leased"),
    [
        (Text("rain"), "prior", {"picture-text", "sentence-encoder", "clipsonic-prior"}),
        (Text("rain"), "mean_shift", {"picture-text", "sentence-encoder", "clipsonic-mean-shift"}),
        (Text("rain"), "zero_shot", {"picture-text", "sentence-encoder"}),
        (picture(0), "prior", {"picture-text"}),
    ],
)
def test_only_what_a_run_needs_is_leased(tmp_path: Path, query: Artifact, bridge: str, leased: set[str]) -> None:
    manager = sound_manager(tmp_path)
    produced(manager, CLIPSONIC, query, bridge=bridge, steps=1)
    assert set(resident(manager)) == leased | GENERATION
    assert set(CLIPSONIC.models_for([query], CLIPSONIC.parse_params({"bridge": bridge}))) == leased | GENERATION


# ------------------------------------------------------------------------------------------ seeds, batches, progress


def test_variations_come_from_consecutive_seeds(manager: ModelManager) -> None:
    batch = produced(manager, CLIPSONIC, Text("rain"), seed=5, num_sounds=2)
    assert [item.provenance.index for item in batch] == [0, 1]
    for one, seed in zip(batch, (5, 6), strict=True):
        np.testing.assert_allclose(one.samples, samples(manager, Text("rain"), seed=seed), atol=1e-3)
    assert np.array_equal(batch[0].samples, produced(manager, CLIPSONIC, Text("rain"), seed=5, num_sounds=2)[0].samples)
    assert np.abs(batch[0].samples - batch[1].samples).max() > 1e-2


def test_a_batch_of_words_and_pictures_keeps_its_order(manager: ModelManager) -> None:
    inputs: list[list[Artifact]] = [[Text("rain")], [picture(0)], [Text("dog")]]
    params = CLIPSONIC.parse_params({"steps": 2, "duration": 0.5})
    runtime = Runtime(manager, micro_batch=2)
    made = [event.artifact for event in CLIPSONIC.run_batch(inputs, params, runtime) if isinstance(event, Produced)]
    for sound, (query,) in zip(made, inputs, strict=True):
        assert isinstance(sound, Audio)
        np.testing.assert_allclose(sound.samples, samples(manager, query), atol=1e-3)


def test_lengths_follow_the_models_hop(tmp_path: Path) -> None:
    manager = sound_manager(tmp_path, AUDIOLDM_MEL)
    run = list(events(manager, CLIPSONIC, [picture(0)], duration=1.3, steps=4))
    [sound] = [event.artifact for event in run if isinstance(event, Produced)]
    assert isinstance(sound, Audio) and sound.samples.shape == (1, 20_800) and np.abs(sound.samples).max() <= 0.89
    previews = [event.preview.pixels.shape for event in run if isinstance(event, Progress) and event.preview]
    assert previews == [(128, 130, 3)] * 3


def test_progress_counts_every_step(manager: ModelManager) -> None:
    run = events(manager, CLIPSONIC, [Text("bell")], steps=5)
    assert [(e.step, e.total) for e in run if isinstance(e, Progress)] == [(step, 5) for step in range(6)]


def test_stopping_ends_a_run_within_a_step(manager: ModelManager) -> None:
    runtime = Runtime(manager, threading.Event())
    stream, seen = CLIPSONIC.run([Text("rain")], CLIPSONIC.parse_params({"steps": 150}), runtime), 0
    with pytest.raises(Cancelled):
        for _ in stream:
            seen += 1
            if seen == 3:
                runtime.cancelled.set()
    assert seen == 3 and all(row.leases == 0 for row in manager.status())


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "The text is empty"),
        (" \n\t", "The text is empty"),
        ("\u200b\u202e", "The text is empty"),
        ("rain " * 20_000, "100,000 characters; 2,000 is the most"),
    ],
)
def test_words_that_say_nothing_or_far_too_much(tmp_path: Path, text: str, problem: str) -> None:
    manager = sound_manager(tmp_path)
    with pytest.raises(UserError, match=problem) as refusal:
        produced(manager, CLIPSONIC, Text(text))
    assert "what to hear" in refusal.value.hint and not resident(manager)


def test_words_that_nobody_knows_still_sound(manager: ModelManager) -> None:
    assert np.isfinite(samples(manager, Text("🎉 qwxz «пожалуйста»"))).all()


def test_clips_are_not_taken(manager: ModelManager) -> None:
    shown: Video = clip(2)
    with pytest.raises(UserError, match="Words or a picture are needed here, not video"):
        produced(manager, CLIPSONIC, shown)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guidance", float("nan")),
        ("duration", 0),
        ("duration", -1),
        ("duration", 30.5),
        ("duration", None),
        ("steps", 10**9),
        ("bridge", "image"),
        ("num_sounds", 9),
        ("seed", 2**31),
    ],
)
def test_params_out_of_bounds_are_named(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"'{name}'"):
        CLIPSONIC.parse_params({name: value})
