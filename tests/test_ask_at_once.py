"""Two presses at once in one conversation: one is done, the other is told to wait, and nothing is left hanging."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from app.assistant import Assistant
from app.controller.planner import Choice
from app.studio import Studio
from app.ui.host import Host
from app.ui.talk import StepState, Talk
from models.errors import UserError
from tests.talks import ask, finish

Act = Callable[[Host, Talk], None]
PATIENCE = 20.0  # seconds


def change(host: Host, talk: Talk) -> None:
    plan = talk.turns[0].plan
    assert plan is not None
    host.change(talk, 1, plan)


# Of each what it does in the middle, when it has seen that the talk is not busy.
ACTS: dict[str, tuple[Act, type, str]] = {
    "take": (lambda host, talk: host.take(talk, "a blue bird", []), Assistant, "answer"),
    "choose": (lambda host, talk: host.choose(talk, 1, 0), Assistant, "answer"),
    "go": (lambda host, talk: host.go(talk, 1), StepState, "restart"),
    "change": (change, Host, "check"),
}


@pytest.mark.parametrize("name", ACTS)
def test_of_two_at_once_one_is_told_to_wait(name: str, tiny_studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    act, holder, method = ACTS[name]
    host, talk = Host(Assistant(tiny_studio)), Talk()
    ask(host, talk, "a red apple")
    talk.turns[0].choices = (Choice("A car", "draw a red car"),)
    talk.turns[0].steps[0].state = "waiting"  # as if it had been stopped
    begin, other = threading.Barrier(2), threading.Event()
    inside, refused = [0], list[str]()
    whole = getattr(holder, method)

    def slow(*args: Any, **kwargs: Any) -> Any:
        """Goes on once the other one is here too, or was told to wait."""
        inside[0] += 1
        if inside[0] == 2:
            other.set()
        assert other.wait(PATIENCE)
        return whole(*args, **kwargs)

    def press() -> None:
        begin.wait(PATIENCE)
        try:
            act(host, talk)
        except UserError as error:
            refused.append(error.sentence)
            other.set()

    monkeypatch.setattr(holder, method, slow)
    presses = [threading.Thread(target=press) for _ in range(2)]
    for thread in presses:
        thread.start()
    for thread in presses:
        thread.join(PATIENCE)
    monkeypatch.undo()
    assert inside == [1] and len(refused) == 1 and "One thing at a time" in refused[0]
    finish(host, talk)
    assert all(turn.stage in ("said", "ended") for turn in talk.turns)


def test_what_could_not_be_answered_keeps_nobody_waiting(tiny_studio: Studio) -> None:
    host, talk = Host(Assistant(tiny_studio)), Talk()
    with pytest.raises(UserError, match="There is no file"):
        host.take(talk, "a sound of this", ["nowhere.png"])
    with pytest.raises(KeyError):
        host.choose(talk, 7, 0)
    assert not talk.busy and ask(host, talk, "a red apple").pieces


def test_a_turn_runs_once_however_many_run_it(tiny_studio: Studio) -> None:
    host, talk = Host(Assistant(tiny_studio)), Talk()
    host.take(talk, "a red apple", [])
    first, second = host.run(talk), host.run(talk)
    next(first)
    assert list(second) == [] and talk.busy
    list(first)
    assert not talk.busy and len(talk.turns[0].pieces) == 1
