"""Which words of a request are for which maker: a small transformer that tags them (fact sheet SwitchGPT, section 5).

It reads the token states of the frozen text encoder, both ways, knows which media are wanted, and says of every token
for each medium whether it belongs to what shall be made in it. The words are copied, never written anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.packing import save_half
from models.text_encoder import TextEncoder

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MAX_TOKENS = 160
DROPOUT = 0.1
ENCODER_LAYERS = (2, 4, 6)  # the earlier ones know better which word it is, the last what the sentence is about
WORD = re.compile(r"\w+(?:['-]+\w+)*")
JOINED_OVER = 2  # so many words between two that belong are taken as well: "a bell (in the) tower"


class _Layer(nn.Module):
    """A transformer's layer, normalised first. Of plain linear maps, so that the model manager can quantize it."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(2 * hidden, hidden)
        )
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, entered: Tensor, mask: Tensor) -> Tensor:
        """(B, L, hidden) from the same; ``mask`` (B, L) is 0 where there is no token."""
        parts = self.qkv(self.attention_norm(entered)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask[:, None, None] != 0, dropout_p=DROPOUT if self.training else 0.0
        )
        entered = entered + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return entered + self.dropout(self.mlp(self.mlp_norm(entered)))


class SlotReader(nn.Module):
    """``media``: what is tagged for. ``width``: of the token states; the others are the transformer's own."""

    def __init__(self, media: Sequence[str], width: int, hidden: int, layers: int, heads: int) -> None:
        super().__init__()
        self.config = {"media": list(media), "width": width, "hidden": hidden, "layers": layers, "heads": heads}
        self.media = tuple(media)
        self.enter = nn.Linear(width, hidden)
        self.wanted = nn.Linear(len(media), hidden)
        self.layers = nn.ModuleList(_Layer(hidden, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.tags = nn.Linear(hidden, len(media))

    def forward(self, states: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
        """Logits (B, L, media) from token states (B, L, width), their mask (B, L), 1 where a token is, and which media
        are wanted (B, media), 1 or 0; all 0 where that is not known."""
        entered = self.enter(states) + self.wanted(wanted)[:, None]
        for layer in self.layers:
            entered = layer(entered, mask)
        logits: Tensor = self.tags(self.norm(entered))
        return logits

    @torch.no_grad()
    def read(self, prompt: str, wanted: Sequence[str], encoder: TextEncoder) -> dict[str, str]:
        """The words for each of ``wanted``, "" where there are none; nothing for a prompt beyond MAX_TOKENS.

        A medium that was never taught gets what would be for any other.
        """
        coded = encoder.tokenizer(prompt, return_offsets_mapping=True)
        if len(coded.input_ids) > MAX_TOKENS:
            return {}
        like = self.norm.weight  # of the precision it computes in; the products' weights may be packed into integers
        states, mask = token_states([prompt], encoder)
        asked = torch.tensor([[float(medium in wanted) for medium in self.media]]).to(like)
        belongs = self(states.to(like), mask.to(like.device), asked)[0].float().sigmoid().cpu()
        by_medium = {medium: belongs[:, place] for place, medium in enumerate(self.media)}
        anyone = belongs.amax(1)
        return {
            medium: words_of(prompt, coded.offset_mapping, by_medium.get(medium, anyone).tolist()) for medium in wanted
        }

    def save(self, folder: Path) -> None:
        """``config.json`` and ``model.safetensors``, float16."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(self.config, indent=2) + "\n")
        save_half(self.state_dict(), folder / WEIGHTS)


def load_slot_reader(folder: Path) -> SlotReader:
    """What :meth:`SlotReader.save` wrote; float32 on the CPU."""
    reader = SlotReader(**json.loads((folder / CONFIG).read_text()))
    reader.load_state_dict(load_file(folder / WEIGHTS))
    return reader.eval().requires_grad_(False)


@torch.no_grad()
def token_states(prompts: Sequence[str], encoder: TextEncoder) -> tuple[Tensor, Tensor]:
    """The encoder's states of :data:`ENCODER_LAYERS` side by side (B, L, 3 d) float32, and the mask (B, L)."""
    batch = encoder.tokenizer(list(prompts), padding=True, return_tensors="pt").to(encoder.model.device)
    layers = encoder.model(**batch, output_hidden_states=True).hidden_states
    return torch.cat([layers[number] for number in ENCODER_LAYERS], -1).float(), cast(Tensor, batch.attention_mask)


def words_of(prompt: str, offsets: Sequence[tuple[int, int]], belongs: Sequence[float]) -> str:
    """The words of ``prompt`` whose tokens, at ``offsets``, belong with one half or more on the mean.

    Where only a word or two of the same sentence stand between two of them, those belong as well.
    """
    spans = [word.span() for word in WORD.finditer(prompt)]
    chosen = [_mean(belongs, offsets, begin, end) >= 0.5 for begin, end in spans]
    places = [place for place, one in enumerate(chosen) if one]
    for before, after in pairwise(places):
        between = prompt[spans[before][1] : spans[after][0]]
        if after - before - 1 <= JOINED_OVER and not re.search(r"[,.:;!?]", between):
            chosen[before:after] = [True] * (after - before)
    parts: list[str] = []
    start = None
    for place, (begin, end) in enumerate(spans):
        if chosen[place]:
            start = begin if start is None else start
            if place + 1 == len(spans) or not chosen[place + 1]:
                parts.append(prompt[start:end])
                start = None
    return ", ".join(dict.fromkeys(parts))


def _mean(belongs: Sequence[float], offsets: Sequence[tuple[int, int]], begin: int, end: int) -> float:
    within = [value for value, (a, b) in zip(belongs, offsets, strict=True) if a < b and a < end and b > begin]
    return sum(within) / len(within) if within else 0.0
