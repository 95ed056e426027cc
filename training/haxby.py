"""Recipe of ``assets/weights/category-decoder-lite``: which of eight kinds of thing somebody looked at, measured.

    python -m training.haxby

Haxby et al. 2001, whose slice ships in ``assets/examples/haxby2001``. Every voxel is, run by run, freed of its linear
trend and z-scored by the volumes of rest; the mean of a block's nine volumes is one scan. The shipped decoder is fitted
on all runs but the last, whose blocks are shipped as examples, so that they are new to it.

Shapes: T volumes, N blocks, V voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.nets.category_decoder import SUBJECT, CategoryDecoder
from pipelines.formats.scans.files import MEASURED, Z_SCORED
from pipelines.media import BrainScan
from training.publish import write_sums

DATA, EXAMPLES = Path("assets/examples/haxby2001"), Path("assets/examples/scans")
WEIGHTS = Path("assets/weights/category-decoder-lite")
REST = "rest"
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # times the mean variance of a scan
# What the labels mean, as a picture of it is asked for.
SENTENCES = {
    "bottle": "a bottle",
    "cat": "a cat",
    "chair": "a chair",
    "face": "a face",
    "house": "a house",
    "scissors": "scissors",
    "scrambledpix": "a scrambled picture",
    "shoe": "a shoe",
}


class Blocks(NamedTuple):
    """The means of N blocks: ``values`` (N, V), ``labels`` (N,) into :data:`SENTENCES`, ``runs`` (N,)."""

    values: Tensor
    labels: Tensor
    runs: Tensor


def load_volumes(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values (T, V) as scanned, what was shown (T,) and the run (T,)."""
    mask = np.asarray(nibabel.load(folder / "mask.nii.gz").dataobj) > 0  # type: ignore[attr-defined]
    values = np.asarray(nibabel.load(folder / "bold.nii.gz").dataobj, np.float64)[mask].T  # type: ignore[attr-defined]
    shown, runs = np.loadtxt(folder / "attributes_literal.txt", dtype=str).T
    return values, shown, runs.astype(int)


def normalised(values: np.ndarray, shown: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """(T, V): within each run without a linear trend, and z-scored by its rest."""
    result = np.empty_like(values)
    for run in np.unique(runs):
        within = runs == run
        line = np.vander(np.linspace(-1, 1, within.sum()), 2)
        flat = values[within] - line @ np.linalg.lstsq(line, values[within], rcond=None)[0]
        rest = flat[shown[within] == REST]
        result[within] = (flat - rest.mean(0)) / np.maximum(rest.std(0), 1e-6)
    return result


def load_blocks(folder: Path = DATA) -> Blocks:
    """One block of each category and run."""
    values, shown, runs = load_volumes(folder)
    values = normalised(values, shown, runs)
    means, labels, of_runs = [], [], []
    for run in np.unique(runs):
        for label, name in enumerate(SENTENCES):
            means.append(values[(runs == run) & (shown == name)].mean(0))
            labels.append(label)
            of_runs.append(int(run))
    return Blocks(torch.from_numpy(np.stack(means)).float(), torch.tensor(labels), torch.tensor(of_runs))


def fit_ridge(values: Tensor, labels: Tensor, count: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Weights (count, V) and bias (count,) from scans (N, V) to the one-hot ``labels`` (N,), by the dual solution."""
    values = values.double()
    targets = F.one_hot(labels, count).double()
    mean, level = values.mean(0), targets.mean(0)
    kernel = (values - mean) @ (values - mean).T
    ridge = penalty * kernel.trace() / len(kernel) * torch.eye(len(kernel), dtype=torch.float64)
    weight = torch.linalg.solve(kernel + ridge, targets - level).T @ (values - mean)
    return weight.float(), (level - weight @ mean).float()


def leave_one_run_out(
    values: Tensor, labels: Tensor, runs: Tensor, count: int, penalties: Sequence[float] = PENALTIES
) -> Tensor:
    """What is said of each of the scans (N, V) by a decoder fitted on all other runs, (N,). Its penalty is the one
    that does best when left-out runs of those others are decoded, so nothing of a scan's run has any say in it."""
    said = torch.empty_like(labels)
    for run in runs.unique():
        others = runs != run
        penalty = best_penalty(values[others], labels[others], runs[others], count, penalties)
        weight, bias = fit_ridge(values[others], labels[others], count, penalty)
        said[~others] = (values[~others] @ weight.T + bias).argmax(1)
    return said


def best_penalty(
    values: Tensor, labels: Tensor, runs: Tensor, count: int, penalties: Sequence[float] = PENALTIES
) -> float:
    """The one by which most scans of left-out runs are decoded right; of several, the largest."""
    if len(penalties) == 1:
        return penalties[0]
    right = [int((leave_one_run_out(values, labels, runs, count, (penalty,)) == labels).sum()) for penalty in penalties]
    return max(zip(right, penalties, strict=True))[1]


def main() -> None:
    blocks = load_blocks()
    said = leave_one_run_out(*blocks, len(SENTENCES))
    accuracy = float((said == blocks.labels).double().mean())
    print(f"leave one run out: {accuracy:.4f} of {len(said)} blocks, chance {1 / len(SENTENCES)}")
    last = int(blocks.runs.max())
    learnt = blocks.runs != last
    penalty = best_penalty(blocks.values[learnt], blocks.labels[learnt], blocks.runs[learnt], len(SENTENCES))
    weight, bias = fit_ridge(blocks.values[learnt], blocks.labels[learnt], len(SENTENCES), penalty)
    decoder = CategoryDecoder(tuple(SENTENCES.values()), weight.shape[1], SUBJECT, accuracy)
    decoder.load_state_dict({"linear.weight": weight, "linear.bias": bias})
    decoder.save_pretrained(WEIGHTS)
    write_sums(WEIGHTS)
    EXAMPLES.mkdir(parents=True, exist_ok=True)
    for values, label in zip(blocks.values[~learnt], blocks.labels[~learnt], strict=True):
        scan = BrainScan(values.numpy(), "voxels", SUBJECT, Z_SCORED, MEASURED)
        (EXAMPLES / f"measured-{list(SENTENCES)[label]}.npz").write_bytes(scan.encode(".npz"))


if __name__ == "__main__":
    main()
