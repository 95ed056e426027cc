"""Helpers of the tests that run commands."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

from models.catalog import catalog

Run = Callable[..., tuple[int, str, str]]


def files() -> list[str]:
    return sorted(path.relative_to(".").as_posix() for path in Path(".").rglob("*") if path.is_file())


def everything_local(folder: Path) -> str:
    return json.dumps({key: str(folder) for key in catalog("lite")})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
