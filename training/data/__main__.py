"""Fetch, build and verify the training tables: ``python -m training.data WORK OUT [--only emoji stamps ...]``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

from training.data import emoji, shapes, shapes_sharealike, sounds, stamps, verify
from training.data.fetch import fetch

# The sounds come after the pictures: their mapping names the stamps that show each sound.
BUILDERS: dict[str, Callable[[Path, Path], None]] = {
    "emoji": emoji.build,
    "stamps": stamps.build,
    "sounds": sounds.build,
    "shapes": shapes.build,
    "shapes-sharealike": shapes_sharealike.build,
}
DEFAULT = [name for name in BUILDERS if name != "shapes-sharealike"]  # under other licences: only if it is asked for


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.data", description=__doc__)
    parser.add_argument("work", type=Path, help="folder for the unpacked packages; what it already has is kept")
    parser.add_argument("out", type=Path, help="folder for the tables")
    parser.add_argument("--only", nargs="+", choices=list(BUILDERS), default=DEFAULT, help="build these tables")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    tables = [name for name in BUILDERS if name in arguments.only]
    arguments.out.mkdir(parents=True, exist_ok=True)
    fetch(arguments.work, tables)
    for name in tables:
        BUILDERS[name](arguments.work, arguments.out)
    problems = verify.verify(arguments.out, tables)
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
