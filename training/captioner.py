"""Recipes of ``assets/weights/picture-captioner-lite`` and ``sound-captioner-lite``: vectors of a space to sentences.

    python -m training.captioner --space picture|sound --data FOLDER

ClipCap (arXiv 2111.09734) in small. Half of every batch are vectors of training pictures or clips with what they are
called; the other half, CapDec's way (arXiv 2211.00575), vectors of sentences, so that words are known that no picture
shows. Noise on them stands for the gap between the two. No held-out name is among them; only the concepts, which are
named where a sentence shares no word with any nearby, hold those. Needs ``picture-text-lite`` or ``sound-text-lite``.
A baseline is measured beside it: the name of the nearest concept.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from models.captioner import BEAMS, END, END_PIECE, Captioner, CaptionerConfig, Description, words_of
from models.picture_text import load_picture_text
from models.sound_text import load_sound_text
from training.bridges import picture_vectors
from training.captions import with_article
from training.loop import STATE, Metrics, Schedule, optimizer_groups, shuffled_batches, train
from training.mapper import sound_vectors
from training.picture_sound import SPEECH
from training.picture_text import CLASS_NAMES, Phrases, other_words
from training.pictures import concept_name, data_folder, load_pictures, verify_checksums
from training.publish import write_sums
from training.sounds import load_sounds, sound_arguments, weights_name
from training.tables import in_held_out_tenth

SEED, BATCH, STEPS = 67, 64, 2000  # BATCH things and as many sentences
CONFIG = CaptionerConfig()
IGNORED = -100  # where a loss has nothing to say
NOISE = (0.1, 0.3)  # norm of what is added to every vector
WEIGHTS = Path("assets/weights")
MEASURED = 512  # held-out things of a split that are described while it trains
RIGHT = 0.5  # token F1 from which a sentence counts as right
SURE_SHARE = 2 / 3  # of the sentences that are said without "perhaps", at least so many are right
VOICE = "a voice speaking"  # no clip tells what is said in it, which is what the captions of speech are

# ----------------------------------------------------------------------------------------------------------- sentences

AFTER_THE_NOUN = re.compile(r" (of|with|without|for|in|on|at|and|or|from|by|to)( |$)")
# Of what there is no plural, what the tables name most.
UNCOUNTED = """applause bacon beer blood bread butter cash chalk cheese chess chocolate clothing code coffee confetti
    electricity fog food fruit furniture ginger grass hair hay honey ice jewellery juice lava lettuce lightning luggage
    magic meat milk money mud music oil paper pasta pepper popcorn rain rice salt sand smoke snow soap soup speech
    static sugar sunshine sushi tea tennis thunder tofu traffic trash water wheat wind wine wood
    wool""".split()  # noqa: SIM905 - seventy lines are no easier to read
THINGS_IN_ING = ("building", "earring", "king", "painting", "ring", "sling", "spring", "string", "swing", "wing")
NO_NOUNS = ("angry", "correct", "game over", "ooh", "power up", "sad")  # as some sounds are called


def plain_sentence(concept: str) -> str:
    """What a picture or a sound of it is called: "a red apple"; "cherries", "juggling" and "snow" as they are."""
    noun = AFTER_THE_NOUN.split(concept)[0].split(" ")[-1]
    plural = noun.endswith("s") and not noun.endswith(("ss", "us", "is"))
    doing = concept.endswith("ing") and " " not in concept and concept not in THINGS_IN_ING
    bare = plural or doing or noun in UNCOUNTED or concept in NO_NOUNS
    return concept if bare else with_article(concept)


def heard(caption: str, name: str) -> str:
    """A clip's caption without the note that is played, so that clips of one instrument are called alike."""
    return VOICE if name == SPEECH else re.sub(r" playing the note .*$", "", caption)


