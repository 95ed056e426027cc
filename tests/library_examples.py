"""Pictures to put into a gallery, and the check that a gallery is sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import JsonValue

from app.library import Entry, Library
from pipelines.artifact import sidecar_path
from pipelines.media import Image, Provenance, load_artifact


def made(text: str = "a red apple", seed: int = 0, index: int = 0) -> Provenance:
    given: dict[str, JsonValue] = {"medium": "text", "text": text}
    return Provenance(
        pipeline="crossflow",
        inputs=(given,),
        params={},
        seed=seed,
        parents=(),
        models=(),
        index=index,
        version="0.1",
    )


def picture(text: str = "a red apple", seed: int = 0) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image(pixels, provenance=made(text, seed))


def assert_sound(folder: Path) -> list[Entry]:
    """Every entry's file is whole and is what was added, and after a sweep there are no other files."""
    library = Library(folder)
    library.sweep(older_than=0)
    entries = library.entries(limit=100_000)
    assert len(entries) == library.count()
    for entry in entries:
        assert library.load(entry.id).content_hash() == entry.content_hash
        assert load_artifact(entry.path).provenance == entry.provenance
        assert entry.size_bytes == entry.path.stat().st_size
    files = {path for path in (folder / "files").rglob("*") if path.is_file()}
    assert files == {path for entry in entries for path in (entry.path, sidecar_path(entry.path))}
    library.close()
    return entries
