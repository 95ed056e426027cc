"""The controller: a request in, an answer out. An answer is a plan, a question with choices, or words (section 5)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from app.controller.compiler import Goal, NoRouteError, Seconds, compile_plan, reachable
from app.controller.details import read_details
from app.controller.edits import edit_goals, says_edit
from app.controller.goals import again_goals, change_in, for_every, look_goals, new_goals, with_changes
from app.controller.lexicon import NOUNS, PHRASES, SCAFFOLD
from app.controller.looks import look_said
from app.controller.plan import ARTIFACT, Plan, PlanError
from app.controller.references import content_words, referred
from app.controller.request import Item, Request
from app.controller.routers import Router
from app.controller.rules import SURE, Scores, introduces, is_told, rule_scores
from app.controller.slots import clauses, mention
from app.controller.ways import too_many_ways, ways_said
from app.names import NAMES, name_of
from models.errors import UserError
from pipelines.base import Registry

KNOWN_MEDIA = ("text", "image", "audio", "video", "mesh")
DOUBTFUL = 0.3  # and may be from here on: the question offers it
MAX_AT_ONCE = 6
BUTTON_CHARACTERS = 80
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

    @property
    def edits(self) -> set[str]:
        return {pipeline.name for pipeline in self.registry if pipeline.is_edit}

    def answer(self, request: Request, seed: int = 0) -> Answer:
        """Never raises for anything that a person can type, attach or refer to."""
        if not request.prompt:
            return self._no_words(request)
        if request.history and REFERENCE.fullmatch(request.prompt):  # a pressed button, which nobody has to read
            return self._select(request, Scores(dict.fromkeys(self.media, 1 - SURE), {"select": 1.0}))
        if PHRASES["removal"].fullmatch(request.prompt.rstrip(" .!")) and not request.uploads:
            return Answer("ask", (), rule_scores(request, self.media), sentence=REMOVAL)
        around = {*request.uploads, *(item.medium for item in request.in_focus())}
        prompt, details = read_details(request.prompt, self.registry, says_edit(request.prompt, around))
        request, scores = self._read(replace(request, prompt=prompt, details=details))
        answer = self._answered(request, scores, seed)
        size = f"A size such as {details.size} cannot be chosen; things can be made larger or smaller afterwards."
        notes = (scores.note, size if details.size and answer.plan else "")
        return replace(answer, warnings=(*answer.warnings, *filter(None, notes)))

    def _read(self, request: Request) -> tuple[Request, Scores]:
        """What the words say in so many words counts, whatever a model makes of them. Who only names a thing wants it
        made: where that is read as anything else, or in doubt, the rules read it, as if nothing were there yet."""
        ruled = rule_scores(request, self.media)
        if is_told(request, ruled):
            return request, ruled
        scores = self.router.score(request, self.media)
        latest = request.latest.medium if request.latest else ""
        named = introduces(request.prompt, [item.medium for item in request.history])
        if request.uploads or named is None:
            return request, scores
        # A picture can be made once more of other words; what was said of something is about that alone.
        makes = scores.act == "new" or (scores.act == "regenerate" and latest == (named or "image"))
        if makes and not scores.in_doubt and (not named or named in scores.wanted):
            return request, scores
        alone = replace(request, history=(), focus=())
        return alone, rule_scores(alone, self.media, scores.note)

    def _answered(self, request: Request, scores: Scores, seed: int) -> Answer:
        if scores.in_doubt:
            return self._ask(request, scores)
        wanted = scores.wanted
        match scores.act:
            case "undo" if not request.uploads:
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
        if (medium := _is_there(request, goals)) and len(goals) == 1:
            sentence = f"This is {_a(medium)} already. Say what should change in it."
            return Answer("ask", (), scores, sentence=sentence)
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
        goals = edit_goals(request, self.registry) or look_goals(request, self.registry)
        if not goals:
            return self._ask(request, scores, UNCHANGED)
        return self._compiled("edit", tuple({goal.output for goal in goals}), goals, request, scores, seed)

    def _again(self, request: Request, scores: Scores, seed: int) -> Answer:
        if look_said(request.prompt):
            goals, problem = look_goals(request, self.registry), KEPT
        else:
            change = change_in(request.prompt)
            written = change or PHRASES["written"].search(request.prompt)
            if written and scores.wanted == ("text",):  # other words about it are for who talks
                return Answer("chat", ("text",), scores)
            goals, problem = again_goals(request, self.registry), UNCHANGED if change else SAME
        if not goals:
            return self._ask(request, scores, problem if request.focus or request.uploads else NOTHING)
        act = "edit" if all(goal.op in self.edits for goal in goals) else "regenerate"
        return self._compiled(act, tuple({goal.output for goal in goals if goal.kept}), goals, request, scores, seed)

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
            if (problem.wanted, *problem.given) == ("text", "text"):  # of words, words are made by who talks
                return Answer("chat", ("text",), scores)
            choices = self._instead(request, problem)
            return Answer(act, wanted, scores, sentence=str(problem), choices=choices, warnings=(str(problem),))
        except PlanError as problem:
            return Answer(act, wanted, scores, sentence=str(problem), warnings=(str(problem),))
        return Answer(act, wanted, scores, plan, warnings=plan.warnings)

    def _no_words(self, request: Request) -> Answer:
        scores = Scores(dict.fromkeys(self.media, 1 - SURE), {"ask": 1.0})
        if not request.uploads:
            return Answer("ask", (), scores, sentence="What would you like?", choices=self._examples())
        sentence = f"What shall become of the {name_of(request.uploads[0]).noun}?"
        return Answer("ask", (), scores, sentence=sentence, choices=self._of_attached(request))

    def _ask(self, request: Request, scores: Scores, sentence: str = "") -> Answer:
        """A question, with choices of the request's own words where they describe something."""
        words = _described(request)
        if not SCAFFOLD["article"].match(words) or any(part.points_back for part in clauses(request.prompt)):
            words = ""
        likely = sorted(scores.outputs, key=lambda medium: -scores.outputs[medium])
        doubtful = [medium for medium in likely if scores.outputs[medium] >= DOUBTFUL and medium != "text"]
        choices = tuple(Choice(_capital(_a(m)), f"{_a(m)} of {words}") for m in doubtful[:3] if words and not sentence)
        if request.uploads:
            choices = self._of_attached(request)
        asked = sentence or "I am not sure what you want. A picture, a sound, a clip, a 3-D object, or words?"
        return Answer("ask", (), scores, sentence=asked, choices=choices or self._examples())

    def _of_attached(self, request: Request) -> tuple[Choice, ...]:
        medium = request.uploads[0]
        made = (_a(way) for way in sorted(reachable(medium, self.registry)) if way != medium)
        return tuple(Choice(f"Make {one} of it", f"make {one} of this {name_of(medium).noun}") for one in made)

    def _instead(self, request: Request, problem: NoRouteError) -> tuple[Choice, ...]:
        words = _described(request)
        made = [medium for medium in sorted(problem.nearest) if medium in NAMES and medium != problem.wanted]
        return tuple(Choice(f"{_capital(_a(m))} instead", f"{_a(m)} of {words or 'it'}") for m in made)

    def _examples(self) -> tuple[Choice, ...]:
        return tuple(Choice(text, text) for text in example_requests(self.registry)[:3])


