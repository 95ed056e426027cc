"""The sound builders: containers, choosing of recordings, clips, soundfonts and the mapping, without any package."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from training.data import clips, containers, soundfonts, sounds, verify
from training.data.sound_mapping import stamps_of


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def qt_resource_file(content: bytes) -> bytes:
    """A version 1 resource file with the compressed file ``a/b.ogg``: header, tree, contents, names."""
    packed = struct.pack(">I", len(content)) + zlib.compress(content)
    contents = struct.pack(">I", len(packed)) + packed
    names = b"".join(struct.pack(">HI", len(name), 0) + name.encode("utf-16-be") for name in ("a", "b.ogg"))
    nodes = [struct.pack(">IHII", 0, 2, 1, 1), struct.pack(">IHII", 0, 2, 1, 2), struct.pack(">IHHHI", 8, 1, 0, 0, 0)]
    tree = b"".join(nodes)
    header = struct.pack(">4I", 1, 20, 20 + len(tree), 20 + len(tree) + len(contents))
    return b"qres" + header + tree + contents + names


def test_qt_resources_are_unpacked(tmp_path: Path) -> None:
    write(tmp_path / "game/data.rcc", qt_resource_file(b"sound"))
    containers.unpack_containers(tmp_path)
    assert (tmp_path / containers.SOUNDS / "a/b.ogg").read_bytes() == b"sound"
    assert list(containers.qt_resources(b"something else")) == []


def test_opensfx_sounds(tmp_path: Path) -> None:
    name, wav = b"Horn (Zero)\0", b"RIFF1234"
    entry = bytes([len(name)]) + name + wav
    path = write(tmp_path / "opensfx.cat", struct.pack("<2I", 8 | 0x80000000, len(wav)) + entry)
    assert containers.opensfx_sounds(path) == [("Horn (Zero)", wav)]


def tone(seconds: float) -> np.ndarray:
    return np.sin(np.arange(int(seconds * clips.SAMPLE_RATE)) * 0.2).astype(np.float32)


def test_tidy_trims_silence_and_mixes_channels() -> None:
    silence = np.zeros(clips.SAMPLE_RATE, np.float32)
    mono = np.concatenate([silence, tone(0.5), silence])
    tidied = clips.tidy(np.stack([mono, mono], 1), clips.SAMPLE_RATE)
    assert tidied is not None
    assert len(tidied) / clips.SAMPLE_RATE == pytest.approx(0.56, abs=0.01)
    assert clips.tidy(silence, clips.SAMPLE_RATE) is None
    assert clips.tidy(tone(0.01), clips.SAMPLE_RATE) is None


@pytest.mark.parametrize(("seconds", "most", "count"), [(0.05, 4, 0), (2, 4, 1), (9, 4, 2), (40, 4, 4), (9, 8, 4)])
def test_windows(seconds: float, most: int, count: int) -> None:
    pieces = clips.windows(tone(seconds), most)
    assert len(pieces) == count
    assert all(len(piece) <= clips.MAX_SAMPLES for piece in pieces)
    if seconds > 4:
        assert all(piece[0] == piece[-1] == 0 for piece in pieces)


def test_encoded_clip_has_its_peak_where_it_belongs() -> None:
    clip = clips.encode(0.1 * tone(1))
    (again,) = clips.read_clips(clip.audio, 1)
    assert again.duration == pytest.approx(1, abs=0.06)
    assert clip.rms_db == pytest.approx(20 * np.log10(clips.PEAK / np.sqrt(2)), abs=0.1)


def test_a_recording_serves_one_sound_only(tmp_path: Path) -> None:
    folder = tmp_path / "packages/game"
    for name, content in {
        "bark1.wav": "a",
        "bark2.wav": "b",
        "copy.wav": "a",
        "growl.ogg": "c",
        "bark.txt": "d",
    }.items():
        write(folder / name, content)
    rules = {"dog": [["game", "bark"]], "wolf": [["game", "bark|growl|copy"]]}
    classes = {sound: {"rules": rule, "captions": ["x", "y"]} for sound, rule in rules.items()}
    chosen = sounds.choose(classes, sounds.Packages(tmp_path))
    paths = {sound: [recording.path for recording in recordings] for sound, recordings in chosen.items()}
    assert paths == {"dog": ["bark1.wav", "bark2.wav"], "wolf": ["growl.ogg"]}
    jobs = list(sounds.cutting_jobs(classes, chosen))
    assert [(job.caption, job.most) for job in jobs] == [("x", 8), ("y", 8), ("x", 8)]


def test_speech_reads_the_sentence_of_a_stamp(tmp_path: Path) -> None:
    write(tmp_path / "usr/stamps/animals/cat.txt", "A cat.")
    (job,) = sounds.speech_jobs(tmp_path, ["usr/stamps/animals/cat_desc.ogg", "usr/stamps/animals/cat.ogg"])
    assert (job.caption, job.recording.stamp) == ('a voice saying "A cat."', "animals/cat")


def test_stamps_of_a_sound() -> None:
    known = [
        {"id": i, "name": n, "style": s}
        for i, n, s in [("x", "dogs", "photo"), ("y", "hot dog", "letter"), ("z", "cat", "photo")]
    ]
    assert stamps_of("dog", {}, {"z", "gone"}, known) == ["z", "x"]
    assert stamps_of("dog", {"stamps": "cat"}, set(), known) == ["z"]


def test_presets_of_a_soundfont(tmp_path: Path) -> None:
    records = [
        struct.pack("<20sHH14x", name, program, bank) for name, program, bank in ((b"Piano\0?", 0, 0), (b"Kit", 1, 128))
    ]
    table = b"".join([*records, struct.pack("<20sHH14x", b"EOP", 0, 0)])
    other = b"LIST" + struct.pack("<I", 7) + b"INFOabc\0"  # of odd length, hence padded
    presets = b"LIST" + struct.pack("<I", 12 + len(table)) + b"pdta" + b"phdr" + struct.pack("<I", len(table)) + table
    path = write(
        tmp_path / "font.sf2", b"RIFF" + struct.pack("<I", 4 + len(other + presets)) + b"sfbk" + other + presets
    )
    assert soundfonts.read_presets(path) == [(0, 0, "Piano"), (128, 1, "Kit")]


@pytest.mark.parametrize("number", [0, 1])
def test_beats_end_in_time(number: int) -> None:
    events = soundfonts.beat(number, 110)
    assert max(event.time for event in events) < 3.8
    assert (soundfonts.CRASH in {event.key for event in events}) == bool(number)
    assert soundfonts.player_of("oboe") == "an oboe" and soundfonts.player_of("bagpipes") == "bagpipes"


@pytest.mark.parametrize(
    ("samples", "sample_rate", "problem"),
    [
        (tone(1), 16_000, None),
        (tone(1), 44_100, "is not 16 kHz mono"),
        (tone(5), 16_000, "lasts 5.00 s"),
        (0 * tone(1), 16_000, "is silent"),
        (np.nan * tone(1), 16_000, "has samples that are no numbers"),
    ],
)
def test_problem_of_clip(samples: np.ndarray, sample_rate: int, problem: str | None) -> None:
    assert verify.problem_of_clip(samples, sample_rate) == problem
