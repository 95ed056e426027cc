"""``sounds16k.parquet``: labelled everyday sounds, recorded and rendered, as clips of at most 4 s.

``sound_map.json`` says which file of which package is which sound; nobody listened to them.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from training.data.clips import Clip, read_clips
from training.data.common import (
    evenly_spread,
    folders_below,
    left_out,
    package_folder,
    read_json,
    sentence_of,
    write_table,
)
from training.data.containers import SOUND_SUFFIXES, opensfx_sounds
from training.data.licences import family, is_free, licence_of
from training.data.sound_mapping import SPEECH, write_mapping
from training.data.soundfonts import Renderer

SOUND_MAP = Path(__file__).parent / "sound_map.json"
MOST_FILES_OF_A_PACKAGE = 45  # for one sound
OPENSFX = "openttd-opensfx"
OPENSFX_FILE = "usr/share/games/openttd/baseset/opensfx/opensfx.cat"
OPENSFX_MIN_BYTES = 1000
TUXPAINT = "tuxpaint-stamps-default"

# Package -> (file, what is rendered of it).
EVERYTHING = (Renderer.instruments, Renderer.drums, Renderer.effects)
SOUNDFONTS = {
    "fluid-soundfont-gm": ("FluidR3_GM.sf2", EVERYTHING),
    "musescore-general-soundfont-lossless": ("MuseScore_General_Full.sf2", EVERYTHING),
    "fluid-soundfont-gs": ("FluidR3_GS.sf2", (Renderer.effects,)),
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recording:
    """One sound file. ``audio``: where it lies, or its bytes; ``stamp``: the id of the stamp it belongs to, or ""."""

    sound: str
    source: str
    path: str
    audio: Path | bytes
    stamp: str = ""


@dataclass(frozen=True)
class Job:
    """A recording to cut into at most ``most`` clips."""

    recording: Recording
    caption: str
    most: int


class Packages:
    """The sound files of every unpacked package, by package; OpenTTD's are inside one file."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._files: dict[str, list[str]] = {}

    def files(self, source: str) -> list[str]:
        """Paths inside the package, sorted."""
        if source not in self._files:
            package = package_folder(self._work, source)
            paths = (folder / name for folder, names in folders_below(package) for name in names)
            sounds = (path for path in paths if path.name.lower().endswith(SOUND_SUFFIXES))
            self._files[source] = sorted(path.relative_to(package).as_posix() for path in sounds)
        return self._files[source]

    def matching(self, source: str, pattern: str) -> list[tuple[str, Path | bytes]]:
        """(path, audio) of the files that a rule of the sound map means."""
        package = package_folder(self._work, source)
        if source == OPENSFX:
            sounds = opensfx_sounds(package / OPENSFX_FILE)
            return [(name, wav) for name, wav in sounds if re.search(pattern, name) and len(wav) > OPENSFX_MIN_BYTES]
        return [(path, package / path) for path in self.files(source) if re.search(pattern, path.lower())]


def choose(classes: dict[str, Any], packages: Packages) -> dict[str, list[Recording]]:
    """Sound -> its recordings. A file, or a copy of it, serves one sound only: the first whose rule means it."""
    chosen: dict[str, list[Recording]] = defaultdict(list)
    seen: set[tuple[str, str]] = set()
    digests: set[bytes] = set()
    for sound, entry in classes.items():
        for source, pattern in entry["rules"]:
            hits = [hit for hit in packages.matching(source, pattern) if (source, hit[0]) not in seen]
            most = len(hits) if source == OPENSFX else MOST_FILES_OF_A_PACKAGE
            for path, audio in evenly_spread(hits, most):
                if (source, path) in seen:  # OpenTTD has several sounds of one name
                    continue
                seen.add((source, path))
                digest = hashlib.sha1(audio if isinstance(audio, bytes) else audio.read_bytes()).digest()
                if digest not in digests:
                    digests.add(digest)
                    chosen[sound].append(Recording(sound, source, path, audio, _stamp_of(source, path)))
    return chosen


def _stamp_of(source: str, path: str) -> str:
    if source != TUXPAINT:
        return ""
    return PurePosixPath(path.split("/stamps/")[1]).with_suffix("").as_posix()


def most_clips(recordings: int) -> int:
    """How many clips a file may give if its sound has so many recordings: the rarer the sound, the more."""
    if recordings < 4:
        return 8
    if recordings < 8:
        return 6
    return 4 if recordings < 30 else 2


def cutting_jobs(classes: dict[str, Any], chosen: dict[str, list[Recording]]) -> Iterator[Job]:
    """One job a recording; the captions of a sound take turns."""
    for sound, recordings in chosen.items():
        captions = classes[sound]["captions"]
        for index, recording in enumerate(recordings):
            yield Job(recording, captions[index % len(captions)], most_clips(len(recordings)))


