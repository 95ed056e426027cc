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
from typing import NamedTuple

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
    stanza = _stanza_of(package, lowered)
    return stanza.licence if stanza else UNKNOWN


def holders_of(package: Path, path: str) -> str:
    """Who holds the copyright of a file as in :func:`licence_of`: names, years and all; empty if nobody is named."""
    stanza = _stanza_of(package, "/" + path.lower())
    return stanza.holders if stanza else ""


class Stanza(NamedTuple):
    """A paragraph of a Debian copyright file. ``holders``: in one line, separated by commas."""

    patterns: list[str]
    licence: str
    holders: str


@functools.cache
def _stanza_of(package: Path, lowered: str) -> Stanza | None:
    program = package.name.replace("-data", "")
    for stanza in reversed(_stanzas(package)):
        if any(pattern_matches(pattern, lowered, program) for pattern in stanza.patterns):
            return stanza
    return None


def is_free(licence: str) -> bool:
    """Sampling licences are the ones in these packages that forbid some uses."""
    return "sampling" not in licence.lower()


@functools.cache
def _stanzas(package: Path) -> list[Stanza]:
    """Every stanza of the package's copyright file."""
    path = next(iter(sorted(package.glob("usr/share/doc/*/copyright*"))), None)
    if path is None:
        return []
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return parse_stanzas(content.decode("utf8", "replace"))


def parse_stanzas(text: str) -> list[Stanza]:
    """Every paragraph that has patterns and a licence, in the order of a Debian copyright file."""
    stanzas = []
    for paragraph in re.split(r"\n\s*\n", text):
        files, holders = (_field(name, paragraph) for name in ("Files", "Copyright"))
        licence = re.search(r"^License:[ \t]*(.+)", paragraph, re.M)
        if files and licence:
            people = ", ".join(line.strip() for line in holders.splitlines() if line.strip())
            stanzas.append(Stanza(files.split(), licence[1].strip(), people))
    return stanzas


def _field(name: str, paragraph: str) -> str:
    """All lines of a field, or nothing."""
    found = re.search(rf"^{name}:[ \t]*((?:.*\n?)(?:[ \t]+.*\n?)*)", paragraph, re.M)
    return found[1] if found else ""


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
