"""What media are called when people are spoken to."""

from __future__ import annotations

from typing import NamedTuple


class Name(NamedTuple):
    """``wish``: how a thing of this medium is asked for, with its article."""

    noun: str
    plural: str
    wish: str


NAMES = {
    "text": Name("text", "texts", "a description"),
    "image": Name("picture", "pictures", "a picture"),
    "audio": Name("sound", "sounds", "a sound"),
    "video": Name("clip", "clips", "a clip"),
    "mesh": Name("3-D object", "3-D objects", "a 3-D object"),
    "scan": Name("scan", "scans", "a scan"),
}


def name_of(medium: str) -> Name:
    """Also of one that only an installed pipeline knows, by its own word for it."""
    return NAMES.get(medium) or Name(medium, f"pieces of {medium}", f"a {medium}")
