"""Where weights come from: a folder of this repository, the Hugging Face Hub, or a folder of the user's.

Every source resolves to a local folder and a checksum over the names and contents of its files. Files that could run
code on being read are refused, and so are files that are not what they were. ``packages.py`` adds weights that a Python
package carries.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from models.checksums import SHA256_DIGITS, SUMS, checksum_of, files_in, hash_of
from models.errors import UserError
from models.hub import OnProgress as OnProgress
from models.hub import cached, fetch
from models.safety import refuse_code, refuse_names

log = logging.getLogger(__name__)

ASSETS = Path(__file__).parent.parent / "assets" / "weights"


@dataclass(frozen=True)
class Files:
    """``checksum``: sha256 (hex) over the names and hashes of the files that the loader reads."""

    folder: Path
    checksum: str


class Source(ABC):
    """A place of weights; ``published``: whether there are any, be it here or elsewhere."""

    published: ClassVar[bool] = True

    @abstractmethod
    def resolve(self, on_progress: OnProgress) -> Files:
        """Fetch if needed, verify what changed since this process verified it last.

        Raises :class:`UserError` for what is missing, damaged, or could run code.
        """

    @abstractmethod
    def missing(self) -> tuple[str, ...]:
        """Names of the files that are not on this machine yet; empty if the source resolves without a network."""

    @property
    def origin(self) -> str:
        """Where it is fetched from, in words; empty for what is only ever looked for on this machine."""
        return ""

    @property
    def repos(self) -> tuple[str, ...]:
        """The Hub repositories whose licences count."""
        return ()


@dataclass(frozen=True)
class Folder(Source):
    """A folder on this machine, with the folders in it. If it has a ``SHA256SUMS``, every file in that
    list has to be as it says."""

    path: Path

    def resolve(self, on_progress: OnProgress) -> Files:
        on_progress(0.0, f"Checking {self.path.name}")
        if not self.path.is_dir():
            shown = self.path.name if self.path.is_relative_to(ASSETS) else self.path
            raise UserError(f"The weights '{shown}' are missing.", _restore(self.path))
        names = files_in(self.path)
        sums = _verified(self.path) if SUMS in names else _hashes(self.path, names)
        refuse_code(self.path, names)
        return Files(self.path, checksum_of(sums))

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

    @property
    def origin(self) -> str:
        return self.repo

    @property
    def repos(self) -> tuple[str, ...]:
        return (self.repo,)

    def resolve(self, on_progress: OnProgress) -> Files:
        refuse_names(self.files)
        if self.missing():
            # All of them, because a branch may have moved on since some were fetched.
            fetch(self.repo, self.revision, [self._name(name) for name in self.files], on_progress)
        on_progress(1.0, f"Checking {self.repo}")
        places = {name: self._place(name) for name in self.files}
        sums = {name: self._hash(path) for name, path in places.items()}
        folder = places[self.files[0]].parent
        refuse_code(folder, self.files)
        return Files(folder, checksum_of(sums))

    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in self.files if cached(self.repo, self.revision, self._name(name)) is None)

    def _place(self, name: str) -> Path:
        place = cached(self.repo, self.revision, self._name(name))
        if place is None:
            raise UserError(f"'{name}' of {self.repo} was deleted just now.", "Fetch it again.")
        return place

    def _hash(self, path: Path) -> str:
        """The cache links a name to a file that is called by its own hash, where that is a sha256."""
        digest = hash_of(path)
        stored = Path(os.readlink(path)).name if path.is_symlink() else ""
        if len(stored) == SHA256_DIGITS and stored != digest:
            raise UserError(
                f"'{path.name}' of {self.repo} is damaged: it is not what it was.",
                f"Delete '{path.resolve()}', and fetch it again.",
            )
        return digest

    def _name(self, name: str) -> str:
        return f"{self.subfolder}/{name}" if self.subfolder else name


@dataclass(frozen=True)
class FirstOf(Source):
    """Several places of the same model: the first that has it on this machine, else the first that can be fetched.

    Their files need not be equal; the checksum says which were used.
    """

    sources: tuple[Source, ...]

    @property
    def origin(self) -> str:
        return ", else ".join(source.origin for source in self.sources)

    def resolve(self, on_progress: OnProgress) -> Files:
        """Raises :class:`UserError` with what each place said, if none can be fetched."""
        for source in self.sources:
            if not source.missing():
                return source.resolve(on_progress)
        refusals = []
        for source in self.sources:
            try:
                return source.resolve(on_progress)
            except UserError as error:
                log.info("%s", error)
                refusals.append(error)
        raise UserError(" ".join(error.sentence for error in refusals), refusals[-1].hint) from refusals[-1]

    def missing(self) -> tuple[str, ...]:
        """What the first place lacks, unless some place has everything."""
        missing = [source.missing() for source in self.sources]
        return missing[0] if all(missing) else ()


@dataclass(frozen=True)
class Together(Source):
    """Several places that one model is made of: its folder is that of the first, and its ``load`` finds the others.

    The checksum is over all of them.
    """

    sources: tuple[Source, ...]

    @property
    def origin(self) -> str:
        return " and ".join(source.origin for source in self.sources if source.origin)

    @property
    def repos(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(repo for source in self.sources for repo in source.repos))

    def resolve(self, on_progress: OnProgress) -> Files:
        def after(number: int) -> OnProgress:
            return lambda share, said: on_progress((number + share) / len(self.sources), said)

        found = [source.resolve(after(number)) for number, source in enumerate(self.sources)]
        return Files(found[0].folder, checksum_of({str(number): files.checksum for number, files in enumerate(found)}))

    def missing(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for source in self.sources for name in source.missing()))


@dataclass(frozen=True)
class Unpublished(Source):
    """Weights of the model ``key`` that nobody has published; the module ``recipe`` makes the lite profile's."""

    key: str
    recipe: str
    published: ClassVar[bool] = False

    def resolve(self, on_progress: OnProgress) -> Files:
        own = f'{{"{self.key}": "FOLDER"}}'
        raise UserError(
            f"No weights of '{self.key}' have been published.",
            f"Use the lite profile, or train your own as 'python -m {self.recipe}' does (training/README.md), but on "
            f"this profile's models, and give their folder: --local-weights '{own}'.",
        )

    def missing(self) -> tuple[str, ...]:
        return ("published weights",)


def read_sums(folder: Path) -> dict[str, str]:
    """File name -> sha256 (hex), from the folder's ``SHA256SUMS`` in the format of the command ``sha256sum``."""
    sums = {}
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        if len(digest) != SHA256_DIGITS or not name or Path(name).name != name:
            raise UserError(f"'{folder.name}/{SUMS}' is damaged.", _restore(folder))
        sums[name] = digest
    return sums


def _verified(folder: Path) -> dict[str, str]:
    sums = read_sums(folder)
    for name, digest in sums.items():
        if not (folder / name).is_file():
            raise UserError(f"The file '{folder.name}/{name}' is missing.", _restore(folder))
        if hash_of(folder / name) != digest:
            raise UserError(f"The file '{folder.name}/{name}' is damaged: it is not what it was.", _restore(folder))
    return sums


def _hashes(folder: Path, names: list[str]) -> dict[str, str]:
    return {name: hash_of(folder / name) for name in names}


def _restore(folder: Path) -> str:
    if folder.is_relative_to(ASSETS):
        name = folder.relative_to(ASSETS.parent.parent).as_posix()
        return f"Restore it with 'git checkout -- {name}', or install again."
    return "Put the right files there, or choose another folder."
