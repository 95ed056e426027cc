"""Recipe of ``assets/weights/slot-reader-lite``: which words of a request are for which maker.

    python -m training.slot_reader

A small transformer over the frozen text encoder's token states, taught on the generated instructions
(``training/instructions``), in which the words that belong to what is wanted are marked; nouns and templates of the
validation rows never occur in training. Where a template asks for several things in several media, which noun belongs
to which medium follows from what it has to be (seen, heard, held, moving); where it does not, nothing is learnt of it.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from app.controller.planner import KNOWN_MEDIA as MEDIA
from models.slot_reader import MAX_TOKENS, SlotReader, token_states, words_of
from models.text_encoder import TextEncoder, load_text_encoder
from training.controller import length_batches
from training.instructions.language import load
from training.instructions.rows import TITLE_MARKS, Row
from training.instructions.rows import rows as instructions
from training.loop import Metrics, Schedule, optimizer_groups, train
from training.publish import write_sums

WEIGHTS = Path("assets/weights")
SEED, BATCH, COUNT = 37, 64, 40_000
UNHEARD = 0.1  # share of the training tokens that are left out, so that what stands around a word tells of it
UNTOLD = 0.1  # share of the training rows of which it is not told which media are wanted
CONNECTING = 3  # words between two nouns of one picture
ARTICLE = re.compile(r"^(?:an?|the|some)\s+", re.IGNORECASE)
Span = tuple[int, int]


def belonging(row: Row) -> dict[str, list[Span]]:
    """Which marked words of ``row`` are for which medium; empty where that is not beyond doubt."""
    edges = row.get("edges") or [f"text>{medium}" for medium in row["outputs"]]
    made = [edge.removeprefix("text>") for edge in edges if edge.startswith("text>")]
    spans = row.get("spans", [])
    if not spans:
        return {}
    if "text" in row["outputs"] and "text" not in made and not any(e.endswith(">text") for e in edges):
        made.append("text")
    things: dict[str, list[Span]] = {}
    kinds: dict[str, set[str]] = {}
    for begin, end, asked in spans:
        name = ARTICLE.sub("", row["prompt"][begin:end]).lower()
        things.setdefault(name, []).append((begin, end))
        kinds.setdefault(name, set()).update(asked)
    if len(things) == 1:
        return dict.fromkeys(made, *things.values())
    if len(made) == 1:
        return {made[0]: joined(row["prompt"], sorted(span for group in things.values() for span in group))}
    if len(made) != len(things):
        return {}
    ways = [
        dict(zip(made, names, strict=True))
        for names in permutations(things)
        if all(medium == "text" or TITLE_MARKS[medium] in kinds[name] for medium, name in zip(made, names, strict=True))
    ]
    return {medium: things[name] for medium, name in ways[0].items()} if len(ways) == 1 else {}


def joined(prompt: str, spans: Sequence[Span]) -> list[Span]:
    """``spans`` in order, those in one where only a few words stand between: "a lamb (chasing) a turkey"."""
    whole = [spans[0]]
    for begin, end in spans[1:]:
        between = prompt[whole[-1][1] : begin]
        if len(between.split()) <= CONNECTING and not re.search(r"[,.:;!?]", between):
            whole[-1] = (whole[-1][0], end)
        else:
            whole.append((begin, end))
    return whole


class Tagged:
    """Rows with their token states (L, d), float16, tags (L, media) and what is wanted (media,)."""

    def __init__(self, rows: Sequence[Row], encoder: TextEncoder) -> None:
        self.rows = sorted(rows, key=lambda row: len(row["prompt"]))
        self.offsets: list[list[Span]] = []
        self.tags: list[Tensor] = []
        self.states: list[Tensor] = []
        for start in range(0, len(self.rows), BATCH):
            part = self.rows[start : start + BATCH]
            prompts = [row["prompt"] for row in part]
            offsets = encoder.tokenizer(prompts, return_offsets_mapping=True).offset_mapping
            states, _ = token_states(prompts, encoder)
            self.offsets += offsets
            self.tags += [tags_of(places, belonging(row)) for places, row in zip(offsets, part, strict=True)]
            self.states += [row[: len(places)].half().clone() for row, places in zip(states, offsets, strict=True)]
        self.wanted = torch.tensor([[float(medium in row["outputs"]) for medium in MEDIA] for row in self.rows])

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States (B, L, d), mask (B, L), what is wanted (B, media), and tags (B, L, media)."""
        pad = nn.utils.rnn.pad_sequence
        masks = [torch.ones(len(self.tags[i])) for i in indices]
        states = pad([self.states[i].float() for i in indices], batch_first=True)
        tags = pad([self.tags[i] for i in indices], batch_first=True)
        return states, pad(masks, batch_first=True), self.wanted[list(indices)], tags


