"""The Ask tab's talk over real, tiny pipelines: what comes of a request, and what is said of it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import gradio as gr
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.assistant import Assistant
from app.controller.conversation import Conversation
from app.controller.plan import Plan, PlanError, Step
from app.controller.planner import Choice
from app.studio import Studio
from app.ui.api import ask_endpoint
from app.ui.ask_tab import AskTab
from app.ui.host import COSTLY_SECONDS, MAX_ATTACHMENTS, Host
from app.ui.plan_editor import Slot, changed_plan
from app.ui.replies import about, listed, reply, seconds
from app.ui.talk import Piece, StepState, Talk, Turn
from models.errors import Cancelled, UserError
from models.manager import ModelManager
from pipelines.base import Params, Pipeline, Registry, Route, installed_registry
from pipelines.media import Artifact, Audio, Image, Text
from tests.browser.tiny_server import Listen
from tests.talks import ask, finish, page_of
from tests.tiny import Blend, Hum, Paint


class Whisper(Listen):
    """Another way from a picture to a sound, with settings of its own."""

    name, title = "tiny-whisper", "Tiny whisper"


@pytest.fixture
def studio(tiny_studio: Studio, tmp_path: Path) -> Studio:
    pipelines: list[Pipeline] = [Paint(), Blend(), Hum(), Listen(tmp_path)]
    return Studio(tiny_studio.settings, Registry(pipelines), tiny_studio.manager)


@pytest.fixture
def host(studio: Studio) -> Host:
    return Host(Assistant(studio))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "<b>photo<b>.png"
    Image(np.full((8, 8, 3), 90, np.uint8)).save(path)
    return str(path)


def test_what_was_changed_is_said_to_be_edited(studio: Studio) -> None:
    edits = [pipeline for pipeline in installed_registry() if pipeline.is_edit]
    host, talk = Host(Assistant(Studio(studio.settings, Registry([Paint(), *edits]), studio.manager))), Talk()
    ask(host, talk, "draw a red apple")
    assert reply(ask(host, talk, "make it brighter")).startswith("Here is the edited picture of a red apple (@2), in")


def test_a_request_is_made_numbered_and_told(host: Host) -> None:
    talk = Talk()
    turn = ask(host, talk, "draw a red apple")
    assert turn.stage == "ended" and [piece.number for piece in turn.pieces] == [1]
    assert re.fullmatch(r"Here is the picture of a red apple \(@1\), in [\d.]+ s\.", reply(turn))
    page = page_of(host, talk)
    for words in ("draw a red apple", "Tiny painting", "painter", reply(turn), "read by rules", "@1"):
        assert words in page
    assert 'role="log"' in page and "Download" in page and 'data-event="remix"' in page


def test_another_one_is_another_and_undo_goes_back(host: Host) -> None:
    talk = Talk()
    first, second = ask(host, talk, "a red apple"), ask(host, talk, "another one")
    pictures = [host.studio.library.load(turn.pieces[0].entry.id) for turn in (first, second) if turn.pieces[0].entry]
    assert pictures[0].content_hash() != pictures[1].content_hash()
    back = ask(host, talk, "undo")
    assert back.shown == first.pieces and "@1" in back.sentence and 'data-number="1"' in page_of(host, talk)
    assert ask(host, talk, "undo").shown == []


def test_the_same_request_again_is_not_the_same_picture(host: Host) -> None:
    talk = Talk()
    seeds = {str(ask(host, talk, "draw a red apple").steps[0].step.params["seed"]) for _ in range(3)}
    assert len(seeds) == 3


def test_a_file_without_words_gets_a_question_whose_buttons_are_about_it(host: Host, photo: str) -> None:
    talk = Talk()
    asked = ask(host, talk, "", photo)
    assert asked.stage == "said" and asked.sentence.endswith("?") and [p.number for p in asked.brought] == [1]
    host.choose(talk, asked.number, [choice.label for choice in asked.choices].index("Make a sound of it"))
    turn = finish(host, talk)
    assert turn.steps[0].step.inputs == ("@1",) and reply(turn).startswith("Here is the sound of <b>photo<b>.png (@2)")
    assert len(talk.conversation.items) == 2


def test_what_was_attached_can_be_spoken_of_later(host: Host, photo: str) -> None:
    talk = Talk()
    ask(host, talk, "", photo)
    turn = ask(host, talk, "make a sound of this picture")
    assert turn.steps[0].step.inputs == ("@1",) and turn.pieces[0].medium == "audio"


def test_two_that_fit_are_shown_to_choose_from(host: Host) -> None:
    talk = Talk()
    ask(host, talk, "a red apple")
    ask(host, talk, "draw a red car")
    asked = ask(host, talk, "go back to the red one")
    assert len(asked.choices) == 2 and page_of(host, talk).count('data-event="choose"') == 2
    assert re.search(r'data-event="choose"[^>]*><img src="gradio_api', page_of(host, talk))
    host.choose(talk, asked.number, [choice.prompt for choice in asked.choices].index("@1"))
    assert talk.turns[-1].shown == talk.turns[0].pieces and talk.conversation.focus[0] == 1


def test_a_variation_of_an_earlier_piece_is_made_in_the_talk(host: Host) -> None:
    talk = Talk()
    first = ask(host, talk, "a red apple").pieces[0]
    ask(host, talk, "a blue bird")
    assert first.entry is not None
    host.vary(talk, first.entry.id)
    made = finish(host, talk).pieces[0].entry
    assert made is not None and made.title == "a red apple" and made.content_hash != first.entry.content_hash
    assert talk.turns[-1].prompt == "another one"


def test_a_failed_step_is_said_and_tried_again_without_making_anything_twice(host: Host, tmp_path: Path) -> None:
    talk, deaf = Talk(), tmp_path / "deaf"
    deaf.touch()
    turn = ask(host, talk, "a picture of a bell, then a sound of it")
    assert [state.state for state in turn.steps] == ["done", "failed"] and turn.unfinished
    assert "picture of a bell (@1)" in reply(turn) and reply(turn).endswith("But the sound could not be made.")
    page = page_of(host, talk)
    assert "Nothing could be heard." in page and "Try again" in page

    deaf.unlink()
    host.go(talk, turn.number)
    finish(host, talk)
    assert [state.state for state in turn.steps] == ["done", "done"] and "could not" not in reply(turn)
    assert [item.medium for item in talk.conversation.items] == ["image", "audio"]
    assert talk.conversation.items[1].recipe is not None and talk.conversation.items[1].recipe.inputs == ("@1",)


def test_what_needs_a_failed_step_says_so(host: Host) -> None:
    talk = Talk()
    host.take(talk, "a picture of a bell, then a sound of it", [])
    turn = talk.turns[-1]
    host.stop(talk)
    assert turn.plan is not None
    paint = turn.plan.steps[0].model_copy(update={"params": {"fail": True}})
    host.change(talk, 1, turn.plan.model_copy(update={"steps": (paint, turn.plan.steps[1])}))
    changed = finish(host, talk)
    assert [state.state for state in changed.steps] == ["failed", "skipped"]
    assert reply(changed) == "The picture and the sound could not be made."
    page = page_of(host, talk)
    assert "Left out, because step 1 failed." in page and "Something went wrong on our side" in page


def test_stop_keeps_what_is_finished_and_the_rest_can_be_made_later(host: Host) -> None:
    talk = Talk()
    host.take(talk, "a picture of a bell, then a sound of it", [])
    turn = talk.turns[-1]
    if turn.stage == "proposed":
        host.go(talk, turn.number)
    for _ in host.run(talk):
        if turn.steps[1].progress:
            host.stop(talk)
    assert turn.stage == "stopped" and [state.state for state in turn.steps] == ["done", "waiting"]
    assert reply(turn) == "Stopped. What was finished is kept: the picture of a bell (@1)."
    assert "Go on" in page_of(host, talk) and len(host.studio.library.entries()) == 1
    host.go(talk, turn.number)
    finish(host, talk)
    assert turn.stage == "ended" and [piece.number for piece in turn.pieces] == [1, 2]


def test_a_closed_tab_stops_the_run(host: Host) -> None:
    talk = Talk()
    host.take(talk, "a red apple", [])
    run = host.run(talk)
    next(run)
    run.close()  # type: ignore[attr-defined]
    assert talk.turns[-1].stage == "stopped" and not talk.busy


def test_only_one_thing_is_made_at_a_time(host: Host) -> None:
    talk = Talk()
    host.take(talk, "a red apple", [])
    for act in (lambda: host.take(talk, "a blue bird", []), lambda: host.go(talk, 1)):
        with pytest.raises(UserError, match="One thing at a time"):
            act()
    assert len(talk.turns) == 1
    host.turned_away(talk)
    assert "Too many requests" in page_of(host, talk) and "Try again" in page_of(host, talk)
    host.go(talk, 1)
    assert finish(host, talk).pieces


def test_a_costly_plan_waits_to_be_agreed_to(host: Host) -> None:
    talk = Talk()
    host.studio.durations.note("tiny-paint", 1, 1, COSTLY_SECONDS + 60)
    host.take(talk, "a red apple", [])
    assert talk.turns[0].stage == "proposed" and not talk.busy and list(host.run(talk)) == []
    page = page_of(host, talk)
    assert 'data-event="go"' in page and "about 1 min 20 s" in page
    assert finish(host, talk).stage == "ended"


def test_a_model_that_has_to_be_fetched_is_told_before(host: Host, tmp_path: Path) -> None:
    manager = host.studio.manager
    spec = manager.specs["painter"]
    gone = replace(spec, source=type(spec.source)(tmp_path / "nowhere"))  # type: ignore[call-arg]
    fresh = ModelManager({"painter": gone}, manager.device, budget_bytes=10_000_000)
    other = Host(Assistant(Studio(host.studio.settings, host.studio.registry, fresh)))
    talk = Talk()
    other.take(talk, "a red apple", [])
    assert talk.turns[0].stage == "proposed" and "has to fetch painter" in page_of(other, talk)


@pytest.mark.parametrize("name", ["notes.exe", "missing.png", "broken.png"])
def test_a_file_that_cannot_be_used_changes_nothing(host: Host, tmp_path: Path, photo: str, name: str) -> None:
    talk, path = Talk(), tmp_path / name
    if name != "missing.png":
        path.write_bytes(b"no picture")
    with pytest.raises(UserError):
        host.take(talk, "a sound of this", [photo, str(path)])
    with pytest.raises(UserError, match="too many"):
        host.take(talk, "a sound of these", [photo] * (MAX_ATTACHMENTS + 1))
    assert talk == Talk()


def test_words_and_names_are_never_taken_for_markup(host: Host, photo: str) -> None:
    talk = Talk()
    ask(host, talk, "a picture of <img src=x onerror=hit()>", photo)
    ask(host, talk, "draw <script>hit()</script>")
    page = page_of(host, talk)
    assert not re.search("<(script|img src=x|b>)", page) and "&lt;script&gt;" in page


def test_a_question_is_not_answered_by_a_picture(host: Host) -> None:
    turn = ask(host, Talk(), "why is the sky blue?")
    assert turn.plan is None and turn.pieces == [] and turn.stage == "said"
    assert "no language model" in turn.sentence and "tiny painting" in turn.sentence


class Writing(Assistant):
    """An assistant that has something to answer in words with."""

    def reply(self, conversation: Conversation, prompt: str, cancelled: threading.Event | None = None) -> Iterator[str]:
        yield f"You said: {prompt}"
        if cancelled is not None and cancelled.is_set():
            raise Cancelled
        yield ", that is all."


def test_an_answer_in_words_is_streamed_and_can_be_stopped(studio: Studio) -> None:
    host, talk = Host(Writing(studio)), Talk()
    assert ask(host, talk, "why is it so?").sentence == "You said: why is it so?, that is all."
    host.take(talk, "why is it so?", [])
    for _ in host.run(talk):
        host.stop(talk)
    assert talk.turns[-1].stage == "stopped" and talk.turns[-1].sentence == "You said: why is it so?"


def test_a_changed_plan_runs_beside_the_first_and_a_wrong_one_not_at_all(host: Host) -> None:
    talk = Talk()
    first = ask(host, talk, "a red apple")
    assert first.plan is not None
    step = first.plan.steps[0]
    wrong = first.plan.model_copy(update={"steps": (step.model_copy(update={"inputs": ("@9",)}),)})
    with pytest.raises(PlanError, match="does not exist"):
        host.change(talk, 1, wrong)
    with pytest.raises(UserError, match="no step left"):
        host.change(talk, 1, first.plan.without(step.id))
    assert len(talk.turns) == 1 and not talk.busy
    blue = step.model_copy(update={"inputs": ("text:a blue apple",)})
    host.change(talk, 1, first.plan.model_copy(update={"steps": (blue,)}))
    assert "a blue apple (@2)" in reply(finish(host, talk)) and "a red apple (@1)" in reply(first)


SOUND = Step(id="s2", op="tiny-listen", inputs=("$s1",), output="audio", params={"seed": 3})
PICTURE = Step(id="s1", op="tiny-paint", inputs=("text:a cat",), output="image", params={"seed": 3, "steps": 9})
PLAN = Plan(steps=(PICTURE, SOUND), outputs=("$s2",))


def edited(*changes: tuple[Slot, object]) -> Plan:
    known = {pipeline.name: pipeline for pipeline in (Paint(), Listen(Path()), Whisper(Path()))}
    slots, values = [slot for slot, _ in changes], tuple(value for _, value in changes)
    return changed_plan(PLAN, slots, values, known.__getitem__)


def test_controls_change_words_settings_and_pipelines() -> None:
    assert edited() == PLAN
    assert edited((Slot(0, "words", 0), "a dog")).steps[0].inputs == ("text:a dog",)
    settings = edited((Slot(0, "param", "steps"), 4), (Slot(0, "param", "strength"), 1.0)).steps[0].params
    assert settings == {"seed": 3, "steps": 4}
    other = edited((Slot(1, "op"), "tiny-whisper"), (Slot(1, "param", "gone"), 1)).steps[1]
    assert (other.op, other.params) == ("tiny-whisper", {"seed": 3})
    with pytest.raises(UserError, match="Step 1 has no words"):
        edited((Slot(0, "words", 0), "  "))
    with pytest.raises(PlanError):
        edited((Slot(1, "op"), "tiny-whisper"), (Slot(0, "param", "steps"), object()))


def piece(number: int, medium: str, title: str = "") -> Piece:
    return Piece(number, medium, title)


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([piece(1, "image", "cat.png")], "the picture cat.png (@1)"),
        ([piece(2, "mesh")], "the 3-D object (@2)"),
        ([piece(1, "image"), piece(2, "image"), piece(3, "image")], "3 pictures (@1 to @3)"),
        ([piece(1, "image"), piece(2, "audio"), piece(3, "image")], "2 pictures (@1, @3) and the sound (@2)"),
        ([piece(4, "smell", "rose")], "the smell rose (@4)"),
    ],
)
def test_what_was_made_is_listed(pieces: list[Piece], words: str) -> None:
    assert listed(pieces) == words


def test_a_reply_never_claims_what_is_not_there() -> None:
    for state in ("failed", "skipped", "waiting"):
        turn = Turn(1, "a bell", [], "ended", steps=[StepState(SOUND, "Tiny listening", (), 1.0, state=state)])
        assert "Here" not in reply(turn) and "@" not in reply(turn)


def test_times_are_told_as_people_do() -> None:
    assert [seconds(s) for s in (0.01, 0.93, 12.4, 75)] == ["0.1 s", "0.9 s", "12 s", "1 min 15 s"]
    assert [about(s) for s in (0.2, 0.9, 5.4, 75)] == ["under 1 s", "about 1 s", "about 5 s", "about 1 min 15 s"]


def test_a_script_asks_and_gets_files(host: Host, studio: Studio, tmp_path: Path) -> None:
    answer = ask_endpoint(host.assistant)("a picture of a bell, then a sound of it", [])
    assert answer["outputs"] == ["image", "audio"] and answer["errors"] == []
    assert [Path(made["file"]["path"]).suffix for made in answer["results"]] == [".png", ".wav"]
    assert "sound of a bell (@2)" in answer["reply"]
    (tmp_path / "deaf").touch()
    answer = ask_endpoint(host.assistant)("a picture of a gong, then a sound of it", [])
    assert len(answer["results"]) == 1 and answer["errors"] == ["Nothing could be heard. Listen again."]
    with pytest.raises(gr.Error, match="longer than a million"):
        ask_endpoint(host.assistant)("x" * 1_000_001, [])


def test_the_tab_keeps_what_was_typed_when_it_cannot_be_used(studio: Studio) -> None:
    with gr.Blocks():
        tab = AskTab(studio, Assistant(studio))
    talk = Talk()
    refused = tab._on_submit(talk, {"text": "a sound of this", "files": ["nowhere.png"]})
    assert tab._box not in refused and "There is no file" in refused[tab._said]
    taken = tab._on_submit(talk, {"text": "a red apple", "files": []})
    assert taken[tab._box].value == {"text": "", "files": []} and taken[tab._box].stop_btn is True
    *_, last = tab._run(talk)
    assert last[tab._box].stop_btn is False and "Here is the picture of a red apple" in last[tab.log]
    assert tab._on_submit(talk, {"text": "  ", "files": []}) == {tab._said: ""}


def test_stop_leaves_the_last_word_to_what_runs(studio: Studio) -> None:
    with gr.Blocks():
        tab = AskTab(studio, Assistant(studio))
    talk = Talk()
    tab._on_submit(talk, {"text": "a red apple", "files": []})
    running = tab._run(talk)
    next(running)
    # Whatever this showed could reach the page after the run's last update.
    assert tab._on_stop(talk) == gr.skip()
    *_, last = running
    assert "Stopped." in last[tab.log] and last[tab._box].stop_btn is False
    tab._on_submit(talk, {"text": "a blue bird", "files": []})
    assert tab._on_stop(talk)[tab._box].stop_btn is False  # nothing ran yet


class PaintOrFetch(Paint):
    """Leases nothing for pictures."""

    routes: ClassVar[tuple[Route, ...]] = (Route(("text",), "image"), Route(("image",), "image"))  # type: ignore[assignment]

    def models_for(self, inputs: Sequence[Artifact], params: Params) -> tuple[str, ...]:
        return self.models if isinstance(inputs[0], Text) else ()


def test_a_step_names_the_models_that_its_inputs_need(studio: Studio) -> None:
    host = Host(Assistant(Studio(studio.settings, Registry([PaintOrFetch()]), studio.manager)))
    at_hand = {"@1": Image(np.zeros((8, 8, 3), np.uint8))}
    for source, models in (("text:a bird", Paint.models), ("@1", ()), ("@2", Paint.models), ("$b", Paint.models)):
        step = Step(id="a", op=Paint.name, inputs=[source], output="image")
        assert host.state(step, at_hand).models == models


def test_the_card_of_what_is_attached_names_its_models_alone(studio: Studio, photo: str) -> None:
    host = Host(Assistant(Studio(studio.settings, Registry([PaintOrFetch()]), studio.manager)))
    talk = Talk()
    host.take(talk, "another picture of this", [photo])
    assert [state.models for state in talk.turns[0].steps] == [()]


@given(st.lists(st.text(max_size=80), min_size=1, max_size=3))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_said_there_is_an_answer_that_can_be_shown(host: Host, prompts: list[str]) -> None:
    talk = Talk()
    for prompt in prompts:
        turn = ask(host, talk, prompt)
        assert turn.stage in ("said", "ended") and (turn.plan is not None or turn.sentence)
    assert page_of(host, talk).count('class="turn ') == len(prompts)
    for choice in [choice for turn in talk.turns for choice in turn.choices]:
        assert isinstance(choice, Choice) and choice.label


def test_sounds_have_what_players_need(host: Host) -> None:
    talk = Talk()
    turn = ask(host, talk, "a picture of a bell, then a sound of it")
    [sound] = [piece for piece in turn.pieces if piece.medium == "audio"]
    assert sound.entry is not None and isinstance(host.studio.library.load(sound.entry.id), Audio)
    assert re.search(r'<audio src="gradio_api/file=[^"]+\.wav"[^>]* controls>', page_of(host, talk))
