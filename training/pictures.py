"""The captioned pictures that the lite image models learn from, and the split that they are judged on.

Three tables, made by the builders in ``training/data``: ``emoji128`` (emoji in eight drawing styles), ``stamps128``
(photographs, drawings and letters) and the icons of ``shapes64`` (rendered furniture). Every picture is 128x128 RGB on
white and has a concept (what it shows), a style (how it is drawn) and other words for the concept.
"""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipelines.crossflow.styles import STYLES
from training.tables import in_held_out_tenth, tell_checksum

Split = Literal["train", "heldout-pair", "heldout-concept"]
SIZE = 128
TABLES = ("emoji128.parquet", "stamps128.parquet", "shapes64.parquet")
CHECKSUMS = Path(__file__).parent / "data" / "checksums.json"

# What the tables call a style -> what a person calls it in a caption.
STYLE_OF_TABLE = {name: style for style, names in STYLES.items() for name in names}


@dataclass(frozen=True)
class Picture:
    """One captioned picture. ``row`` is its index in :attr:`Pictures.pixels`."""

    row: int
    concept: str
    style: str
    synonyms: tuple[str, ...]
    is_flag: bool
    split: Split


@dataclass(frozen=True)
class Pictures:
    """``pixels``: (N, 128, 128, 3) uint8; ``items``: one :class:`Picture` per row."""

    pixels: np.ndarray
    items: list[Picture]

    def select(self, *splits: Split, flags: bool = False) -> list[Picture]:
        return [item for item in self.items if item.split in splits and (flags or not item.is_flag)]


def data_folder(argument: str | None) -> Path:
    """The folder of the tables: the ``--data`` argument, else ``$SYNESTHETE_DATA``."""
    folder = argument or os.environ.get("SYNESTHETE_DATA")
    if not folder:
        raise SystemExit(
            "No data folder: pass --data FOLDER or set SYNESTHETE_DATA (training/README.md says how to build it)."
        )
    return Path(folder)


def concept_name(caption: str) -> str:
    """A caption reduced to its concept: lower case, no article, no full stop. Pictures of one concept share it."""
    name = caption.strip().lower().rstrip(".")
    return re.sub(r"^(an?|the|some) ", "", name)


def split_of(concept: str, style: str) -> Split:
    """Where a picture belongs: a tenth of the concepts, and a tenth of the other concept-style pairs, are held out."""
    if in_held_out_tenth(concept):
        return "heldout-concept"
    return "heldout-pair" if in_held_out_tenth(f"{concept}|{style}") else "train"


def verify_checksums(folder: Path) -> None:
    """Say of each table whether it is the one that the shipped weights were trained on; end if one is missing."""
    expected = json.loads(CHECKSUMS.read_text())
    for name in TABLES:
        tell_checksum(folder / name, expected[name])


def load_pictures(folder: Path) -> Pictures:
    """All pictures of the three tables, in a fixed order."""
    rows = [*_emoji(folder), *_stamps(folder), *_shapes(folder)]
    pixels = np.empty((len(rows), SIZE, SIZE, 3), np.uint8)
    items = []
    for index, (encoded, concept, style, synonyms, is_flag) in enumerate(rows):
        pixels[index] = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        items.append(Picture(index, concept, style, synonyms, is_flag, split_of(concept, style)))
    return Pictures(pixels, items)


Row = tuple[bytes, str, str, tuple[str, ...], bool]


def _emoji(folder: Path) -> list[Row]:
    table = pq.read_table(folder / "emoji128.parquet").to_pylist()
    return [
        (
            row["image"],
            concept_name(row["caption"]),
            STYLE_OF_TABLE[row["style"]],
            tuple(dict.fromkeys(map(str.lower, row["keywords"] + row["more_keywords"][:4]))),
            row["is_flag"],
        )
        for row in table
    ]


def _stamps(folder: Path) -> list[Row]:
    table = pq.read_table(folder / "stamps128.parquet").to_pylist()
    return [
        (
            row["image"],
            concept_name(row["caption"]),
            STYLE_OF_TABLE[row["style"]],
            tuple(filter(None, [concept_name(row["name"])])),
            False,
        )
        for row in table
    ]


def _shapes(folder: Path) -> list[Row]:
    table = pq.read_table(folder / "shapes64.parquet").to_pylist()
    return [(row["icon"], concept_name(row["name"]), STYLE_OF_TABLE["shape"], (), False) for row in table]
