"""Which files are the pictures that were seen, and what their numbers are: a folder's, or a table's."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from models.errors import UserError
from pipelines.media import suffixes_of

PICTURES = suffixes_of("image")


def picture_files(pictures: Path) -> list[tuple[int | None, Path]]:
    """The number and the file of every picture, in order.

    Of a folder: all its pictures by name, each numbered by the last digits in it ("image_0042.png" is 42). Of a table
    (``.csv``): a row each, the number and then the file, which is looked for beside the table; a first row without a
    number is its heading.
    """
    if pictures.is_dir():
        found = sorted(path for path in pictures.iterdir() if path.suffix.lower() in PICTURES)
        files: list[tuple[int | None, Path]] = [(_number_in(path.stem), path) for path in found]
    elif pictures.is_file():
        files = _table(pictures)
    else:
        raise UserError(f"There is no folder or table '{pictures.name[:60]}' of pictures.", "Check its name.")
    if not files:
        raise UserError(f"No picture is in '{pictures.name[:60]}'.", f"Pictures end in {', '.join(PICTURES)}.")
    return files


def _number_in(name: str) -> int | None:
    digits = re.findall(r"\d{1,12}", name)
    return int(digits[-1]) if digits else None


def _table(path: Path) -> list[tuple[int | None, Path]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"'{path.name[:60]}' is no table.", "Save it as .csv: a number and a file in each row."
        ) from error
    if rows and not rows[0][0].strip().isdecimal():
        rows = rows[1:]
    for number, row in enumerate(rows, 1):
        if len(row) < 2 or not row[0].strip().isdecimal():
            raise UserError(
                f"Row {number} of '{path.name[:60]}' is not a number and a file.", "Write for instance: 42,apple.png"
            )
    return [(int(row[0]), path.parent / row[1].strip()) for row in rows]
