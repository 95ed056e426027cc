"""The request read by rules alone: works with no model in memory, and steadies the scores of those that there are."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from app.controller.edits import edit_starts, says_edit, says_only_edits
from app.controller.goals import becomes
from app.controller.lexicon import NOUNS, ORDINALS, PERCEIVED, PHRASES, SCAFFOLD, VERBS
from app.controller.looks import colour_said, look_said, looked_at
from app.controller.references import content_words, correction
from app.controller.request import ACTS, Item, Request
from app.controller.slots import Clause, clauses, mention, named_first
from app.controller.ways import ways_said
from app.controller.wishes import is_question, sources, wishes, without_greeting

SURE, LIKELY, UNLIKELY = 0.95, 0.8, 0.05
WANTED = 0.5  # a medium is wanted from here on
POSSIBLE = 0.1  # below, even the likeliest is not what is meant
BARE_WORDS = 12  # a noun phrase of at most so many words is a wish for a picture
_A_THING = re.compile(
    r"(?:an?|eine?n?|une?|una|um|uma|een|two|three|four|five|zwei|drei|deux|trois)\s+\S", re.IGNORECASE
)
_OF_ONE = re.compile(r"[@#]\d|\b(?:ones?|versions?|variations?|variants?|cop(?:y|ies))\b", re.IGNORECASE)
_PERSON = re.compile(r"^(?:i|we|ich|je|j'|yo|io|eu|ik)\s+(?:really\s+|much\s+)?", re.IGNORECASE)
_MAKE_IT = re.compile(r"^(?:please\s+)?(?:make|turn|paint|colou?r)\s+(?:it|that|this)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Scores:
    """Probabilities: of each medium to be wanted (they need not sum to one), and of each act (they do).

    ``note``: what the person should know of how the request was read. ``least``: how probable a reading has to be for
    something to be made of it.
    """

    outputs: dict[str, float]
    acts: dict[str, float]
    note: str = ""
    least: float = 0.0

    @property
    def act(self) -> str:
        return max(self.acts, key=self.acts.__getitem__)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The media that are likelier wanted than not. What is new is something: where none is, the likeliest."""
        found = tuple(medium for medium, p in self.outputs.items() if p >= WANTED)
        if found or self.act != "new":
            return found
        return tuple(medium for medium, p in self.outputs.items() if p == max(self.outputs.values()) >= POSSIBLE)[:1]

    @property
    def probability(self) -> float:
        """Of the likeliest reading as a whole, as if its parts were independent but for this: what is new is
        something."""
        wanted = self.wanted
        parts = math.prod(p if medium in wanted else 1 - p for medium, p in self.outputs.items())
        if self.act == "new" and wanted:
            parts /= 1 - math.prod(1 - p for p in self.outputs.values())
        return max(self.acts.values()) * parts

    @property
    def in_doubt(self) -> bool:
        """Whether it is better to ask than to make something new."""
        return self.act == "new" and self.probability < self.least


def rule_scores(request: Request, media: Sequence[str], note: str = "") -> Scores:
    """``media``: all that anything installed makes; one that the lexicon does not know is known by its name."""
    act, wanted, sure = _read(request, tuple(media))
    outputs = {medium: sure if medium in wanted else UNLIKELY for medium in media}
    others = (1 - SURE) / (len(ACTS) - 1)
    return Scores(outputs, {name: SURE if name == act else others for name in ACTS}, note)


