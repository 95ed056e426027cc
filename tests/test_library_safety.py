"""Neither kill -9, nor a second process, nor threads can break the gallery."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from app.library import Library
from pipelines.artifact import sidecar_path
from tests.library_examples import assert_sound, picture

REPOSITORY = Path(__file__).resolve().parent.parent


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.library_worker", str(folder), *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_sweep_spares_what_another_process_is_adding(tmp_path: Path) -> None:
    library = Library(tmp_path)
    entry = library.add(picture(), "x")
    orphan = library.folder / "files/ab/0.png"
    temporary = library.folder / "files/ab/.0.tmp"
    orphan.parent.mkdir(exist_ok=True)
    for path in (orphan, sidecar_path(orphan), temporary):
        path.write_bytes(b"x")
    now = time.time()
    for file in ("files/ab/0.png", entry.path.relative_to(library.folder).as_posix()):
        library._connection.execute("INSERT INTO pending VALUES (?, ?)", (file, now - 3000))
    library.sweep()
    assert orphan.exists() and temporary.exists()
    library._connection.execute("UPDATE pending SET since = ?", (now - 4000,))
    os.utime(temporary, (now - 4000, now - 4000))
    library.sweep()
    assert not any(path.exists() for path in (orphan, sidecar_path(orphan), temporary))
    assert library.load(entry.id).content_hash() == entry.content_hash


def test_killed_before_every_single_write(tmp_path: Path) -> None:
    """kill -9 before the first, the second, ... the last write of adding and of removing; then add it all again."""
    process = start(tmp_path, "kill")
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    counts = {name: int(count) for name, count in (line.split() for line in output.splitlines())}
    assert counts["adding"] >= 15 and counts["removing"] >= 8
    titles = [entry.title for entry in assert_sound(tmp_path)]
    assert len(titles) == len(set(titles))
    assert f"added {counts['adding'] + 1}" in titles  # nobody killed the last one
    assert f"removed {counts['removing'] + 1}" not in titles


def test_killed_at_random_moments(tmp_path: Path) -> None:
    rng = random.Random(0)
    for round_ in range(3):
        process = start(tmp_path, "add", f"round{round_}", "1000000")
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.05, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert assert_sound(tmp_path)


def test_two_processes_share_a_gallery(tmp_path: Path) -> None:
    """Both start on a folder that is not there yet, and both add and remove the same content, among others."""
    folder = tmp_path / "new" / "outputs"
    processes = [start(folder, "add", name, "15") for name in ("same", "same", "other")]
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    titles = [entry.title for entry in assert_sound(folder)]
    kept = [number for number in range(15) if number % 3 != 2]
    assert sorted(titles) == sorted([f"{name} {number}" for name in ("same", "same", "other") for number in kept])


def test_threads_share_a_library(tmp_path: Path) -> None:
    library = Library(tmp_path)
    failures: list[BaseException] = []

    def work(name: int) -> None:
        try:
            for number in range(5):
                entry = library.add(picture(f"thread {name}", number), str(name))
                library.entries()
                assert library.load(entry.id).content_hash() == entry.content_hash
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(assert_sound(library.folder)) == 15
