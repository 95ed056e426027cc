"""Fetches files of the Hugging Face Hub into the Hub's own cache; a broken fetch goes on where it stopped.

The Hub's client throws away what it has of a file when a fetch ends early. So the bytes are collected here, beside the
place where the client looks for the whole file, which it then only has to give its name.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.accounts import readable_bytes
from models.checksums import SHA256_DIGITS, hash_of
from models.errors import UserError

OnProgress = Callable[[float, str], None]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
GOES_ON = "Try again: it goes on from there."


@dataclass(frozen=True)
class Remote:
    """A file as the Hub describes it. ``etag`` is the sha256 of a large file; ``size`` in bytes, 0 where not told."""

    name: str
    url: str
    etag: str
    size: int
    blobs: Path

    @property
    def whole(self) -> Path:
        """Where the cache keeps it."""
        return self.blobs / self.etag

    @property
    def part(self) -> Path:
        """What has arrived of it so far."""
        return self.blobs / f"{self.etag}.part"

    @property
    def arrived(self) -> int:
        """Bytes of it that are on this machine."""
        path = self.whole if self.whole.exists() else self.part
        return path.stat().st_size if path.exists() else 0


def cached(repo: str, revision: str, name: str) -> Path | None:
    """The file's place in the cache, or ``None`` if it is not on this machine."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def fetch(repo: str, revision: str, names: Sequence[str], on_progress: OnProgress) -> None:
    """Bring ``names`` into the cache. ``on_progress`` is told the share of bytes that are there.

    Raises :class:`UserError` where the Hub cannot be asked, has no such file or asks for an account, the connection
    breaks, or the disk is full or read-only. What has arrived is kept.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    name, files = names[0], []
    try:
        for name in names:
            files.append(_described(repo, revision, name))
        _check_space(repo, files)
        total = max(1, sum(file.size for file in files))
        for file in files:
            name = file.name
            others = sum(other.arrived for other in files if other is not file)
            _collect(file, _Report(on_progress, file.name, others, total))
            hf_hub_download(repo, file.name, revision=revision)
    except (OSError, HTTPError) as error:
        arrived = next((file.arrived for file in files if file.name == name), 0)
        raise _explained(error, repo, name, arrived) from error


@dataclass(frozen=True)
class _Report:
    """Told the bytes of a file that are there, tells the share of all bytes that are."""

    on_progress: OnProgress
    name: str
    others: int
    total: int

    def __call__(self, arrived: int) -> None:
        there = min(self.total, self.others + arrived)
        count = f"{readable_bytes(there)} of {readable_bytes(self.total)}"
        self.on_progress(there / self.total, f"Fetching {self.name}, {count}")


def _described(repo: str, revision: str, name: str) -> Remote:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    url = hf_hub_url(repo, name, revision=revision)
    told = get_hf_file_metadata(url)
    if not told.etag or Path(told.etag).name != told.etag:
        raise UserError(f"What answers at {constants.ENDPOINT} is no Hugging Face Hub.", "Check HF_ENDPOINT.")
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    return Remote(name, url, told.etag, told.size or 0, blobs)


def _check_space(repo: str, files: Sequence[Remote]) -> None:
    """Raises :class:`UserError` if what is still to come does not fit on the disk."""
    need = sum(max(0, file.size - file.arrived) for file in files)
    blobs = files[0].blobs
    there = next(folder for folder in (blobs, *blobs.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if need > free:
        raise UserError(
            f"{readable_bytes(need)} are still to be fetched of {repo}, and the disk of '{there}' has "
            f"{readable_bytes(free)} left.",
            "Free some space, or set HF_HOME to a folder on another disk.",
        )


def _collect(file: Remote, report: _Report) -> None:
    """Go on with a file until it is whole; programs that want the same one wait for each other."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

    file.blobs.mkdir(parents=True, exist_ok=True)
    report(file.arrived)
    with WeakFileLock(file.part.with_suffix(".lock")):
        if file.whole.exists():
            return
        before = file.arrived
        if 0 < file.size < before:
            file.part.unlink()
            before = 0
        with file.part.open("ab") as collected:
            http_get(
                file.url,
                collected,
                resume_size=before,
                headers=build_hf_headers(),
                expected_size=file.size or None,
                tqdm_class=_bar(report),
            )
        if before and len(file.etag) == SHA256_DIGITS and hash_of(file.part) != file.etag:
            file.part.unlink()
            raise UserError(f"'{file.name}' arrived damaged.", "Fetch it again.")
        os.replace(file.part, file.whole)


def _bar(report: _Report) -> Any:
    """A progress bar class, as the Hub's client wants one, that draws nothing and reports its bytes."""
    from tqdm.auto import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, initial: int = 0, **kwargs: Any) -> None:
            super().__init__(*args, initial=initial, **kwargs)
            self.arrived = initial  # the base class counts only when it draws

        def display(self, *args: Any, **kwargs: Any) -> None:
            """Draws nothing."""

        def update(self, n: float | None = 1) -> bool | None:
            self.arrived += int(n or 0)
            report(self.arrived)
            return super().update(n)

    return Bar


def _explained(error: Exception, repo: str, name: str, arrived: int) -> UserError:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    kept = f" {readable_bytes(arrived)} of it have arrived and are kept." if arrived else ""
    if getattr(error, "errno", None) in FULL:
        return UserError(
            f"There is no space left on the disk to fetch '{name}' of {repo}.{kept}",
            f"Free some space and try again{': it goes on from there.' if arrived else '.'}",
        )
    if getattr(error, "errno", None) in FORBIDDEN:
        return UserError(
            f"Nothing can be written in '{constants.HF_HUB_CACHE}', where what is fetched from the Hub goes.",
            "Set HF_HOME to a folder that you may write to.",
        )
    if isinstance(error, OfflineModeIsEnabled):
        return UserError(
            f"'{name}' of {repo} is not on this machine, and could not be fetched: HF_HUB_OFFLINE is set.",
            "Unset it, or use the lite profile, which needs no network.",
        )
    if isinstance(error, GatedRepoError):
        return UserError(
            f"The Hugging Face Hub gives '{name}' of {repo} only to those who asked for it.",
            f"Ask for it on the page of {repo}, then log in with 'hf auth login'.",
        )
    if isinstance(error, RemoteEntryNotFoundError | RepositoryNotFoundError | RevisionNotFoundError):
        return UserError(
            f"The Hugging Face Hub has no '{name}' of {repo}, or not for you.",
            "If you have it in a folder, name that with --local-weights.",
        )
    if arrived:
        return UserError(f"The connection broke while '{name}' of {repo} was fetched.{kept}", GOES_ON)
    return UserError(
        f"'{name}' of {repo} could not be fetched from the Hugging Face Hub.",
        "Check the network connection, or use the lite profile, which needs none.",
    )
