"""Hashes of files. What was hashed once is hashed again only after it has changed on the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

SUMS = "SHA256SUMS"
SIDE_FILES = (SUMS, "MODEL_CARD.md", "README.md")  # they say nothing of the weights
SHA256_DIGITS = 64


def hash_of(path: Path) -> str:
    """sha256 (hex) of a file's contents."""
    seen = path.stat()  # before the contents: a change while they are read is seen at the next look
    return _hash(path, seen.st_ino, seen.st_size, seen.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash(path: Path, number: int, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_in(folder: Path) -> list[str]:
    """Names of the files of a folder of weights and of the folders in it (``unet/config.json``), in order.

    Hidden ones are left out, and what lies deeper: published layouts have one level of parts.
    """
    found = (path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file())
    names = (path.relative_to(folder) for path in found)
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def checksum_of(sums: Mapping[str, str]) -> str:
    """One checksum over file names and their hashes, whatever their order; side files do not count."""
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()) if name not in SIDE_FILES)
    return hashlib.sha256(listing.encode()).hexdigest()