@dataclass(frozen=True)
class Thing:
    """A picture or a clip: the ``sentence`` for it, the ``concept`` it belongs to, and all ``names`` that are right."""

    sentence: str
    concept: str
    names: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class Corpus:
    """``vectors`` (N, D) of ``things``, ``said`` (S, D) of ``sentences``, ``known`` (C, D) of all ``concepts``."""

    things: Sequence[Thing]
    vectors: Tensor
    sentences: Sequence[str]
    said: Tensor
    concepts: Sequence[str]
    known: Tensor

    def rows(self, split: str, most: int | None = None) -> list[int]:
        """Things of a split, by row; at most so many, evenly spread."""
        rows = [row for row, thing in enumerate(self.things) if thing.split == split]
        if most is None or len(rows) <= most:
            return rows
        return [rows[i] for i in np.linspace(0, len(rows) - 1, most).round().astype(int)]

    def held_out(self) -> list[str]:
        return sorted({thing.split for thing in self.things} - {"train"})


@torch.no_grad()
def load_picture_corpus(folder: Path) -> Corpus:
    """The pictures of the tables in ``folder`` but for flags; sentences name them, and the classes of ImageNet too."""
    verify_checksums(folder)
    pictures, weights = load_pictures(folder), WEIGHTS / "picture-text-lite"
    items = pictures.select("train", "heldout-pair", "heldout-concept")
    things = [
        Thing(plain_sentence(item.concept), item.concept, (item.concept, *item.synonyms), item.split) for item in items
    ]
    training = [item for item in items if item.split == "train"]
    things_named = {concept_name(name) for name in CLASS_NAMES.read_text().splitlines()}
    things_named |= {item.concept for item in training}
    spoken = things_named | {word for item in training for word in other_words(item)}
    words = sorted(word for word in spoken if not in_held_out_tenth(word))
    concepts = sorted({item.concept for item in items})
    phrases, space = Phrases([*words, *concepts]), load_picture_text(weights)
    return Corpus(
        things,
        picture_vectors(pictures, weights)[[item.row for item in items]],
        # Another word may be anything, such as "cheerful", which takes no article.
        [plain_sentence(word) if word in things_named else word for word in words],
        space.embed_sentences(phrases.of(words)),
        concepts,
        space.embed_sentences(phrases.of(concepts)),
    )


@torch.no_grad()
def load_sound_corpus(folder: Path, permissive_only: bool) -> Corpus:
    """The clips of the table in ``folder``; sentences are the captions and the classes of training clips."""
    sounds, weights = load_sounds(folder), WEIGHTS / f"{weights_name('sound-text', permissive_only)}-lite"
    chosen = {item.row for item in sounds.select("train", permissive_only=permissive_only)}
    items = [item for item in sounds.items if item.split != "train" or item.row in chosen]
    sentences = [heard(item.caption, item.name) for item in items]
    things = [
        Thing(sentence, item.name, (sentence, item.name), item.split)
        for sentence, item in zip(sentences, items, strict=True)
    ]
    words = sorted({word for thing in things if thing.split == "train" for word in thing.names})
    concepts = sorted({item.name for item in sounds.items})
    phrases, space = Phrases([*words, *concepts]), load_sound_text(weights)
    return Corpus(
        things,
        sound_vectors(sounds, weights)[[item.row for item in items]],
        words,
        space.embed_sentences(phrases.of(words)),
        concepts,
        space.embed_sentences(phrases.of(concepts)),
    )


# ------------------------------------------------------------------------------------------------------------- lessons


@dataclass(frozen=True)
class Lessons:
    """``vectors`` (N, D) and the tokens that follow each, ``targets`` (N, L + 1): a sentence, its end, then IGNORED."""

    vectors: Tensor
    targets: Tensor


def make_lessons(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, most: int
) -> tuple[tuple[str, ...], Lessons, Lessons]:
    """The word pieces of all that is learned from, the lessons of training things, and those of sentences.

    Sentences of more than ``most`` tokens, or with a character that the tokenizer lacks, are no lessons.
    """
    rows = corpus.rows("train")
    parts = [
        _in_pieces(corpus.vectors[rows], [corpus.things[row].sentence for row in rows], tokenizer, most),
        _in_pieces(corpus.said, corpus.sentences, tokenizer, most),
    ]
    pieces = (END_PIECE, *sorted({piece for _, sentences in parts for sentence in sentences for piece in sentence}))
    number = {piece: index for index, piece in enumerate(pieces)}
    things, said = (
        Lessons(vectors, torch.stack([_targets([number[piece] for piece in sentence], most) for sentence in sentences]))
        for vectors, sentences in parts
    )
    return pieces, things, said


