"""The licence of one file of an unpacked Debian package, from the package's machine-readable copyright file.

The file's patterns name paths in the *source* package. Installed paths differ at the front, so a pattern is tried as it
is and then with its leading folders dropped one by one. As in the format itself, the last stanza that matches wins.
"""

from __future__ import annotations

import functools
import gzip
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

UNKNOWN = "see the package's copyright file"
FAMILIES = ("permissive", "attribution", "sharealike", "gpl", "other")
"""From the freest to the least free."""

# Folders whose name says nothing: a pattern may lose them and still mean the same files.
GENERIC_FOLDERS = {"data", "share", "usr", "content", "src", "mtg", "etc", "games", "library", "res", "binaries"}


def licence_of(package: Path, path: str, by_hand: Mapping[str, str]) -> str:
    """The licence of the file ``path`` (relative, with slashes) of the package unpacked in the folder ``package``.

    ``by_hand`` comes first, for packages with a free-text copyright file and for PyPI wheels. Its keys are ``package``
    or ``package:regular expression on the lower-case path``.
    """
    lowered = "/" + path.lower()
    for key, licence in by_hand.items():
        name, _, expression = key.partition(":")
        if name == package.name and re.search(expression, lowered):
            return licence
    program = package.name.replace("-data", "")
    for patterns, licence in reversed(_stanzas(package)):
        if any(pattern_matches(pattern, lowered, program) for pattern in patterns):
            return licence
    return UNKNOWN


def is_free(licence: str) -> bool:
    """Sampling licences are the ones in these packages that forbid some uses."""
    return "sampling" not in licence.lower()


@functools.cache
def _stanzas(package: Path) -> list[tuple[list[str], str]]:
    """(patterns, licence) of every stanza of the package's copyright file."""
    path = next(iter(sorted(package.glob("usr/share/doc/*/copyright*"))), None)
    if path is None:
        return []
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return parse_stanzas(content.decode("utf8", "replace"))


def parse_stanzas(text: str) -> list[tuple[list[str], str]]:
    """(patterns, licence) of every paragraph that has both, in the order of a Debian copyright file."""
    stanzas = []
    for paragraph in re.split(r"\n\s*\n", text):
        files = re.search(r"^Files:[ \t]*((?:.*\n?)(?:[ \t]+.*\n?)*)", paragraph, re.M)
        licence = re.search(r"^License:[ \t]*(.+)", paragraph, re.M)
        if files and licence:
            stanzas.append((files[1].split(), licence[1].strip()))
    return stanzas


def pattern_matches(pattern: str, path: str, program: str) -> bool:
    """Whether a pattern of the source package means an installed file.

    ``path`` is lower case and starts with a slash; ``program`` is the name of the package without ``-data``.
    """
    if pattern.startswith("debian"):
        return False
    if pattern == "*":
        return True
    parts = pattern.lower().rstrip(",").replace("?", "*").split("/")
    if len(parts) == 2 and parts[0] == program:  # the program's own source folder, not its data
        return False
    for dropped in range(len(parts)):
        rest = "/".join(parts[dropped:])
        if dropped and "*" in rest and (parts[dropped - 1] not in GENERIC_FOLDERS or dropped == len(parts) - 1):
            return False  # what is left would match too much
        if fnmatchcase(path, "*/" + rest):
            return True
        if "*" not in rest and fnmatchcase(path, "*/" + os.path.splitext(rest)[0] + ".*"):  # converted when packaged
            return True
    return False


def family(licence: str) -> str:
    """The family in :data:`FAMILIES`: of parts joined by "and" the strictest, of a choice with "or" the freest."""
    ways = re.split(r"\bor\b(?! later)", licence.lower().split("(")[0])
    return FAMILIES[min(max(_rank(part) for part in re.split(r"\band\b", way)) for way in ways)]


def _rank(licence: str) -> int:
    """The index in :data:`FAMILIES` of one lower-case licence name."""
    if re.search(r"\bcc-?by-?sa|sharealike", licence):
        return 2
    if re.search(r"gpl", licence):
        return 3
    if re.search(r"gfdl|artistic|battle|free-?art|mpl|cddl|see the", licence):
        return 4
    if re.search(r"\bcc-?by|attribution", licence):
        return 1
    if re.search(r"cc-?0|zero|public.?domain|\bmit\b|expat|zlib|bsd|wtfpl|apache|isc|feel free", licence):
        return 0
    return 4
