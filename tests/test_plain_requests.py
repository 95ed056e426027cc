"""What people said of what was there, in talks of several turns, and what it was taken for; the plans are not run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from app.controller.compiler import Goal, NoRouteError, compile_plan
from app.controller.looks import look_said, reworded
from app.controller.plan import Plan, Step
from app.controller.planner import Answer, Controller, example_requests, what_there_is
from app.controller.references import correction
from app.controller.request import ACTS, Item, Request, normalised
from app.controller.routers import Router, RuleRouter
from app.controller.rules import Scores, is_talk
from pipelines.base import installed_registry

REGISTRY = installed_registry()


class Misreads:
    """A model that takes everything for something else."""

    name = "misreads"

    def __init__(self, act: str, medium: str = "") -> None:
        self.act, self.medium = act, medium

    def score(self, request: Request, media: Sequence[str]) -> Scores:
        return Scores(
            {name: 0.95 if name == self.medium else 0.01 for name in media},
            {name: 0.9 if name == self.act else 0.1 / 6 for name in ACTS},
        )


class Talk:
    """Requests one after the other; what a plan would make is there from then on."""

    def __init__(self, router: Router | None = None) -> None:
        self.controller = Controller(REGISTRY, router or RuleRouter(), lambda pipeline: 5.0 if pipeline.models else 0.5)
        self.items: list[Item] = []

    def bring(self, medium: str, title: str) -> None:
        self.items.append(Item(len(self.items) + 1, medium, title, brought=True))

    def ask(self, prompt: str, *uploads: str, router: Router | None = None) -> Answer:
        items = tuple(self.items)
        request = Request(normalised(prompt), uploads, items, tuple(item.number for item in reversed(items)))
        if router:
            self.controller.router = router
        answer = self.controller.answer(request)
        brought = len(items)
        for upload in uploads:
            self.bring(upload, f"file.{upload}")
        made: dict[str, str] = {}
        for step in answer.plan.steps if answer.plan else ():
            inputs = tuple(
                made.get(r, f"@{brought + int(r[7:])}" if r.startswith("upload:") else r) for r in step.inputs
            )
            words = " → ".join(r.removeprefix("text:") for r in inputs if r.startswith("text:"))
            self.items.append(
                Item(len(self.items) + 1, step.output, words or step.op, step.model_copy(update={"inputs": inputs}))
            )
            made[f"${step.id}"] = f"@{len(self.items)}"
        return answer


def steps(answer: Answer) -> list[tuple[str, tuple[str, ...]]]:
    assert answer.plan is not None, answer.sentence
    return [(step.op, step.inputs) for step in answer.plan.steps]


def params(answer: Answer) -> dict[str, Any]:
    """Those of the last step, but for the usual seed."""
    assert answer.plan is not None, answer.sentence
    return {name: value for name, value in answer.plan.steps[-1].params.items() if (name, value) != ("seed", 0)}


def after(*prompts: str) -> Talk:
    talk = Talk()
    for prompt in prompts:
        talk.ask(prompt)
    return talk


# ------------------------------------------------------------------------------------------------- words from words


@pytest.mark.parametrize("act", ["new", "regenerate"])
@pytest.mark.parametrize("prompt", ["give me the weather in Berlin", "write me a python script", "write me a poem"])
@pytest.mark.parametrize("history", [(), ("a red apple",), ("a sound of rain", "describe it")])
def test_words_that_are_asked_for_in_words_are_talk(prompt: str, act: str, history: tuple[str, ...]) -> None:
    found = after(*history).ask(prompt, router=Misreads(act, "text"))
    assert (found.act, found.outputs, found.plan) == ("chat", ("text",), None)


def test_no_path_leads_from_words_to_words_through_what_is_made_up() -> None:
    with pytest.raises(NoRouteError, match="No step here makes words from words"):
        compile_plan([Goal("text", ("text:the weather",))], REGISTRY, {}, lambda pipeline: 1.0)
    found = Talk().ask("a poem about a goat, then a sound of a goat", router=Misreads("new", "text"))
    assert all(step.op != "describe" for step in found.plan.steps) if found.plan else found.act == "chat"


def test_what_is_made_of_words_that_nothing_writes_is_made_of_what_they_are_about() -> None:
    goals = [Goal("text", ("text:a windmill",)), Goal("image", ("goal:1",))]
    plan = compile_plan(goals, REGISTRY, {}, lambda pipeline: 1.0)
    assert [step.inputs for step in plan.steps] == [("text:a windmill",)] and plan.outputs == ("$s1",)
    assert "No step here" in plan.warnings[0]


# ------------------------------------------------------------------------------------------- the medium that is named


@pytest.mark.parametrize("router", [Misreads("regenerate", "audio"), Misreads("new", "audio"), Misreads("select")])
@pytest.mark.parametrize("prompt", ["a picture of a blue bird", "please paint me a picture of a road that winds"])
def test_the_medium_that_is_named_is_made(prompt: str, router: Router) -> None:
    found = after("a sound of rain").ask(prompt, router=router)
    assert found.outputs == ("image",) and steps(found)[0][0] == "crossflow"


def test_after_a_sound_a_thing_is_a_picture_of_it() -> None:
    assert steps(after("a sound of rain").ask("a blue house", router=Misreads("regenerate", "audio"))) == [
        ("crossflow", ("text:a blue house",))
    ]


# ----------------------------------------------------------------------------------------------- colours and styles


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("make it blue", "a blue apple"),
        ("in green please", "a green apple"),
        ("in blue instead", "a blue apple"),
        ("turn it light green", "a light green apple"),
        ("Mach es blau", "a blau apple"),
        ("in the style of a watercolor", "a red apple, in the style of a watercolor"),
        ("as a watercolour", "a red apple as a watercolour"),
        ("no, a pear", "a pear"),
        ("not an apple, a pear", "a pear"),
        ("nein, ein Haus", "ein Haus"),
        ("non, un chat", "un chat"),
        ("now make it a blue car", "a blue car"),
        ("make it look like a watercolor", "a red apple as a watercolor"),
    ],
)
@pytest.mark.parametrize("router", [RuleRouter(), Misreads("edit", "image"), Misreads("new", "audio")])
def test_other_words_are_about_what_is_there(prompt: str, words: str, router: Router) -> None:
    found = after("a red apple").ask(prompt, router=router)
    assert (found.act, steps(found)) == ("regenerate", [("crossflow", (f"text:{words}",))])


def test_a_style_that_is_known_is_a_setting_and_takes_the_place_of_another() -> None:
    talk = after("a red apple", "in the style of a watercolor")
    found = talk.ask("in outline style")
    assert steps(found) == [("crossflow", ("text:a red apple",))] and params(found) == {"style": "outline"}


def test_a_colour_after_a_description_is_that_of_the_picture() -> None:
    found = after("a red apple", "describe it").ask("make it blue")
    assert steps(found) == [("crossflow", ("text:a blue apple",))]


def test_a_change_of_an_edited_picture_is_edited_again() -> None:
    found = after("a red apple", "make it darker").ask("make it blue")
    assert steps(found) == [("crossflow", ("text:a blue apple",)), ("image-adjust", ("$s1",))]
    assert found.plan is not None and found.plan.outputs == ("$s2",)


def test_what_came_of_a_file_is_recoloured_or_it_is_said_that_it_cannot_be() -> None:
    assert params(Talk().ask("make it red", "mesh")) == {"colour": "red"}
    assert params(Talk().ask("in Rot bitte", "mesh")) == {"colour": "red"}
    for talk in (Talk(), Talk(Misreads("edit", "image"))):
        found = talk.ask("make it blue", "image")
        assert found.plan is None and "keeps its colours" in found.sentence
        talk.ask("describe it", router=RuleRouter())
        found = talk.ask("make it blue")
        assert found.plan is None and "keeps its colours" in found.sentence, "no pipeline's title is painted"


@pytest.mark.parametrize("prompt", ["a blue bird", "the green one", "blue whales sing", "make it louder", "a rose"])
def test_not_every_word_of_a_colour_is_a_change(prompt: str) -> None:
    assert not look_said(prompt) or prompt == "the green one"


def test_no_is_no_thing() -> None:
    assert [correction(p) for p in ("no", "no, thanks", "no picture, please", "no, another one", "not now")] == [""] * 5
    assert after("a dog").ask("no").act == "chat"


def test_a_colour_is_put_in_place_of_another() -> None:
    assert reworded("a light blue car", "dark red") == "a dark red car"
    assert reworded("ein Haus", "rot") == "ein rot Haus"


# ---------------------------------------------------------------------------------------------------- another one


@pytest.mark.parametrize("edits", [["make it darker"], ["rotate it", "resize it"]])
def test_another_one_of_what_was_changed_is_another_thing_changed_so(edits: list[str]) -> None:
    found = after("a red apple", *edits).ask("another one")
    assert found.plan is not None
    first, *others = found.plan.steps
    assert (first.op, first.params["seed"], len(others)) == ("crossflow", 1, len(edits))
    assert found.plan.outputs == (f"${found.plan.steps[-1].id}",)


def test_what_nothing_was_left_to_chance_in_is_not_made_twice() -> None:
    talk = Talk()
    talk.ask("darker", "image")
    found = talk.ask("another one")
    assert found.plan is None and "just the same" in found.sentence


def test_another_one_after_several_is_none_of_them() -> None:
    found = after("three pictures of a star").ask("another one")
    assert params(found)["seed"] == 3


# --------------------------------------------------------------------------------------------- sounds of what is there


@pytest.mark.parametrize(
    "prompt", ["what sound does it make", "And what sound would that make?", "what noise does it make"]
)
@pytest.mark.parametrize("router", [RuleRouter(), Misreads("new", "audio"), Misreads("new", "text")])
def test_what_makes_a_sound_is_what_is_there(prompt: str, router: Router) -> None:
    talk = Talk(router)
    talk.bring("image", "dog.png")
    talk.items.append(Item(2, "text", "a dog", Step(id="a", op="describe", inputs=("@1",), output="text")))
    assert steps(talk.ask(prompt)) == [("v2a", ("@1",))]


@pytest.mark.parametrize("router", [RuleRouter(), Misreads("new", "text")])
def test_what_sound_a_cow_makes_is_made_of_the_words(router: Router) -> None:
    assert steps(Talk(router).ask("what sound does a cow make?")) == [("audioldm", ("text:a cow",))]


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


# ------------------------------------------------------------------------------------------------------------- talk


@pytest.mark.parametrize(
    "prompt",
    ["thanks!", "hello", "thank you very much", "that's great, thanks", "hi there", "danke", "cool", "wow, nice!"],
)
def test_greetings_and_thanks_are_talk_wherever_they_are_said(prompt: str) -> None:
    assert is_talk(prompt)
    found = after("a red apple").ask(prompt, router=Misreads("new", "image"))
    assert (found.act, found.outputs) == ("chat", ("text",))


@pytest.mark.parametrize(
    "prompt", ["hello kitty as a picture", "a nice picture", "thanks, now make it blue", "123", "cool cat"]
)
def test_what_says_more_is_not_only_talk(prompt: str) -> None:
    assert not is_talk(prompt)


@pytest.mark.parametrize("prompt", ["what can you do?", "help", "Help me please", "was kannst du?"])
def test_what_there_is_is_said_by_the_pipelines(prompt: str) -> None:
    assert after("a red apple").ask(prompt, router=Misreads("new", "text")).act == "chat"
    said = what_there_is(REGISTRY)
    for pipeline in REGISTRY:
        assert pipeline.is_edit or pipeline.title in said
    assert "“a red apple”" in said and "attach a scan and say “make a picture of it”" in said


@pytest.mark.parametrize("prompt", ["delete the last one", "delete it", "remove that picture"])
def test_nothing_is_deleted_by_talking(prompt: str) -> None:
    found = after("a red apple").ask(prompt, router=Misreads("undo"))
    assert (found.act, found.plan, found.focus) == ("ask", None, ()) and "Gallery" in found.sentence


# -------------------------------------------------------------------------------------------------- several at once


@pytest.mark.parametrize("prompt", ["turn a sun into a moon", "morph between a sun and a moon"])
@pytest.mark.parametrize("router", [RuleRouter(), Misreads("ask", "video")])
def test_one_thing_becomes_another(prompt: str, router: Router) -> None:
    assert steps(Talk(router).ask(prompt)) == [("crossflow-morph", ("text:a sun", "text:a moon"))]


def test_what_is_told_of_an_earlier_thing_is_about_that() -> None:
    found = Talk().ask("a picture of a dog, then make a sound from it, then describe the sound")
    assert steps(found) == [("crossflow", ("text:a dog",)), ("v2a", ("$s1",)), ("describe", ("$s2",))]
    found = Talk().ask("a blue chair in 3D and a turntable gif of it")
    assert steps(found) == [("xbind", ("text:a blue chair",)), ("mesh-turntable", ("$s1",))]


def test_a_clip_is_no_clip_to_be_made() -> None:
    found = Talk().ask("make a gif", "video")
    assert found.plan is None and found.sentence.startswith("This is a clip already")
    assert steps(Talk().ask("make a gif", "mesh")) == [("mesh-turntable", ("upload:1",))]


# --------------------------------------------------------------------------------------------- choices and refusals


def test_no_example_stands_twice() -> None:
    examples = example_requests(REGISTRY)
    assert len(examples) == len(set(examples)) and "a sound of rain" in examples


@pytest.mark.parametrize("prompt", ["make it better", "help out", "in a way"])
def test_choices_are_made_of_words_that_describe_something(prompt: str) -> None:
    found = Talk(Misreads("ask", "image")).ask(prompt)
    assert found.act == "ask" and [choice.prompt for choice in found.choices] == example_requests(REGISTRY)[:3]
    found = Talk(Misreads("ask", "image")).ask("please make me the lighthouse")
    assert [choice.label for choice in found.choices] == ["A picture"] and "lighthouse" in found.choices[0].prompt


def test_refusals_use_the_words_that_people_use() -> None:
    found = Talk().ask("a video of a dog")
    assert found.sentence == (
        "Nothing installed here makes clips from text yet. From text it can make: sounds, pictures, 3-D objects."
    )
    assert [choice.label for choice in found.choices] == [
        "A sound instead",
        "A picture instead",
        "A 3-D object instead",
    ]
    assert "from a picture" in Talk().ask("a clip of it", "image").sentence


def test_settings_go_only_to_what_has_them() -> None:
    plan = compile_plan(
        [replace(Goal("mesh", ("text:a chair",)), params={"num_images": 2})], REGISTRY, {}, lambda pipeline: 1.0
    )
    assert isinstance(plan, Plan) and "num_images" not in plan.steps[0].params and "left out" in plan.warnings[0]


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
