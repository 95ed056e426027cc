"""A talk as the browser's tab keeps it over a reload or a restart of the app, and back.

Kept are words, plans and content hashes; everything that was attached or made comes from the gallery again. What comes
from a browser may be of another version, or written by anybody: nothing in it is believed before it is checked.
"""

from __future__ import annotations

import logging
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.controller.conversation import MAX_ITEMS, Conversation
from app.controller.plan import MAX_STEPS, Plan, Step, check
from app.controller.planner import Choice
from app.controller.request import Item
from app.ui.host import Host, piece_of
from app.ui.replies import listed
from app.ui.talk import Piece, StepState, Talk, Turn, attached
from models.errors import UserError
from pipelines.base import Registry

log = logging.getLogger(__name__)

MAX_TURNS = 60
MAX_PROMPT, MAX_SENTENCE, MAX_TITLE = 4000, 8000, 300
MAX_KEPT = 1_000_000  # characters; browsers keep a few millions

HASH = re.compile(r"[0-9a-f]{64}")

Number = Annotated[int, Field(ge=1, le=999_999)]
Numbers = Annotated[tuple[Number, ...], Field(max_length=MAX_ITEMS)]
Sentence = Annotated[str, Field(max_length=MAX_SENTENCE)]


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class KeptItem(_Kept):
    number: Number
    medium: str = Field(max_length=40)
    title: str = Field(max_length=MAX_TITLE)
    hash: str = Field(pattern=rf"^{HASH.pattern}$")  # a part of file names in the gallery
    recipe: Step | None
    brought: bool


class KeptStep(_Kept):
    """``pieces``: numbers of what it made; none unless it is done."""

    pieces: Numbers
    seconds: float = Field(ge=0)
    cached: bool


class KeptTurn(_Kept):
    prompt: str = Field(max_length=MAX_PROMPT)
    sentence: Sentence
    choices: tuple[tuple[Sentence, Sentence], ...] = Field(max_length=20)
    brought: Numbers
    shown: Numbers
    plan: Plan | None
    proposed: bool
    steps: tuple[KeptStep, ...] = Field(max_length=MAX_STEPS)


class KeptTalk(_Kept):
    version: Literal[1] = 1
    items: tuple[KeptItem, ...] = Field(max_length=MAX_ITEMS)
    focus: Numbers
    turns: tuple[KeptTurn, ...] = Field(max_length=MAX_TURNS)


