"""Recipe of ``assets/weights/controller-lite``: how the small language model is taught to read requests (SwitchGPT).

    python -m training.controller [--steps N] [--scoring head|labels] [--mean-with FOLDER]

A low-rank adapter in the upper third of SmolLM2-135M and a linear head on the state of the last token, trained on
generated instructions (``training/instructions``; nouns and templates of the validation split never occur in training).
The lower blocks are frozen, so their states are computed once. ``--scoring labels`` keeps the language model's own
output rows of the label words instead of a new head: the log-probability variant that the benchmark compares.
``--mean-with`` takes the mean of these weights and those of an earlier run of the recipe, on other instructions: it
reads requests better than either (arXiv 2203.05482; both begin with the same random numbers).
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from app.controller.planner import KNOWN_MEDIA as OUTPUTS
from app.controller.request import ACTS, Request
from app.controller.routers import as_read, steadied
from app.controller.rules import Scores
from models.adapter import Adapter, load_adapter, new_adapter
from models.language_model import REQUEST_TOKENS, LanguageModel
from models.quantize import apply_precision
from models.request_head import RequestHead, load_request_head
from training.instructions.rows import rows as instructions
from training.loop import STATE, Metrics, Schedule, autocast, train
from training.publish import write_sums

WEIGHTS = Path("assets/weights/controller-lite")
SEED, BATCH, COUNT = 31, 32, 40_000
UPPER_BLOCKS = 10
RANK, ALPHA = 16, 32.0
LEAST = tuple(step / 20 for step in range(16))  # tried for when to ask
SAME_WORTH = 0.001  # of several that are worth the same, the one that asks most
LABEL_WORDS = (
    " text",
    " image",
    " audio",
    " video",
    " mesh",
    " new",
    " edit",
    " again",
    " choose",
    " undo",
    " chat",
    " ask",
)


class Trainee(nn.Module):
    def __init__(self, adapter: Adapter, head: RequestHead) -> None:
        super().__init__()
        self.adapter, self.head = adapter, head


class LowerStates:
    """States (L, d) float16 of each request below the adapted blocks."""

    def __init__(self, model: LanguageModel, texts: Sequence[str], path: Path) -> None:
        if path.exists():
            self.rows: list[Tensor] = torch.load(path, weights_only=True)
        else:
            self.rows = _lower_states(model, texts)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self.rows, path)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """States (B, L, d) float32 padded on the right, and their mask (B, L)."""
        chosen = [self.rows[i].float() for i in indices]
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in chosen], batch_first=True)
        return nn.utils.rnn.pad_sequence(chosen, batch_first=True), mask


def length_batches(lengths: np.ndarray, size: int, seed: int, first_step: int) -> Iterator[np.ndarray]:
    """Batches of about equal length in random order, epoch after epoch, from step ``first_step`` on."""
    per_epoch = len(lengths) // size
    step = first_step
    while True:
        epoch, within = divmod(step, per_epoch)
        rng = np.random.default_rng((seed, epoch))
        order = np.argsort(lengths + rng.uniform(0, 4, len(lengths)))
        starts = rng.permutation(per_epoch)
        for index in starts[within:]:
            yield order[index * size : (index + 1) * size]
            step += 1


def upper_states(model: LanguageModel, adapter: Adapter, states: Tensor, mask: Tensor) -> Tensor:
    """The last token's state (B, d) after the adapted blocks. ``model`` has only those left."""
    with adapter.on():
        hidden = model.model.base_model(inputs_embeds=states, attention_mask=mask, use_cache=False).last_hidden_state
    last: Tensor = hidden[torch.arange(len(hidden)), mask.sum(1) - 1]
    return last


