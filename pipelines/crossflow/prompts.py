"""From what a person typed to what the text encoder was trained on."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from models.errors import UserError
from models.nets.crossflow import CrossFlow
from pipelines.crossflow.styles import styled

if TYPE_CHECKING:
    from models.text_encoder import TextEncoder

MAX_PROMPT = 2_000


def clean_prompt(prompt: str, what: str = "The prompt") -> str:
    """One line of words: control characters and repeated blanks go, an emoji becomes its name.

    Raises :class:`UserError` if nothing is left, or if there are more than ``MAX_PROMPT`` characters.
    """
    if len(prompt) > MAX_PROMPT:
        raise UserError(f"{what} has {len(prompt):,} characters; {MAX_PROMPT:,} is the most.", "Say it in fewer words.")
    words = " ".join("".join(map(_spelled_out, prompt)).split())
    if not words:
        raise UserError(f"{what} is empty.", "Say what to paint, such as 'a red apple'.")
    return words


def _spelled_out(character: str) -> str:
    category = unicodedata.category(character)
    if category == "So":
        return f" {unicodedata.name(character, '').lower()} "
    if category in {"Cc", "Cf", "Cs", "Co", "Cn"}:
        return " "
    return character


def fitted(prompt: str, style: str | None, encoder: TextEncoder, flow: CrossFlow) -> tuple[str, bool]:
    """The caption to encode, and whether the prompt had to be cut so that prompt and style fit the model's tokens."""
    suffix = styled("", style)
    return encoder.fit(prompt, suffix, flow.config.tokens)
