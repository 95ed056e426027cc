"""A talk over a reload: what comes back, what is left out, and what a browser may send without harm."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.assistant import Assistant
from app.studio import Studio
from app.ui.ask_tab import AskTab
from app.ui.host import COSTLY_SECONDS, Host
from app.ui.kept import MAX_KEPT, MAX_PROMPT, MAX_TURNS, kept, restored
from app.ui.replies import reply
from app.ui.talk import Talk
from pipelines.base import Event, Params, Produced, Registry, Runtime, provenance
from pipelines.media import Artifact, Audio, Image
from tests.browser.tiny_server import Listen
from tests.talks import ask, finish, page_of
from tests.tiny import Blend, Hum, Paint

CHAIN = "a picture of a bell, then a sound of it"


class Hear(Listen):
    """As its base, but at once."""

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        for item in inputs:
            samples = np.full((1, 80), (params.seed % 9) / 9, np.float32)
            yield Produced(Audio(samples, 8000, provenance=provenance(self, item, params, runtime.models)))


def host_over(studio: Studio, folder: Path) -> Host:
    """A host as after a restart: over the same folder, but with nothing in its memory."""
    registry = Registry([Paint(), Blend(), Hum(), Hear(folder)])
    return Host(Assistant(Studio(studio.settings, registry, studio.manager)))


@pytest.fixture
def host(tiny_studio: Studio, tmp_path: Path) -> Host:
    return host_over(tiny_studio, tmp_path)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    Image(np.full((8, 8, 3), 90, np.uint8)).save(path)
    return str(path)


def remove(host: Host, talk: Talk, number: int) -> None:
    entry = talk.pieces[number].entry
    assert entry is not None
    host.studio.library.remove(entry.id)


def test_a_talk_comes_back_as_it_was_after_a_restart(host: Host, photo: str, tmp_path: Path) -> None:
    talk = Talk()
    ask(host, talk, "", photo)
    ask(host, talk, "make a sound of this picture")
    ask(host, talk, CHAIN)
    ask(host, talk, "another one")
    ask(host, talk, "go back to the first one")
    again = restored(kept(talk), host_over(host.studio, tmp_path))
    assert again.conversation == talk.conversation and not again.notice and not again.busy
    assert {n: (p.medium, p.title, p.words, p.waveform) for n, p in again.pieces.items()} == {
        n: (p.medium, p.title, p.words, p.waveform) for n, p in talk.pieces.items()
    }
    assert [turn.stage for turn in again.turns] == [turn.stage for turn in talk.turns]
    assert [reply(turn) or turn.sentence for turn in again.turns] == [
        reply(turn) or turn.sentence for turn in talk.turns
    ]
    assert [turn.choices for turn in again.turns] == [turn.choices for turn in talk.turns]
    assert kept(again) == kept(talk)


def test_what_comes_back_can_be_spoken_of_and_its_questions_answered(host: Host, photo: str, tmp_path: Path) -> None:
    talk = Talk()
    ask(host, talk, "a red apple")
    asked = ask(host, talk, "", photo)
    talk, host = restored(kept(talk), host_over(host.studio, tmp_path)), host_over(host.studio, tmp_path)
    host.choose(talk, asked.number, [choice.label for choice in asked.choices].index("Make a sound of it"))
    assert finish(host, talk).steps[0].step.inputs == ("@2",)
    other = ask(host, talk, "another one")
    assert other.pieces[0].number == 4 and other.steps[0].step.inputs == ("@2",)


def test_a_request_that_is_being_answered_while_the_talk_comes_back_is_not_lost(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Talk()
    ask(host, before, "a red apple")
    talk, answer = Talk(), host.assistant.answer

    def answer_while_it_comes_back(*given: Any, **named: Any) -> Any:
        talk.become(restored(kept(before), host))
        return answer(*given, **named)

    monkeypatch.setattr(host.assistant, "answer", answer_while_it_comes_back)
    turn = ask(host, talk, "draw a blue car")
    assert [turn.prompt for turn in talk.turns] == ["a red apple", "draw a blue car"]
    assert [piece.number for piece in turn.pieces] == [2] and set(talk.pieces) == {1, 2}


def test_what_is_gone_from_the_gallery_is_left_out_and_said(host: Host) -> None:
    talk = Talk()
    ask(host, talk, "a red apple")
    ask(host, talk, "draw a blue car")
    remove(host, talk, 1)
    again = restored(kept(talk), host)
    assert again.notice == "One thing of this conversation is not in the gallery any more, and left out here."
    page = page_of(host, again)
    assert again.notice in page and "a red apple" in page and 'data-number="1"' not in page
    assert [item.number for item in again.conversation.items] == [2] and again.conversation.focus == [2]
    assert ask(host, again, "draw a cat").pieces[0].number == 3
    assert restored(kept(again), host).notice == ""
    remove(host, again, 2)
    remove(host, again, 3)
    assert "2 things of this conversation are not" in restored(kept(again), host).notice


def test_a_step_whose_result_is_gone_can_be_made_again(host: Host) -> None:
    talk = Talk()
    ask(host, talk, CHAIN)
    remove(host, talk, 2)
    again = restored(kept(talk), host)
    assert [state.state for state in again.turns[0].steps] == ["done", "waiting"] and again.turns[0].stage == "stopped"
    host.go(again, 1)
    assert [piece.medium for piece in finish(host, again).pieces] == ["image", "audio"]


def test_a_plan_over_what_is_gone_comes_back_as_words_and_what_is_left(host: Host, photo: str) -> None:
    talk = Talk()
    ask(host, talk, "make a sound of this picture", photo)
    for path in host.studio.settings.output_folder.glob("inputs/*/*.png"):
        path.unlink()
    [turn] = restored(kept(talk), host).turns
    assert turn.plan is None and [piece.number for piece in turn.shown] == [2]
    assert turn.sentence == "What is left of it: the sound of photo.png (@2)." and turn.brought == []


@pytest.mark.parametrize("costly", [False, True])
def test_what_did_not_run_to_its_end_waits(host: Host, costly: bool) -> None:
    talk = Talk()
    if costly:
        host.studio.durations.note("tiny-paint", 1, 1, COSTLY_SECONDS + 60)
    host.take(talk, "a red apple", [])
    again = restored(kept(talk), host)
    assert again.turns[0].stage == ("proposed" if costly else "stopped") and not again.busy
    host.go(again, 1)
    assert finish(host, again).stage == "ended"
    host.take(talk := Talk(), "why is the sky blue?", [])
    assert restored(kept(talk), host).turns[0].sentence == "This was not answered."


def test_only_so_much_is_kept(host: Host) -> None:
    assert kept(Talk()) == ""
    talk = Talk()
    for number in range(MAX_TURNS + 20):
        talk.add(f"{number} " + "x" * 100_000).sentence = '"' * 100_000 + "\ud800"
    again = restored(kept(talk), host)
    assert 10 < len(again.turns) <= MAX_TURNS and again.turns[-1].prompt.startswith(f"{MAX_TURNS + 19} ")
    assert len(kept(talk)) <= MAX_KEPT and all(len(turn.prompt) <= MAX_PROMPT for turn in again.turns)


# What a browser may send


@pytest.fixture
def honest(host: Host, photo: str) -> dict[str, Any]:
    talk = Talk()
    ask(host, talk, "make a sound of this picture", photo)
    ask(host, talk, CHAIN)
    asked: dict[str, Any] = json.loads(kept(talk))
    return asked


@pytest.mark.parametrize(
    "text", ["", "null", "{}", "[" * 100_000, '{"version": 2}', "\0", "x" * (MAX_KEPT + 1), '{"items": NaN}', "\ud800"]
)
def test_what_is_no_talk_begins_a_new_one(host: Host, text: str) -> None:
    assert restored(text, host) == Talk()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("items", 0, "hash"), "../../../../../etc/passwd"),
        (("items", 0, "hash"), "a" * 63),
        (("items", 0, "number"), 0),
        (("items", 1, "number"), 1),
        (("items", 0, "extra"), 1),
        (("turns", 0, "steps", 0, "seconds"), "NaN"),
        (("turns", 0, "plan", "version"), 9),
        (("turns", 0, "prompt"), "x" * 10_000),
    ],
)
def test_a_talk_with_a_forged_field_is_not_believed(
    host: Host, honest: dict[str, Any], place: tuple[Any, ...], value: object
) -> None:
    *path, last = place
    within = honest
    for key in path:
        within = within[key]
    within[last] = value
    assert restored(json.dumps(honest), host) == Talk()


@pytest.mark.parametrize(
    "forged", [{"op": "os.system"}, {"params": {"seed": -1}}, {"params": {"x": 1}}, {"inputs": ["@9"]}]
)
def test_a_plan_that_cannot_run_is_left_out(host: Host, honest: dict[str, Any], forged: dict[str, Any]) -> None:
    honest["turns"][1]["plan"]["steps"][0] |= forged
    again = restored(json.dumps(honest), host)
    assert [turn.plan is None for turn in again.turns] == [False, True]
    assert [piece.number for piece in again.turns[1].shown] == [3, 4] and ask(host, again, "another one").pieces


def test_another_medium_than_is_in_the_gallery_is_left_out(host: Host, honest: dict[str, Any]) -> None:
    honest["items"][0]["medium"], honest["items"][1]["medium"] = "audio", "image"
    again = restored(json.dumps(honest), host)
    assert list(again.pieces) == [3, 4] and "2 things" in again.notice


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["@1", "$s1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_changed_in_it_nothing_raises(host: Host, honest: dict[str, Any], data: st.DataObject) -> None:
    forged = json.loads(json.dumps(honest))
    within: Any = forged
    while True:
        key = data.draw(st.sampled_from(sorted(within) if isinstance(within, dict) else range(len(within))))
        if not isinstance(within[key], dict | list) or not within[key] or data.draw(st.booleans()):
            break
        within = within[key]
    within[key] = data.draw(json_values)
    again = restored(json.dumps(forged), host)
    assert page_of(host, again) and kept(restored(kept(again), host)) == kept(again)
    for prompt in ("another one", "undo", "a sound of the first one"):
        assert ask(host, again, prompt).problem is None


# The tab


def test_the_tab_puts_it_back_unless_something_has_begun(host: Host) -> None:
    with gr.Blocks():
        tab = AskTab(host.studio, host.assistant)
    talk = Talk()
    first = tab._on_submit(talk, {"text": "a red apple", "files": []})
    assert restored(first[tab._kept], host).turns[0].stage == "stopped"
    *_, last = tab._run(talk)
    again = Talk()
    back = tab._on_load(again, last[tab._kept])
    assert again.turns[0].stage == "ended"
    told = re.compile('<p class="aside reader".*?</p>|<details.*?</details>')
    assert told.sub("", back[tab.log]) == told.sub("", last[tab.log])
    for begun, text in ((talk, last[tab._kept]), (Talk(), ""), (Talk(), None)):
        assert tab._on_load(begun, text) == gr.skip()


def test_a_new_conversation_forgets_the_old_one_but_not_while_something_runs(host: Host) -> None:
    with gr.Blocks():
        tab = AskTab(host.studio, host.assistant)
    talk = Talk()
    host.take(talk, "a red apple", [])
    assert "One thing at a time" in tab._on_anew(talk)[tab._said] and len(talk.turns) == 1
    finish(host, talk)
    shown = tab._on_anew(talk)
    assert talk == Talk() and shown[tab._kept] == "" and "What shall it be?" in shown[tab.log]
    assert len(host.studio.library.entries()) == 1 and ask(host, talk, "draw a cat").pieces[0].number == 1
