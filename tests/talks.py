"""Turns of a talk without a page."""

from __future__ import annotations

from app.ui.ask_markup import conversation
from app.ui.host import Host
from app.ui.talk import Talk, Turn


def ask(host: Host, talk: Talk, prompt: str, *files: str) -> Turn:
    host.take(talk, prompt, files)
    return finish(host, talk)


def finish(host: Host, talk: Talk) -> Turn:
    """Run what is to do, with a costly plan agreed to."""
    turn = talk.turns[-1]
    if turn.stage == "proposed":
        host.go(talk, turn.number)
    assert all(isinstance(notable, bool) for notable in host.run(talk))
    assert not talk.busy
    return turn


def page_of(host: Host, talk: Talk) -> str:
    return conversation(talk, {pipeline.name: pipeline for pipeline in host.studio.registry}, host.examples)
