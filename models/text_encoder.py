"""Frozen text encoders: words in, token states out, as the text variational encoder of CrossFlow wants them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertModel,
    CLIPTextModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

from models.packing import SCALE, unpack_int8

WEIGHTS = "model.safetensors"
# Transformers' class, whether it is given the padding mask, and the factor on its states (fact sheet 2.1).
KINDS = {
    "bert": (BertModel, True, 1.0),
    "clip_text_model": (CLIPTextModel, False, 1.0),
    "clip": (CLIPTextModel, False, 1.0),
    "t5": (T5EncoderModel, True, 10.0),
}


@dataclass(frozen=True)
class TokenStates:
    """``states`` (B, L, d) float32 and ``mask`` (B, L), 1 where a token is."""

    states: Tensor
    mask: Tensor


class TextEncoder(nn.Module):
    """A tokenizer and a frozen transformer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, masked: bool, factor: float) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)
        self.masked = masked
        self.factor = factor

    @torch.no_grad()
    def encode(self, captions: Sequence[str], tokens: int) -> TokenStates:
        """Token states of ``captions``, padded or cut to ``tokens`` each."""
        batch = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=tokens, return_tensors="pt"
        ).to(self.model.device)
        mask = batch.attention_mask
        output = self.model(input_ids=batch.input_ids, attention_mask=mask if self.masked else None)
        return TokenStates(output.last_hidden_state.float() * self.factor, mask)

    def fit(self, prompt: str, suffix: str, tokens: int) -> tuple[str, bool]:
        """``prompt`` + ``suffix``, cut between tokens so that the suffix is never lost; and whether it was cut."""
        pieces = self.tokenizer(prompt, add_special_tokens=False, truncation=True, max_length=tokens).input_ids
        room = tokens - self.tokenizer.num_special_tokens_to_add()
        room -= len(self.tokenizer(suffix, add_special_tokens=False).input_ids) if suffix else 0
        if len(pieces) <= room:
            return prompt + suffix, False
        return cast(str, self.tokenizer.decode(pieces[:room])) + suffix, True

    @torch.no_grad()
    def sentence_embeddings(self, sentences: Sequence[str], tokens: int = 32) -> Tensor:
        """Unit vectors (B, d): the masked mean of the token states."""
        encoded = self.encode(sentences, tokens)
        weights = encoded.mask[..., None].float()
        return nn.functional.normalize((encoded.states * weights).sum(1) / weights.sum(1), dim=-1)


def load_text_encoder(folder: Path) -> TextEncoder:
    """A transformers folder (config, tokenizer, safetensors) of BERT, CLIP or T5 kind; float32 on the CPU.

    Its tensors may be int8 rows (:mod:`models.packing`).
    """
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    model_class, masked, factor = KINDS[kind]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if _has_packed_rows(folder / WEIGHTS):
        model = model_class(model_class.config_class.from_pretrained(folder))
        model.load_state_dict(unpack_int8(load_file(folder / WEIGHTS)))
    else:
        model = model_class.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return TextEncoder(tokenizer, model, masked, factor)


def _has_packed_rows(weights: Path) -> bool:
    """Of one file; published encoders that are split over several have none."""
    if not weights.exists():
        return False
    with safe_open(weights, "pt") as file:
        return any(name.endswith(SCALE) for name in file.keys())  # noqa: SIM118
