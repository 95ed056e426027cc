"""From what is wanted to goals: which medium from which source with which words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from app.controller.compiler import GOAL, Goal, reachable, reachable_by_sight
from app.controller.edits import chained, edits_said
from app.controller.lexicon import PHRASES
from app.controller.references import points_at_history, referred, titled
from app.controller.request import Item, Request
from app.controller.slots import MAX_WORDS_LENGTH, QUOTED, Clause, clauses, mention
from app.controller.ways import way_goal
from pipelines.base import Registry

WORDS = "text:"
_TURNS = r"(?:turn|morph|chang|transform|melt|becom|grow)(?:e?s|ing|ed)?"
_BECOMES = re.compile(
    rf"(?P<first>.+?)\s+(?:(?:slowly|that|which|as it)\s+)*{_TURNS}\s*(?:in)?to\s+(?P<second>.+)"
    r"|(?:from\s+)?(?P<from>.+?)\s+to\s+(?P<to>an?\s.+)",
    re.IGNORECASE,
)
_DANGLING = re.compile(r"(?:\s+(?:in|as|of|on|for|with|into|to|and|or|an?|the))+$", re.IGNORECASE)
_COLOUR = re.compile(
    r"\b(?:red|orange|yellow|green|blue|purple|violet|pink|brown|black|white|grey|gray|golden|silver)\b", re.IGNORECASE
)
_IN_COLOUR = re.compile(rf"(?:in )?({_COLOUR.pattern})", re.IGNORECASE)
_LEADING = re.compile(r"^(with|as|in|on|at|under|during|by|near|without)\s+", re.IGNORECASE)
_STYLE = re.compile(r"(?:in )?(?:an? |the )?(?P<style>(?:[\w-]+ ){1,2}style)", re.IGNORECASE)
_USES = re.compile(r"\b(?:use|using|take)\s+(?:the|that|this)\b", re.IGNORECASE)
_JOINED_ON = re.compile(r"^(?:[ ,.;:]|but\b|and\b)+", re.IGNORECASE)
_STYLED = re.compile(r"(?:,| in(?: an?)?) (?:[\w-]+ ){1,2}style$", re.IGNORECASE)
_CHANGE = re.compile(
    r"(?:(?:same|but|make it|try(?: it)?|and|do it|again)\b[ ,]*)*(?P<change>.*?)[ ,]*"
    r"(?:\b(?:instead|this time|again|please)\b[ ,.!]*)*",
    re.IGNORECASE,
)


def new_goals(
    request: Request, wanted: Sequence[str], registry: Registry, slots: Mapping[str, str] | None = None
) -> list[Goal]:
    """One goal a medium of ``wanted``, in the order in which they are named; the later may be made from the earlier.

    ``slots``: the words for a medium, where they were read; rules find the others'.
    """
    parts = clauses(request.prompt) or [Clause(request.prompt, "")]
    shown = way_goal(request, registry)
    first = shown.output if shown else None  # its medium is often not named
    ordered = sorted(wanted, key=lambda medium: (medium != first, _position(parts, medium)))
    goals: list[Goal] = [replace(shown, kept=False)] if shown and first not in wanted else []
    words = ""
    for medium in ordered:
        index = _position(parts, medium)[0]
        part = parts[min(index, len(parts) - 1)]
        own = part.content or next((p.content for p in reversed(parts[:index]) if p.content), words)
        own = own or next((p.content for p in parts if p.content), "")
        words = own or words
        earlier = _earlier_goal(goals, part, medium, registry)
        if earlier is not None:
            goals.append(Goal(medium, (f"{GOAL}{earlier + 1}",)))
        elif shown is not None and medium == shown.output:
            goals.append(shown)
        elif source := _given(request, part, medium, registry, bool(part.content)):
            seen = shown is not None and source == shown.sources and medium in reachable(shown.output, registry)
            goals.append(Goal(medium, (f"{GOAL}1",) if seen else source))
        else:
            told_whole = medium == "text" or QUOTED.search(request.prompt)
            read = "" if told_whole else (slots or {}).get(medium, "")
            read = with_details(read, parts) if len(wanted) == 1 else read
            told = _DANGLING.sub("", read) or words or request.prompt
            goals.append(Goal(medium, _texts(told, medium, registry)))
    return goals


def with_details(read: str, parts: Sequence[Clause]) -> str:
    """``read`` with what its clause says after it: of one thing, people add how it should be in words of any kind."""
    first = read.split(", ")[0].lower()
    for part in parts:
        place = part.content.lower().find(first) if first else -1
        if place >= 0:
            return part.content[place:]
    return read


def again_goals(request: Request, registry: Registry) -> list[Goal]:
    """The items meant, made again with the next seed, or with other words where some are given."""
    items = [item for item in referred(request) if not item.brought]
    items = items if PHRASES["all"].search(request.prompt) else items[:1]
    change = change_in(request.prompt)
    return [_again(item, change) for item in items]


def with_changes(goals: list[Goal], request: Request, registry: Registry) -> list[Goal]:
    """``goals``, and the plain changes that later clauses ask for: "a picture of a bell, then make it brighter"."""
    for part in clauses(request.prompt)[1:]:
        made = [goal.output for goal in goals]
        said = edits_said(part.text, registry, made) if part.points_back else {}
        if said and not any(part.mentions(medium) for medium in made if medium not in said):
            medium = next(medium for medium in reversed(made) if medium in said)
            latest = len(made) - made[::-1].index(medium)
            goals = [*goals, *chained(said[medium], medium, f"{GOAL}{latest}", len(goals))]
    return goals


def change_in(prompt: str) -> str:
    """ "with rain instead" gives "with rain"; "another one" gives nothing."""
    match = _CHANGE.fullmatch(prompt.strip(" .!"))
    change = match["change"].strip(" ,.") if match else ""
    without = PHRASES["again"].sub(" ", change)
    return _JOINED_ON.sub("", " ".join(PHRASES["pronoun"].sub(" ", without).split())).rstrip(" ,.;:")


def reworded(text: str, change: str) -> str:
    """``text`` with ``change`` in place of what it replaces: a colour, a style, what follows the same "with", else all
    of it."""
    if style := _STYLE.fullmatch(change):
        return f"{_STYLED.sub('', text)}, {style['style']}"
    if colour := _IN_COLOUR.fullmatch(change):
        change = colour[1]
        if _COLOUR.search(text):
            return _COLOUR.sub(change, text, count=1)
        article = re.match(r"(?:an?|the|one)\s+", text, re.IGNORECASE)
        return f"{article[0]}{change} {text[article.end() :]}" if article else f"{change} {text}"
    if leading := _LEADING.match(change):
        kept = re.split(rf"\s+{leading[1]}\s+", text, maxsplit=1, flags=re.IGNORECASE)[0]
        return f"{kept} {change}"
    return change


def _again(item: Item, change: str) -> Goal:
    if item.recipe is None:
        text = reworded(item.title, change) if change else item.title
        return Goal(item.medium, (WORDS + text,), params={} if change else {"seed": 1})
    step = item.recipe
    seed = step.params.get("seed", 0)
    if not change:
        return Goal(item.medium, step.inputs, step.op, {**step.params, "seed": int(float(str(seed))) + 1})
    if not any(source.startswith(WORDS) for source in step.inputs):
        return Goal(item.medium, (WORDS + reworded(item.title, change),))
    inputs = tuple(
        WORDS + reworded(source.removeprefix(WORDS), change) if source.startswith(WORDS) else source
        for source in step.inputs
    )
    return Goal(item.medium, inputs, step.op, step.params)


def _position(parts: Sequence[Clause], medium: str) -> tuple[int, int]:
    """Clause and character of the first mention; after everything else if there is none."""
    for index, part in enumerate(parts):
        if match := mention(part.text, medium):
            return index, match.start()
    return len(parts) - 1, len(parts[-1].text)


def _earlier_goal(goals: Sequence[Goal], part: Clause, medium: str, registry: Registry) -> int | None:
    """The goal that this one is made from: the latest that leads there, where the words point back."""
    if not goals or not _points_at_result(part, medium):
        return None
    named = [
        i
        for i, goal in enumerate(goals)
        if re.search(r"\b(?:that|the|this|its?)\b", part.text) and part.mentions(goal.output)
    ]
    for index in [*reversed(named), *range(len(goals) - 1, -1, -1)]:
        if medium in reachable(goals[index].output, registry):
            return index
    return None


def _points_at_result(part: Clause, medium: str) -> bool:
    match = mention(part.text, medium)
    around = part.text if match is None or not part.content else part.text[: match.end()]
    return (
        bool(PHRASES["pronoun"].search(around))
        or bool(_USES.search(around))
        or (not part.content and bool(re.search(r"\binto\b|\bfrom\b", part.text)))
    )


def _given(
    request: Request, part: Clause, medium: str, registry: Registry, has_content: bool
) -> tuple[str, ...] | None:
    """The attachments, or the earlier artifact that is meant; ``None`` where it is to be made from words."""
    if request.uploads:
        refs = tuple(f"upload:{number}" for number in range(1, len(request.uploads) + 1))
        if any(pipeline.accepts(request.uploads, medium) for pipeline in registry):
            return refs
        able = _able(request.uploads, medium, registry)
        return (next((r for r, given in zip(refs, request.uploads, strict=True) if given in able), refs[0]),)
    if request.history and (not has_content or points_at_history(request, part.content)):
        named = titled(request.prompt, request.in_focus())
        able = _able([item.medium for item in named or request.history], medium, registry)
        items = referred(request, able) if able else referred(request)
        return (f"@{items[0].number}",) if items and (able or not has_content) else None
    return None


def _able(given: Iterable[str], medium: str, registry: Registry) -> set[str]:
    """Those of the media ``given`` that lead to ``medium``; if none does, those of which what is seen does."""
    given = set(given)
    return {one for one in given if medium in reachable(one, registry)} or {
        one for one in given if medium in reachable_by_sight(one, registry)
    }


def _texts(words: str, medium: str, registry: Registry) -> tuple[str, ...]:
    """The words as one source, or as two where one thing becomes another and something installed can show it."""
    becomes = _BECOMES.fullmatch(words)
    if becomes and any(p.accepts(("text", "text"), medium) for p in registry):
        pair = becomes["first"] or becomes["from"], becomes["second"] or becomes["to"]
        return tuple(WORDS + text[:MAX_WORDS_LENGTH] for text in pair)
    return (WORDS + words[:MAX_WORDS_LENGTH],)


def for_every(goals: Iterable[Goal], items: Sequence[Item]) -> list[Goal]:
    """Each goal once for every item: "both of them"."""
    return [replace(goal, sources=(f"@{item.number}",)) for goal in goals for item in items]