def request_loss(logits: Tensor, outputs: Tensor, acts: Tensor) -> tuple[Tensor, Metrics]:
    """Each output for itself, the acts against each other. ``outputs`` (B, 5) of 0 and 1, ``acts`` (B,)."""
    wanted = nn.functional.binary_cross_entropy_with_logits(logits[:, : len(OUTPUTS)], outputs)
    act = nn.functional.cross_entropy(logits[:, len(OUTPUTS) :], acts)
    return 2 * wanted + act, {"outputs": wanted, "acts": act}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--scoring", choices=["head", "labels"], default="head")
    parser.add_argument("--mean-with", type=Path, help="folder of an earlier run's adapter and head")
    arguments = parser.parse_args()
    rows = instructions(COUNT, SEED)
    chosen = {
        split: np.array([i for i, row in enumerate(rows) if row["split"] == split]) for split in ("train", "validation")
    }
    texts = [as_read(request_of(row)) for row in rows]
    outputs = torch.tensor([[float(medium in row["outputs"]) for medium in OUTPUTS] for row in rows])
    acts = torch.tensor([ACTS.index(row["act"]) for row in rows])

    torch.manual_seed(SEED)
    model = base_model()
    name_of = hashlib.sha256(json.dumps([UPPER_BLOCKS, REQUEST_TOKENS, *texts]).encode()).hexdigest()[:12]
    states = LowerStates(model, texts, STATE / "cache" / f"requests-{name_of}.pt")
    total = len(model.model.base_model.layers)
    adapter = new_adapter(model.model, range(total - UPPER_BLOCKS, total), RANK, ALPHA)
    head = RequestHead(model.model.config.hidden_size, OUTPUTS, ACTS)
    if arguments.scoring == "labels":
        head.linear.weight.data = model.model.lm_head.weight[[model.token_of(word) for word in LABEL_WORDS]].clone()
        head.linear.weight.requires_grad_(False)
    adapter.attach(model.model)
    model.model.base_model.layers = model.model.base_model.layers[-UPPER_BLOCKS:]
    trainee = Trainee(adapter, head)

    def loss_of(batch: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        indices = chosen["train"][batch]
        return request_loss(head(upper_states(model, adapter, *states.batch(indices))), outputs[indices], acts[indices])

    def evaluate(step: int) -> Metrics:
        return measures(predictions(model, trainee, states, chosen["validation"]), outputs, acts, chosen["validation"])

    groups = [
        {"params": list(adapter.parameters()), "lr": arguments.lr, "peak_lr": arguments.lr},
        {"params": [p for p in head.parameters() if p.requires_grad], "lr": 1e-3, "peak_lr": 1e-3},
    ]
    lengths = np.array([len(states.rows[i]) for i in chosen["train"]])
    name = f"controller-{arguments.scoring}"
    weights = train(
        name,
        trainee,
        [torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)],
        Schedule(arguments.steps, warmup=50, cooldown=0.6),
        lambda step: length_batches(lengths, BATCH, SEED, step),
        loss_of,
        evaluate,
        seed=SEED,
        ema_decay=0.98,
        evaluate_every=200,
    )
    trainee.load_state_dict(weights)
    if arguments.mean_with:
        mean_with(trainee, Trainee(load_adapter(arguments.mean_with), load_request_head(arguments.mean_with)))
    folder = WEIGHTS if arguments.scoring == "head" else STATE / name / "weights"
    adapter.save(folder)
    head.save(folder)
    logits = quantized_logits(folder, [texts[i] for i in chosen["validation"]])
    head.calibrate(logits, outputs[chosen["validation"]], acts[chosen["validation"]])
    head.least = fitted_least(head, logits, [rows[i] for i in chosen["validation"]])
    head.save(folder)
    write_sums(folder)
    print(json.dumps({name: float(value) for name, value in evaluate(arguments.steps).items()}))


def base_model(reading: Path | None = None) -> LanguageModel:
    """SmolLM2-135M-Instruct as ``models fetch`` brought it, float32, with what ``reading`` taught it."""
    from models.catalog import catalog
    from models.language_model import load_language_model

    files = catalog("lite")["language-model"].source.resolve(lambda fraction, message: None)
    return load_language_model(files.folder, reading)


def request_of(row: dict[str, Any]) -> Request:
    return Request.of(row["prompt"], row["inputs"], [(item["medium"], item["title"]) for item in row["history"]])


def understood(scores: Scores) -> set[str]:
    """The media that the controller takes these scores for."""
    if scores.act in ("select", "undo", "ask") or scores.in_doubt:
        return set()
    return {"text"} if scores.act == "chat" else set(scores.wanted)


