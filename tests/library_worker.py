"""Processes for test_library_safety.py: ``python -m tests.library_worker FOLDER add NAME COUNT``, or ``FOLDER kill``.

``kill`` forks a process for every single write of adding and of removing, and kills it just before that write.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from app.library import Library
from tests.library_examples import picture

WRITES = {"execute", "open", "write", "flush", "fsync", "replace", "unlink", "mkdir", "close"}


def add(folder: Path, name: str, count: int) -> None:
    """Add ``count`` pictures, and remove every third one again."""
    library = Library(folder)
    print("ready", flush=True)
    for number in range(count):
        entry = library.add(picture(name, number), f"{name} {number}")
        if number % 3 == 2:
            library.remove(entry.id)


def is_killed_before_write(number: int, work: Callable[[], object]) -> bool:
    """Whether ``work`` in a process of its own came to its write of that number, and so was killed."""
    child = os.fork()
    if child == 0:
        _kill_before_write(number)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def _kill_before_write(number: int) -> None:
    count = 0

    def watch(frame: FrameType, event: str, function: Any) -> None:
        nonlocal count
        if event == "c_call" and function.__name__ in WRITES:
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(watch)


def kill_while_adding(folder: Path) -> int:
    """Then add all of it again, over what the killed ones left. Returns the number of kills."""
    number = 0
    killed = True
    while killed:
        number += 1
        artifact, title = picture("added", number), f"added {number}"
        killed = is_killed_before_write(number, partial(_in_library, folder, Library.add, artifact, title))
    library = Library(folder)
    for again in range(1, number + 1):
        library.add(picture("added", again), f"again {again}")
    library.close()
    return number - 1


def kill_while_removing(folder: Path) -> int:
    """Returns the number of kills."""
    number = 0
    killed = True
    while killed:
        number += 1
        library = Library(folder)
        entry = library.add(picture("removed", number), f"removed {number}")
        library.close()
        killed = is_killed_before_write(number, partial(_in_library, folder, Library.remove, entry.id))
    return number - 1


def _in_library(folder: Path, method: Callable[..., object], *arguments: object) -> None:
    method(Library(folder), *arguments)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if sys.argv[2] == "add":
        add(target, sys.argv[3], int(sys.argv[4]))
    else:
        print("adding", kill_while_adding(target))
        print("removing", kill_while_removing(target))
