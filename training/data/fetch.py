"""Downloads and unpacks the packages named in ``packages.txt``. Nothing is installed.

Needs npm, tar, apt-get (with Debian 12 lists), dpkg and pip, which find the packages by name and version.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from training.data.containers import unpack_containers

PACKAGES = Path(__file__).parent / "packages.txt"
NEEDED_PROGRAMS = {"npm": "npm", "deb": "apt-get", "pypi": sys.executable}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Package:
    """One line of ``packages.txt``. ``kind``: npm, deb or pypi; ``tables``: the tables that read it."""

    kind: str
    name: str
    version: str
    tables: tuple[str, ...]

    @property
    def source(self) -> str:
        """What the tables call it: its name, for PyPI in the form ``pypi-some_name``."""
        return "pypi-" + self.name.replace("-", "_") if self.kind == "pypi" else self.name


def read_packages(text: str) -> list[Package]:
    """The packages of a list with one ``kind name version table[,table]`` a line; ``#`` starts a comment line."""
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [Package(kind, name, version, tuple(tables.split(","))) for kind, name, version, tables in lines]


def fetch(work: Path, tables: Iterable[str]) -> None:
    """Bring every package that ``tables`` read to ``work``/packages/SOURCE; those already there are kept."""
    wanted = set(tables)
    packages = [package for package in read_packages(PACKAGES.read_text()) if wanted & set(package.tables)]
    missing = {p for p in (NEEDED_PROGRAMS[package.kind] for package in packages) if not shutil.which(p)}
    if missing:
        raise SystemExit(f"Fetching the packages needs {', '.join(sorted(missing))}.")
    for number, package in enumerate(packages, 1):
        folder = work / "packages" / package.source
        if not folder.is_dir():
            log.info("fetching %d of %d: %s %s", number, len(packages), package.name, package.version)
            _fetch_one(package, folder, work / "download")


def _fetch_one(package: Package, folder: Path, download: Path) -> None:
    """Unpack beside the final place and rename at the end: a folder that is there is complete."""
    partial = download / "unpacked"
    shutil.rmtree(download, ignore_errors=True)
    partial.mkdir(parents=True)
    _DOWNLOAD[package.kind](package, download)
    archive = next(path for path in download.iterdir() if path.is_file())
    _UNPACK[package.kind](archive, partial)
    unpack_containers(partial)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(folder)
    shutil.rmtree(download)


def _download_npm(package: Package, download: Path) -> None:
    subprocess.run(["npm", "pack", "--silent", f"{package.name}@{package.version}"], cwd=download, check=True)


def _download_deb(package: Package, download: Path) -> None:
    subprocess.run(["apt-get", "download", "-q", f"{package.name}={package.version}"], cwd=download, check=True)


def _download_pypi(package: Package, download: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir", "--only-binary", ":all:"]
    subprocess.run([*pip, f"{package.name}=={package.version}"], cwd=download, check=True)


def _unpack_npm(archive: Path, folder: Path) -> None:
    """An npm archive holds everything in one folder, mostly called ``package``; that folder is dropped."""
    subprocess.run(["tar", "-xzf", archive, "-C", folder, "--strip-components=1"], check=True)


def _unpack_deb(archive: Path, folder: Path) -> None:
    subprocess.run(["dpkg", "-x", archive, folder], check=True)


def _unpack_pypi(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as wheel:
        wheel.extractall(folder)


_DOWNLOAD = {"npm": _download_npm, "deb": _download_deb, "pypi": _download_pypi}
_UNPACK = {"npm": _unpack_npm, "deb": _unpack_deb, "pypi": _unpack_pypi}
