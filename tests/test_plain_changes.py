"""Plain changes, numbers and settings in what people said, and what only looks like them."""

from __future__ import annotations

from typing import Any

import pytest

from app.controller.routers import Router, RuleRouter
from tests.plain_talks import Misreads, Talk, after, params, steps

# ----------------------------------------------------------------------------------------------------------- edits


@pytest.mark.parametrize("router", [RuleRouter(), Misreads("undo"), Misreads("ask", "image")])
@pytest.mark.parametrize(
    ("prompt", "medium", "expected"),
    [
        ("reverse it", "audio", {"audio-reverse": {}}),
        ("reverse it", "video", {"video-reverse": {}}),
        ("brighter", "image", {"image-adjust": {"brightness": 1.3}}),
        ("20% brighter", "image", {"image-adjust": {"brightness": 1.2}}),
        ("30 percent darker", "image", {"image-adjust": {"brightness": 0.7}}),
        ("twice as fast and louder", "audio", {"audio-speed": {"factor": 2.0}, "audio-gain": {"gain": 6.0}}),
        ("twice as loud and half as fast", "audio", {"audio-gain": {"gain": 6.0}, "audio-speed": {"factor": 0.5}}),
        ("slow it down 2x", "video", {"video-speed": {"factor": 0.5}}),
        ("play it at 200 percent speed", "video", {"video-speed": {"factor": 2.0}}),
        ("upscale 4x", "image", {"image-resize": {"factor": 4.0}}),
        ("make it three times bigger", "image", {"image-resize": {"factor": 3.0}}),
        ("3 times as big", "mesh", {"mesh-scale": {"factor": 3.0}}),
        ("fourfold larger", "image", {"image-resize": {"factor": 4.0}}),
        ("50% smaller", "image", {"image-resize": {"factor": 0.5}}),
        ("resize it to 640x480", "image", {"image-resize": {"width": 640, "height": 480}}),
        ("turntable", "mesh", {"mesh-turntable": {}}),
    ],
)
def test_a_change_of_what_is_attached_is_that(
    prompt: str, medium: str, expected: dict[str, dict[str, float]], router: Router
) -> None:
    found = Talk(router).ask(prompt, medium)
    assert found.act == "edit" and found.plan is not None
    assert {step.op: {k: v for k, v in step.params.items() if k != "seed"} for step in found.plan.steps} == {
        op: pytest.approx(values) for op, values in expected.items()
    }


def test_to_become_a_thing_is_no_turn_and_no_other_word_is_an_edit() -> None:
    talk = Talk()
    talk.bring("image", "dog.png")
    assert talk.ask("turn it into a cat").act != "edit"
    assert steps(after("a red apple").ask("nope, bigger")) == [("image-resize", ("@1",))]


def test_a_medium_alone_is_no_other_word() -> None:
    talk = after("a picture of a dog and a sound of it")
    assert steps(talk.ask("another picture", router=Misreads("regenerate", "image"))) == [
        ("crossflow", ("text:a dog",))
    ]


def test_a_change_wins_over_undo_and_what_was_attached_stays() -> None:
    talk = Talk()
    talk.bring("audio", "bell.wav")
    assert steps(talk.ask("reverse it", router=Misreads("undo"))) == [("audio-reverse", ("@1",))]
    found = Talk(Misreads("undo")).ask("hm what about this", "image")
    assert found.act != "undo"


def test_a_number_beyond_the_bounds_is_brought_within_them_and_that_is_said() -> None:
    found = Talk().ask("upscale 40x", "image")
    assert params(found) == {"factor": 10.0} and any("10 instead of 40" in warning for warning in found.warnings)


# ---------------------------------------------------------------------------------- how many, how long, in what style


@pytest.mark.parametrize(
    ("prompt", "words", "expected"),
    [
        ("three pictures of a yellow star in outline style", "a yellow star", {"num_images": 3, "style": "outline"}),
        ("4 variations of a green frog", "a green frog", {"num_images": 4}),
        ("please draw 2 pictures of a dog", "a dog", {"num_images": 2}),
        ("drei Bilder von einem Hund", "einem Hund", {"num_images": 3}),
        ("quatre images de Paris", "Paris", {"num_images": 4}),
        ("two sounds of a bell", "a bell", {"num_sounds": 2}),
        ("a sound of rain for 10 seconds", "rain", {"duration": 10}),
        ("a 10-second sound of rain", "rain", {"duration": 10}),
        ("5 sounds of rain, 2.5 seconds each", "rain", {"num_sounds": 5, "duration": 2.5}),
        ("ten seconds of rain", "rain", {"duration": 10}),
        ("a flat style icon of a house", "a house", {"style": "flat"}),
        ("a cat in the style of a sticker", "a cat", {"style": "sticker"}),
        ("an outline drawing of a cat", "a cat", {"style": "outline"}),
        ("a picture of three bears", "three bears", {}),
        ("three bears in a forest", "three bears in a forest", {}),
        ("a picture of a clock at ten seconds to noon", "a clock at ten seconds to noon", {}),
        ("a picture of a cat in the style of Monet", "a cat in the style of Monet", {}),
    ],
)
def test_settings_are_taken_out_of_the_words(prompt: str, words: str, expected: dict[str, Any]) -> None:
    found = Talk().ask(prompt)
    assert steps(found)[0][1] == (f"text:{words}",) and params(found) == expected and not found.warnings


