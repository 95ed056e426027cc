"""The controller: a request in, an answer out. An answer is a plan, a question with choices, or words (section 5)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from app.controller.compiler import Goal, NoRouteError, Seconds, compile_plan, reachable
from app.controller.edits import edit_goals
from app.controller.goals import again_goals, for_every, new_goals, with_changes
from app.controller.lexicon import PHRASES
from app.controller.plan import ARTIFACT, Plan, PlanError
from app.controller.references import referred
from app.controller.request import Item, Request
from app.controller.routers import Router
from app.controller.rules import SURE, Scores, introduces, rule_scores
from app.controller.slots import clauses
from app.controller.ways import too_many_ways, ways_said
from models.errors import UserError
from pipelines.base import Registry

KNOWN_MEDIA = ("text", "image", "audio", "video", "mesh")
DOUBTFUL = 0.3  # and may be from here on: the question offers it
MAX_AT_ONCE = 6
REFERENCE = re.compile(r"[@#]\d{1,6}\W*")  # to an item of the conversation, and nothing else


@dataclass(frozen=True)
class Choice:
    """A button under a question: pressing it asks for ``prompt``."""

    label: str
    prompt: str


@dataclass(frozen=True)
class Answer:
    """What a request comes to.

    ``act``: what the person does; ``outputs``: the media they want; ``plan``: what will run, if anything; ``sentence``:
    a question, or what cannot be done; ``choices``: buttons below it; ``focus``: the items that a "select" or an "undo"
    brings forward. A ``chat`` is to be answered in words by whoever can.
    """

    act: str
    outputs: tuple[str, ...]
    scores: Scores
    plan: Plan | None = None
    sentence: str = ""
    choices: tuple[Choice, ...] = ()
    focus: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()


Slots = Callable[[str, Sequence[str]], Mapping[str, str]]


def by_rules(prompt: str, wanted: Sequence[str]) -> dict[str, str]:
    """No slots read: the rules of ``slots.py`` find all words."""
    return {}


class Controller:
    """Plans requests over ``registry``; ``seconds``: what a pipeline takes, for choosing between ways.

    ``slots`` says which words of a prompt are for which of the media wanted, as far as it knows, and raises
    :class:`UserError` where it cannot be asked.
    """

    def __init__(self, registry: Registry, router: Router, seconds: Seconds, slots: Slots = by_rules) -> None:
        self.registry, self.router, self.seconds, self.slots = registry, router, seconds, slots

    @property
    def media(self) -> tuple[str, ...]:
        """Everything that can be wished for: the media we know, and those that installed pipelines make besides."""
        made = [route.output for pipeline in self.registry for route in pipeline.routes]
        return tuple(dict.fromkeys([*KNOWN_MEDIA, *made]))

    def answer(self, request: Request, seed: int = 0) -> Answer:
        """Never raises for anything that a person can type, attach or refer to."""
        if not request.prompt:
            return self._no_words(request)
        if request.history and REFERENCE.fullmatch(request.prompt):  # a pressed button, which nobody has to read
            return self._select(request, Scores(dict.fromkeys(self.media, 1 - SURE), {"select": 1.0}))
        request, scores = self._read(request)
        answer = self._answered(request, scores, seed)
        return replace(answer, warnings=(*answer.warnings, scores.note)) if scores.note else answer

    def _read(self, request: Request) -> tuple[Request, Scores]:
        """Who only names a thing wants it made. Where that is read as anything else, or in doubt, the rules read it, as
        if nothing were there yet."""
        if ways_said(request):  # no model was taught what pipelines can show
            return request, rule_scores(request, self.media)
        scores = self.router.score(request, self.media)
        latest = [item.medium for item in request.in_focus()[:1]]
        # A picture or a sound can be made once more of other words; what was said of something is about that alone.
        makes = scores.act == "new" or (scores.act == "regenerate" and latest != ["text"])
        around = [item.medium for item in request.history]
        if (makes and not scores.in_doubt) or request.uploads or not introduces(request.prompt, around):
            return request, scores
        alone = replace(request, history=(), focus=())
        return alone, rule_scores(alone, self.media, scores.note)

    def _answered(self, request: Request, scores: Scores, seed: int) -> Answer:
        if scores.in_doubt:
            return self._ask(request, scores)
        wanted = scores.wanted
        match scores.act:
            case "undo":
                return Answer("undo", (), scores, focus=request.focus[1:], sentence="" if request.focus else NOTHING)
            case "select":
                return self._select(request, scores)
            case "edit":
                return self._edit(request, scores, seed)
            case "regenerate":
                return self._again(request, scores, seed)
            case "chat":
                return Answer("chat", ("text",), scores)
            case "new" if wanted:
                return self._new(request, wanted, scores, seed)
        return self._ask(request, scores)

    def _new(self, request: Request, wanted: tuple[str, ...], scores: Scores, seed: int) -> Answer:
        if _missing_reference(request) and not ways_said(request):
            return Answer("ask", (), scores, sentence=NOTHING, choices=self._examples())
        if problem := too_many_ways(request):
            return Answer("ask", (), scores, sentence=problem)
        slots, note = self._read_slots(request, wanted)
        goals = new_goals(request, wanted, self.registry, slots)
        if (
            PHRASES["all"].search(request.prompt)
            and not request.uploads
            and not ways_said(request)
            and any(g.sources[0].startswith(ARTIFACT) for g in goals)
        ):
            able = [item for item in referred(request) if self._leads(item, wanted)]
            goals = for_every(goals, able[:MAX_AT_ONCE]) or goals
        answer = self._compiled("new", wanted, with_changes(goals, request, self.registry), request, scores, seed)
        return replace(answer, warnings=(*answer.warnings, note)) if note else answer

    def _read_slots(self, request: Request, wanted: Sequence[str]) -> tuple[Mapping[str, str], str]:
        """The words by medium, and what has to be said where they could not be read."""
        try:
            return self.slots(request.prompt, wanted), ""
        except UserError as error:
            return {}, f"{error} Rules alone looked for what to make."

    def _leads(self, item: Item, wanted: Sequence[str]) -> bool:
        return set(wanted) <= reachable(item.medium, self.registry)

    def _edit(self, request: Request, scores: Scores, seed: int) -> Answer:
        goals = edit_goals(request, self.registry)
        if not goals:
            return self._ask(request, scores, "There is nothing here to change in that way.")
        return self._compiled("edit", tuple({goal.output for goal in goals}), goals, request, scores, seed)

    def _again(self, request: Request, scores: Scores, seed: int) -> Answer:
        goals = again_goals(request, self.registry)
        if not goals:
            return self._ask(request, scores, NOTHING)
        return self._compiled("regenerate", tuple({goal.output for goal in goals}), goals, request, scores, seed)

    def _select(self, request: Request, scores: Scores) -> Answer:
        items = referred(request)
        if not items:
            return self._ask(request, scores, NOTHING)
        if len(items) > 1 and not PHRASES["all"].search(request.prompt):
            choices = tuple(Choice(item.title or item.medium, f"@{item.number}") for item in items[:MAX_AT_ONCE])
            return Answer("ask", (), scores, sentence="Which one do you mean?", choices=choices)
        chosen = tuple(item.number for item in items)
        return Answer("select", (), scores, focus=(*chosen, *(n for n in request.focus if n not in chosen)))

    def _compiled(
        self, act: str, wanted: tuple[str, ...], goals: Sequence[Goal], request: Request, scores: Scores, seed: int
    ) -> Answer:
        """The plan of those goals that something installed can reach; where it can reach none, what it can instead."""
        try:
            plan = compile_plan(goals, self.registry, request.available, self.seconds, seed)
        except NoRouteError as problem:
            choices = self._instead(request, problem)
            return Answer(act, wanted, scores, sentence=str(problem), choices=choices, warnings=(str(problem),))
        except PlanError as problem:
            return Answer(act, wanted, scores, sentence=str(problem), warnings=(str(problem),))
        return Answer(act, wanted, scores, plan, warnings=plan.warnings)

    def _no_words(self, request: Request) -> Answer:
        scores = Scores(dict.fromkeys(self.media, 1 - SURE), {"ask": 1.0})
        if not request.uploads:
            return Answer("ask", (), scores, sentence="What would you like?", choices=self._examples())
        medium = request.uploads[0]
        ways = sorted(reachable(medium, self.registry))
        choices = tuple(Choice(f"Make {_a(way)} of it", f"make {_a(way)} of this {medium}") for way in ways)
        return Answer("ask", (), scores, sentence=f"What shall become of the {medium}?", choices=choices)

    def _ask(self, request: Request, scores: Scores, sentence: str = "") -> Answer:
        likely = sorted(scores.outputs, key=lambda medium: -scores.outputs[medium])
        doubtful = [medium for medium in likely if scores.outputs[medium] >= DOUBTFUL]
        words = next((part.content for part in clauses(request.prompt) if part.content), request.prompt)
        choices = tuple(Choice(NAMES.get(m, m).capitalize(), f"{NAMES.get(m, m)} of {words}") for m in doubtful[:3])
        asked = sentence or "I am not sure what you want. A picture, a sound, a clip, a 3-D object, or words?"
        return Answer("ask", (), scores, sentence=asked, choices=choices or self._examples())

    def _instead(self, request: Request, problem: NoRouteError) -> tuple[Choice, ...]:
        words = next((part.content for part in clauses(request.prompt) if part.content), "")
        made = [medium for medium in sorted(problem.nearest) if medium in NAMES and medium != problem.wanted]
        return tuple(Choice(f"{_a(m).capitalize()} instead", f"{NAMES[m]} of {words or 'it'}") for m in made)

    def _examples(self) -> tuple[Choice, ...]:
        return tuple(Choice(text, text) for text in example_requests(self.registry)[:3])


NAMES = {"text": "a description", "image": "a picture", "audio": "a sound", "video": "a clip", "mesh": "a 3-D object"}
NOTHING = "There is nothing here that this could be about yet."


def example_requests(registry: Registry) -> list[str]:
    """What may be asked for in words alone: of each pipeline its first example, then of each its second, and so on."""
    columns = []
    for pipeline in registry:
        texts = [texts[0] for texts in pipeline.examples if len(texts) == 1]
        made = pipeline.routes[0].output
        columns.append([_request(made, text) for text in texts])
    return [text for row in zip_longest(*columns) for text in row if text]


def _request(medium: str, text: str) -> str:
    """For something of this medium."""
    if medium == "image":
        return text
    return f"{text} as a 3-D object" if medium == "mesh" else f"{_a(medium)} of {text}"


def _a(medium: str) -> str:
    return NAMES.get(medium, f"a {medium}")


def _missing_reference(request: Request) -> bool:
    """Whether the words point at something, give nothing else to make it from, and nothing is there."""
    parts = clauses(request.prompt)
    empty = not any(part.content for part in parts)
    return empty and bool(parts) and parts[0].points_back and not request.uploads and not request.focus
