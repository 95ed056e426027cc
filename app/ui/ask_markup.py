"""The Ask tab's HTML: a conversation of turns, each with its plan, what was made, and what was said of it.

Gradio changes a page's HTML node by node, so whatever stays the same keeps playing, and keeps the focus.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from app.controller.planner import Choice
from app.names import name_of
from app.studio import InternalError
from app.ui.markup import (
    badge,
    data_uri,
    downloads,
    file_url,
    frame,
    full_size,
    in_a_line,
    object_view,
    provenance,
    underway,
    ways_on_from,
)
from app.ui.replies import about, reply, seconds
from app.ui.talk import Piece, StepState, Talk, Turn, described
from models.errors import UserError
from pipelines.base import Pipeline, Progress

SCRIPT = (Path(__file__).parent / "ask.js").read_text()

MARKS = {"done": "✓", "failed": "!", "skipped": "–"}
SPOKEN = {"done": "done", "failed": "failed", "skipped": "left out", "running": "running", "waiting": "waiting"}
CHOSEN_TO_SHOW = 3  # settings of a step that are told


def conversation(talk: Talk, pipelines: dict[str, Pipeline], examples: Sequence[str]) -> str:
    """The whole talk; while it is empty, what one could begin with."""
    turns = "".join(_turn(turn, talk, pipelines) for turn in talk.turns)
    # The log is there from the start, and first: a screen reader tells what is added to it.
    log = f'<div class="turns" role="log" aria-label="Conversation">{turns}</div>'
    if not talk.turns:
        return log + _welcome(examples)
    notice = f'<p class="notice" role="status">{escape(talk.notice)}</p>' if talk.notice else ""
    return f'{log}{notice}<div class="leaving">{_button("anew", "", "New conversation", "tool")}</div>'


def _welcome(examples: Sequence[str]) -> str:
    starters = "".join(_button("say", text, text) for text in examples)
    return (
        '<section class="welcome"><h2>What shall it be?</h2>'
        "<p>Ask in your own words, and attach what it is about. You can go on from whatever comes: "
        "“another one”, “in blue instead”, “undo”.</p>"
        f'<div class="chips">{starters}</div></section>'
    )


def complaint(error: UserError | InternalError) -> str:
    """What is wrong, above the words that stay as they are."""
    return f'<p class="complaint" role="alert">{in_a_line(error)}</p>'


def _turn(turn: Turn, talk: Talk, pipelines: dict[str, Pipeline]) -> str:
    brought = "".join(_thumbnail(piece) for piece in turn.brought)
    words = f'<p dir="auto">{escape(turn.prompt)}</p>' if turn.prompt else ""
    note = '<p class="aside">with another plan</p>' if turn.changed and not turn.answer else ""
    asked = f'<div class="asked"><span class="unseen">You: </span>{brought}{words}{note}</div>'
    answer = _answer(turn, talk, pipelines)
    return f'<article class="turn {turn.stage}" aria-label="Turn {turn.number}">{asked}{answer}</article>'


def _answer(turn: Turn, talk: Talk, pipelines: dict[str, Pipeline]) -> str:
    parts = ['<span class="unseen">Answer: </span>']
    if turn.plan is not None:
        parts += [_plan(turn, talk, pipelines), _made(turn.pieces, pipelines), _stage(turn)]
    parts.append(_made(turn.shown, pipelines))
    if turn.problem:
        parts.append(complaint(turn.problem))
    said = (reply(turn) if turn.stage in ("ended", "stopped") else "") if turn.plan else turn.sentence
    if said:
        parts.append(f'<p class="said-back" dir="auto">{escape(said)}</p>')
    if turn.stage == "running" and turn.plan is None and not said:
        parts.append('<p class="said-back thinking">Thinking…</p>')
    parts += [_choices(turn, talk), f'<div class="turn-actions">{_actions(turn)}{_reader(turn)}</div>']
    return f'<div class="answer">{"".join(parts)}</div>'


def _reader(turn: Turn) -> str:
    """Who read the request, and how sure that was."""
    if not turn.answer:
        return ""
    outputs = sorted(turn.answer.scores.outputs.items(), key=lambda item: -item[1])
    scores = ", ".join(f"{name_of(medium).noun} {score:.0%}" for medium, score in outputs[:3])
    return f'<p class="aside reader" title="{escape(scores)}">read by {escape(turn.reader)}</p>'


def _plan(turn: Turn, talk: Talk, pipelines: dict[str, Pipeline]) -> str:
    steps = "".join(_step(number, state, turn, talk, pipelines) for number, state in enumerate(turn.steps, 1))
    assert turn.plan is not None
    warnings = "".join(f'<p class="warning">{escape(warning)}</p>' for warning in turn.plan.warnings)
    if turn.stage == "proposed":
        warnings += f'<p class="warning">{escape(_cost(turn))}</p>'
    return f'<section class="plan {turn.stage}" aria-label="Plan"><ol>{steps}</ol>{warnings}</section>'


def _cost(turn: Turn) -> str:
    """Why the plan waits to be told."""
    time = f"This takes {about(turn.expected)}."
    fetched = f" First it has to fetch {', '.join(turn.to_fetch)}." if turn.to_fetch else ""
    return f"{time}{fetched} Run it, or change it first."


def _step(number: int, state: StepState, turn: Turn, talk: Talk, pipelines: dict[str, Pipeline]) -> str:
    taken = " + ".join(described(source, turn, talk.pieces) for source in state.step.inputs)
    mark = MARKS.get(state.state, str(number))
    facts = [*_chosen(state, pipelines), ", ".join(state.models), _time(state)]
    told = " · ".join(escape(fact) for fact in facts if fact)
    trouble = ""
    if state.error:
        trouble = f'<p class="trouble">{in_a_line(state.error)}</p>'
    elif state.because:
        at = 1 + [other.step.id for other in turn.steps].index(state.because)
        trouble = f'<p class="trouble">Left out, because step {at} failed.</p>'
    return (
        f'<li class="{state.state}"><span class="mark" aria-hidden="true">{mark}</span><div><p class="line">'
        f'<span class="unseen">Step {number}, {SPOKEN[state.state]}: </span><strong>{escape(state.title)}</strong>'
        f'<span dir="auto">{escape(taken)}</span></p><p class="facts">{told}</p>{trouble}</div></li>'
    )


def _chosen(state: StepState, pipelines: dict[str, Pipeline]) -> list[str]:
    """The settings that are not as they are by default."""
    pipeline = pipelines.get(state.step.op)
    fields = pipeline.params_type.model_fields if pipeline else {}
    chosen = [
        f"{name.removeprefix('num_').replace('_', ' ')} {value}"
        for name, value in state.step.params.items()
        if name != "seed" and name in fields and value != fields[name].get_default(call_default_factory=True)
    ]
    rest = len(chosen) - CHOSEN_TO_SHOW
    return [*chosen[:CHOSEN_TO_SHOW], *([f"and {rest} more"] if rest > 0 else [])]


def _time(state: StepState) -> str:
    if state.state == "done":
        return "from the gallery" if state.cached else seconds(state.seconds)
    return about(state.expected) if state.state in ("waiting", "running") else ""


def _stage(turn: Turn) -> str:
    """What the running step has come to; empty when none runs."""
    if turn.stage != "running":
        return ""
    running = next((state for state in turn.steps if state.state == "running"), None)
    progress = running.progress if running else None
    progress = progress or Progress(0, 1, "Beginning" if running else "Waiting for its turn")
    return underway(progress, frame(progress) if running and running.step.output in ("image", "video") else "")


def _made(pieces: Sequence[Piece], pipelines: dict[str, Pipeline]) -> str:
    if not pieces:
        return ""
    kind = " several" if len(pieces) > 1 else ""
    figures = "".join(_piece(piece, pipelines) for piece in pieces)
    return f'<div class="made{kind}">{figures}</div>'


def _piece(piece: Piece, pipelines: dict[str, Pipeline]) -> str:
    """A piece with what can be done with it; an attachment is only shown."""
    entry, title = piece.entry, piece.title or name_of(piece.medium).noun
    if entry is None:
        content, tools, said = _thumbnail(piece), "", ""
    else:
        is_object = piece.medium == "mesh" and not entry.missing
        content = object_view(entry, entry.title) if is_object else full_size(entry, piece.words, piece.waveform)
        said = badge(entry)
        tools = downloads(entry, "tool")
        for event, label in ways_on_from(entry, pipelines.values()):
            tools += _button(event, entry.id, label, "tool")
        tools += _button("open", entry.id, "Turn it around" if piece.medium == "mesh" else "Full size", "tool")
        key = f"recipe-{piece.number}"
        tools += f'<details class="recipe" data-key="{key}"><summary>Details</summary>{provenance(entry)}</details>'
    return (
        f'<figure class="piece {escape(piece.medium)}" data-number="{piece.number}"><div class="frame">{content}</div>'
        f'<figcaption>{said}<p class="named"><span class="number">@{piece.number}</span> '
        f'<span dir="auto">{escape(title)}</span></p><div class="tools">{tools}</div></figcaption></figure>'
    )


def _thumbnail(piece: Piece) -> str:
    """An attachment: its look, or its kind and name."""
    name = f'<span class="number">@{piece.number}</span> {escape(piece.title)}'
    if piece.face is not None:
        return f'<span class="brought"><img src="{data_uri(piece.face)}" alt=""><span dir="auto">{name}</span></span>'
    kind = escape(name_of(piece.medium).noun)
    return f'<span class="brought"><span class="kind">{kind}</span><span dir="auto">{name}</span></span>'


def _choices(turn: Turn, talk: Talk) -> str:
    if not turn.choices:
        return ""
    buttons = "".join(
        _button("choose", f"{turn.number}:{index}", choice.label, "chip", _look(choice, talk))
        for index, choice in enumerate(turn.choices)
    )
    return f'<div class="chips">{buttons}</div>'


def _look(choice: Choice, talk: Talk) -> str:
    """A picture for a choice of something that is there."""
    number = choice.prompt.removeprefix("@")
    piece = talk.pieces.get(int(number)) if choice.prompt.startswith("@") and number.isdecimal() else None
    if piece is None:
        return ""
    if piece.face is not None:
        return f'<img src="{data_uri(piece.face)}" alt="">'
    if piece.entry is not None and piece.medium == "image" and not piece.entry.missing:
        return f'<img src="{file_url(piece.entry.path)}" alt="">'
    return ""


def _actions(turn: Turn) -> str:
    if turn.plan is None or turn.stage == "running":
        return ""
    buttons = []
    if turn.stage == "proposed":
        buttons.append(_button("go", str(turn.number), "Run", "action main"))
    elif turn.unfinished:
        label = "Go on" if turn.stage == "stopped" else "Try again"
        buttons.append(_button("go", str(turn.number), label, "action"))
    quiet = "action" if turn.stage == "proposed" else "tool"
    buttons.append(_button("adjust", str(turn.number), "Change", quiet))
    return "".join(buttons)


def _button(event: str, entry: str, label: str, kind: str = "chip", before: str = "") -> str:
    return (
        f'<button type="button" class="{kind}" data-event="{event}" data-entry="{escape(entry)}">'
        f"{before}{escape(label)}</button>"
    )