def _in_pieces(
    vectors: Tensor, sentences: Sequence[str], tokenizer: PreTrainedTokenizerBase, most: int
) -> tuple[Tensor, list[list[str]]]:
    pieces = [tokenizer.tokenize(sentence) for sentence in sentences]
    kept = [row for row, found in enumerate(pieces) if 0 < len(found) <= most and tokenizer.unk_token not in found]
    return vectors[kept], [pieces[row] for row in kept]


def _targets(tokens: Sequence[int], most: int) -> Tensor:
    return torch.tensor([*tokens, END, *[IGNORED] * (most - len(tokens))])


def with_noise(vectors: Tensor) -> Tensor:
    """Unit vectors (B, D), each moved by a random one as long as :data:`NOISE` says, and of unit length again."""
    shortest, longest = NOISE
    length = shortest + (longest - shortest) * torch.rand(len(vectors), 1)
    return F.normalize(vectors + length * F.normalize(torch.randn_like(vectors), dim=1), dim=1)


def caption_loss(model: Captioner, vectors: Tensor, targets: Tensor) -> tuple[Tensor, Metrics]:
    """Cross-entropy of every next token; ``vectors`` (B, D), ``targets`` (B, L + 1) as in :class:`Lessons`."""
    targets = targets[:, : int((targets != IGNORED).sum(1).max())]
    logits = model(vectors, targets[:, :-1].clamp(min=END))
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    right = (logits.argmax(-1) == targets)[targets != IGNORED]
    return loss, {"token_top1": right.float().mean()}


# ------------------------------------------------------------------------------------------------------------ measures


def token_f1(said: str, name: str) -> float:
    """Harmonic mean of the shares of words in common (SQuAD's measure, arXiv 1606.05250)."""
    a, b = words_of(said), words_of(name)
    return 2 * sum((Counter(a) & Counter(b)).values()) / (len(a) + len(b)) if a and b else 0.0


def best_f1(said: str, thing: Thing) -> float:
    """With whichever of the thing's names is the best."""
    return max(token_f1(said, name) for name in (thing.sentence, *thing.names))


def is_exact(said: str, thing: Thing) -> bool:
    """Whether it is one of the thing's names, word by word."""
    return any(words_of(said) == words_of(name) for name in (thing.sentence, *thing.names))


def measure(things: Sequence[Thing], descriptions: Sequence[Description]) -> Metrics:
    """Of descriptions with at least one concept: how often the sentence is exactly a name, its token F1, how often
    the nearest concept is the thing's own, and the same two of the baseline, which says the nearest concept's name."""
    pairs = list(zip(things, descriptions, strict=True))
    nearest = [(thing, described.nearest[0].name) for thing, described in pairs]
    return {
        "exact": float(np.mean([is_exact(described.sentence, thing) for thing, described in pairs])),
        "f1": float(np.mean([best_f1(described.sentence, thing) for thing, described in pairs])),
        "confidence": float(np.mean([described.confidence for described in descriptions])),
        "nearest_concept": float(np.mean([name == thing.concept for thing, name in nearest])),
        "baseline_exact": float(np.mean([is_exact(name, thing) for thing, name in nearest])),
        "baseline_f1": float(np.mean([best_f1(name, thing) for thing, name in nearest])),
    }


def describe(model: Captioner, corpus: Corpus, rows: Sequence[int], beams: int) -> list[Description]:
    parts = (corpus.vectors[rows[i : i + 64]] for i in range(0, len(rows), 64))
    return [described for part in parts for described in model.describe(list(part), nearest=1, beams=beams)]


def evaluate(model: Captioner, corpus: Corpus) -> Metrics:
    """Greedily, of a part of each held-out split."""
    metrics: Metrics = {}
    for split in corpus.held_out():
        rows = corpus.rows(split, MEASURED)
        found = measure([corpus.things[row] for row in rows], describe(model, corpus, rows, beams=1))
        metrics |= {f"{split}_{name}": value for name, value in found.items()}
    return metrics


