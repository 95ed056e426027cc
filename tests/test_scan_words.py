"""What is to be shown of a scan, asked for in words: the activity, near pictures, without some regions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from app.controller.plan import Step
from app.controller.planner import Answer, Controller
from app.controller.request import Item, Request
from app.controller.routers import RuleRouter
from app.controller.rules import Scores
from app.controller.ways import ways_said
from pipelines.base import installed_registry
from pipelines.fmri.flat_map import GROUPS
from tests.test_controller import REGISTRY as DECLARED

REGISTRY = installed_registry()
SCAN = Item(1, "scan", "S1", brought=True)
CHERRIES = Step(id="s1", op="fmri", inputs=("@1",), output="image", params={"seed": 4, "strength": 0.2})


class Misled:
    """A model that takes everything for talk."""

    name = "misled"

    def score(self, request: Request, media: Sequence[str]) -> Scores:
        return Scores(dict.fromkeys(media, 0.01), {"chat": 0.99})


def answer(prompt: str, *uploads: str, history: tuple[Item, ...] = ()) -> Answer:
    request = Request(prompt, uploads, history, tuple(item.number for item in reversed(history)))
    return Controller(REGISTRY, Misled(), lambda pipeline: 1.0).answer(request)


def shown(found: Answer) -> dict[str, object]:
    """The params of its only step, which shows a scan."""
    assert found.plan is not None, found.sentence
    [step] = found.plan.steps
    assert (step.op, step.output, found.act, found.outputs) == ("fmri", "image", "new", ("image",))
    return {name: value for name, value in step.params.items() if name != "seed"}


@pytest.mark.parametrize(
    "prompt",
    [
        "show me the activity of this scan",
        "draw the cortex",
        "where in the brain is it active",
        "where in the brain is it active?",
        "Can you plot the brain activity, please?",
        "let me see the activation",
        "Tell me which areas light up.",
        "show me the scan",
        "visualise the activity on the cortex",
        "a map of the activation",
        "Zeig mir die Aktivität",
        "Wo im Gehirn ist es aktiv?",
        "montre-moi l'activité",
        "muéstrame la actividad",
        "dov'è, dove è attivo?",
    ],
)
def test_the_activity_is_drawn_where_it_is_asked_for(prompt: str) -> None:
    found = answer(prompt, "scan")
    assert shown(found) == {"show": "activity"}
    assert found.plan is not None and found.plan.steps[0].inputs == ("upload:1",)


@pytest.mark.parametrize(
    "prompt",
    [
        "which pictures is it closest to",
        "Which known pictures is this most similar to?",
        "show me the nearest images",
        "welche Bilder sind am nächsten?",
        "les images les plus proches",
    ],
)
def test_near_pictures_are_looked_up_where_they_are_asked_for(prompt: str) -> None:
    assert shown(answer(prompt, "scan")) == {"show": "nearest pictures"}


@pytest.mark.parametrize(
    ("prompt", "group"),
    [
        ("without V4", "V4"),
        ("leave out the early areas", "early"),
        ("What did she see, without the early areas?", "early"),
        ("decode it but ignore the ventral stream", "ventral"),
        ("what was it, leaving out the higher areas", "higher"),
        ("switch off LO and tell me what is left", "lateral"),
        ("without the dorsal regions", "dorsal"),
        ("ohne V1", "early"),
    ],
)
def test_regions_are_left_out_where_it_is_said(prompt: str, group: str) -> None:
    assert group in GROUPS and shown(answer(prompt, "scan")) == {"without": group}


def test_both_can_be_said_at_once() -> None:
    assert shown(answer("draw the cortex without V4", "scan")) == {"show": "activity", "without": "V4"}


@pytest.mark.parametrize(
    "prompt",
    [
        "what was this person looking at?",
        "decode the activity into a picture",
        "turn the brain activity into an image",
        "reconstruct what she saw from the activity of the cortex",
        "Show me the picture from this brain scan",
        "show me the scan as a picture of what was seen",
        "paint what the brain saw",
    ],
)
def test_what_was_seen_is_decoded_as_before(prompt: str) -> None:
    found = Controller(REGISTRY, RuleRouter(), lambda pipeline: 1.0).answer(Request.of(prompt, ("scan",)))
    assert found.plan is not None
    assert [(step.op, step.output, {**step.params, "seed": 0}) for step in found.plan.steps] == [
        ("fmri", "image", {"seed": 0})
    ]


def test_without_a_scan_the_words_mean_what_they_always_did() -> None:
    for prompt, uploads in (("draw the cortex", ()), ("draw the cortex", ("image",)), ("without V4", ())):
        found = Controller(REGISTRY, RuleRouter(), lambda pipeline: 1.0).answer(Request.of(prompt, uploads))
        assert found.plan is None or all(step.op != "fmri" for step in found.plan.steps)


def test_what_was_decoded_before_is_shown_otherwise() -> None:
    history = (SCAN, Item(2, "image", "cherries", CHERRIES))
    for prompt, said in (
        ("now without V4", {"without": "V4"}),
        ("show me the activity", {"show": "activity"}),
        ("the same without the early areas", {"without": "early"}),
    ):
        found = answer(prompt, history=history)
        assert shown(found) == {"strength": 0.2, **said}
        assert found.plan is not None and found.plan.steps[0].inputs == ("@1",)
        assert found.plan.steps[0].params["seed"] == 4
    assert shown(answer("draw the cortex", history=(SCAN, Item(2, "image", "a cat")))) == {"show": "activity"}


@pytest.mark.parametrize(
    "prompt",
    [
        "draw a map of volcanic activity",
        "paint a view of volcanic activity at night",
        "make the image similar to a painting",
        "show me the nearest one",
        "show me pictures of parks most like a jungle",
        "a picture of a castle without lo",
        "how active is the volcano?",
    ],
)
@pytest.mark.parametrize("later", [(), (Item(2, "image", "a volcano"), Item(3, "image", "a house"))])
def test_a_scan_of_long_ago_takes_over_no_other_request(prompt: str, later: tuple[Item, ...]) -> None:
    history = (SCAN, *later)
    request = Request(prompt, (), history, tuple(item.number for item in reversed(history)))
    if later or prompt not in ("make the image similar to a painting", "show me the nearest one"):
        assert not ways_said(request)


def test_the_scan_that_is_named_is_shown() -> None:
    both = (SCAN, Item(2, "scan", "S2", brought=True))
    for prompt, source in (
        ("draw the cortex of the first scan", "@1"),
        ("draw the cortex of @1", "@1"),
        ("draw the cortex", "@2"),
    ):
        found = answer(prompt, history=both)
        assert found.plan is not None and found.plan.steps[0].inputs == (source,)
    found = answer("draw the cortex of the second one", "scan", "scan")
    assert found.plan is not None and found.plan.steps[0].inputs == ("upload:2",)


def test_what_is_denied_is_not_done_and_two_groups_are_asked_about() -> None:
    for prompt in ("do not leave out V4", "don't draw the cortex"):
        assert not ways_said(Request.of(prompt, ("scan",)))
    for prompt in ("without V1 and V4", "without V4 and without the ventral stream"):
        found = answer(prompt, "scan")
        assert found.plan is None and found.sentence.startswith("Only one of these can be chosen at a time: early, ")
    before = Item(2, "image", "cherries", CHERRIES.model_copy(update={"params": {"without": "V4"}}))
    again = answer("draw the cortex with everything, nothing left out", history=(SCAN, before))
    assert shown(again) == {"show": "activity", "without": "none"}


def test_what_is_left_out_is_left_out_of_all_that_is_made_of_it() -> None:
    for prompt, made in (
        ("a sound of it without the dorsal stream", "audio"),
        ("make a 3d object of the scan without lo", "mesh"),
    ):
        found = answer(prompt, "scan")
        assert found.plan is not None
        first, second = found.plan.steps
        assert first.op == "fmri" and first.params["without"] in ("dorsal", "lateral")
        assert (second.inputs, second.output, found.plan.outputs) == (("$s1",), made, ("$s2",))


def test_more_can_be_made_of_it() -> None:
    found = answer("show the activity, then a sound of it", "scan")
    assert found.plan is not None
    first, second = found.plan.steps
    assert (first.op, first.params["show"], second.output, second.inputs) == ("fmri", "activity", "audio", ("$s1",))


def test_a_pipeline_that_cannot_show_it_is_asked_as_before() -> None:
    found = Controller(DECLARED, RuleRouter(), lambda pipeline: 1.0).answer(Request.of("draw the cortex", ("scan",)))
    assert found.plan is not None and found.plan.steps[0].params.keys() <= {"seed"}
