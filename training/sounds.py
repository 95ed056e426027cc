"""The clips that the lite sound models learn from, and the split that they are judged on.

One table, ``sounds16k``, made by the builders in ``training/data``: recorded and rendered everyday sounds, 16 kHz mono,
up to 4 s each. A clip has a class (what sounds), a caption, and the pictures that show it. Every recipe hears a clip at
one length, :data:`SAMPLES`: a ``loop`` goes on from its beginning, anything else ends in silence.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import soundfile
import torch
from torch import Tensor

from models.mel import LITE_MEL
from training.tables import in_held_out_tenth, recipe_arguments, tell_checksum

Split = Literal["train", "heldout-file", "heldout-class"]
HELD_OUT: tuple[Split, Split] = ("heldout-file", "heldout-class")
TABLE = "sounds16k.parquet"
CHECKSUM = "d7e2607f8fa1db807b054006e0d3eae0d39d8b2c6ee9f1f8f97861c28f7b99bb"
SAMPLES = 65_536  # 4.096 s at 16 kHz: 256 frames of LITE_MEL
COLUMNS = ("class", "caption", "emoji", "stamp", "loop", "source", "path", "licence_family", "audio")


@dataclass(frozen=True)
class Sound:
    """One clip. ``row`` is its index in :attr:`Sounds.clips`; ``stamp`` the picture that belongs to it, or empty."""

    row: int
    name: str
    caption: str
    emoji: tuple[str, ...]
    stamp: str
    loop: bool
    permissive: bool
    split: Split


@dataclass(frozen=True)
class Sounds:
    """``clips``: one (N,) int16 array a row, at 16 kHz; ``items``: one :class:`Sound` per row."""

    clips: list[np.ndarray]
    items: list[Sound]

    def select(self, *splits: Split, permissive_only: bool = False) -> list[Sound]:
        return [item for item in self.items if item.split in splits and (item.permissive or not permissive_only)]

    def waveforms(self, items: Sequence[Sound]) -> Tensor:
        """(B, SAMPLES) float32 in [-1, 1]."""
        clips = [at_length(self.clips[item.row], SAMPLES, item.loop) for item in items]
        return to_waveforms(clips)

    def crops(self, items: Sequence[Sound], samples: int, rng: np.random.Generator) -> Tensor:
        """(B, samples) float32 in [-1, 1]: a random part of each clip, or all of a shorter one at a random moment."""
        return to_waveforms([random_crop(self.clips[item.row], samples, item.loop, rng) for item in items])


def to_waveforms(clips: Sequence[np.ndarray]) -> Tensor:
    """Equally long int16 clips -> (B, N) float32 in [-1, 1]."""
    return torch.from_numpy(np.stack(clips)).float().div_(32_768)


def at_length(clip: np.ndarray, samples: int, loop: bool) -> np.ndarray:
    """``clip`` (N,), N > 0, cut to ``samples``, or repeated (``loop``) or followed by silence up to there."""
    if loop:
        return np.resize(clip, samples)
    return np.pad(clip[:samples], (0, max(0, samples - len(clip))))


def random_crop(clip: np.ndarray, samples: int, loop: bool, rng: np.random.Generator) -> np.ndarray:
    """``samples`` of ``clip`` from a random moment on; around a shorter clip that is no ``loop``, silence."""
    if loop and len(clip) < samples:
        clip = np.resize(clip, samples)
    spare = len(clip) - samples
    start = int(rng.integers(min(0, spare), max(0, spare) + 1))
    before = max(0, -start)
    part = clip[max(0, start) : start + samples]
    return np.pad(part, (before, samples - before - len(part)))


def augment(waveforms: Tensor, mixed: float, quietest: float, loudest: float) -> Tensor:
    """A share ``mixed`` of (B, N) gets another of the batch over it, ``quietest`` to ``loudest`` decibels louder; then
    all are turned down by up to 18 decibels. Never beyond [-1, 1]."""
    count = len(waveforms)
    level = 10 ** ((quietest + (loudest - quietest) * torch.rand(count, 1)) / 20)
    chosen = torch.rand(count, 1) < mixed
    both = waveforms + torch.where(chosen, level, 0.0) * waveforms.roll(1, 0)
    peak = both.abs().amax(1, keepdim=True).clamp(min=1)
    return both / peak * 10 ** (-18 / 20 * torch.rand(count, 1))


def split_of(name: str, source: str, path: str) -> Split:
    """Where a clip belongs: a tenth of the classes, and a tenth of the files of the other classes, are held out.

    One file may give several clips, which sound alike: they stay together.
    """
    if in_held_out_tenth(name):
        return "heldout-class"
    return "heldout-file" if in_held_out_tenth(f"{source}|{path}") else "train"


def load_sounds(folder: Path) -> Sounds:
    """All clips of the table, in its order; says whether it is the table that the shipped weights were trained on."""
    path = folder / TABLE
    tell_checksum(path, CHECKSUM)
    table = pq.read_table(path, columns=list(COLUMNS)).to_pylist()
    items = [
        Sound(
            index,
            row["class"],
            row["caption"],
            tuple(row["emoji"]),
            row["stamp"],
            row["loop"],
            row["licence_family"] == "permissive",
            split_of(row["class"], row["source"], row["path"]),
        )
        for index, row in enumerate(table)
    ]
    return Sounds([decode(row["audio"]) for row in table], items)


def decode(encoded: bytes) -> np.ndarray:
    """A file's bytes -> (N,) int16. Raises :class:`ValueError` if it is not 16 kHz mono or has no sample."""
    samples, sample_rate = soundfile.read(io.BytesIO(encoded), dtype="int16")
    if sample_rate != LITE_MEL.sample_rate or samples.ndim != 1 or not len(samples):
        raise ValueError(f"a clip is {sample_rate} Hz of shape {samples.shape}, not 16 kHz mono")
    return samples


def sound_arguments(description: str | None, steps: int, batch: int | None = None) -> argparse.ArgumentParser:
    """The command line that the sound recipes share; with ``batch``, its size can be chosen."""
    return recipe_arguments(description, steps, batch, "train on CC0, MIT and public domain clips only")


def weights_name(name: str, permissive_only: bool) -> str:
    """Weights of a smaller set have a name, and so a state and a folder, of their own."""
    return f"{name}-permissive" if permissive_only else name
