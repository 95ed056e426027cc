"""The request read without a language model: by how near it lies to learned prototypes, and by rules.

A request is the sentence embedding of its words, and which media are there. A small layer compares it with prototypes,
learned directions in that space, and a linear head reads media and act from how much it is like each of them. Rules
know what is named in so many words; where they do, they decide, and prototypes decide the rest: what is wished for
without its name, mere talk, and what no rule was written for.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from app.controller.request import Request
from app.controller.rules import SURE, Scores, rule_scores
from models.errors import UserError
from models.modules import BUILDING
from models.request_head import RequestHead
from models.sources import Bundled, Source

if TYPE_CHECKING:  # its import takes seconds
    from models.text_encoder import TextEncoder

log = logging.getLogger(__name__)

KINDS = ("text", "image", "audio", "video", "mesh", "scan")  # what can be attached, or have come before
READ_CHARACTERS, READ_TOKENS, BATCH = 600, 96, 64
SCALE = 8.0  # brings the entries of a unit vector to about the size of the zeros and ones beside them
EXPLICIT = ("select", "undo")  # wants nothing made, so that only its own words tell a rule of it
CONFIG, WEIGHTS = "prototypes.json", "prototypes.safetensors"
SHIPPED = Bundled("controller-prototypes")


class Prototypes(nn.Module):
    """What requests are compared with. ``width``: entries of a sentence embedding; ``count``: prototypes.

    ``doubted``: where rules decide, they are overruled by a reading that is at least so probable (1: never).
    """

    def __init__(self, width: int, count: int, outputs: Sequence[str], acts: Sequence[str], doubted: float = 1) -> None:
        super().__init__()
        self.width, self.doubted = width, doubted
        self.compare = nn.Linear(width + 2 * len(KINDS), count)
        self.head = RequestHead(count, outputs, acts)

    def likeness(self, features: Tensor) -> Tensor:
        """How much (B, count) each of ``features``, as :func:`features_of` makes them, is like each prototype."""
        return nn.functional.gelu(self.compare(features))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(self.likeness(features))
        return logits

    @torch.no_grad()
    def read(self, features: Tensor) -> Scores:
        """Probabilities from the features (F,) of one request."""
        return Scores(*self.head.probabilities(self.likeness(features[None])[0]))

    def save(self, folder: Path) -> None:
        """``prototypes.json`` and ``prototypes.safetensors``, float16."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "width": self.width,
            "count": self.compare.out_features,
            "outputs": self.head.outputs,
            "acts": self.head.acts,
            "doubted": self.doubted,
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        tensors = {name: value.detach().half().contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS)


def load_prototypes(folder: Path) -> Prototypes:
    """What :meth:`Prototypes.save` wrote, float32. Raises :class:`UserError` where it is none."""
    try:
        prototypes = Prototypes(**json.loads((folder / CONFIG).read_text()))
        prototypes.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"The prototypes in '{folder.name}' cannot be used: {error}.", "Restore the folder from the repository."
        ) from error
    return prototypes.eval().requires_grad_(False)


def features_of(requests: Sequence[Request], encoder: TextEncoder) -> Tensor:
    """(B, d + 2 * len(KINDS)) float32: the scaled sentence embeddings, what is attached, and what came before."""
    embeddings = _embeddings([request.prompt[:READ_CHARACTERS] for request in requests], encoder)
    return torch.cat([SCALE * embeddings, torch.tensor([_there(request) for request in requests])], dim=1)


def decided(ruled: Scores, read: Scores, doubted: float) -> Scores:
    """What rules say where they know it by name, unless ``read`` is surer than ``doubted``; else what was ``read``.

    Media that were never taught are the rules' in either case.
    """
    named = max(ruled.outputs.values(), default=0) >= SURE
    if ruled.act in EXPLICIT or (named and read.probability < doubted):
        return ruled
    return Scores({medium: read.outputs.get(medium, p) for medium, p in ruled.outputs.items()}, read.acts)


class PrototypeRouter:
    """Prototypes and rules, see above. Where the text encoder or the prototypes cannot be had, rules alone read."""

    name = "prototypes"

    def __init__(
        self,
        lease: Callable[[], AbstractContextManager[TextEncoder]],
        source: Source = SHIPPED,
    ) -> None:
        self.lease, self.source = lease, source
        self._prototypes: Prototypes | None = None

    def score(self, request: Request, media: Sequence[str]) -> Scores:
        try:
            prototypes = self._prototypes = self._prototypes or self._load()
            with self.lease() as encoder:
                features = features_of([request], encoder)
            if features.shape[1] != prototypes.compare.in_features:
                raise UserError("The text encoder is another than the prototypes were made with.")
        except UserError as error:
            log.warning("rules read the request: %s", error)
            return rule_scores(request, media, f"{error} Rules alone read this request.")
        return decided(rule_scores(request, media), prototypes.read(features[0]), prototypes.doubted)

    def _load(self) -> Prototypes:
        folder = self.source.resolve(lambda fraction, message: None).folder
        with BUILDING:
            return load_prototypes(folder)


def _there(request: Request) -> list[float]:
    earlier = {item.medium for item in request.history}
    return [float(kind in media) for media in (request.uploads, earlier) for kind in KINDS]


def _embeddings(texts: Sequence[str], encoder: TextEncoder) -> Tensor:
    """Sentence embeddings (B, d), those of like length together, so that little is padded."""
    tokens = encoder.tokenizer(list(texts), truncation=True, max_length=READ_TOKENS).input_ids
    order = sorted(range(len(texts)), key=lambda index: len(tokens[index]))
    parts = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    rows = [encoder.sentence_embeddings([texts[i] for i in part], len(tokens[part[-1]])) for part in parts]
    return torch.cat(rows).cpu()[torch.tensor(order).argsort()]