def speech_jobs(package: Path, paths: Iterable[str]) -> Iterator[Job]:
    """The voices that read the sentences of the Tux Paint stamps."""
    for path in paths:
        match = re.search(r"/stamps/(.*)_desc\.(ogg|wav)$", path)
        text = package / re.sub(r"_desc\.(ogg|wav)$", ".txt", path)
        sentence = sentence_of(text) if match and text.exists() else ""
        if match and sentence:
            recording = Recording("speech", package.name, path, package / path, stamp=match[1])
            yield Job(recording, f'a voice saying "{sentence}"', 1)


def cut(job: Job) -> list[Clip]:
    try:
        return read_clips(job.recording.audio, job.most)
    except Exception as error:
        left_out(f"{job.recording.source} {job.recording.path}", error)
        return []


def licence_of_sound(work: Path, source: str, path: str, by_hand: dict[str, str]) -> str:
    if source != OPENSFX:
        return licence_of(package_folder(work, source), path, by_hand)
    if "Zero" in path:  # its sounds say their licence in their names
        return "CC0-1.0"
    return "CC-BY-SA-3.0" if "ShareAlike" in path else "CC-BY-3.0"


def row(
    recording: Recording, caption: str, kind: str, clip: Clip, licence: str, entry: dict[str, Any]
) -> dict[str, Any]:
    """``entry``: the sound's entry in the sound map."""
    key = f"{recording.source}:{recording.path}:{clip.segment}"
    return {
        "id": hashlib.sha1(key.encode()).hexdigest()[:12],
        "class": recording.sound,
        "category": entry["category"],
        "caption": caption,
        "emoji": entry["emoji"],
        "stamp": recording.stamp,
        "loop": entry["loop"],
        "kind": kind,
        "source": recording.source,
        "path": recording.path,
        "segment": clip.segment,
        "duration": np.float32(clip.duration),
        "rms_db": np.float32(clip.rms_db),
        "licence": licence,
        "licence_family": family(licence),
        "audio": clip.audio,
    }


def recorded_rows(work: Path, jobs: Iterable[Job], sound_map: dict[str, Any], pool: Executor) -> list[dict[str, Any]]:
    """The rows of all freely licensed recordings."""
    classes = {**sound_map["classes"], "speech": SPEECH}
    licensed = []
    for job in jobs:
        licence = licence_of_sound(work, job.recording.source, job.recording.path, sound_map["licences"])
        if is_free(licence):
            licensed.append((job, licence))
    clips_of_jobs = pool.map(cut, (job for job, _ in licensed), chunksize=16)
    return [
        row(job.recording, job.caption, "recorded", clip, licence, classes[job.recording.sound])
        for (job, licence), clips in zip(licensed, clips_of_jobs, strict=True)
        for clip in clips
    ]


def rendered_rows(work: Path, source: str, sound_map: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one package's soundfont."""
    name, parts = SOUNDFONTS[source]
    path = next(package_folder(work, source).rglob(name))
    renderer = Renderer(path, source, sound_map)
    for render in parts:
        render(renderer)
    return [
        row(
            Recording(rendered.sound, source, rendered.name, audio=path),
            rendered.caption,
            "rendered",
            rendered.clip,
            licence_of_sound(work, source, rendered.name, sound_map["licences"]),
            sound_map["classes"][rendered.sound],
        )
        for rendered in renderer.rendered
    ]


def to_table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """The rows in the table's order: sounds of one category together, then by where they come from."""
    order = ("category", "class", "kind", "source", "path", "segment")
    return pa.Table.from_pylist(sorted(rows, key=lambda row: tuple(row[column] for column in order)))


def build(work: Path, out: Path) -> None:
    """Write ``sounds16k.parquet`` and ``sounds_mapping.json`` to ``out`` from the packages in ``work``.

    The mapping names stamps if ``out`` has ``stamps128.parquet``.
    """
    sound_map = read_json(SOUND_MAP)
    packages = Packages(work)
    chosen = choose(sound_map["classes"], packages)
    jobs = [
        *cutting_jobs(sound_map["classes"], chosen),
        *speech_jobs(package_folder(work, TUXPAINT), packages.files(TUXPAINT)),
    ]
    with ProcessPoolExecutor() as pool:
        rendered = [pool.submit(rendered_rows, work, source, sound_map) for source in SOUNDFONTS]
        rows = recorded_rows(work, jobs, sound_map, pool)
        rows += [row for future in rendered for row in future.result()]
    table = to_table(rows)
    write_table(table, out / "sounds16k.parquet", row_group_size=512)
    counts = Counter(table["class"].to_pylist())
    log.info("sounds without a clip: %s", [sound for sound in sound_map["classes"] if sound not in counts])
    write_mapping(out, sound_map)
