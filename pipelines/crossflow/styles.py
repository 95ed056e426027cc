"""The drawing styles that a caption can end in, ``"a red apple, flat style"``, and the picture sets behind each."""

from __future__ import annotations

from typing import Literal

Style = Literal[
    "flat", "gradient", "3d", "emoji", "blob", "sticker", "outline", "retro", "photo", "drawing", "letter", "render"
]

STYLES: dict[Style, tuple[str, ...]] = {
    "flat": ("fluent-flat",),
    "gradient": ("fluent-color",),
    "3d": ("fluent-3d",),
    "emoji": ("noto",),
    "blob": ("noto-blob",),
    "sticker": ("twemoji",),
    "outline": ("openmoji",),
    "retro": ("fxemoji",),
    "photo": ("photo",),
    "drawing": ("drawing",),
    "letter": ("letter",),
    "render": ("shape",),
}


def styled(prompt: str, style: str | None) -> str:
    """The caption the model was trained on: the prompt, then its style."""
    return f"{prompt}, {style} style" if style else prompt
