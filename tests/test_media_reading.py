"""Sounds and clips of phones, browsers and other programs: read as they are, or refused in a plain sentence."""

from __future__ import annotations

import io
import struct
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from app.ui.inputs import component_for
from models.errors import UserError
from pipelines.formats import clips
from pipelines.media import _READ, Audio, Image, Video, load_artifact, medium_of_suffix
from tests.media_examples import assert_plain, few, read, refuse
from tests.media_files import CORNERS, RATE, Codec, clip_file, greys, hollow, shades, sound_file, tone

MP4: Codec = ("mp4", "libx264")


@pytest.fixture
def kept(tmp_path: Path) -> Any:
    def keep(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return keep


def pitch(sound: Audio) -> float:
    """Hz."""
    return float(np.abs(np.fft.rfft(sound.samples[0])).argmax() / sound.duration)


# Sounds.

SOUNDS: dict[str, Codec] = {
    "it.mp3": ("mp3", "libmp3lame"),
    "it.m4a": ("ipod", "aac"),
    "it.aac": ("adts", "aac"),
    "it.opus": ("ogg", "libopus"),
    "it.webm": ("webm", "libopus"),
    "alac.m4a": ("ipod", "alac"),
    "sound.mp4": ("mp4", "aac"),
    "sound.mov": ("mov", "pcm_s16le"),
    "sound.mkv": ("matroska", "libmp3lame"),
}


@pytest.mark.parametrize("name", SOUNDS)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_sound_is_read_at_its_pitch_and_length(name: str, channels: int, kept: Any) -> None:
    loaded = read(kept(name, sound_file(SOUNDS[name], tone(1.5, channels))), Audio)
    assert len(loaded.samples) == channels and loaded.sample_rate == RATE
    assert loaded.duration == pytest.approx(1.5, abs=0.06)
    assert pitch(loaded) == pytest.approx(440, abs=2)
    assert loaded.samples[-1].std() == pytest.approx(0.5 / np.sqrt(2), abs=0.02)


@pytest.mark.parametrize("name", ["it.mp3", "it.wav"])
@pytest.mark.parametrize("codec", [("mp3", "libmp3lame"), ("ipod", "aac"), ("wav", "pcm_s16le"), ("flac", "flac")])
def test_a_sound_with_the_name_of_another_format_is_read(name: str, codec: Codec, kept: Any) -> None:
    assert pitch(read(kept(name, sound_file(codec, tone())), Audio)) == pytest.approx(440, abs=2)


def test_an_mp3_that_does_not_say_how_long_it_is_is_read_whole(kept: Any) -> None:
    quiet = np.concatenate([tone(2), np.zeros((1, 4 * RATE), np.float32)], axis=1)
    loaded = read(kept("it.mp3", sound_file(SOUNDS["it.mp3"], quiet, write_xing="0")), Audio)
    assert loaded.duration == pytest.approx(6, abs=0.1)


def test_a_recording_of_a_browser_has_no_length_and_no_index(kept: Any) -> None:
    data = sound_file(SOUNDS["it.webm"], tone(), live="1")
    assert read(kept("it.webm", data), Audio).duration == pytest.approx(1, abs=0.03)
    clip = clip_file(("webm", "libvpx"), shades(10), live="1")
    np.testing.assert_allclose(greys(read(kept("clip.webm", clip), Video)), np.linspace(20, 230, 10), atol=4)


@pytest.mark.parametrize(("rate", "channels"), [(192_000, 2), (48_000, 8), (8000, 1)])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mov"])
def test_high_rates_and_many_channels_are_kept(rate: int, channels: int, suffix: str, kept: Any) -> None:
    codec = {".wav": ("wav", "pcm_s16le"), ".flac": ("flac", "flac"), ".mov": ("mov", "pcm_s16le")}[suffix]
    loaded = read(kept(f"it{suffix}", sound_file(codec, tone(0.5, channels, rate), rate)), Audio)
    assert loaded.samples.shape == (channels, rate // 2) and loaded.sample_rate == rate
    assert pitch(loaded) == pytest.approx(440, abs=2)


def test_silence_is_a_sound_and_nan_is_none(kept: Any) -> None:
    silent = np.zeros((1, RATE), np.float32)
    assert not read(kept("it.m4a", sound_file(SOUNDS["it.m4a"], silent)), Audio).samples.any()
    silent[0, 99] = np.nan
    assert "finite" in refuse(kept("it.mov", sound_file(("mov", "pcm_f32le"), silent))).sentence


def test_three_hours_are_refused_before_they_are_decoded(kept: Any) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((8000, 2)), RATE, format="FLAC")
    flac = bytearray(file.getvalue())
    promised = 3 * 3600 * RATE  # 36 bits of its header, after those of the rate, the channels and the bits
    flac[21] = flac[21] & 0xF0 | promised >> 32
    flac[22:26] = struct.pack(">I", promised & 0xFFFFFFFF)
    aac = hollow(sound_file(SOUNDS["it.m4a"], tone(0.1)), 3 * 3600, 500)
    for path, minutes in (kept("it.flac", flac), "12 minutes"), (kept("it.m4a", aac), "23 minutes"):
        assert minutes in refuse(path).sentence


def test_too_many_channels_are_named(kept: Any) -> None:
    path = kept("it.wav", b"")
    soundfile.write(path, np.zeros((100, 12)), 8000)
    assert "12 channels" in refuse(path).sentence


# Clips.

CLIPS: dict[str, Codec] = {
    "h264.mp4": MP4,
    "h264.mov": ("mov", "libx264"),
    "h264.m4v": MP4,
    "h264.mkv": ("matroska", "libx264"),
    "h264.avi": ("avi", "libx264"),
    "hevc.mov": ("mov", "libx265"),
    "vp8.webm": ("webm", "libvpx"),
    "vp9.webm": ("webm", "libvpx-vp9"),
    "av1.mp4": ("mp4", "libsvtav1"),
    "mpeg4.avi": ("avi", "mpeg4"),
    "webm.mp4": ("webm", "libvpx"),
    "mp4.gif": MP4,
}


@pytest.mark.parametrize("name", CLIPS)
def test_each_frame_of_a_steady_clip_comes_once_and_in_order(name: str, kept: Any) -> None:
    clip = read(kept(name, clip_file(CLIPS[name], shades(12))), Video)
    assert clip.frame_rate == pytest.approx(25, rel=1e-3)
    np.testing.assert_allclose(greys(clip), np.linspace(20, 230, 12), atol=5)


@pytest.mark.parametrize("codec", [MP4, ("matroska", "libx264")])
def test_an_uneven_clip_lasts_as_long_and_stays_in_step_with_its_sound(codec: Codec, kept: Any) -> None:
    # Thirty frames a second, but ten from 1 to 2; then the picture turns white, and a tone begins.
    starts = [*np.arange(30) / 30, *(1 + np.arange(10) / 10), *(2 + np.arange(30) / 30)]
    frames = [np.full((48, 64, 3), 235 if start >= 2 else 16, np.uint8) for start in starts]
    sound = np.concatenate([np.zeros((1, 2 * RATE), np.float32), tone(1)], axis=1)
    clip = read(kept(f"it.{codec[0][:3]}".replace("mat", "mkv"), clip_file(codec, frames, starts, sound)), Video)
    assert clip.frame_rate == pytest.approx(30, rel=0.01)
    assert len(clip.frames) / clip.frame_rate == pytest.approx(3, abs=0.05)
    seen = int(np.argmax(greys(clip) > 128)) / clip.frame_rate
    heard = int(np.argmax(np.abs(clip.audio.samples[0]) > 0.1)) / clip.audio.sample_rate
    assert seen == pytest.approx(2, abs=0.04) and heard == pytest.approx(2, abs=0.04)


@pytest.mark.parametrize("degrees", [90, -90, 180])
def test_a_turned_clip_comes_upright(degrees: int, kept: Any) -> None:
    clip = read(kept("it.mov", clip_file(("mov", "libx264"), [CORNERS] * 3, rotation=degrees)), Video)
    wanted = np.rot90(CORNERS, degrees // 90).astype(int)
    assert clip.frames[0].shape == wanted.shape
    assert np.abs(clip.frames[0][4::8, 4::8] - wanted[4::8, 4::8]).mean() < 5


def test_a_large_clip_is_scaled_down_to_fit(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kept("it.mp4", clip_file(MP4, shades(10, 640, 360)))
    whole = read(path, Video)
    monkeypatch.setattr(clips, "MAX_CLIP_PIXELS", 10 * 320 * 180)
    small = read(path, Video)
    assert small.frames.shape == (10, 180, 320, 3) and whole.frames.shape == (10, 360, 640, 3)
    np.testing.assert_allclose(greys(small), greys(whole), atol=2)
    monkeypatch.setattr(clips, "MAX_CLIP_PIXELS", 5 * 256 * 144)
    assert "0 seconds" in refuse(path).sentence


def test_ten_seconds_of_4k_have_room_and_ten_minutes_have_not() -> None:
    ten = clips.Timing(30, 0, 300)
    width, height = clips.size_within(3840, 2160, 300, ten)
    assert 480 < height < 540 and width / height == pytest.approx(16 / 9, rel=0.01)
    assert width * height * 300 * 3 < 2**29
    assert clips.size_within(1280, 720, 120, clips.Timing(30, 0, 120)) == (1280, 720)


def test_too_long_a_clip_is_refused_before_it_is_decoded(kept: Any) -> None:
    path = kept("it.mp4", hollow(clip_file(MP4, shades(1, 1280, 720)), 1200, 1200 * 25))
    assert "146 seconds" in refuse(path).sentence


def test_pictures_beyond_8k_are_refused(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kept("it.avi", clip_file(("avi", "mpeg4"), shades(2)))
    monkeypatch.setattr(clips, "MAX_FRAME_PIXELS", 64 * 47)
    assert "64 x 48" in refuse(path).sentence


@pytest.mark.parametrize(("name", "codec"), [("it.avi", ("avi", "mjpeg")), ("it.mov", ("mov", "mjpeg"))])
def test_another_codec_is_named(name: str, codec: Codec, kept: Any) -> None:
    error = refuse(kept(name, clip_file(codec, shades(3))))
    assert "Motion JPEG" in error.sentence and "H.264" in error.hint
    assert "AC-3" in refuse(kept("it.mp4", sound_file(("mp4", "ac3"), tone()))).sentence


def test_a_clip_without_pictures_is_a_sound_or_refused_as_a_clip(kept: Any) -> None:
    path = kept("it.mp4", sound_file(("mp4", "aac"), tone()))
    assert read(path, Audio).duration == pytest.approx(1, abs=0.05)
    assert "no picture" in refuse(path, "video").sentence
    mute = kept("mute.webm", clip_file(("webm", "libvpx"), shades(3)))
    assert "no sound" in refuse(mute, "audio").sentence
    for name, codec in ("none.mp4", MP4), ("none.avi", ("avi", "mpeg4")):
        assert "no picture" in refuse(kept(name, clip_file(codec, [])), "video").sentence


def test_a_recording_that_was_not_finished_has_no_index(kept: Any) -> None:
    data = clip_file(MP4, shades(5)).replace(b"moov", b"free")
    assert "no index" in refuse(kept("it.mp4", data)).sentence


@pytest.mark.parametrize("name", ["h264.mov", "vp8.webm", "h264.mkv", "mpeg4.avi"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
def test_a_clip_that_was_cut_off_is_refused(name: str, share: float, kept: Any) -> None:
    data = clip_file(CLIPS[name], shades(12))
    assert "breaks off" in refuse(kept(name, data[: int(share * len(data))])).sentence


def test_a_broken_index_is_refused_or_harmless(kept: Any) -> None:
    mp4 = clip_file(MP4, shades(5))
    place = mp4.index(b"stco") + 12
    refuse(kept("it.mp4", mp4[:place] + b"\x7f\xff\xff\xff" + mp4[place + 4 :]))
    avi = clip_file(CLIPS["mpeg4.avi"], shades(12))
    place = avi.index(b"idx1") + 8
    clip = read(kept("it.avi", avi[:place] + bytes(len(avi) - place)), Video)
    assert all(one < other for one, other in pairwise(greys(clip)))


# What belongs to none of them.


@cache
def whole(name: str) -> bytes:
    if name in SOUNDS:
        return sound_file(SOUNDS[name], tone(0.2))
    return clip_file(CLIPS[name], shades(4), sound=tone(0.1) if name.startswith("h264") else None)


@few
@given(flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=20))
@pytest.mark.parametrize("name", [*SOUNDS, *CLIPS])
def test_damaged_files_are_read_or_refused(name: str, flips: list[tuple[float, int]], tmp_path: Path) -> None:
    data = bytearray(whole(name))
    for place, value in flips:
        data[int(place * len(data))] = value
    (tmp_path / name).write_bytes(data)
    try:
        load_artifact(tmp_path / name)
    except UserError as error:
        assert_plain(error)


@pytest.mark.parametrize("suffix", sorted(_READ))
def test_other_bytes_are_refused_whatever_their_name(suffix: str, kept: Any) -> None:
    refuse(kept(f"it{suffix}", b"This is no such file, whatever its name says. " * 20))
    refuse(kept(f"no{suffix}", b"\0"))
    refuse(kept(f"so{suffix}", b"\0\0\0\x08ftyp"))


def test_suffixes_that_are_only_read_name_their_medium() -> None:
    of = {suffix: medium_of_suffix(suffix) for suffix in (".gif", ".TIFF", ".mp3", ".mov", ".webm", ".mp4")}
    assert list(of.values()) == ["image", "image", "audio", "video", "video", "video"]
    assert ".mov" not in Video.suffixes and ".gif" not in Image.suffixes


@pytest.mark.parametrize("medium", ["image", "audio", "video"])
def test_a_component_hands_on_the_file_that_was_attached(medium: str, kept: Any) -> None:
    path = kept("it.mkv", b"no picture, and nothing that plays")
    component: Any = component_for(medium, "It")
    assert component.preprocess(component.data_model(path=str(path))) == str(path)
    assert component.preprocess(None) is None
