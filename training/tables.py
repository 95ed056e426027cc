"""What every table of training data has: its checksum, and a split by hash that no rebuild changes."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path


def in_held_out_tenth(key: str) -> bool:
    """Whether ``key`` is of the tenth of all keys that is never trained on."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 10 == 0


def tell_checksum(path: Path, expected: str) -> None:
    """Say whether the table ``path`` is the one that the shipped weights were trained on; end if it is missing.

    A rebuild has rows that the shipped weights never saw, so another checksum is no fault, but another experiment.
    """
    if not path.is_file():
        raise SystemExit(f"{path} is missing: build it as training/README.md says.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    same = "the table of the shipped weights" if found == expected else "NOT the table of the shipped weights"
    print(f"{path.name}: {same} (sha256 {found[:12]})", flush=True)


def recipe_arguments(
    description: str | None, steps: int, batch: int | None, permissive_only: str
) -> argparse.ArgumentParser:
    """The options of recipes whose tables are partly share-alike; ``permissive_only``: what is done without those."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", help="folder of the tables")
    parser.add_argument("--steps", type=int, default=steps)
    if batch is not None:
        parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--permissive-only", action="store_true", help=permissive_only)
    return parser


def add_continue_from(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The option of recipes that can go on from weights of an earlier run, on more data or for longer."""
    parser.add_argument("--continue-from", type=Path, help="weights to go on from, with fresh optimizer state")
    return parser
