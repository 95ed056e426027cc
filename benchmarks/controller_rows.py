"""The readers of requests that ``benchmarks/controller.py`` compares, from no reading at all to the taught model.

Those with the small language model untaught see the same instruction and the same examples: they write JSON as they
like, choose what the grammar allows token by token, or score one word for each label.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.controller.endpoint import INSTRUCTION
from app.controller.planner import KNOWN_MEDIA, Slots
from app.controller.prototypes import PrototypeRouter
from app.controller.request import ACTS, Request
from app.controller.routers import LanguageModelRouter, Router, RuleRouter, as_read
from app.controller.rules import SURE, Scores
from models.errors import UserError
from models.precision import Precision
from models.sources import ASSETS

if TYPE_CHECKING:  # their imports take seconds
    import torch

    from models.language_model import LanguageModel

READING = ASSETS / "controller-lite"
LABELS = Path(__file__).parent.parent / "training" / "state" / "controller-labels" / "weights"
ASKED = 'Answer with one line of JSON and nothing else: {"act": ..., "outputs": [...]}'
LONGEST = 48  # tokens; the longest right answer has 27
NOTHING_MADE = ("select", "undo", "ask")
FITTED_ON = 256  # rows of the generator's training split that the log-probabilities are fitted to
# Of no one's data. The commonest is last, because the model likes to repeat that one: where it was the one with "ask",
# nearly all of nine validation rows of the generator were answered by a question or an edit.
EXAMPLES = (
    (Request.of("jkhsdf kjh"), "ask", ()),
    (Request.of("a bit louder", history=[("audio", "a drum")]), "edit", ("audio",)),
    (Request.of("hello, how are you?"), "chat", ("text",)),
    (Request.of("a tower in 3D, and its sound"), "new", ("audio", "mesh")),
    (Request.of("draw a fox in the snow"), "new", ("image",)),
)


class MajorityRouter:
    """Always the commonest answer: a new picture."""

    name = "majority"

    def score(self, request: Request, media: Sequence[str]) -> Scores:
        return as_scores("new", ["image"], media)


class FreeJsonRouter:
    """The untaught language model writes an answer; what cannot be parsed is a question back."""

    name = "free json"

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def score(self, request: Request, media: Sequence[str]) -> Scores:
        written = "".join(self.model.reply(instructed(request), LONGEST))
        return as_scores(*parsed(written), media)


@dataclass(frozen=True)
class Allowed:
    """An answer that the grammar allows, as the model would write it."""

    act: str
    outputs: tuple[str, ...]
    tokens: tuple[int, ...]


class GrammarRouter:
    """The same, but of the tokens that can come next in an allowed answer the likeliest is taken."""

    name = "grammar"

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.allowed = [
            Allowed(act, outputs, tuple(model.tokenizer(as_json(act, outputs), add_special_tokens=False).input_ids))
            for act, outputs in allowed_answers()
        ]

    def score(self, request: Request, media: Sequence[str]) -> Scores:
        import torch
        from transformers import DynamicCache

        tokens = self.model.tokenizer.apply_chat_template(
            instructed(request), add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
        )
        cache = DynamicCache(config=self.model.model.config)
        left, place, sure = self.allowed, 0, 1.0
        while len(left) > 1:
            following = sorted({answer.tokens[place] for answer in left})
            if len(following) > 1:
                with torch.no_grad():
                    ids = torch.tensor([tokens])
                    logits = self.model.model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[0, -1]
                shares = logits[following].float().softmax(0)
                best = int(shares.argmax())
                sure *= float(shares[best]) if len({answer.act for answer in left}) > 1 else 1.0
                following, tokens = [following[best]], []
            left = [answer for answer in left if answer.tokens[place] == following[0]]
            tokens = [*tokens, following[0]]
            place += 1
        return as_scores(left[0].act, left[0].outputs, media, sure)


class LogProbabilityRouter:
    """The untaught language model's scores of one word for each label, with a scale and a bias that were fitted.

    ``rows``: of the generator's training split, at least one.
    """

    name = "log-probability"

    def __init__(self, model: LanguageModel, rows: Sequence[dict[str, Any]]) -> None:
        from training.controller import LABEL_WORDS, request_of
        from training.prototypes import labels

        self.model, self.words = model, LABEL_WORDS
        self.scale, self.bias = fitted(self.logits([request_of(row) for row in rows]), *labels(rows))

    def score(self, request: Request, media: Sequence[str]) -> Scores:
        logits = self.scale * self.logits([request])[0] + self.bias
        outputs = dict(zip(KNOWN_MEDIA, logits[: len(KNOWN_MEDIA)].sigmoid().tolist(), strict=True))
        acts = logits[len(KNOWN_MEDIA) :].softmax(0).tolist()
        return Scores({medium: outputs.get(medium, 0.0) for medium in media}, dict(zip(ACTS, acts, strict=True)))

    def logits(self, requests: Sequence[Request]) -> torch.Tensor:
        """Log-probabilities (N, 12) of the label words: the five media, then the seven acts."""
        import torch

        examples = "".join(f"{as_read(one)} {' '.join([*outputs, act])}\n\n" for one, act, outputs in EXAMPLES)
        prefix = f"{INSTRUCTION}\n\n{examples}"
        texts = [f"{prefix}{self.model.plain(as_read(request))}" for request in requests]
        return torch.stack([self.model.next_token_scores(text, self.words) for text in texts])


class TaughtRouter:
    """The taught language model, its head trained or made of label words, with no rules beside it."""

    def __init__(self, name: str, model: LanguageModel) -> None:
        self.name, self.model = name, model

    def score(self, request: Request, media: Sequence[str]) -> Scores:
        outputs, acts = self.model.read(as_read(request))
        return Scores({medium: outputs.get(medium, 0.0) for medium in media}, acts)


def prototypes() -> Router:
    from models.text_encoder import load_text_encoder

    encoder = load_text_encoder(ASSETS / "text-encoder-lite")
    return PrototypeRouter(lambda: nullcontext(encoder))


def log_probability() -> Router:
    from training.instructions.rows import rows

    drawn = [row for row in rows(2 * FITTED_ON, seed=31) if row["split"] == "train"]
    return LogProbabilityRouter(language_model(), drawn[:FITTED_ON])


def head(precision: Precision = "float32") -> Router:
    """As it is shipped: rules steady what the model reads."""
    import torch

    from models.quantize import apply_precision

    model = language_model(READING)
    apply_precision(model, precision, torch.device("cpu"))
    return LanguageModelRouter(lambda: nullcontext(model), lambda: False, RuleRouter())


def slot_words() -> Slots:
    """The slot reader, as it is shipped."""
    from models.slot_reader import load_slot_reader
    from models.text_encoder import load_text_encoder

    encoder, reader = load_text_encoder(ASSETS / "text-encoder-lite"), load_slot_reader(ASSETS / "slot-reader-lite")
    return lambda prompt, wanted: reader.read(prompt, wanted, encoder)


NO_MODEL = ("majority", "rules")  # whose words are found by rules as well
# Each is built in a process of its own; UserError if what it needs is not on this machine.
ROWS: dict[str, Callable[[], Router]] = {
    "majority": MajorityRouter,
    "rules": RuleRouter,
    "prototypes": prototypes,
    "free json": lambda: FreeJsonRouter(language_model()),
    "grammar": lambda: GrammarRouter(language_model()),
    "log-probability": log_probability,
    "labels": lambda: TaughtRouter("labels", language_model(LABELS)),
    "head alone": lambda: TaughtRouter("head alone", language_model(READING)),
    "head": head,
    "head bfloat16": lambda: head("bfloat16"),
    "head int8": lambda: head("int8"),
}


def language_model(reading: Path | None = None) -> LanguageModel:
    """SmolLM2-135M-Instruct as ``models fetch`` brought it, with the adapter and the head of ``reading``.

    Raises :class:`UserError` if one of them is not there.
    """
    from models.catalog import catalog
    from models.language_model import load_language_model

    if reading is not None and not reading.is_dir():
        raise UserError(f"There is no '{reading}'.", "'python -m training.controller' makes it.")
    files = catalog("lite")["language-model"].source.resolve(lambda fraction, message: None)
    model = load_language_model(files.folder, reading)
    if reading is not None and model.head is None:
        raise UserError(f"The adapter in '{reading}' was made for another language model.")
    return model


def instructed(request: Request) -> list[dict[str, str]]:
    """The conversation that asks the untaught model for JSON."""
    messages = [{"role": "system", "content": f"{INSTRUCTION}\n{ASKED}"}]
    for example, act, outputs in EXAMPLES:
        messages.append({"role": "user", "content": as_read(example)})
        messages.append({"role": "assistant", "content": as_json(act, outputs)})
    return [*messages, {"role": "user", "content": as_read(request)}]


def as_json(act: str, outputs: Sequence[str]) -> str:
    return json.dumps({"act": act, "outputs": list(outputs)})


def allowed_answers() -> list[tuple[str, tuple[str, ...]]]:
    """Every act with the sets of media that make sense with it."""
    sets = [
        tuple(medium for place, medium in enumerate(KNOWN_MEDIA) if number >> place & 1)
        for number in range(1, 2 ** len(KNOWN_MEDIA))
    ]
    made = [(act, outputs) for act in ACTS if act not in (*NOTHING_MADE, "chat") for outputs in sets]
    return [*made, ("chat", ("text",)), *((act, ()) for act in NOTHING_MADE)]


def parsed(written: str) -> tuple[str, list[str]]:
    """Act and outputs of the first object in ``written``; ``("ask", [])`` if there is none that says both."""
    found = re.search(r"\{[^{}]*\}", written)
    try:
        answer = json.loads(found[0]) if found else {}
    except ValueError:
        return "ask", []
    act, outputs = answer.get("act"), answer.get("outputs")
    if act not in ACTS or not isinstance(outputs, list) or not all(medium in KNOWN_MEDIA for medium in outputs):
        return "ask", []
    return act, outputs


def as_scores(act: str, outputs: Sequence[str], media: Sequence[str], sure: float = SURE) -> Scores:
    """An answer that names its choice, as scores; ``sure``: the probability of its act."""
    others = (1 - sure) / (len(ACTS) - 1)
    return Scores(
        {medium: SURE if medium in outputs else 1 - SURE for medium in media},
        {name: sure if name == act else others for name in ACTS},
    )


def fitted(scores: torch.Tensor, outputs: torch.Tensor, acts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One scale (1,) and a bias for each label (12,) that make ``outputs`` and ``acts`` likeliest under the
    log-probabilities ``scores`` (N, 12). A scale for each label fits the noise of the rare ones."""
    import torch

    from training.controller import request_loss

    scale = torch.ones(1, requires_grad=True)
    bias = (-scores.mean(0)).requires_grad_(True)
    optimizer = torch.optim.LBFGS([scale, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss, _ = request_loss(scale * scores + bias, outputs, acts)
        loss = loss + 0.01 * (scale - 1).square().mean()  # so that a label that never occurs leaves it finite
        loss.backward()
        return loss

    optimizer.step(closure)
    return scale.detach(), bias.detach()
