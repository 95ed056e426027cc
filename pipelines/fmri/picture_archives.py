"""Zip archives of what was seen, as people upload them: pictures, and perhaps a table of their numbers."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path

from models.errors import UserError
from pipelines.media import suffixes_of

PICTURES = suffixes_of("image")
TABLE = ".csv"
MOST_FILES, MOST_BYTES = 20_000, 2**30  # of an archive, unpacked
_BESIDE = re.compile(r"(?:^|/)(?:\.(?!\.)|__MACOSX/|Thumbs\.db$)")  # what systems put in unasked


def unpack(archive: Path, folder: Path) -> Path:
    """Its pictures, whatever folders they are in there, into the empty ``folder``; returns the table, if there is one
    among them, or the folder.

    Raises :class:`UserError` for what is no zip archive of pictures, or a suspicious one.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _chosen(opened)
            for name, member in members.items():
                (folder / name).write_bytes(opened.read(member))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise UserError(
            f"'{archive.name[:60]}' is no zip archive that can be read.", "Pack the pictures anew."
        ) from error
    tables = [folder / name for name in members if name.lower().endswith(TABLE)]
    if len(tables) > 1:
        raise UserError(f"There are {len(tables)} tables in the archive.", "Put in one, or none.")
    return tables[0] if tables else folder


def _chosen(opened: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """By the names that they get; nothing is unpacked for it."""
    infos = [info for info in opened.infolist() if not info.is_dir() and not _BESIDE.search(info.filename)]
    if len(infos) > MOST_FILES or sum(info.file_size for info in infos) > MOST_BYTES:
        raise UserError(
            "The archive is too large.", f"At most {MOST_FILES:,} files and {MOST_BYTES // 2**20:,} MB unpacked."
        )
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        if ".." in Path(info.filename).parts or re.match(r"/|[A-Za-z]:|.*\\", info.filename):
            raise UserError(
                f"The archive has a path in it that leads out of it ({info.filename[:40]!r}).", "Pack plain files."
            )
        if info.flag_bits & 1:
            raise UserError("The archive is locked with a password.", "Pack it without.")
        name = Path(info.filename).name
        if not name.lower().endswith((*PICTURES, TABLE)):
            continue
        if name in members:
            raise UserError(f"Two files in the archive are called '{name[:60]}'.", "Call each by its own number.")
        members[name] = info
    if not members:
        raise UserError("No picture is in the archive.", f"Pictures end in {', '.join(PICTURES)}.")
    return members
