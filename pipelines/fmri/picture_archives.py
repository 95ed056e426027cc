"""Zip archives of what was seen, as people upload them: pictures, and perhaps a table of their numbers."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from pathlib import Path

from models.errors import UserError
from pipelines.fmri.picture_files import PICTURES, picture_files

TABLE = ".csv"
MOST_FILES, MOST_BYTES = 20_000, 2**30  # of an archive, unpacked
_BESIDE = re.compile(r"(?:^|/)(?:\.(?!\.)|__MACOSX/|Thumbs\.db$)")  # what systems put in unasked


def unpack(archive: Path, folder: Path) -> Path:
    """Its pictures, whatever folders they are in there, into the empty ``folder``; returns the table, if there is one
    among them, or the folder.

    Raises :class:`UserError` for what is no zip archive of pictures, or a suspicious one, also where its table names
    a file that is not in it.
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
    for table in tables:
        _check_names(table)
    return tables[0] if tables else folder


def _check_names(table: Path) -> None:
    """An archive is anybody's: its table may name nothing on this machine but what came with it."""
    folder = os.path.abspath(table.parent)
    for _, path in picture_files(table):
        if not Path(os.path.abspath(path)).is_relative_to(folder):  # no links are unpacked
            raise UserError(
                f"The table in the archive names a file outside of it ({path.name[:40]!r}).",
                "Name the pictures that are in the archive.",
            )


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
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError("The archive is packed in a way that is not read.", "Pack it as a plain zip.")
        name = Path(info.filename).name
        if not name.lower().endswith((*PICTURES, TABLE)):
            continue
        if name in members:
            raise UserError(f"Two files in the archive are called '{name[:60]}'.", "Call each by its own number.")
        members[name] = info
    if not members:
        raise UserError("No picture is in the archive.", f"Pictures end in {', '.join(PICTURES)}.")
    return members
