"""What the page says in words, made from what really ran: it never claims what failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from app.controller.conversation import Exchange
from app.names import name_of
from app.ui.talk import Piece, StepState, Turn
from models.errors import UserError
from pipelines.base import Registry


def reply(turn: Turn) -> str:
    """A sentence or two on a plan that has run, or was stopped on the way."""
    done = [state for state in turn.steps if state.state == "done"]
    made = [piece for state in done for piece in state.pieces]
    failed = [state for state in turn.steps if state.state in ("failed", "skipped")]
    parts = []
    if turn.stage == "stopped":
        parts.append(f"Stopped. What was finished is kept: {listed(made)}." if made else "Stopped.")
    elif made:
        parts.append(f"Here {'is' if len(made) == 1 else 'are'} {listed(made)}, {_how_long(done)}.")
    if failed:
        parts.append(_failure(failed, bool(made)))
    return " ".join(parts)


def exchange(turn: Turn) -> Exchange:
    """The turn as a language model is told of it: words, and what was attached or made by its name."""
    brought = f" (with {listed(turn.brought)})" if turn.brought else ""
    made = f"Made: {listed(turn.pieces)}." if turn.pieces else "Nothing was made."
    return Exchange(turn.prompt + brought, made if turn.plan else turn.sentence)


def listed(pieces: Sequence[Piece]) -> str:
    """ "the picture of a cat (@1) and the sound of a cat (@2)"; several of a kind are counted."""
    groups: dict[tuple[str, str, bool], list[Piece]] = {}
    for piece in pieces:
        groups.setdefault((piece.medium, piece.title, _is_edited(piece)), []).append(piece)
    return joined(_named(group) for group in groups.values())


def named(piece: Piece) -> str:
    return _named([piece])


def joined(parts: Iterable[str]) -> str:
    """ "a, b and c"."""
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def instead_of_words(problem: UserError, registry: Registry) -> str:
    """Why there is no answer in words, and what can be had here."""
    titles = [pipeline.title for pipeline in registry if not pipeline.is_edit]
    can = f"What can be made here: {joined(title[:1].lower() + title[1:] for title in titles)}." if titles else ""
    return f"{problem} {can}".strip()


def _named(group: Sequence[Piece]) -> str:
    first, last = group[0], group[-1]
    of = f" of {first.title}" if first.title and first.entry else f" {first.title}" if first.title else ""
    if len(group) == 1:
        edited = "edited " if _is_edited(first) else ""
        return f"the {edited}{name_of(first.medium).noun}{of} (@{first.number})"
    plural = name_of(first.medium).plural
    numbers = f"@{first.number} to @{last.number}" if last.number - first.number == len(group) - 1 else _all(group)
    return f"{len(group)} {plural}{of} ({numbers})"


def _is_edited(piece: Piece) -> bool:
    """Whether plain means, and no model, made it of another of its medium."""
    made = piece.entry.provenance if piece.entry else None
    return made is not None and not made.models and any(given["medium"] == piece.medium for given in made.inputs)


def _all(group: Sequence[Piece]) -> str:
    return ", ".join(f"@{piece.number}" for piece in group)


def _how_long(done: Sequence[StepState]) -> str:
    if all(state.cached for state in done):
        return "made before and kept in the gallery"
    return f"in {seconds(sum(state.seconds for state in done if not state.cached))}"


def seconds(duration: float) -> str:
    """``0.93`` -> ``"0.9 s"``, ``75`` -> ``"1 min 15 s"``."""
    if duration < 9.95:
        return f"{max(duration, 0.1):.1f} s"
    minutes, rest = divmod(round(duration), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def about(duration: float) -> str:
    """An estimate: ``0.93`` -> ``"about 1 s"``."""
    return "under 1 s" if duration < 0.75 else f"about {seconds(max(1, round(duration)))}".replace(".0 s", " s")


def _failure(failed: Sequence[StepState], something_made: bool) -> str:
    media = list(dict.fromkeys(name_of(state.step.output).noun for state in failed))
    missing = joined(f"the {name}" for name in media)
    return (
        f"But {missing} could not be made."
        if something_made
        else f"{missing[:1].upper()}{missing[1:]} could not be made."
    )
