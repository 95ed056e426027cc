"""The CrossFlow pipelines on the shipped lite weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.settings import Settings
from app.studio import build_manager
from models.errors import Cancelled, UserError
from models.manager import ModelManager
from pipelines.base import Event, Pipeline, Produced, Progress, Runtime
from pipelines.crossflow.pipeline import CrossFlow, CrossFlowMorph
from pipelines.crossflow.prompts import clean_prompt
from pipelines.media import Image, Text, Video


@pytest.fixture(scope="module")
def manager() -> ModelManager:
    return build_manager(Settings(profile="lite"))


def events(manager: ModelManager, pipeline: Pipeline, texts: list[str], **params: Any) -> Iterator[Event]:
    values = {"num_inference_steps": 6, **params}
    return pipeline.run([Text(text) for text in texts], pipeline.parse_params(values), Runtime(manager))


def produced(manager: ModelManager, pipeline: Pipeline, texts: list[str], **params: Any) -> list[Any]:
    return [event.artifact for event in events(manager, pipeline, texts, **params) if isinstance(event, Produced)]


def pixels(manager: ModelManager, prompt: str, **params: Any) -> np.ndarray:
    return produced(manager, CrossFlow(), [prompt], **params)[0].pixels.astype(float)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())


def test_equal_seeds_give_equal_pixels_and_other_seeds_do_not(manager: ModelManager) -> None:
    first, again, other = (pixels(manager, "a red apple", seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert distance(first, other) > 1


def test_pictures_of_one_run_come_from_consecutive_seeds(manager: ModelManager) -> None:
    batch = produced(manager, CrossFlow(), ["a blue fish"], seed=5, num_images=3)
    assert [item.provenance.index for item in batch] == [0, 1, 2]
    for i, item in enumerate(batch):
        # A batch may round differently from a single picture, by far less than another seed changes it.
        assert distance(item.pixels.astype(float), pixels(manager, "a blue fish", seed=5 + i)) < 1


def test_progress_counts_every_step_and_shows_previews(manager: ModelManager) -> None:
    seen = [
        e
        for e in events(manager, CrossFlow(), ["a tree"], num_inference_steps=12, num_images=2)
        if isinstance(e, Progress)
    ]
    assert [(e.step, e.total) for e in seen] == [(i, 12) for i in range(13)]
    previews = [e.preview for e in seen if e.preview]
    assert len(previews) >= 4 and all(preview.pixels.shape == (128, 256, 3) for preview in previews)


def test_provenance_names_prompt_params_and_models(manager: ModelManager) -> None:
    (item,) = produced(manager, CrossFlow(), ["a red apple"], seed=9, style="flat")
    made_by = item.provenance
    assert made_by.inputs == ({"medium": "text", "text": "a red apple"},)
    assert made_by.seed == 9 and made_by.params["style"] == "flat"
    assert {record.key for record in made_by.models} == {"text-encoder", "crossflow", "autoencoder"}
    assert all(len(record.checksum) == 64 for record in made_by.models)


def test_colour_words_decide_the_colour(manager: ModelManager) -> None:
    """Red pictures are redder than blue ones, averaged over objects and seeds."""
    redness = {}
    for colour in ("red", "blue"):
        batches = [
            produced(manager, CrossFlow(), [f"a {colour} {thing}"], seed=1, num_images=4, num_inference_steps=12)
            for thing in ("heart", "book", "car")
        ]
        stack = np.stack([item.pixels for batch in batches for item in batch]).astype(float)
        redness[colour] = (stack[..., 0] - stack[..., 2]).mean()
    assert redness["red"] > redness["blue"] + 10


def test_style_concept_arithmetic_and_guidance_change_the_picture(manager: ModelManager) -> None:
    plain = pixels(manager, "a cat", seed=1)
    for change in ({"style": "outline"}, {"add": "a hat"}, {"remove": "yellow"}, {"guidance_scale": 1.0}):
        assert distance(plain, pixels(manager, "a cat", seed=1, **change)) > 1, change


def test_a_batch_of_prompts_keeps_their_order(manager: ModelManager) -> None:
    pipeline = CrossFlow()
    params = pipeline.parse_params({"num_inference_steps": 6, "num_images": 2})
    prompts = ["a red heart", "a green tree"]
    stream = pipeline.run_batch([[Text(prompt)] for prompt in prompts], params, Runtime(manager))
    artifacts = [event.artifact for event in stream if isinstance(event, Produced)]
    assert [a.provenance.inputs[0]["text"] for a in artifacts] == [p for p in prompts for _ in range(2)]  # type: ignore[union-attr]
    single = pixels(manager, "a green tree")
    assert isinstance(artifacts[2], Image) and distance(artifacts[2].pixels.astype(float), single) < 1


def test_morph_goes_from_the_first_prompt_to_the_second(manager: ModelManager) -> None:
    clip, strip = produced(manager, CrossFlowMorph(), ["a red apple", "a blue car"], num_frames=5, seed=2)
    assert isinstance(clip, Video) and clip.frames.shape == (8, 128, 128, 3)
    assert isinstance(strip, Image) and strip.pixels.shape == (128, 5 * 128, 3)
    first, last = clip.frames[0].astype(float), clip.frames[4].astype(float)
    assert distance(first, pixels(manager, "a red apple", seed=2)) < 1
    assert distance(last, pixels(manager, "a blue car", seed=2)) < 1
    steps = [distance(a.astype(float), b.astype(float)) for a, b in zip(clip.frames[:4], clip.frames[1:5], strict=True)]
    assert max(steps) < distance(first, last)


def test_cancelling_stops_within_a_step(manager: ModelManager) -> None:
    runtime = Runtime(manager, threading.Event())
    pipeline = CrossFlow()
    stream = pipeline.run([Text("a dog")], pipeline.parse_params({"num_inference_steps": 200}), runtime)
    seen = 0
    with pytest.raises(Cancelled):
        for _ in stream:
            seen += 1
            if seen == 4:
                runtime.cancelled.set()
    assert seen == 4
    assert all(row.leases == 0 for row in manager.status())


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t", "\u200b\u202e", "\x00"])
def test_nothing_to_paint_is_one_plain_sentence(prompt: str) -> None:
    with pytest.raises(UserError, match="The prompt is empty"):
        clean_prompt(prompt)


def test_a_huge_prompt_is_refused_with_its_length() -> None:
    with pytest.raises(UserError, match="100,000 characters; 2,000 is the most"):
        clean_prompt("apple " * 16_666 + "done")


def test_an_emoji_is_read_by_its_name() -> None:
    assert clean_prompt("a 🍎 and a 🦊") == "a red apple and a fox face"


@given(st.text(max_size=60))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_paints_or_says_why_not(manager: ModelManager, prompt: str) -> None:
    try:
        clean = clean_prompt(prompt)
    except UserError as error:
        assert "empty" in error.sentence
        return
    painted = produced(manager, CrossFlow(), [clean], num_inference_steps=1, guidance_scale=1.0)
    assert painted[0].pixels.shape == (128, 128, 3)


def test_a_long_prompt_is_cut_but_its_style_is_kept(manager: ModelManager) -> None:
    long = "a red apple " * 40
    notes = {e.message for e in events(manager, CrossFlow(), [long], style="flat") if isinstance(e, Progress)}
    assert "Only the first words of the prompt fit" in notes
    assert distance(pixels(manager, long, style="flat"), pixels(manager, long, style="outline")) > 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_inference_steps", 0),
        ("num_inference_steps", -1),
        ("num_inference_steps", 10**9),
        ("guidance_scale", float("nan")),
        ("guidance_scale", float("inf")),
        ("style", "cubist"),
        ("num_images", 0),
        ("seed", -1),
        ("seed", 2**31),
        ("stile", "flat"),
    ],
)
def test_params_out_of_bounds_are_named(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"'{name}'"):
        CrossFlow().parse_params({name: value})
