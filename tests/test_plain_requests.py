"""What people said of what was there, in talks of several turns, and what it was taken for; the plans are not run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.controller.compiler import Goal, NoRouteError, compile_plan
from app.controller.looks import look_said, reworded
from app.controller.plan import Plan, Step
from app.controller.planner import example_requests, what_there_is
from app.controller.references import correction
from app.controller.request import Item
from app.controller.routers import Router, RuleRouter
from app.controller.rules import is_talk
from tests.plain_talks import REGISTRY, Misreads, Talk, after, params, steps

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
