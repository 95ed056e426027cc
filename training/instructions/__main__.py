"""Write the instruction set: ``python -m training.instructions --out FILE.jsonl [--count 16000] [--seed 31]``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from training.instructions.rows import rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.instructions", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to write")
    parser.add_argument("--count", type=int, default=16_000, help="rows of both splits together")
    parser.add_argument("--seed", type=int, default=31, help="the same seed gives the same rows")
    arguments = parser.parse_args()

    drawn = rows(arguments.count, arguments.seed)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in drawn)
    arguments.out.write_text("".join(lines), encoding="utf-8")
    validation = sum(row["split"] == "validation" for row in drawn)
    print(f"{len(drawn)} rows, {validation} of them for validation: {arguments.out}")


if __name__ == "__main__":
    main()