def kept(talk: Talk) -> str:
    """The talk as one line of JSON; empty for an empty one. Of a very long one the latest turns and items are kept."""
    conversation, turns = talk.conversation, talk.turns[-MAX_TURNS:]
    if not turns:
        return ""
    items = [item for item in conversation.items[-MAX_ITEMS:] if HASH.fullmatch(conversation.hashes[item.number])]
    numbers = {item.number for item in items}
    whole = KeptTalk(
        items=tuple(_kept_item(item, conversation) for item in items),
        focus=tuple(number for number in conversation.focus if number in numbers),
        turns=tuple(map(_kept_turn, turns)),
    )
    text = whole.model_dump_json()
    while len(text) > MAX_KEPT and whole.turns:
        whole = whole.model_copy(update={"turns": whole.turns[(len(whole.turns) + 1) // 2 :]})
        text = whole.model_dump_json()
    return text if len(text) <= MAX_KEPT else ""


def restored(text: str, host: Host) -> Talk:
    """The talk that ``text`` was kept of, without what is not in the gallery any more; its notice says so.

    An empty talk for anything that :func:`kept` has not written. Nothing runs.
    """
    try:
        whole = KeptTalk.model_validate_json(text if len(text) <= MAX_KEPT else "")
    except ValidationError as error:
        log.info("the browser's conversation cannot be read: %d faults", error.error_count())
        return Talk()
    numbers = [item.number for item in whole.items]
    if numbers != sorted(set(numbers)):
        return Talk()
    talk = Talk(pieces={item.number: piece for item in whole.items if (piece := _piece(item, host))})
    there = [item for item in whole.items if item.number in talk.pieces]
    talk.conversation = Conversation(
        [_item(item, host.studio.registry) for item in there],
        {item.number: item.hash for item in there},
        [number for number in dict.fromkeys(whole.focus) if number in talk.pieces],
    )
    for turn in whole.turns:
        _restore(talk, turn, host)
    talk.notice = _notice(len(numbers) - len(there))
    return talk


def _kept_item(item: Item, conversation: Conversation) -> KeptItem:
    return KeptItem(
        number=item.number,
        medium=item.medium,
        title=_readable(item.title)[:MAX_TITLE],
        hash=conversation.hashes[item.number],
        recipe=item.recipe,
        brought=item.brought,
    )


def _kept_turn(turn: Turn) -> KeptTurn:
    return KeptTurn(
        prompt=_readable(turn.prompt)[:MAX_PROMPT],
        sentence=_readable(turn.sentence)[:MAX_SENTENCE],
        choices=tuple((_readable(c.label)[:MAX_SENTENCE], c.prompt[:MAX_SENTENCE]) for c in turn.choices[:20]),
        brought=_numbers(turn.brought),
        shown=_numbers(turn.shown),
        plan=turn.plan,
        proposed=turn.stage == "proposed",
        steps=tuple(
            KeptStep(pieces=_numbers(s.pieces) if s.state == "done" else (), seconds=s.seconds, cached=s.cached)
            for s in turn.steps
        ),
    )


def _numbers(pieces: list[Piece]) -> tuple[int, ...]:
    return tuple(piece.number for piece in pieces)


def _readable(text: str) -> str:
    """Without halves of characters, which no JSON can hold."""
    return text.encode("utf-8", "replace").decode()


def _piece(item: KeptItem, host: Host) -> Piece | None:
    """The item as it is in the gallery now; ``None`` if it is gone, or something else is there."""
    library = host.studio.library
    try:
        if item.brought:
            artifact = library.load_by_hash(item.hash)
            return attached(item.number, artifact, item.title) if artifact.medium == item.medium else None
        entry = library.by_content(item.hash)
        if entry is None or entry.missing or entry.medium != item.medium:
            return None
        words = library.load(entry.id) if item.medium == "text" else None
        return piece_of(item.number, item.title, item.recipe, entry, words, host.studio)
    except UserError as problem:
        log.info("@%d of a conversation is left out: %s", item.number, problem)
        return None


def _item(item: KeptItem, registry: Registry) -> Item:
    """Its recipe is left out where nothing installed could follow it."""
    recipe = item.recipe
    if recipe is not None:
        try:
            params = registry.get(recipe.op).parse_params(recipe.params)
            recipe = recipe.model_copy(update={"params": params.model_dump(mode="json", exclude_unset=True)})
        except UserError:
            recipe = None
    return Item(item.number, item.medium, item.title, recipe, item.brought)


def _restore(talk: Talk, given: KeptTurn, host: Host) -> None:
    """Add the turn to the talk: as it was, or as words and pieces where its plan cannot run any more."""

    def pieces(numbers: tuple[int, ...]) -> list[Piece]:
        return [talk.pieces[number] for number in numbers if number in talk.pieces]

    turn = talk.add(given.prompt, pieces(given.brought))
    turn.sentence = given.sentence
    turn.choices = tuple(Choice(*choice) for choice in given.choices)
    turn.shown = pieces(given.shown)
    if given.plan is None:
        turn.sentence = turn.sentence or ("" if turn.shown else "This was not answered.")
        return
    try:
        states = _states(talk, given.plan, host)
    except UserError as problem:
        log.info("a plan of a conversation is left out: %s", problem)
        states = []
    if not states or len(states) != len(given.steps):
        made = pieces(tuple(number for step in given.steps for number in step.pieces))
        turn.shown = [*turn.shown, *made]
        turn.sentence = turn.sentence or (f"What is left of it: {listed(made)}." if made else "Nothing is left of it.")
        return
    for state, step in zip(states, given.steps, strict=True):
        found = pieces(step.pieces)
        if len(found) == len(step.pieces) and any(piece.medium == state.step.output for piece in found):
            state.state, state.pieces, state.seconds, state.cached = "done", found, step.seconds, step.cached
    turn.plan, turn.steps = given.plan, states
    turn.stage = "proposed" if given.proposed else "stopped" if turn.unfinished else "ended"


def _states(talk: Talk, plan: Plan, host: Host) -> list[StepState]:
    """Raises :class:`UserError` unless the plan can run over what there is."""
    check(plan, host.studio.registry, talk.conversation.request("").available)
    return [host.state(step) for step in plan.steps]


def _notice(missing: int) -> str:
    if not missing:
        return ""
    things = "One thing of this conversation is" if missing == 1 else f"{missing} things of this conversation are"
    return f"{things} not in the gallery any more, and left out here."
