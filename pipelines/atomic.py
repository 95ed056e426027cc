"""Files that are either whole or not there, and plain words for what can be wrong with a user's folder."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import UserError

TEMPORARY_SUFFIX = ".tmp"

_MISSING = (errno.ENOENT, errno.ENOTDIR)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path``, flush it to the disk, then rename: readers see the old file or the new one.

    Raises :class:`UserError` where the folder is missing, read-only or full, or ``path`` is a folder.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    with plain_folder_errors(path):
        try:
            _write_and_flush(temporary, data)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)


@contextmanager
def plain_folder_errors(path: Path) -> Iterator[None]:
    """Turns an ``OSError`` that the user's folder causes into a :class:`UserError` about writing ``path``."""
    try:
        yield
    except OSError as error:
        explained = _explain(error, path)
        if explained is None:
            raise
        raise explained from error


def _write_and_flush(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Makes a rename in ``folder`` last through a loss of power. Windows cannot open a folder, and needs not."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explain(error: OSError, path: Path) -> UserError | None:
    folder = str(path.parent)
    if error.errno in _MISSING:
        return UserError(f"The folder '{folder}' does not exist.", "Create it, or choose another one.")
    if error.errno == errno.EEXIST:
        return UserError(f"'{folder}' is a file, not a folder.", "Choose a folder.")
    if error.errno in _FORBIDDEN:
        return UserError(f"Nothing can be written in the folder '{folder}'.", "Choose a folder that you may write to.")
    if error.errno in _FULL:
        return UserError(f"There is no space left for '{path.name[:60]}' in '{folder}'.", "Free some space first.")
    if error.errno == errno.EISDIR:
        return UserError(f"'{path}' is a folder, not a file.", "Give the name of a file.")
    if error.errno == errno.ENAMETOOLONG:
        return UserError(f"The file name '{path.name[:60]}…' is too long.", "Choose a shorter one.")
    return None
