"""From what is wanted to goals: which medium from which source with which words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from app.controller.compiler import GOAL, Goal, reachable, reachable_by_sight
from app.controller.details import counted, named_style, styles_of
from app.controller.edits import chained, edits_said
from app.controller.lexicon import NOUNS, PHRASES
from app.controller.looks import colour_said, look_said, looked_at, reworded, unstyled
from app.controller.plan import ARTIFACT
from app.controller.references import correction, pointed_at, points_at_history, referred, titled
from app.controller.request import Item, Request
from app.controller.slots import QUOTED, Clause, clauses, content_of, mention
from app.controller.ways import way_goal
from app.controller.wishes import sources
from pipelines.base import Registry

WORDS = "text:"
_TURNS = r"(?:turn|morph|chang|transform|melt|becom|grow)(?:e?s|ing|ed)?"
_BECOMES = re.compile(
    rf"(?P<first>.+?)\s+(?:(?:slowly|that|which|as it)\s+)*{_TURNS}\s*(?:in)?to\s+(?P<second>.+)"
    r"|(?:from\s+)?(?P<from>.+?)\s+to\s+(?P<to>an?\s.+)",
    re.IGNORECASE,
)
_TURNED = re.compile(
    rf"{_TURNS}\s+an?\s.+?\s+(?:in)?to\s+an?\s.+|(?:an?\s+)?morph\s+between\s+.+\sand\s.+", re.IGNORECASE
)
# The words of such a wish, without what makes it one: "a sun into a moon", "between an apple and a pear".
_ONE_AND_OTHER = re.compile(
    r"(?:(?:an?\s+)?(?:morph|transition|blend)\s+)?between\s+(?P<left>.+?)\s+and\s+(?P<right>.+)"
    r"|(?P<first>.+?)\s+(?:in)?to\s+(?P<second>.+)",
    re.IGNORECASE,
)
_MORPH = re.compile(r"^(?:an?\s+)?morph\s+", re.IGNORECASE)
_DANGLING = re.compile(r"(?:\s+(?:in|as|of|on|for|with|into|to|and|or|an?|the))+$", re.IGNORECASE)
_USES = re.compile(r"\b(?:use|using|take)\s+(?:the|that|this)\b", re.IGNORECASE)
_JOINED_ON = re.compile(r"^(?:[ ,.;:]|but\b|and\b)+", re.IGNORECASE)
_CHANGE = re.compile(
    r"(?:(?:now|then|please|can you|could you|same|but|make it|turn (?:it|this|that) into|try(?: it)?|and|do it"
    r"|again)\b[ ,]*)*"
    r"(?P<change>.*?)[ ,]*"
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
            goals.append(Goal(medium, _texts(told, medium, registry, becomes(part.text.strip(" .!?")))))
    return [_told(goal, request) for goal in goals]


def _told(goal: Goal, request: Request) -> Goal:
    """With the settings that were said, where a goal has none of its own."""
    settings = request.details.params_for(goal.output) if request.details and goal.op is None else {}
    return replace(goal, params={**settings, **goal.params})


def becomes(text: str) -> bool:
    """ "Turn a sun into a moon": one thing is to become another before one's eyes."""
    named = _TURNED.fullmatch(text)
    others = (PHRASES["pronoun"], *NOUNS.values())
    return bool(named) and not any(pattern.search(_MORPH.sub("", text)) for pattern in others)


def with_details(read: str, parts: Sequence[Clause]) -> str:
    """``read`` with what its clause says after it: of one thing, people add how it should be in words of any kind."""
    first = read.split(", ")[0].lower()
    for part in parts:
        place = part.content.lower().find(first) if first else -1
        if place >= 0:
            return part.content[place:]
    return read


def again_goals(request: Request, registry: Registry) -> list[Goal]:
    """The items meant, made again by chance, or with other words where some are given."""
    change = change_in(request.prompt)
    media = {item.medium for item in request.history} - {"text"} if correction(request.prompt) else ()
    items = [item for item in referred(request, media) if not item.brought]
    items = items if PHRASES["all"].search(request.prompt) else items[:1]
    goals: list[Goal] = []
    for item in items:
        goals += [_moved(goal, len(goals)) for goal in _again(item, change, request, registry)]
    return goals


def look_goals(request: Request, registry: Registry) -> list[Goal]:
    """What is attached or talked about in another colour or style: with other words if it came of words, else by plain
    means if there are some."""
    look, target = look_said(request.prompt), looked_at(request)
    if not look or target is None:
        return []
    reference, medium, item = target
    if item is not None and (goals := _again(item, look, request, registry)):
        return goals
    colour, recolouring = colour_said(look), f"{medium}-recolour"
    if not colour or all(pipeline.name != recolouring for pipeline in registry):
        return []
    return [Goal(medium, (reference,), recolouring, {"colour": colour})]


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
    """ "with rain instead" gives "with rain", "no, a cat" gives "a cat"; "another one" gives nothing."""
    if other := correction(prompt):
        return other
    match = _CHANGE.fullmatch(prompt.strip(" .!"))
    change = match["change"].strip(" ,.") if match else ""
    without = PHRASES["again"].sub(" ", change)
    change = _JOINED_ON.sub("", " ".join(PHRASES["pronoun"].sub(" ", without).split())).rstrip(" ,.;:")
    return change if content_of(change) else ""  # "another picture" has no words for it


