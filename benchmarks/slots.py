"""Whether the makers are told the right words: those of the wish, without those that ask for it.

    python -m benchmarks.slots [--count N]

Generated requests from templates and nouns that no training used (the validation split of ``training/instructions``),
in which the words for each medium are marked. What is wanted is given, so only the words are judged: by rules alone,
and by the slot reader. A medium's words are exact where none is missing and none too many, articles and the like not
counted; intervals are Wilson's, 95 %. The words that have to arrive are marked in the hand-written requests too, see
``slot_coverage`` in ``benchmarks/controller.py``; those say nothing of words too many.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from app.controller.planner import Controller, Slots, by_rules
from app.controller.request import Request
from app.controller.rules import Scores
from benchmarks.controller import whole_registry, wilson
from benchmarks.controller_rows import slot_words
from benchmarks.report import save
from training.controller import request_of
from training.instructions.rows import Row
from training.instructions.rows import rows as instructions
from training.slot_reader import belonging, content

SEED = 91  # not a recipe's


class GivenRouter:
    """Knows what each request wants."""

    name = "given"

    def __init__(self, rows: Sequence[Row]) -> None:
        self.outputs = {request_of(row).prompt: row["outputs"] for row in rows}

    def score(self, request: Request, media: Sequence[str]) -> Scores:
        wanted = self.outputs[request.prompt]
        return Scores({medium: float(medium in wanted) for medium in media}, {"new": 1.0})


def told(row: Row, controller: Controller) -> dict[str, str]:
    """The words that each medium's maker gets."""
    plan = controller.answer(request_of(row)).plan
    words: dict[str, str] = {}
    for step in plan.steps if plan else ():
        texts = [source.removeprefix("text:") for source in step.inputs if source.startswith("text:")]
        if texts:
            words[step.output] = " ".join(texts)
    return words


def judged(rows: Sequence[Row], slots: Slots) -> dict[str, Any]:
    controller = Controller(whole_registry(), GivenRouter(rows), lambda pipeline: 1.0, slots)
    found: dict[str, list[tuple[bool, bool, bool]]] = {}
    for row in rows:
        words = told(row, controller)
        for medium, spans in belonging(row).items():
            if medium not in words:  # no pipeline makes it from words, or only from two
                continue
            right = content(" ".join(row["prompt"][begin:end] for begin, end in spans), row["language"])
            said = content(words.get(medium, ""), row["language"])
            one = said == right, right <= said, said <= right
            for name in ("all", row["slice"], "english" if row["language"] == "en" else "other languages"):
                found.setdefault(name, []).append(one)
    return {name: {"media": len(all_of), **_shares(all_of)} for name, all_of in found.items()}


def _shares(found: Sequence[tuple[bool, bool, bool]]) -> dict[str, list[float]]:
    hits = np.array(found).sum(0)
    names = ("exact", "none_missing", "none_too_many")
    return {
        name: [round(x, 3) for x in (hit / len(found), *wilson(hit, len(found)))]
        for name, hit in zip(names, hits.tolist(), strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="rows to draw; a tenth of them is judged")
    arguments = parser.parse_args()
    drawn = [row for row in instructions(arguments.count, SEED) if row["split"] == "validation"]
    rows = [row for row in drawn if row["act"] == "new" and not row["history"] and not row["inputs"]]
    rows = [row for row in rows if belonging(row)]
    results = {name: judged(rows, slots) for name, slots in (("rules", by_rules), ("slot reader", slot_words()))}
    for name, result in results.items():
        print(name, {part: (shares["media"], shares["exact"][0]) for part, shares in result.items()}, flush=True)
    save("slots", {"rows": results})


if __name__ == "__main__":
    main()
