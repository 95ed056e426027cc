"""Clips rendered from soundfonts: instruments playing notes and phrases, drums, and sound-effect presets."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.data.clips import MIN_SAMPLES, SAMPLE_RATE, Clip, encode, tidy

SYNTH_RATE = 44_100
DRUM_BANK = 128
FADE_SAMPLES = SAMPLE_RATE // 20

NOTE_NAMES = ("C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B")
LOW_PROGRAMS = {*range(32, 40), 43, 47, 58, 67, 70, 116}
HIGH_PROGRAMS = {8, 9, 10, 13, 14, 72, 73, 74, 78, 79, 112, 113}
CHORD_PROGRAMS = {*range(32), 46, 48, 49, 52, 104, 106, 107, 108}
MAJOR_SCALE = (0, 2, 4, 5, 7, 9, 11, 12)
ARPEGGIO = (0, 4, 7, 12, 7, 4, 0)
CHORD = (0, 4, 7, 12)
PENTATONIC = (0, 2, 4, 7, 9, 12)
RHYTHM = (0, 0.4, 0.8, 1.0, 1.2, 1.6, 2.0)
KICK, SNARE, HAT, CRASH = 36, 38, 42, 49
TEMPOS = (80, 95, 110, 125, 140)


@dataclass(frozen=True, order=True)
class Event:
    """A note that begins (``on``) or ends at ``time`` seconds; ``key`` and ``velocity`` as in MIDI."""

    time: float
    on: bool
    key: int
    velocity: int = 0


@dataclass(frozen=True)
class RenderedClip:
    """``sound``: the class of the sound map; ``name``: what was played on which preset."""

    sound: str
    caption: str
    name: str
    clip: Clip


def read_presets(path: Path) -> list[tuple[int, int, str]]:
    """(bank, program, name) of every preset of a SoundFont 2 file; empty if it lists none."""
    with path.open("rb") as file:
        size = path.stat().st_size
        file.seek(12)  # RIFF, its size, sfbk
        while file.tell() < size:
            chunk, length, kind = struct.unpack("<4sI4s", file.read(12))
            if chunk == b"LIST" and kind == b"pdta":
                _, table_length = struct.unpack("<4sI", file.read(8))
                return parse_presets(file.read(table_length))
            file.seek(length - 4 + (length & 1), 1)
    return []


def parse_presets(table: bytes) -> list[tuple[int, int, str]]:
    """(bank, program, name) of every record of a ``phdr`` chunk, but for the last, which only marks its end."""
    records = [struct.unpack_from("<20sHH", table, at) for at in range(0, len(table) - 38, 38)]
    return [(bank, program, name.split(b"\0")[0].decode("latin1").strip()) for name, program, bank in records]


def strike(key: int, velocity: int, begin: float, end: float) -> list[Event]:
    return [Event(begin, True, key, velocity), Event(end, False, key)]


def player_of(instrument: str) -> str:
    """An instrument with its article, as the beginning of a caption."""
    if instrument.endswith(("s", "aah", "ooh")):
        return instrument
    return ("an " if instrument[0] in "aeiou" else "a ") + instrument


def beat(number: int, tempo: int) -> list[Event]:
    """Two bars of a drum kit at ``tempo`` beats a minute; odd numbers are straight and begin with a crash."""
    quarter = 60 / tempo
    kicks = (0, 4) if number % 2 else (0, 3, 5)
    events = [Event(0, True, CRASH, 80)] if number % 2 else []
    for eighth in range(int(4 / quarter * 2)):
        time = eighth * quarter / 2
        events.append(Event(time, True, HAT, 90 if eighth % 2 == 0 else 70))
        if eighth % 8 in kicks:
            events.append(Event(time, True, KICK, 110))
        if eighth % 8 in (2, 6):
            events.append(Event(time, True, SNARE, 105))
    return [event for event in events if event.time < 3.8]


class Renderer:
    """Plays one soundfont; the clips gather in ``rendered``.

    ``sound_map``: the sound map (``gm``, ``gm_drums``, ``gm_sfx``, ``classes``); ``source``: the font's package, which
    also seeds the choice of notes.
    """

    def __init__(self, path: Path, source: str, sound_map: dict[str, Any]) -> None:
        import tinysoundfont

        self.rendered: list[RenderedClip] = []
        self._map = sound_map
        self._presets = read_presets(path)
        self._rng = np.random.default_rng(int(hashlib.sha1(source.encode()).hexdigest()[:8], 16))
        self._synth = tinysoundfont.Synth(samplerate=SYNTH_RATE, gain=-6)
        self._font = self._synth.sfload(str(path))

    def instruments(self) -> None:
        """Each General MIDI program that the map names: five notes, three phrases and, where it suits, a chord."""
        available = {program for bank, program, _ in self._presets if bank == 0}
        for number, (sound, instrument) in self._map["gm"].items():
            program = int(number)
            if program in available:
                self._synth.program_select(0, self._font, 0, program)
                self._instrument(program, sound, player_of(instrument))

    def _instrument(self, program: int, sound: str, player: str) -> None:
        base = 36 if program in LOW_PROGRAMS else 67 if program in HIGH_PROGRAMS else 55
        label = f"gm{program:03d}"
        for step in (0, 5, 9, 14, 19):
            key = base + step + self._between(0, 3)
            note = strike(key, self._between(75, 115), 0, 1.6)
            caption = f"{player} playing the note {NOTE_NAMES[key % 12]}"
            self._add(sound, caption, f"{label}-note{key}", self._play(note, 2.6), 2.5)
        root = base + self._between(0, 6)
        melody = [int(step) for step in self._rng.choice(PENTATONIC, 7)]
        self._phrase(sound, f"{player} playing a rising scale", f"{label}-scale{root}", root, MAJOR_SCALE, 0.35)
        self._phrase(sound, f"{player} playing an arpeggio", f"{label}-arpeggio{root}", root, ARPEGGIO, 0.38)
        self._phrase(sound, f"{player} playing a short melody", f"{label}-melody{root}", root, melody, 0.4)
        if program in CHORD_PROGRAMS:
            notes = [event for i, step in enumerate(CHORD) for event in strike(root + step, 95, i * 0.03, 1.8)]
            self._add(sound, f"{player} playing a chord", f"{label}-chord{root}", self._play(notes, 2.8), 2.8)

    def _phrase(self, sound: str, caption: str, name: str, root: int, steps: Sequence[int], pace: float) -> None:
        """Notes ``pace`` seconds apart, at ``steps`` semitones above ``root``."""
        events = []
        for i, step in enumerate(steps):
            events += strike(root + step, self._between(80, 115), i * pace, (i + 0.92) * pace)
        self._add(sound, caption, name, self._play(events, 3.4), 3.4)

    def drums(self) -> None:
        """Each drum of the map soft, loud and in a rhythm, and a drum kit's beats; nothing if the font has no drums."""
        if not any(bank == DRUM_BANK for bank, _, _ in self._presets):
            return
        self._synth.program_select(0, self._font, DRUM_BANK, 0, True)
        for number, sound in self._map["gm_drums"].items():
            key, caption = int(number), self._map["classes"][sound]["captions"][0]
            for velocity in (70, 115):
                hit = self._play(strike(key, velocity, 0, 0.5), 1.6)
                self._add(sound, caption, f"drum{key}-v{velocity}", hit, 1.5)
            rhythm = self._play([Event(time, True, key, self._between(70, 118)) for time in RHYTHM], 2.6)
            self._add(sound, f"{caption} in a rhythm", f"drum{key}-rhythm", rhythm, 2.6)
        for number, tempo in enumerate(TEMPOS):
            samples = self._play(beat(number, tempo), 4.0)
            self._add("drum kit", "a drum kit playing a beat", f"beat{tempo}", samples, 4.0)

    def effects(self) -> None:
        """Each preset that the map knows by name as a sound effect, at five keys."""
        for bank, program, name in self._presets:
            sound = self._map["gm_sfx"].get(name.lower())
            if sound and bank < DRUM_BANK:
                self._synth.program_select(0, self._font, bank, program)
                caption = self._map["classes"][sound]["captions"][0]
                for key in (48, 55, 60, 65, 72):
                    samples = self._play(strike(key, 105, 0, 3.0), 3.8)
                    self._add(sound, caption, f"bank{bank}-{program}-{name}-key{key}", samples, 3.8)

    def _between(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high))

    def _play(self, events: Iterable[Event], seconds: float) -> np.ndarray:
        """(N,) float32 at :data:`SYNTH_RATE`, the mean of both channels."""
        parts, now = [], 0.0
        for event in sorted(events):
            parts.append(self._generate(event.time - now))
            now = event.time
            if event.on:
                self._synth.noteon(0, event.key, event.velocity)
            else:
                self._synth.noteoff(0, event.key)
        parts.append(self._generate(seconds - now))
        self._synth.sounds_off(0)
        self._synth.generate(4096)  # let the tails die, so that the next clip begins in silence
        return np.concatenate(parts)

    def _generate(self, seconds: float) -> np.ndarray:
        count = round(seconds * SYNTH_RATE)
        if count <= 0:
            return np.empty(0, np.float32)
        return np.frombuffer(bytes(self._synth.generate(count)), np.float32).reshape(-1, 2).mean(1)

    def _add(self, sound: str, caption: str, name: str, samples: np.ndarray, seconds: float) -> None:
        """Keep the first ``seconds``, faded out, unless they are silent."""
        tidied = tidy(samples, SYNTH_RATE)
        if tidied is None or len(tidied) < MIN_SAMPLES:
            return
        cut = tidied[: int(seconds * SAMPLE_RATE)].copy()
        fade = min(len(cut), FADE_SAMPLES)
        cut[-fade:] *= np.linspace(1, 0, fade)
        self.rendered.append(RenderedClip(sound, caption, name, encode(cut)))