def with_other_nouns(row: Row, vocabulary: Sequence[str], rng: random.Random) -> Row:
    """``row`` with each word of what is wanted, but for articles and the like, replaced by any other word.

    There are some hundred nouns in the instructions, which would be learnt by heart: that a word belongs has to be
    seen from what stands around it.
    """
    prompt, spans, end = "", [], 0
    others: dict[str, str] = {}

    def other(found: re.Match[str]) -> str:
        word = found[0].lower()
        return found[0] if word in stopwords else others.setdefault(word, rng.choice(vocabulary))

    stopwords = load(row["language"]).stopwords
    for begin, after, kinds in row["spans"]:
        prompt += row["prompt"][end:begin]
        start = len(prompt)
        prompt += re.sub(r"[^\W\d_]+", other, row["prompt"][begin:after])
        spans.append([start, len(prompt), kinds])
        end = after
    return row | {"prompt": prompt + row["prompt"][end:], "spans": spans}


def tags_of(offsets: Sequence[Span], spans: dict[str, list[Span]]) -> Tensor:
    """(L, media), 1 where a token lies in a span of the medium."""
    return torch.tensor(
        [
            [float(any(a < end and b > begin and a < b for begin, end in spans.get(m, []))) for m in MEDIA]
            for a, b in offsets
        ]
    )


def exactness(model: SlotReader, tagged: Tagged) -> Metrics:
    """Of the media that get words: how often exactly theirs, articles apart; none missing; none more."""
    hits: dict[str, list[tuple[bool, bool, bool]]] = {"en": [], "others": []}
    for start in range(0, len(tagged.rows), BATCH):
        indices = range(start, min(start + BATCH, len(tagged.rows)))
        states, mask, asked, _ = tagged.batch(indices)
        read = model(states, mask, asked).sigmoid()
        for row, i in zip(read, indices, strict=True):
            language = tagged.rows[i]["language"]
            prompt, offsets = tagged.rows[i]["prompt"], tagged.offsets[i]
            for medium, wanted in belonging(tagged.rows[i]).items():
                if medium == "text":  # is told the whole wish
                    continue
                number = MEDIA.index(medium)
                said = content(words_of(prompt, offsets, row[: len(offsets), number].tolist()), language)
                right = content(" ".join(prompt[a:b] for a, b in wanted), language)
                hits["en" if language == "en" else "others"].append((said == right, right <= said, said <= right))
    return {
        f"{name}_{what}": float(np.mean([hit[k] for hit in found]))
        for name, found in hits.items()
        for k, what in enumerate(("exact", "none_missing", "none_more"))
    }


def content(text: str, language: str) -> set[str]:
    """The words of ``text`` without articles and the like."""
    return set(re.findall(r"[^\W_]+", text.lower())) - load(language).stopwords


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()
    encoder = load_text_encoder(WEIGHTS / "text-encoder-lite")
    known = [row for row in instructions(COUNT, SEED) if row["act"] == "new" and belonging(row)]
    known = [row for row in known if len(encoder.tokenizer(row["prompt"]).input_ids) <= MAX_TOKENS]
    rng = random.Random(SEED)
    vocabulary = sorted(word for word in encoder.tokenizer.get_vocab() if re.fullmatch("[a-z]{4,}", word))
    own = [row for row in known if row["split"] == "train"]
    learnt = Tagged([*own, *(with_other_nouns(row, vocabulary, rng) for row in own)], encoder)
    held_out = Tagged([row for row in known if row["split"] == "validation"], encoder)
    print(f"{len(learnt.rows)} rows, {len(held_out.rows)} held out", flush=True)
    lengths = np.array([len(tags) for tags in learnt.tags])
    torch.manual_seed(SEED)
    model = SlotReader(MEDIA, learnt.states[0].shape[1], 256, 3, 4)

    def loss_of(indices: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        states, mask, wanted, tags = learnt.batch(indices.tolist())
        told = wanted * (torch.rand(len(wanted), 1) >= UNTOLD)
        states = states * (torch.rand(*mask.shape, 1) >= UNHEARD)
        losses = nn.functional.binary_cross_entropy_with_logits(model(states, mask, told), tags, reduction="none")
        return (losses * mask[..., None]).sum() / mask.sum(), {}

    weights = train(
        "slot-reader",
        model,
        [torch.optim.AdamW(optimizer_groups(model, 6e-4, 0.05))],
        Schedule(arguments.steps, warmup=100, cooldown=0.6),
        lambda step: length_batches(lengths, BATCH, SEED, step),
        loss_of,
        lambda _: exactness(model, held_out),
        seed=SEED,
        ema_decay=0.995,
        log_every=100,
        evaluate_every=500,
    )
    model.load_state_dict(weights)
    model.save(WEIGHTS / "slot-reader-lite")
    write_sums(WEIGHTS / "slot-reader-lite")


if __name__ == "__main__":
    main()