def find_sure(confidences: Sequence[float], right: Sequence[bool]) -> float:
    """The least confidence from which on at least :data:`SURE_SHARE` are right; 1 if there is none."""
    for least in sorted(set(confidences)):
        said = [is_right for confidence, is_right in zip(confidences, right, strict=True) if confidence >= least]
        if sum(said) >= SURE_SHARE * len(said):
            return least
    return 1.0


# ------------------------------------------------------------------------------------------------------------ training


def measure_held_out(model: Captioner, corpus: Corpus) -> dict[str, Metrics]:
    """Describe all that was held out as users will have it described, and set what counts as sure: measures by split,
    and under "all" the threshold, the share that reaches it, and that of right sentences."""
    results: dict[str, Metrics] = {}
    confidences, agrees, right = [], [], []
    model.config = replace(model.config, sure=0.0)  # so that only what the nearest concepts deny is not sure
    for split in corpus.held_out():
        rows = corpus.rows(split)
        things, descriptions = [corpus.things[row] for row in rows], describe(model, corpus, rows, BEAMS)
        results[split] = measure(things, descriptions)
        confidences += [described.confidence for described in descriptions]
        agrees += [described.sure for described in descriptions]
        right += [best_f1(d.sentence, thing) >= RIGHT for thing, d in zip(things, descriptions, strict=True)]
        for thing, described in list(zip(things, descriptions, strict=True))[:: max(1, len(rows) // 10)]:
            print(f"{split}: {thing.concept}: {described.sentence} ({described.confidence:.2f})", flush=True)
    sure = find_sure(list(compress(confidences, agrees)), list(compress(right, agrees)))
    model.config = replace(model.config, sure=sure)
    said_surely = float(np.mean(np.array(agrees) & (np.array(confidences) >= sure)))
    return {**results, "all": {"sure": sure, "said_surely": said_surely, "right": float(np.mean(right))}}


def finish(model: Captioner, corpus: Corpus, name: str) -> None:
    """Measure and publish; the measures go to ``training/state/NAME/held_out.json`` too."""
    text = json.dumps(measure_held_out(model, corpus), indent=2)
    print(text, flush=True)
    (STATE / name / "held_out.json").write_text(text + "\n")
    target = WEIGHTS / f"{name}-lite"
    model.save_pretrained(target)
    write_sums(target)


def arguments_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.add_argument("--space", choices=("picture", "sound"), required=True)
    arguments = parser.parse_args()
    if arguments.space == "picture" and arguments.permissive_only:
        parser.error("--permissive-only is for sounds: the picture-text space has no permissive weights")
    return arguments


def main() -> None:
    arguments = arguments_of(sound_arguments(__doc__, STEPS))
    folder = data_folder(arguments.data)
    name = weights_name(f"{arguments.space}-captioner", arguments.permissive_only)
    if arguments.space == "picture":
        corpus = load_picture_corpus(folder)
    else:
        corpus = load_sound_corpus(folder, arguments.permissive_only)
    config = replace(CONFIG, width=corpus.known.shape[1])
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "text-encoder-lite")
    pieces, things, sentences = make_lessons(corpus, tokenizer, config.tokens)
    print(f"{len(things.vectors)} things, {len(sentences.vectors)} sentences, {len(pieces)} word pieces", flush=True)
    torch.manual_seed(SEED)
    model = Captioner(config, pieces, [plain_sentence(concept) for concept in corpus.concepts], corpus.known)

    def loss_of(indices: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        said = np.random.default_rng((SEED, step)).integers(len(sentences.vectors), size=len(indices))
        vectors = with_noise(torch.cat([things.vectors[indices], sentences.vectors[said]]))
        targets = torch.cat([things.targets[indices], sentences.targets[said]])
        return caption_loss(model, vectors, targets)

    weights = train(
        name,
        model,
        [torch.optim.AdamW(optimizer_groups(model, 6e-4, 0.1))],
        Schedule(arguments.steps, warmup=100, cooldown=0.6),
        lambda step: shuffled_batches(len(things.vectors), BATCH, SEED, step),
        loss_of,
        lambda _: evaluate(model, corpus),
        seed=SEED,
        ema_decay=0.995,
        log_every=50,
        evaluate_every=500,
    )
    model.load_state_dict(weights)
    finish(model.eval(), corpus, name)


if __name__ == "__main__":
    main()
