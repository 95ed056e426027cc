"""Names of things that can be seen as well as heard, by which one goes from a space of sounds to one of sights."""

from __future__ import annotations

from pathlib import Path

THINGS = Path(__file__).with_suffix(".txt")


def sounding_things() -> tuple[str, ...]:
    """Each with its article where it has one."""
    return tuple(THINGS.read_text(encoding="utf-8").splitlines())
