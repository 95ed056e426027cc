"""How the page shows a sound: its waveform, in a player that is an element of our own (``player.js``)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from html import escape

import numpy as np

from app.library import Entry, Library
from models.errors import UserError
from pipelines.media import Audio

COLUMNS = 160
WAVEFORMS_KEPT = 1024


@dataclass(frozen=True)
class Waveform:
    """``peaks``: of each of ``COLUMNS`` equal stretches of the sound, in percent; ``seconds``: how long it is."""

    peaks: tuple[int, ...]
    seconds: float


def peaks(samples: np.ndarray, columns: int) -> np.ndarray:
    """(channels, N) samples -> (columns,): the highest magnitude, of any channel, in each of equal stretches.

    A sound of fewer samples than columns has each of them in several.
    """
    loudest = np.abs(samples).max(axis=0)
    return np.maximum.reduceat(loudest, np.arange(columns) * len(loudest) // columns)


def waveform(sound: Audio) -> Waveform:
    percent = np.rint(100 * peaks(sound.samples, COLUMNS)).astype(int)
    return Waveform(tuple(percent.tolist()), sound.duration)


def waveform_of(library: Library, entry: Entry) -> Waveform | None:
    """The waveform of a sound in the gallery, computed once; none of other media, or if its file is gone or damaged."""
    if entry.medium != Audio.medium or entry.missing:
        return None
    try:
        return _computed(library, entry.id)
    except UserError:
        return None  # the player says that it cannot be played


@lru_cache(maxsize=WAVEFORMS_KEPT)
def _computed(library: Library, entry_id: str) -> Waveform:
    sound = library.load(entry_id)
    assert isinstance(sound, Audio)
    return waveform(sound)


def player(source: str, title: str, waveform: Waveform | None) -> str:
    """A player of the sound at ``source``, an escaped URL. Where our script does not run, it is the browser's own."""
    shown = waveform or Waveform((), 0.0)
    name, drawn = escape(title), " ".join(map(str, shown.peaks))
    return (
        f'<sound-player role="group" aria-label="{name}" peaks="{drawn}" seconds="{shown.seconds:.3f}">'
        f'<audio src="{source}" aria-label="{name}" preload="metadata" controls></audio></sound-player>'
    )
