"""Whose brain it is, by the number of voxels and by their mask."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.formats.scans.files import ScanError

NEW_SUBJECT = "new subject"


@dataclass(frozen=True)
class Subject:
    """``name`` within its ``dataset``, such as "S1"; ``voxels``: how many its mask has, whose ``mask_hash`` is as
    :func:`hash_of_mask` says, ``None`` if it is not known; ``grid``: the volume's voxels along its axes; ``adapter``:
    whether a decoder here reads this brain."""

    dataset: str
    name: str
    voxels: int
    mask_hash: str | None = None
    grid: tuple[int, int, int] | None = None
    adapter: bool = False

    def __str__(self) -> str:
        return f"{self.dataset} {self.name}"


# Made by training/brain_simulator.py. Its masks lie on a model cortex of 8,921 places.
_SIMULATED = (
    Subject("sim-v1", "S1", 1210, "61546122369726d67b84cbc6c34c86bd03a2720970eea4c6585f8b75d8d9a81d", adapter=True),
    Subject("sim-v1", "S2", 1098, "a06af1b4590e42e5e999f4bc0f0df123d1e759901c6ed372431896880d81e5ca", adapter=True),
    Subject("sim-v1", "S3", 1171, "8800d63333537b77f57211edb0ea4730424affc3d230863cc3670c5cc6bb7b7b", adapter=True),
    Subject("sim-v1", "S4", 1012, "335664b2c0d03c69668dad8daeaeed7f907981444a3cc6a391e6237eebe49614", adapter=True),
    Subject("sim-v1", "S5", 1003, "5c41cd6eb8e4581701712324644280eef99612f805400d55de12f3501fa9420e", adapter=True),
    Subject("sim-v1", "S6", 1377, "27cbffb4850bb63292db8456e319f1e41b4d63ed9124168c4cc1d79ca6d85805", adapter=True),
    Subject("sim-v1", "S7", 976, "d91fdd315ced5e4b0062b98f38f22fd560e35f0d951dc79c82a1409d29bf3701", adapter=True),
    Subject("sim-v1", "S8", 1107, "767f5fc383f97c2656d2a8c8379af1fa208412c62093baa0aa341c6b82298255"),
)
# Voxels of the mask "nsdgeneral", on the grid of 1.8 mm.
_NSD = (
    Subject("NSD", "S1", 15_724, grid=(81, 104, 83)),
    Subject("NSD", "S2", 14_278, grid=(82, 106, 84)),
    Subject("NSD", "S3", 15_226, grid=(81, 106, 82)),
    Subject("NSD", "S4", 13_153, grid=(85, 99, 80)),
    Subject("NSD", "S5", 13_039, grid=(79, 97, 78)),
    Subject("NSD", "S6", 17_907, grid=(85, 113, 83)),
    Subject("NSD", "S7", 12_682, grid=(78, 95, 81)),
    Subject("NSD", "S8", 14_386, grid=(80, 103, 78)),
)
SUBJECTS = _SIMULATED + _NSD


def is_simulated(name: str) -> bool:
    """Whether a decoder's subject of this name is one of the simulator's."""
    return any(subject.name == name for subject in _SIMULATED)


def hash_of_mask(mask: np.ndarray) -> str:
    """SHA-256 (hex) of the mask's bits in C order."""
    return hashlib.sha256(np.packbits(np.ascontiguousarray(mask)).tobytes()).hexdigest()


def recognise(voxels: int, mask_hash: str | None, name: str | None, known: Sequence[Subject]) -> Subject | None:
    """The subject with so many voxels and, as far as it is known, this mask; ``None`` for :data:`NEW_SUBJECT`.

    ``name``: what the user or the file says, such as "S1", "subj01" or "NSD S1". Raises :class:`ScanError` where
    nobody or somebody else fits.
    """
    if name == NEW_SUBJECT:
        return None
    same = [subject for subject in known if subject.voxels == voxels]
    named = [subject for subject in same if name is None or _is_called(subject, name)]
    if not same:
        raise ScanError(
            "E3",
            f"{voxels:,} voxels do not match any known subject ({_counts(known)}).",
            f"Pick '{NEW_SUBJECT}' to fit an adapter, or supply a mask.",
        )
    if not named:
        raise ScanError(
            "E3",
            f"{voxels:,} voxels are those of {' or '.join(map(str, same))}, not of {str(name)[:40]!r}.",
            f"Choose that subject, or pick '{NEW_SUBJECT}' to fit an adapter.",
        )
    fitting = [subject for subject in named if mask_hash is None or subject.mask_hash in (None, mask_hash)]
    if not fitting:
        raise ScanError(
            "E4",
            f"Same number of voxels as {named[0]}, but another mask: results would be meaningless.",
            f"Use that subject's mask, or pick '{NEW_SUBJECT}' to fit an adapter.",
        )
    if len(fitting) > 1:
        raise ScanError(
            "E4",
            f"{voxels:,} voxels fit {' and '.join(map(str, fitting))}.",
            "Say which subject it is, or add the mask.",
        )
    return fitting[0]


def _is_called(subject: Subject, name: str) -> bool:
    spelled = name.strip().lower().removeprefix(subject.dataset.lower()).strip(" :_-")
    spelled = re.sub(r"^(subject|subj|sub|s)\W*0*(?=\d+$)", "s", spelled)
    return spelled == subject.name.lower()


def _counts(known: Sequence[Subject]) -> str:
    datasets = dict.fromkeys(subject.dataset for subject in known)
    return "; ".join(
        f"{dataset}: " + ", ".join(f"{one.voxels} = {one.name}" for one in known if one.dataset == dataset)
        for dataset in datasets
    )
