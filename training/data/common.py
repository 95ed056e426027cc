"""What every builder needs: where a package lies, pictures on white squares, WebP bytes, tables."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIZE = 128
"""Width and height of every picture in the tables, in pixels."""

SHARP_WEBP: Mapping[str, Any] = {"quality": 95, "method": 5, "use_sharp_yuv": True}

log = logging.getLogger(__name__)
Item = TypeVar("Item")


def package_folder(work: Path, source: str) -> Path:
    """Where :func:`training.data.fetch.fetch` has unpacked a package. Raises FileNotFoundError if it has not."""
    folder = work / "packages" / source
    if not folder.is_dir():
        raise FileNotFoundError(f"The package {source} is not unpacked under {work}.")
    return folder


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf8"))


def folders_below(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """``folder`` and every folder below it, in the order of their names, each with its sorted file names."""
    for parent, _, names in sorted(os.walk(folder)):
        yield Path(parent), sorted(names)


def sentence_of(path: Path) -> str:
    """The first line of a text file: the English sentence that Tux Paint says of a stamp."""
    with path.open(encoding="utf8", errors="replace") as file:
        return file.readline().strip()


def evenly_spread(items: Sequence[Item], most: int) -> Sequence[Item]:
    """``items``, or ``most`` of them with the first and the last, in their order."""
    if len(items) <= most:
        return items
    return [items[index] for index in np.linspace(0, len(items) - 1, most).round().astype(int)]


def on_white(image: Image.Image, side: int | None = None, reducing_gap: float | None = 3.0) -> Image.Image:
    """An RGBA picture centred on a white square of ``side`` pixels (default: its longer side), reduced to 128x128 RGB.

    Compositing comes before the reduction, so transparent edges get no dark fringe. ``reducing_gap``: Pillow's, for a
    faster reduction of large pictures.
    """
    side = side or max(image.size)
    square = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS, reducing_gap=reducing_gap)


def encode_webp(image: Image.Image, options: Mapping[str, Any] = SHARP_WEBP) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return buffer.getvalue()


def left_out(what: str, error: Exception) -> None:
    """Say that one item is left out because its file cannot be read.

    The packages hold a few broken or exotic files among tens of thousands, and each decoder fails in its own way, so
    the builders catch any exception of one item, report it here, and go on.
    """
    log.warning("left out %s: %r", what, error)


def write_table(table: pa.Table, path: Path, **options: Any) -> None:
    """Write a Parquet file (zstd) and report its size; ``options`` go to ``pyarrow.parquet.write_table``."""
    pq.write_table(table, path, compression="zstd", **options)
    log.info("%s: %d rows, %d bytes", path.name, table.num_rows, path.stat().st_size)
