"""Draws rows by quota: slice, language, act, then the media in turn, then the templates in turn."""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from training.instructions import noise
from training.instructions.fill import CLOSE, OPEN, Filling, spans_of, unmarked, wanted
from training.instructions.forms import Noun
from training.instructions.grammar import Listed, Template
from training.instructions.language import LANGUAGES, Language, Split, load, split_of

SLICES = {
    "single": 0.12,
    "implicit": 0.13,
    "multi-output": 0.13,
    "chain": 0.15,
    "follow-up": 0.14,
    "media-in": 0.08,
    "negation": 0.05,
    "topic-not-request": 0.10,
    "chat": 0.07,
    "garbage": 0.03,
}
# Elsewhere, an act's share is that of its sets of outputs.
ACTS = {
    "implicit": {"new": 0.88, "chat": 0.12},
    "follow-up": {
        "new": 0.3, "edit": 0.22, "regenerate": 0.18, "select": 0.08, "undo": 0.05, "ask": 0.1, "chat": 0.07,
    },
    "media-in": {"new": 0.8, "edit": 0.12, "ask": 0.08},
    "negation": {"new": 0.62, "chat": 0.33, "ask": 0.05},
}  # fmt: skip
OTHER_LANGUAGE_EVERY = 5
# How often a set of so many outputs is drawn: one medium alone is what people want most.
WEIGHT_BY_OUTPUTS = (1, 4, 2, 1, 1, 1)
VALIDATION_ROWS = 0.1
ATTEMPTS = 12
MEDIA = ("text", "image", "audio", "video", "mesh")
TITLE_MARKS = {"image": "seen", "audio": "sound", "video": "moves", "mesh": "thing", "text": "seen"}
FILE_NAMES = {
    "image": ("IMG_2041.jpg", "holiday.png", "scan0003.jpg", "untitled-2.png"),
    "audio": ("recording 4", "voice memo 12.m4a", "take_07.wav", "track01.mp3"),
    "video": ("clip_0815.mp4", "MOV_0042.mov", "screen recording"),
    "mesh": ("part_03.stl", "model.obj", "untitled.glb"),
    "text": ("notes.txt", "draft.md", "letter.docx"),
    "scan": ("subject01.npy", "run-2_bold.nii", "scan 17", "session3.npz"),
}

Row = dict[str, Any]


class Deck:
    """Deals each of its cards once, in random order, then starts again."""

    def __init__(self, cards: Sequence[Any], rng: random.Random) -> None:
        self._cards, self._rng, self._left = list(cards), rng, list[Any]()

    def __len__(self) -> int:
        return len(self._cards)

    def deal(self) -> Any:
        if not self._left:
            self._left = self._rng.sample(self._cards, len(self._cards))
        return self._left.pop()


class Templates:
    """The templates of one language, slice and split, dealt by act, then by outputs, then each in turn."""

    def __init__(self, templates: Sequence[Template], rng: random.Random) -> None:
        self._rng = rng
        self._made: Counter[str] = Counter()
        groups: dict[str, dict[tuple[str, ...], list[Template]]] = defaultdict(lambda: defaultdict(list))
        for template in templates:
            groups[template.labels.act][tuple(sorted(template.labels.outputs))].append(template)
        shares = ACTS.get(templates[0].labels.slice, {})
        self._acts = {act: shares.get(act, len(by_outputs)) for act, by_outputs in groups.items()}
        self._decks = {
            act: {outputs: Deck(members, rng) for outputs, members in by_outputs.items()}
            for act, by_outputs in groups.items()
        }

    def deal(self) -> Template:
        act = self._rng.choices(list(self._acts), list(self._acts.values()))[0]
        outputs = self._outputs(self._decks[act])
        self._made.update(outputs)
        return self._decks[act][outputs].deal()

    def _outputs(self, sets: dict[tuple[str, ...], Deck]) -> tuple[str, ...]:
        """One of three drawn at random: the one whose media were made least, so that all media come equally often."""
        weights = [WEIGHT_BY_OUTPUTS[len(outputs)] * len(deck) ** 0.5 for outputs, deck in sets.items()]
        return min(self._rng.choices(list(sets), weights, k=3), key=self._mean_made)

    def _mean_made(self, outputs: tuple[str, ...]) -> float:
        """Of the media in ``outputs``, without text, which is answered often enough elsewhere."""
        media = [medium for medium in outputs if medium != "text"] or MEDIA[1:]
        return sum(self._made[medium] for medium in media) / len(media)


def rows(count: int, seed: int) -> list[Row]:
    """``count`` rows in random order, the same for a ``seed``. No prompt comes twice where the templates allow it."""
    rng = random.Random(seed)
    decks = _decks(rng)
    seen: set[str] = set()
    drawn = [_new_row(decks[key], key[0], load(key[1]), rng, seen) for key in _quotas(count, list(decks), rng)]
    rng.shuffle(drawn)
    numbers: Counter[str] = Counter()
    for row in drawn:
        numbers[row["slice"]] += 1
        row["id"] = f"{row['slice']}-{numbers[row['slice']]:05d}"
    return drawn