def _again(item: Item, change: str, request: Request, registry: Registry) -> list[Goal]:
    """``item`` with the next seed, or with ``change`` in its words; empty where it came of neither chance nor words."""
    settings = request.details.params_for(item.medium) if request.details else {}
    if item.brought or (change and item.medium == "text"):
        return []
    if item.recipe is None:
        text = reworded(item.title, change) if change else item.title
        return [Goal(item.medium, (WORDS + text,), params=settings or ({} if change else {"seed": 1}))]
    recipe = item.recipe
    worded = any(source.startswith(WORDS) for source in recipe.inputs)
    if not change and registry.get(recipe.op).uses_chance:
        seed = int(float(str(recipe.params.get("seed", 0)))) + counted(item.medium, recipe.params)
        return [Goal(item.medium, recipe.inputs, recipe.op, {**recipe.params, "seed": seed, **settings})]
    if change and worded:
        style = named_style(change, styles_of(registry.get(recipe.op)))
        inputs = tuple(_reworded(source, change, bool(style)) for source in recipe.inputs)
        return [Goal(item.medium, inputs, recipe.op, recipe.params | settings | ({"style": style[2]} if style else {}))]
    # What it was made from is made anew, and the same is done with that.
    goals: list[Goal] = []
    sources = []
    for source in recipe.inputs:
        before = request.item(int(source.removeprefix(ARTIFACT))) if source.startswith(ARTIFACT) else None
        renewed = _again(before, change, request, registry) if before else []
        goals += [_moved(replace(goal, kept=goal.kept and goal.output != item.medium), len(goals)) for goal in renewed]
        sources.append(f"{GOAL}{len(goals)}" if renewed else source)
    return [*goals, Goal(item.medium, tuple(sources), recipe.op, recipe.params)] if goals else []


def _reworded(source: str, change: str, restyled: bool) -> str:
    if not source.startswith(WORDS):
        return source
    words = source.removeprefix(WORDS)
    return WORDS + (unstyled(words) if restyled else reworded(words, change))


def _moved(goal: Goal, by: int) -> Goal:
    """With its references to goals counted from ``by``."""
    sources = (f"{GOAL}{int(s.removeprefix(GOAL)) + by}" if s.startswith(GOAL) else s for s in goal.sources)
    return replace(goal, sources=tuple(sources))


def _position(parts: Sequence[Clause], medium: str) -> tuple[int, int]:
    """Clause and character of the first mention; after everything else if there is none."""
    for index, part in enumerate(parts):
        if match := mention(part.text, medium):
            return index, match.start()
    return len(parts) - 1, len(parts[-1].text)


def _earlier_goal(goals: Sequence[Goal], part: Clause, medium: str, registry: Registry) -> int | None:
    """The goal that this one is made from: the latest that leads there, where the words point back."""
    named = [
        i
        for i, goal in enumerate(goals)
        if re.search(r"\b(?:that|the|this|its?)\b", part.text) and part.mentions(goal.output)
    ]
    told = bool(named) and not part.content  # "describe the sound", which comes of an earlier clause
    if not goals or not (told or _points_at_result(part, medium)):
        return None
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
    there = {item.medium for item in request.history}
    about = not has_content or points_at_history(request, part.content)
    if medium == "text":  # is no description of words: it is about what is there, unless something is to be written
        about = about or part.points_back or not there.isdisjoint(sources([part], tuple(NOUNS)))
        about = about and (part.points_back or not PHRASES["written"].search(part.text))
    if request.history and about:
        named = titled(request.prompt, request.in_focus())
        latest = request.in_focus()[:1]
        if (
            latest
            and medium != "text"
            and not named
            and pointed_at(request) is None
            and PHRASES["pronoun"].search(part.text)
        ):
            by_sight = reachable_by_sight(latest[0].medium, registry) - reachable(latest[0].medium, registry)
            if medium in by_sight:  # "what sound does it make?" of an object
                return (f"@{latest[0].number}",)
        able = _able([item.medium for item in named or request.history], medium, registry)
        if pointed_at(request) is None:  # another medium is rather meant than one more of the same
            able = able - {medium} or able
        items = referred(request, able) if able else referred(request)
        return (f"@{_told_of(items[0], medium, request).number}",) if items and (able or not has_content) else None
    return None


def _told_of(item: Item, medium: str, request: Request) -> Item:
    """Of words on something, that itself: more can be made of it than of them. Any other item as it is."""
    sources = item.recipe.inputs if item.recipe and item.medium == "text" else ()
    described = (request.item(int(source[1:])) for source in sources if source.startswith(ARTIFACT))
    return next((other for other in described if other and other.medium != medium), item)


def _able(given: Iterable[str], medium: str, registry: Registry) -> set[str]:
    """Those of the media ``given`` that lead to ``medium``; if none does, those of which what is seen does."""
    given = set(given)
    return {one for one in given if medium in reachable(one, registry)} or {
        one for one in given if medium in reachable_by_sight(one, registry)
    }


def _texts(words: str, medium: str, registry: Registry, turns: bool = False) -> tuple[str, ...]:
    """The words as one source, or as two where one thing becomes another and something installed can show it.
    ``turns``: whether they are of a wish for that."""
    found = _BECOMES.fullmatch(words) or (_ONE_AND_OTHER.fullmatch(words) if turns else None)
    if found and any(p.accepts(("text", "text"), medium) for p in registry):
        return tuple(WORDS + text for text in found.groups() if text)
    return (WORDS + words,)


def for_every(goals: Iterable[Goal], items: Sequence[Item]) -> list[Goal]:
    """Each goal once for every item: "both of them"."""
    return [replace(goal, sources=(f"@{item.number}",)) for goal in goals for item in items]