NOTHING = "There is nothing here that this could be about yet."
UNCHANGED = "There is nothing here to change in that way."
KEPT = "What came from a file keeps its colours and its style, but for plain changes such as brighter, darker or grey."
SAME = "That would come out just the same: nothing in it was left to chance. Say what should be different."
REMOVAL = "Nothing is deleted from here: the Gallery can do that. “Undo” only goes back to what came before it."


def example_requests(registry: Registry) -> list[str]:
    """What may be asked for in words alone: of each pipeline its first example, then of each its second, and so on."""
    columns = []
    for pipeline in registry:
        texts = [texts[0] for texts in pipeline.examples if len(texts) == 1]
        made = pipeline.routes[0].output
        columns.append([_request(made, text) for text in texts])
    return list(dict.fromkeys(text for row in zip_longest(*columns) for text in row if text))


def what_there_is(registry: Registry) -> str:
    """An answer to "what can you do?": each pipeline with an example, and of each medium a plain change."""
    lines = []
    for pipeline in registry:
        made, given = pipeline.routes[0].output, pipeline.routes[0].inputs
        if pipeline.is_edit:
            continue
        if texts := next((texts for texts in pipeline.examples if len(texts) == len(given)), ()):
            said = _request(made, texts[0]) if len(texts) == 1 else f"{_a(made)} of {' turning into '.join(texts)}"
            lines.append(f"{pipeline.title}: “{said}”")
        else:
            brought = " and ".join(_a(medium) for medium in given)
            lines.append(f"{pipeline.title}: attach {brought} and say “make {_a(made)} of it”")
    edits = {pipeline.routes[0].inputs[0]: pipeline.title for pipeline in reversed(list(registry)) if pipeline.is_edit}
    changes = [f"Plain changes of what there is: {', '.join(edits.values())}".lower().capitalize()] if edits else []
    return "This is what can be asked for here.\n\n" + "".join(f"- {line}.\n" for line in (*lines, *changes))


def _request(medium: str, text: str) -> str:
    """For something of this medium."""
    if medium == "image":
        return text
    return f"{text} as a 3-D object" if medium == "mesh" else f"{_a(medium)} of {text}"


def _a(medium: str) -> str:
    return name_of(medium).wish


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _described(request: Request) -> str:
    """The first words of the request that describe something, as far as a button can show them."""
    said = next((part.content for part in clauses(request.prompt) if content_words(part.content)), "")
    return said if len(said) <= BUTTON_CHARACTERS else said[:BUTTON_CHARACTERS].rpartition(" ")[0]


def _is_there(request: Request, goals: Sequence[Goal]) -> str | None:
    """The medium, where no more is said of what is attached than that it shall be one of that."""
    named = [medium for medium in NOUNS if mention(request.prompt, medium)]
    more = any(part.content or part.points_back for part in clauses(request.prompt))
    if not request.uploads or len(named) != 1 or more:
        return None
    given = [{request.available.get(source) for source in goal.sources} for goal in goals if goal.op is None]
    return named[0] if {named[0]} in given and goals[0].output == named[0] else None


def _missing_reference(request: Request) -> bool:
    """Whether the words point at something, give nothing else to make it from, and nothing is there."""
    parts = clauses(request.prompt)
    empty = not any(part.content for part in parts)
    return empty and bool(parts) and parts[0].points_back and not request.uploads and not request.focus
