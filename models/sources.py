"""Where weights come from: a folder of this repository, the Hugging Face Hub, or a folder of the user's.

Every source resolves to a local folder and a checksum over the names and contents of its files.
"""

from __future__ import annotations

import errno
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from models.errors import UserError

ASSETS = Path(__file__).parent.parent / "assets" / "weights"
SUMS = "SHA256SUMS"
SIDE_FILES = (SUMS, "MODEL_CARD.md", "README.md")

OnProgress = Callable[[float, str], None]


@dataclass(frozen=True)
class Files:
    """``checksum``: sha256 (hex) over the names and hashes of the files that the loader reads."""

    folder: Path
    checksum: str


class Source(ABC):
    """A place of weights."""

    @abstractmethod
    def resolve(self, on_progress: OnProgress) -> Files:
        """Fetch if needed, verify once per process. Raises :class:`UserError` for what is missing or damaged."""

    @abstractmethod
    def missing(self) -> tuple[str, ...]:
        """Names of the files that are not on this machine yet; empty if the source resolves without a network."""


@dataclass(frozen=True)
class Folder(Source):
    """A folder on this machine. With a ``SHA256SUMS`` in it, every file that it lists has to be as it says."""

    path: Path

    def resolve(self, on_progress: OnProgress) -> Files:
        on_progress(0.0, f"Checking {self.path.name}")
        return Files(self.path, _verified(self.path))

    def missing(self) -> tuple[str, ...]:
        if not (self.path / SUMS).is_file():
            return () if self.path.is_dir() else (self.path.name,)
        return tuple(name for name in read_sums(self.path) if not (self.path / name).is_file())


class Bundled(Folder):
    """A folder ``assets/weights/<name>`` of this repository; it always has a ``SHA256SUMS``."""

    def __init__(self, name: str) -> None:
        super().__init__(ASSETS / name)

    def resolve(self, on_progress: OnProgress) -> Files:
        if self.path.is_dir() and not (self.path / SUMS).is_file():
            raise UserError(f"The weights '{self.path.name}' have no {SUMS}.", _restore(self.path))
        return super().resolve(on_progress)


@dataclass(frozen=True)
class Hub(Source):
    """``files`` of one ``subfolder`` of a Hub repository at ``revision``, kept in the Hub's own cache."""

    repo: str
    revision: str
    files: tuple[str, ...]
    subfolder: str = ""

    def resolve(self, on_progress: OnProgress) -> Files:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HTTPError, XetDownloadError  # type: ignore[attr-defined]

        paths = []
        try:
            for number, name in enumerate(self.files):
                on_progress(number / len(self.files), f"Fetching {name}")
                bar = _bar(on_progress, number / len(self.files), 1 / len(self.files), f"Fetching {name}")
                paths.append(hf_hub_download(self.repo, self._name(name), revision=self.revision, tqdm_class=bar))
        except (OSError, EntryNotFoundError, HTTPError, XetDownloadError) as error:
            raise self._explain(error, self.files[len(paths)]) from error
        folder = Path(paths[0]).parent
        on_progress(1.0, f"Checking {self.repo}")
        return Files(folder, _checksum_of_files(folder, self.files))

    def missing(self) -> tuple[str, ...]:
        from huggingface_hub import try_to_load_from_cache

        def cached(name: str) -> bool:
            return isinstance(try_to_load_from_cache(self.repo, self._name(name), revision=self.revision), str)

        return tuple(name for name in self.files if not cached(name))

    def _name(self, name: str) -> str:
        return f"{self.subfolder}/{name}" if self.subfolder else name

    def _explain(self, error: Exception, name: str) -> UserError:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return UserError(
                f"There is no space left on the disk to fetch '{name}' of {self.repo}.", "Free some space."
            )
        return UserError(
            f"'{name}' of {self.repo} could not be fetched from the Hugging Face Hub.",
            "Check the network connection, or use the lite profile, which needs none.",
        )


def read_sums(folder: Path) -> dict[str, str]:
    """File name -> sha256 (hex), from the folder's ``SHA256SUMS`` in the format of the command ``sha256sum``."""
    sums = {}
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name or Path(name).name != name:
            raise UserError(f"'{folder.name}/{SUMS}' is damaged.", _restore(folder))
        sums[name] = digest
    return sums


@cache  # a failure is not remembered, so a restored file is seen at the next load
def _verified(folder: Path) -> str:
    if not folder.is_dir():
        shown = folder.name if folder.is_relative_to(ASSETS) else folder
        raise UserError(f"The weights '{shown}' are missing.", _restore(folder))
    if not (folder / SUMS).is_file():
        names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in SIDE_FILES)
        return _checksum_of_files(folder, tuple(names))
    sums = read_sums(folder)
    for name, digest in sums.items():
        if not (folder / name).is_file():
            raise UserError(f"The file '{folder.name}/{name}' is missing.", _restore(folder))
        if _hash(folder / name) != digest:
            raise UserError(f"The file '{folder.name}/{name}' is damaged: it is not what it was.", _restore(folder))
    return _checksum_of(sums)


def _restore(folder: Path) -> str:
    if folder.is_relative_to(ASSETS):
        name = folder.relative_to(ASSETS.parent.parent).as_posix()
        return f"Restore it with 'git checkout -- {name}', or install again."
    return "Put the right files there, or choose another folder."


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _checksum_of_files(folder: Path, names: tuple[str, ...]) -> str:
    return _checksum_of({name: _hash(folder / name) for name in names})


def _checksum_of(sums: Mapping[str, str]) -> str:
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()) if name not in SIDE_FILES)
    return hashlib.sha256(listing.encode()).hexdigest()


def _bar(on_progress: OnProgress, start: float, share: float, message: str) -> Any:
    """A progress bar class, as the Hub's client wants one, that reports its bytes as a share of the whole."""
    from tqdm.auto import tqdm

    class Bar(tqdm):
        received = 0.0  # the base class counts only when it draws

        def display(self, *args: Any, **kwargs: Any) -> None:
            """Draws nothing."""

        def update(self, n: float | None = 1) -> bool | None:
            self.received += n or 0
            on_progress(start + share * min(1.0, self.received / self.total if self.total else 0.0), message)
            return super().update(n)

    return Bar
