"""The Natural Scenes Dataset (Allen et al. 2022) as its authors lay it out; who wants it signs their terms.

    nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session01.hdf5   and on
    nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz
    nsddata/experiments/nsd/nsd_expdesign.mat
    nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5
    COCO_73k_annots_curated.npy   (of MindEye's authors: up to five captions of each picture, (73000, 5))

The app's own reader reads the betas, so what it refuses is refused here.

Shapes: N pictures; V voxels of the mask "nsdgeneral"; a picture's number counts from 0 to 72,999.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel
import numpy as np
import torch
from scipy.io import loadmat
from torch import Tensor

from pipelines.formats.scans.betas import read_betas
from pipelines.formats.scans.checks import Choices
from pipelines.formats.scans.files import MAX_VALUES
from pipelines.formats.scans.hdf5_child import SESSION
from pipelines.formats.scans.subjects import NEW_SUBJECT, hash_of_mask

SHARED = 1000  # of the 10,000 pictures of a subject: those that all have seen, which are the test
CAPTIONS = "COCO_73k_annots_curated.npy"


@dataclass(frozen=True)
class Answers:
    """One subject's to each picture, the mean over its repeats, z-scored by ``mean`` and ``std`` (V,) of those to the
    training pictures, which are in percent signal change. ``values`` and ``pictures`` are to learn from, (N, V) and
    (N,); ``test_values`` and ``test_pictures`` are of those that all subjects share."""

    subject: str
    mask_hash: str
    mean: Tensor
    std: Tensor
    values: Tensor
    pictures: np.ndarray
    test_values: Tensor
    test_pictures: np.ndarray


class NSD:
    """``folder``: see the top of this file. Raises :class:`SystemExit` where something is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        design = loadmat(self._file("nsddata/experiments/nsd/nsd_expdesign.mat"))
        self._order = design["masterordering"].ravel().astype(int)  # of every trial: which of the 10,000, from 1
        self._pictures = design["subjectim"].astype(int) - 1  # (8, 10000)
        # Empty where a picture has less than five. It holds plain text: nothing is unpickled.
        self._captions = np.load(self._file(CAPTIONS), allow_pickle=False)

    def answers(self, number: int) -> Answers:
        """Of the subject ``number``, from 1 to 8, to all sessions that are there, one after the other."""
        subject = f"subj{number:02d}"
        mask = self._file(f"nsddata/ppdata/{subject}/func1pt8mm/roi/nsdgeneral.nii.gz")
        folder = f"nsddata_betas/ppdata/{subject}/func1pt8mm/betas_fithrf_GLMdenoise_RR"
        where = np.asarray(nibabel.load(mask).dataobj) > 0  # type: ignore[attr-defined]
        at_once = min(SESSION, MAX_VALUES // where.size)
        sums: dict[int, np.ndarray] = {}  # by the number among the subject's 10,000 pictures
        counts: dict[int, int] = {}
        session = 0
        while (file := self.folder / folder / f"betas_session{session + 1:02d}.hdf5").is_file():
            for trial, values in enumerate(_trials(file, mask, at_once), session * SESSION):
                shown = int(self._order[trial])
                sums[shown] = sums.get(shown, 0) + values
                counts[shown] = counts.get(shown, 0) + 1
            session += 1
        if not session:
            self._file(f"{folder}/betas_session01.hdf5")
        parts, numbers = [], []
        for test in (False, True):
            shown_ones = [shown for shown in sorted(sums) if (shown <= SHARED) == test]
            if len(shown_ones) < 2:
                raise SystemExit(f"The sessions of {subject} show too few pictures that are {self._kind(test)}.")
            parts.append(np.stack([sums[shown] / counts[shown] for shown in shown_ones]).astype(np.float32))
            numbers.append(self._pictures[number - 1, np.array(shown_ones) - 1])
        mean, std = parts[0].mean(0), parts[0].std(0, ddof=1)
        std = np.where(std > 0, std, 1).astype(np.float32)
        values, test_values = (torch.from_numpy((part - mean) / std) for part in parts)
        return Answers(
            subject,
            hash_of_mask(where),
            torch.from_numpy(mean),
            torch.from_numpy(std),
            values,
            numbers[0],
            test_values,
            numbers[1],
        )

    def pictures(self, numbers: np.ndarray) -> Tensor:
        """(N, 3, 425, 425) in [-1, 1]."""
        chosen, back = np.unique(numbers, return_inverse=True)  # HDF5 wants them in order, and once
        with h5py.File(self._file("nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"), "r") as file:
            pixels = file["imgBrick"][chosen][back]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1

    def captions(self, number: int) -> list[str]:
        """What people wrote of a picture, at least one sentence."""
        return [text.strip() for text in map(str, self._captions[number]) if text.strip()] or ["a picture"]

    def _file(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise SystemExit(f"'{name}' is not in the folder of NSD: fetch it from the dataset, in its own layout.")
        return path

    @staticmethod
    def _kind(test: bool) -> str:
        return "shared with the others" if test else "its own"


def _trials(file: Path, mask: Path, at_once: int) -> np.ndarray:
    """A session's betas (750, V), in percent signal change, read ``at_once`` trials a time."""
    parts = []
    for start in range(0, SESSION, at_once):
        chosen = start, min(start + at_once, SESSION)
        choices = Choices(chosen, divide_by_300=True, fill=True, subject=NEW_SUBJECT, max_trials=SESSION)
        parts.append(read_betas([file, mask], choices).values)
    return np.concatenate(parts)