def _read(request: Request, media: tuple[str, ...]) -> tuple[str, set[str], float]:
    """The act, the media wanted, and how sure that is."""
    prompt = request.prompt
    parts = clauses(prompt)
    if is_noise(prompt) or not parts:
        return "ask", set(), SURE
    if is_talk(prompt) or asks_for_help(prompt):
        return "chat", {"text"}, SURE
    if request.history and not request.uploads and PHRASES["undo"].match(prompt):
        return "undo", set(), SURE
    if other := said_otherwise(request):
        return "regenerate", {other}, SURE
    if ways := ways_said(request):
        # What shows it says something too, and pictures that are near to it are no further wish.
        others = wishes(parts, media, True) - {"text"}
        return "new", others | ({"image"} if not others or any("show" in way.params for way in ways) else set()), SURE
    wanted = wishes(parts, media, bool(request.uploads or request.history))
    if not wanted and "video" in media and becomes(parts[0].text.strip(" .!?")):
        wanted = {"video"}
    around = [*request.uploads, *(item.medium for item in request.in_focus())]
    edited = edited_medium(parts, wanted, around)
    if asks_how_it_is(request, parts):
        return "new", wanted, SURE
    if request.history and not request.uploads:
        if selects(prompt, wanted, edited is not None):
            return "select", set(), SURE
        again = again_item(request, parts, wanted, edited is not None)
        if again is not None:
            return "regenerate", {again.medium}, SURE
    if edited is not None:
        return "edit", {edited}, SURE
    if not around and not wanted and says_edit(prompt, media) and PHRASES["pronoun"].search(prompt):
        return "ask", set(), SURE
    if "scan" in request.uploads and wanted <= {"text"} and not VERBS["text"].search(prompt):
        return "new", {"image"}, SURE
    if not wanted:
        return _nothing_named(request)
    spoken_of = _points_back(parts) or not sources(parts, media).isdisjoint(around)
    if wanted == {"text"} and not request.uploads and not (request.history and spoken_of):
        return "chat", {"text"}, SURE
    return "new", wanted, SURE


def is_told(request: Request, ruled: Scores) -> bool:
    """Whether the words leave nothing to guess, so that the rules' reading ``ruled`` counts whatever a model makes of
    them: talk, what a scan shows, a plain change of what is attached or of what is there, another look, "no, a cat",
    another one, and a question that is answered by a sound or a picture of what is there."""
    prompt = request.prompt
    parts = clauses(prompt)
    if is_talk(prompt) or asks_for_help(prompt) or ways_said(request) or said_otherwise(request):
        return True
    if ruled.act == "regenerate":
        return not PHRASES["again"].sub("", prompt).strip(" .!")
    if ruled.act == "edit":
        return bool(request.uploads) or says_only_edits(prompt, [item.medium for item in request.in_focus()])
    if ruled.act != "new" or not parts:
        return False
    asks_to_hear = is_question(prompt) and bool(PERCEIVED["audio"].search(prompt)) and ruled.wanted == ("audio",)
    return asks_how_it_is(request, parts) or (asks_to_hear and len(parts) == 1) or becomes(parts[0].text.strip(" .!?"))


def is_talk(prompt: str) -> bool:
    """Greetings, thanks and praise, and nothing else."""
    left = re.sub(r"[\W_]+", " ", SCAFFOLD["talk"].sub(" ", SCAFFOLD["greeting"].sub(" ", prompt)))
    return left != prompt and not SCAFFOLD["filler"].sub(" ", left).strip()


def asks_for_help(prompt: str) -> bool:
    """ "What can you do?": what is answered by what there is."""
    asked = PHRASES["help"].fullmatch(without_greeting(prompt).rstrip(" ?!."))
    return bool(asked)


def asks_how_it_is(request: Request, parts: Sequence[Clause]) -> bool:
    """ "What sound would that make?": what is there is to be heard, or seen."""
    perceived = any(pattern.search(request.prompt) for pattern in PERCEIVED.values())
    there = bool(request.uploads or request.focus) and _points_back(parts)
    return perceived and there and not any(part.content for part in parts)


def said_otherwise(request: Request) -> str | None:
    """The medium of what is there that is to be as other words say: "in blue please", "no, a cat"."""
    look = look_said(request.prompt)
    target = looked_at(request) if look else None
    # What is attached can be recoloured at most, and "grey" is a plain change.
    if target and not says_edit(look, {target[1]}) and (not request.uploads or colour_said(request.prompt)):
        return target[1]
    made = next((item for item in request.in_focus() if item.medium != "text"), None)
    other = correction(request.prompt)
    fits = made and not made.brought and not request.uploads and not says_edit(other, {made.medium})
    return made.medium if made and fits and other else None