@pytest.mark.parametrize(
    ("prompt", "expected", "warning"),
    [
        ("100 pictures of a cat", {"num_images": 16}, "16 instead of 100 pictures at once"),
        ("ten 3D chairs", {"num_shapes": 4}, "4 instead of 10 objects at once"),
        ("a sound of rain for a minute", {"duration": 30}, "30 instead of 60 seconds"),
        ("a picture of a cat, 1024x1024", {}, "A size such as 1024x1024 cannot be chosen"),
        ("a 2 second clip of a sun turning into a moon", {}, "cannot be told about seconds"),
    ],
)
def test_what_cannot_be_had_so_is_said(prompt: str, expected: dict[str, Any], warning: str) -> None:
    found = Talk().ask(prompt)
    assert params(found) == expected and [w for w in found.warnings if warning in w]


@pytest.mark.parametrize(("prompt", "count"), [("4 of them", 4), ("three more", 3), ("give me 2 more please", 2)])
def test_so_many_more_of_what_is_there(prompt: str, count: int) -> None:
    found = after("a red apple").ask(prompt, router=Misreads("ask"))
    assert params(found) == {"seed": 1, "num_images": count} and steps(found)[0][1] == ("text:a red apple",)


def test_a_long_description_is_cut_at_a_word_and_that_is_said() -> None:
    prompt = "a picture of a road over " + "hills and valleys and " * 40
    found = Talk().ask(prompt)
    assert found.plan is not None
    [words] = found.plan.steps[0].inputs
    assert 250 < len(words) <= 305 and words.split()[-1] in ("hills", "valleys", "and")
    assert any("The description is long" in warning for warning in found.warnings)


# ------------------------------------------------------------------------------------------ what looks like another


@pytest.mark.parametrize(
    ("prompt", "op", "words", "settings"),
    [
        ("a cat jumping into a box", "crossflow", "a cat jumping into a box", {}),
        ("a picture of between two trees and a lake", "crossflow", "between two trees and a lake", {}),
        ("two picture frames on a wall", "crossflow", "two picture frames on a wall", {}),
        ("a picture of a 10x10 grid", "crossflow", "a 10x10 grid", {}),
        ("give me two more pictures of a dog", "crossflow", "a dog", {"num_images": 2}),
        ("a second sound of rain", "audioldm", "rain", {}),
        ("a sound of a second hand ticking", "audioldm", "a second hand ticking", {}),
        ("a second of rain", "audioldm", "rain", {"duration": 1.0}),
        ("un son de cloche de trois secondes", "audioldm", "un son de cloche", {"duration": 3.0}),
    ],
)
def test_words_that_only_look_like_settings_or_changes_stay(
    prompt: str, op: str, words: str, settings: dict[str, Any]
) -> None:
    answer = Talk().ask(prompt)
    assert steps(answer) == [(op, (f"text:{words}",))]
    assert {name: value for name, value in params(answer).items() if name != "seed"} == settings


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("make it grey", [("image-adjust", ("@1",))]),
        ("turn it to the left", [("image-rotate", ("@1",))]),
        ("turn it into a pear", [("crossflow", ("text:a pear",))]),
        ("no, I meant a cat", [("crossflow", ("text:a cat",))]),
    ],
)
def test_of_a_picture_that_is_there(prompt: str, expected: list[tuple[str, tuple[str, ...]]]) -> None:
    assert steps(after("a red apple").ask(prompt)) == expected


@pytest.mark.parametrize("prompt", ["no, wait", "not bad, more clouds", "no, wrong"])
def test_no_alone_says_nothing_of_what_is_wanted(prompt: str) -> None:
    assert after("a red apple").ask(prompt).act == "ask"


@pytest.mark.parametrize(("prompt", "brightness"), [("brighten the lower half", 1.3), ("brighter by half", 1.5)])
def test_half_of_a_picture_is_no_factor(prompt: str, brightness: float) -> None:
    assert params(Talk().ask(prompt, "image"))["brightness"] == brightness


def test_the_sound_of_an_object_is_that_of_the_object() -> None:
    talk = after("a red apple", "a horse in 3D")
    assert steps(talk.ask("what sound does it make?"))[0] == ("mesh-turntable", ("@2",))