@torch.no_grad()
def mean_with(trainee: Trainee, other: Trainee) -> None:
    """Move every parameter of ``trainee`` half the way to that of ``other``."""
    places = {name: place for place, name in enumerate(other.adapter.names)}
    for index, name in enumerate(trainee.adapter.names):
        trainee.adapter.down[index].lerp_(other.adapter.down[places[name]], 0.5)
        trainee.adapter.up[index].lerp_(other.adapter.up[places[name]], 0.5)
    trainee.head.linear.weight.lerp_(other.head.linear.weight, 0.5)
    trainee.head.linear.bias.lerp_(other.head.linear.bias, 0.5)


@torch.no_grad()
def fitted_least(head: RequestHead, logits: Tensor, rows: Sequence[dict[str, Any]]) -> float:
    """The least probability of a reading at which something should be made, from the logits (N, 12) of ``rows``.

    What is wanted counts one, what is not wanted counts against it, and a question counts nothing.
    """
    wanted, act = head.split(logits)
    read = [
        steadied(
            request_of(row),
            OUTPUTS,
            dict(zip(head.outputs, one.tolist(), strict=True)),
            dict(zip(head.acts, other.tolist(), strict=True)),
            0.0,
        )
        for row, one, other in zip(rows, wanted.sigmoid(), act.softmax(1), strict=True)
    ]
    worth = {}
    for least in LEAST:
        understood_as = [understood(replace(scores, least=least)) for scores in read]
        pairs = [(made, set(row["outputs"])) for made, row in zip(understood_as, rows, strict=True)]
        worth[least] = sum((made == right) - bool(made - right) for made, right in pairs) / len(pairs)
    print(json.dumps({"worth": worth}))
    return max(least for least in LEAST if worth[least] >= max(worth.values()) - SAME_WORTH)


@torch.no_grad()
def predictions(model: LanguageModel, trainee: Trainee, states: LowerStates, indices: np.ndarray) -> Tensor:
    """Logits (N, 12) of the rows ``indices``."""
    order = sorted(range(len(indices)), key=lambda i: len(states.rows[indices[i]]))
    logits = torch.empty(len(indices), len(OUTPUTS) + len(ACTS))
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        logits[part] = trainee.head(upper_states(model, trainee.adapter, *states.batch(indices[part]))).float()
    return logits


@torch.no_grad()
def quantized_logits(folder: Path, texts: Sequence[str]) -> Tensor:
    """Logits (N, 12) of the taught model in ``folder`` in int8, which ``auto`` takes where memory is short."""
    model = base_model(folder)
    apply_precision(model, "int8", torch.device("cpu"))
    adapter, head = cast(Adapter, model.adapter), cast(RequestHead, model.head)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    logits = torch.empty(len(texts), len(OUTPUTS) + len(ACTS))
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        with adapter.on():
            states = model.hidden_states([model.plain(texts[i]) for i in part], "last", REQUEST_TOKENS)
        logits[part] = head(states)
    return logits


def measures(logits: Tensor, outputs: Tensor, acts: Tensor, indices: np.ndarray) -> Metrics:
    exact = ((logits[:, : len(OUTPUTS)] > 0) == outputs[indices].bool()).all(1)
    right = logits[:, len(OUTPUTS) :].argmax(1) == acts[indices]
    return {"exact_outputs": exact.float().mean(), "right_act": right.float().mean()}


@torch.no_grad()
def _lower_states(model: LanguageModel, texts: Sequence[str]) -> list[Tensor]:
    trunk = model.model.base_model
    layers, norm = trunk.layers, trunk.norm
    trunk.layers, trunk.norm = layers[:-UPPER_BLOCKS], nn.Identity()
    tokens = model.tokenizer(list(texts), truncation=True, max_length=REQUEST_TOKENS).input_ids
    rows: list[Tensor] = [torch.empty(0)] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        batch = model.tokenizer.pad({"input_ids": [tokens[i] for i in part]}, return_tensors="pt")
        with autocast(next(model.parameters()).device):
            states = trunk(**batch, use_cache=False).last_hidden_state
        for i, row in zip(part, states, strict=True):
            rows[i] = row[: len(tokens[i])].half().clone()
    trunk.layers, trunk.norm = layers, norm
    return rows


if __name__ == "__main__":
    main()
