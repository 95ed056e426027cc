"""Reads the tables back and says what is wrong with them."""

from __future__ import annotations

import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from training.data.common import SIZE, read_json
from training.data.licences import family

MIN_RMS = 1e-3


def verify(folder: Path, tables: Iterable[str]) -> list[str]:
    """One sentence for everything that is wrong with these tables, named as in :data:`CHECKS`, in ``folder``."""
    return [problem for table in tables for problem in CHECKS[table](folder)]


def _read(folder: Path, name: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    return pq.read_table(folder / name, columns=columns).to_pylist()


def check_emoji(folder: Path) -> Iterator[str]:
    rows = _read(folder, "emoji128.parquet", ["concept", "style", "caption", "image"])
    yield from _pictures("emoji", [(f"{row['concept']} {row['style']}", row["caption"], row["image"]) for row in rows])


def check_stamps(folder: Path) -> Iterator[str]:
    rows = _read(folder, "stamps128.parquet", ["id", "caption", "image"])
    yield from _pictures("stamps", [(row["id"], row["caption"], row["image"]) for row in rows])


def check_shapes(folder: Path) -> Iterator[str]:
    rows = _read(folder, "shapes64.parquet")
    # ids may repeat here
    yield from _shapes("shapes", {f"{row['library']} {row['id']} {i}": row for i, row in enumerate(rows)})


def check_share_alike_shapes(folder: Path) -> Iterator[str]:
    table = "shapes-sharealike"
    rows = _read(folder, "shapes64-sharealike.parquet")
    yield from _repeated(table, (f"{row['library']} {row['id']}" for row in rows))
    keyed = {f"{row['library']} {row['id']}": row for row in rows}
    yield from _shapes(table, keyed)
    for key, row in keyed.items():
        if family(row["licence"]) not in ("permissive", "attribution", "sharealike"):
            yield f"{table}: {key} is under the licence {row['licence']}."
        if not row["creator"]:
            yield f"{table}: nobody is named as the creator of {key}."


def _shapes(table: str, rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """``rows``: by their keys."""
    yield from _pictures(table, [(key, row["name"], row["icon"]) for key, row in rows.items()])
    for key, row in rows.items():
        occupied = np.unpackbits(np.frombuffer(zlib.decompress(row["mask"]), np.uint8))
        if len(occupied) != 64**3 or occupied.sum() != row["voxels"] or row["voxels"] == 0:
            yield f"{table}: the mask of {key} does not hold {row['voxels']} voxels of 64^3."
        if len(zlib.decompress(row["rgb"])) != 3 * row["voxels"]:
            yield f"{table}: {key} does not have one colour a voxel."


def _pictures(table: str, pictures: list[tuple[str, str, bytes]]) -> Iterator[str]:
    """``pictures``: (key, caption, encoded image)."""
    yield from _repeated(table, (key for key, _, _ in pictures))
    for key, caption, encoded in pictures:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.mode != "RGB" or image.size != (SIZE, SIZE):
                yield f"{table}: the picture {key} is {image.mode} of {image.size}."
            image.load()
        if not caption:
            yield f"{table}: {key} has no caption."


def _repeated(table: str, keys: Iterable[str]) -> Iterator[str]:
    for key, count in Counter(keys).items():
        if count > 1:
            yield f"{table}: {key} is there {count} times."


def check_sounds(folder: Path) -> Iterator[str]:
    """The clips, and the mapping as far as the tables that it names are there."""
    import soundfile

    rows = _read(folder, "sounds16k.parquet", ["id", "class", "path", "audio"])
    yield from _repeated("sounds", (row["id"] for row in rows))
    for row in rows:
        samples, sample_rate = soundfile.read(io.BytesIO(row["audio"]), dtype="float32")
        problem = problem_of_clip(samples, sample_rate)
        if problem:
            yield f"sounds: the clip {row['id']} ({row['class']}, {row['path']}) {problem}."
    yield from _mapping(folder, Counter(row["class"] for row in rows))


def problem_of_clip(samples: np.ndarray, sample_rate: int) -> str | None:
    """What is wrong with a clip, if anything. ``samples``: (N,) or (N, channels)."""
    if sample_rate != 16_000 or samples.ndim != 1:
        return "is not 16 kHz mono"
    if not 0.05 < len(samples) / sample_rate <= 4.05:
        return f"lasts {len(samples) / sample_rate:.2f} s"
    if not np.isfinite(samples).all():
        return "has samples that are no numbers"
    return "is silent" if np.sqrt((samples**2).mean()) <= MIN_RMS else None


def _mapping(folder: Path, counts: Counter[str]) -> Iterator[str]:
    classes = read_json(folder / "sounds_mapping.json")["classes"]
    emoji, stamps = folder / "emoji128.parquet", folder / "stamps128.parquet"
    for sound, entry in classes.items():
        if entry["clips"] != counts[sound]:
            yield f"sounds: the mapping counts {entry['clips']} clips of {sound}, the table {counts[sound]}."
    if emoji.exists():
        drawn = {_bare(row["emoji"]) for row in _read(folder, emoji.name, ["emoji"])}
        for sound, entry in classes.items():
            yield from (f"sounds: no picture of {e} for {sound}." for e in entry["emoji"] if _bare(e) not in drawn)
    if stamps.exists():
        known = {row["id"] for row in _read(folder, stamps.name, ["id"])}
        for sound, entry in classes.items():
            yield from (f"sounds: no stamp {stamp} for {sound}." for stamp in entry["stamps"] if stamp not in known)


def _bare(emoji: str) -> str:
    return emoji.replace("\ufe0f", "")


CHECKS: dict[str, Callable[[Path], Iterator[str]]] = {
    "emoji": check_emoji,
    "stamps": check_stamps,
    "sounds": check_sounds,
    "shapes": check_shapes,
    "shapes-sharealike": check_share_alike_shapes,
}