def introduces(prompt: str, around: Collection[str]) -> str | None:
    """ "a blue bird", "ein rotes Haus", "a sound of a bell": a thing is named and no more, as nobody says who means one
    that is there. The medium that is named for it; else a picture is meant, and that is empty.

    ``around``: the media that are there, of which "a bit louder" would be a change.
    """
    others = [PHRASES["again"], PHRASES["back_to"], PHRASES["undo"], *ORDINALS.values(), _OF_ONE]
    if any(pattern.search(prompt) for pattern in others):
        return None
    if named := named_first(prompt):  # "a picture of it", but also "of a road that winds"
        medium, content = named
        return None if PHRASES["pronoun"].match(content) or PHRASES["all"].match(content) else medium
    if PHRASES["pronoun"].search(prompt) or PHRASES["all"].search(prompt):
        return None
    if not _A_THING.match(prompt) or len(prompt.split()) > BARE_WORDS:
        return None
    return None if says_edit(prompt, around) or any(mention(prompt, medium) for medium in NOUNS) else ""


def selects(prompt: str, wanted: set[str], edits: bool) -> bool:
    """ "I like the second one", "go back to the red one": one of several is meant, and nothing is to be made."""
    start = _PERSON.sub("", without_greeting(prompt))
    if PHRASES["back_to"].match(start):
        return True
    few = len(prompt.split())
    if few <= 4 and not wanted and not edits and any(pattern.search(prompt) for pattern in ORDINALS.values()):
        return True
    made = PHRASES["make"].search(prompt) or any(verbs.search(prompt) for verbs in VERBS.values())
    return bool(PHRASES["liking"].match(start)) and not made and few <= BARE_WORDS


def again_item(request: Request, parts: Sequence[Clause], wanted: set[str], edits: bool) -> Item | None:
    """The item to be made again, with another seed or in other words, if that is what is asked for."""
    fitting = [item for item in request.in_focus() if not wanted or item.medium in wanted]
    if not fitting or not wanted <= {item.medium for item in fitting}:
        return None
    nothing_new = not any(part.content for part in parts) and wanted == {request.in_focus()[0].medium}
    changed = not wanted and not edits and bool(_MAKE_IT.match(request.prompt))
    said = bool(PHRASES["again"].search(request.prompt))
    return fitting[0] if said or nothing_new or changed else None


def edited_medium(parts: Sequence[Clause], wanted: set[str], around: Sequence[str]) -> str | None:
    """The medium whose plain change is asked for, of those ``around``; ``None`` where something new is described."""
    if not wanted <= set(around):
        return None
    for part in parts:
        starts = edit_starts(part.text, around)
        named = [match.start() for medium in around if (match := mention(part.text, medium))]
        described = part.content and not part.points_back and content_words(part.content) - _edit_words(part, around)
        if described and named and (not starts or min(named) < min(starts)):
            return None
    said = " ".join(part.text for part in parts)
    fitting = [medium for medium in around if says_edit(said, {medium})]
    return next((medium for medium in fitting if medium in wanted), fitting[0] if fitting else None)


def is_noise(prompt: str) -> bool:
    """Nothing that could be words: no letters, or letters as a cat types them."""
    letters = re.findall(r"[^\W\d_]+", prompt)
    if not letters:
        return True
    strange = [word for word in map(str.lower, letters) if word.isascii() and _is_strange(word)]
    return len(strange) > len(letters) / 2


def _is_strange(word: str) -> bool:
    return len(word) > 3 and bool(not re.search("[aeiouy]", word) or re.search(r"[^aeiouy]{6}|(.)\1{3}", word))


def _edit_words(part: Clause, around: Sequence[str]) -> set[str]:
    starts = edit_starts(part.text, around)
    return {word for start in starts for word in content_words(part.text[start:].split(" ")[0])}


def _nothing_named(request: Request) -> tuple[str, set[str], float]:
    prompt = request.prompt
    if SCAFFOLD["greeting"].match(prompt):
        return "chat", {"text"}, SURE
    if is_question(prompt) or (prompt.endswith("?") and not PHRASES["make"].search(prompt)):
        return "chat", {"text"}, SURE
    described = bool(SCAFFOLD["article"].match(prompt)) and not PHRASES["pronoun"].search(prompt)
    if request.uploads or (request.history and not described) or PHRASES["again"].match(prompt):
        return "ask", set(), SURE
    if described or len(prompt.split()) <= BARE_WORDS:
        return "new", {"image"}, LIKELY
    return "chat", {"text"}, LIKELY


def _points_back(parts: Sequence[Clause]) -> bool:
    return any(part.points_back for part in parts)
