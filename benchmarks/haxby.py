"""How well the kind of thing that somebody looked at is decoded of measured fMRI (Haxby et al. 2001, one slice).

    python -m benchmarks.haxby

Means of blocks, leave one run out, with the penalty chosen inside the other runs; beside it the same with the labels of
each run shuffled (chance is an eighth), and the nearest class mean by correlation, which the paper used. Rows of the
confusion matrix are what was shown. Writes ``benchmarks/results/haxby.json``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.controller import wilson
from benchmarks.report import save, table
from training.haxby import SENTENCES, Blocks, leave_one_run_out, load_blocks

SHUFFLES = 20


def shuffled(blocks: Blocks, seed: int) -> Blocks:
    """With the labels of every run in another order."""
    generator = torch.Generator().manual_seed(seed)
    labels = blocks.labels.clone()
    for run in blocks.runs.unique():
        within = (blocks.runs == run).nonzero()[:, 0]
        labels[within] = labels[within[torch.randperm(len(within), generator=generator)]]
    return blocks._replace(labels=labels)


def nearest_means(blocks: Blocks) -> Tensor:
    """The category whose mean over the other runs correlates best with each block, (N,)."""
    said = torch.empty_like(blocks.labels)
    for run in blocks.runs.unique():
        others = blocks.runs != run
        known, labels = blocks.values[others], blocks.labels[others]
        means = torch.stack([known[labels == label].mean(0) for label in range(len(SENTENCES))]) - known.mean(0)
        unknown = F.normalize(blocks.values[~others] - known.mean(0), dim=1)
        said[~others] = (unknown @ F.normalize(means, dim=1).T).argmax(1)
    return said


def main() -> None:
    blocks = load_blocks()
    count = len(SENTENCES)
    said = leave_one_run_out(*blocks, count)
    right = int((said == blocks.labels).sum())
    by_chance = []
    for seed in range(SHUFFLES):
        other = shuffled(blocks, seed)
        by_chance.append(float((leave_one_run_out(*other, count) == other.labels).double().mean()))
    correlation = float((nearest_means(blocks) == blocks.labels).double().mean())
    confusion = torch.zeros(count, count, dtype=torch.long)
    for shown, answer in zip(blocks.labels.tolist(), said.tolist(), strict=True):
        confusion[shown, answer] += 1
    low, high = wilson(right, len(said))
    results = {
        "blocks": len(said),
        "accuracy": right / len(said),
        "interval": [low, high],
        "nearest class mean": correlation,
        "labels shuffled": sum(by_chance) / SHUFFLES,
        "categories": list(SENTENCES),
        "confusion": confusion.tolist(),
    }
    save("haxby", results)
    rows = [
        ["ridge, leave one run out", f"{100 * right / len(said):.1f} % ({100 * low:.0f} to {100 * high:.0f})"],
        ["nearest class mean by correlation", f"{100 * correlation:.1f} %"],
        [f"ridge, labels shuffled, {SHUFFLES} times", f"{100 * sum(by_chance) / SHUFFLES:.1f} %"],
    ]
    print(table(["decoder", f"right of {len(said)} blocks"], rows))
    print(table(["shown", *SENTENCES], [[name, *confusion[i].tolist()] for i, name in enumerate(SENTENCES)]))


if __name__ == "__main__":
    main()