Key = tuple[Split, str, str]


def _decks(rng: random.Random) -> dict[Key, Templates]:
    found: dict[Key, list[Template]] = defaultdict(list)
    for code in LANGUAGES:
        for template in load(code).templates:
            found[split_of(template.text), code, template.labels.slice].append(template)
    return {key: Templates(members, rng) for key, members in found.items()}


def _quotas(count: int, keys: Sequence[Key], rng: random.Random) -> Iterator[Key]:
    """Split, language and slice of each row. What has no validation templates goes to the training rows."""
    others = Deck([code for code in LANGUAGES if code != "en"], rng)
    start = 0
    total = 0.0
    for slice_, share in SLICES.items():
        total += share
        end = round(count * total)
        for place in range(start, end):
            language = others.deal() if place % OTHER_LANGUAGE_EVERY == 0 else "en"
            split: Split = "validation" if rng.random() < VALIDATION_ROWS else "train"
            yield (split if (split, language, slice_) in keys else "train", language, slice_)
        start = end


def _new_row(templates: Templates, split: Split, language: Language, rng: random.Random, seen: set[str]) -> Row:
    for _ in range(ATTEMPTS):
        row = make_row(templates.deal(), split, language, rng)
        key = json.dumps((row["prompt"], row["inputs"], row["history"]))
        if key not in seen:
            break
    seen.add(key)
    return row


def make_row(template: Template, split: Split, language: Language, rng: random.Random) -> Row:
    """One row from ``template``, filled with the nouns of ``split``; its ``id`` is still empty."""
    labels = template.labels
    history, targets, titled = _history(template, split, language, rng)
    filling = Filling(language, split, rng, titled)
    filling.adjectives = labels.makes
    prompt = template.text if labels.literal else filling.fill(template.nodes)
    if not labels.literal:
        prompt = _exactly(prompt, rng) if labels.exact else noise.spoken(prompt, filling, labels.makes)
        prompt = noise.roughened(prompt, language, rng)
    titles = [wanted(titled[which].word) for which in titled if which != "x"] if labels.title_wanted else []
    words = wanted_words(" ".join([prompt, *titles]), language) if labels.makes else []
    row: Row = {
        "id": "",
        "slice": labels.slice,
        "language": template.language,
        "prompt": unmarked(prompt),
        "inputs": list(labels.inputs),
        "history": history,
        "act": labels.act,
        "outputs": [medium for medium in MEDIA if medium in labels.outputs],
    }
    if words:
        row["text"] = words
        row["spans"] = [[begin, end, list(kinds)] for begin, end, kinds in spans_of(prompt)]
    if labels.edges is not None:
        row["edges"] = list(labels.edges)
    return row | {"refers": targets, "split": split}


def wanted_words(text: str, language: Language) -> list[str]:
    """The words between :data:`OPEN` and :data:`CLOSE`, lower case, without articles and the like, each once."""
    depth = 0
    found: dict[str, None] = {}
    for token in re.findall(rf"[{OPEN}{CLOSE}]|[^\W_]+(?:-[^\W_]+)*", text):
        if token in (OPEN, CLOSE):
            depth += 1 if token == OPEN else -1
        elif depth and len(token) > 1 and token.lower() not in language.stopwords:
            found[token.lower()] = None
    return list(found)


def _exactly(text: str, rng: random.Random) -> str:
    said = noise.capitalised(text) if rng.random() < 0.4 else text
    return said + rng.choice(("", "", "", ".", "...", "!")) if said and said[-1].isalnum() else said


def _history(
    template: Template, split: Split, language: Language, rng: random.Random
) -> tuple[list[dict[str, str]], list[int], dict[str, Noun]]:
    """The entries, the numbers of those that the request is about, and the nouns in their titles."""
    labels = template.labels
    present = [entry for entry in labels.history if not entry.optional or rng.random() < 0.5]
    naming = Filling(language, split, rng)
    history: list[dict[str, str]] = []
    targets: list[int] = []
    titled: dict[str, Noun] = {}
    for number, entry in enumerate(present, 1):
        medium = rng.choice(entry.media)
        named = template.names_titles or labels.title_wanted
        title, noun = _title(medium, naming, scenes=not named)
        history.append({"medium": medium, "title": title})
        if entry.target:
            targets.append(number)
        if noun and named:
            titled.setdefault(str(len(targets)) if entry.target else "x", noun)
    return history, targets, titled


def _title(medium: str, naming: Filling, scenes: bool) -> tuple[str, Noun | None]:
    rng = naming.rng
    if medium == "scan" or (scenes and rng.random() < 0.08):
        return rng.choice(FILE_NAMES[medium]), None
    noun = naming.choose((TITLE_MARKS[medium],), scenes and medium != "text")
    if medium == "text":
        naming.titled = {"1": noun}
        return naming.fill((Listed("title_text"),)), noun
    return unmarked(naming.tidied(naming.say(noun, "a"))), noun
