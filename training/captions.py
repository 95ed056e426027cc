"""Which words a picture is shown with: its concept with or without an article, or a synonym, mostly with its style."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from pipelines.crossflow.styles import styled
from training.pictures import Pictures, split_of
from training.recolour import COLOURS, dominant_hue, recolour, recoloured_concept


@dataclass(frozen=True)
class Captioned:
    """A training picture: ``row`` counts the originals first, the recoloured ones after them."""

    row: int
    concept: str
    style: str
    synonyms: tuple[str, ...]


def with_article(concept: str) -> str:
    return f"{'an' if concept.startswith(tuple('aeiou')) else 'a'} {concept}"


def draw_caption(item: Captioned, rng: np.random.Generator) -> str:
    """One of the picture's captions: 10 % a synonym, 15 % without the style, 40 % with an article."""
    words = item.concept
    if item.synonyms and rng.random() < 0.1:
        words = item.synonyms[rng.integers(len(item.synonyms))]
    if rng.random() < 0.4:
        words = with_article(words)
    return styled(words, item.style if rng.random() < 0.85 else None)


def recoloured_pictures(pictures: Pictures) -> tuple[np.ndarray, list[Captioned]]:
    """One recoloured copy of each training picture with a dominant hue, in a colour chosen by a hash of its name.

    Copies whose new name is a held-out concept, or is a concept of its own in the data, are not made.
    """
    known = {item.concept for item in pictures.items}
    pixels: list[np.ndarray] = []
    items: list[Captioned] = []
    for item in pictures.select("train"):
        digest = hashlib.sha256(f"{item.concept}|{item.style}|colour".encode()).digest()
        name = list(COLOURS)[digest[0] % len(COLOURS)]
        concept = recoloured_concept(item.concept, name)
        if concept in known or split_of(concept, item.style) != "train":
            continue
        hue = dominant_hue(pictures.pixels[item.row])
        if hue is not None:
            pixels.append(recolour(pictures.pixels[item.row], hue, COLOURS[name]))
            items.append(Captioned(len(pictures.items) + len(items), concept, item.style, ()))
    return np.stack(pixels), items
