"""What large media take: a clip is held once, whatever is done with it, and hashed once."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.artifact import digest
from pipelines.formats import clips
from pipelines.media import Audio, Image, Video
from tests.library_examples import made
from tests.media_examples import examples
from tests.media_files import clip_file, shades
from tests.scan_files import peak_of


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 40 frames of 1280 x 720 pixels, 105 MiB unpacked."""
    path = tmp_path_factory.mktemp("clip") / "large.mp4"
    path.write_bytes(clip_file(("mp4", "mpeg4"), shades(40, 1280, 720)))
    return path


def test_a_clip_is_held_once(large: Path) -> None:
    loaded: list[Video] = []
    peak = peak_of(lambda: loaded.append(Video.load(large)))
    [clip] = loaded
    size = clip.frames.nbytes / 2**20
    assert clip.frames.shape == (40, 720, 1280, 3) and size > 100
    assert peak < 1.2 * size
    assert peak_of(clip.content_hash) < 0.05 * size
    assert peak_of(lambda: clip.with_provenance(made())) < 0.05 * size
    assert peak_of(lambda: replace(clip, audio=Audio(np.zeros((1, 8), np.float32), 8000))) < 0.05 * size
    assert peak_of(lambda: clip.encode(".mp4")) < 0.2 * size
    odd = Video(clip.frames[:, 1:, 1:], 12.0)
    assert peak_of(lambda: odd.encode(".mp4")) < 0.2 * size


def test_what_is_given_away_is_taken_and_what_others_may_change_is_copied() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    copied = Image(pixels)
    assert copied.pixels is not pixels
    pixels[:] = 9
    assert not copied.pixels.any()
    seen = pixels[:]
    seen.setflags(write=False)
    still = Image(seen)
    pixels[:] = 0
    assert still.pixels.all(), "a read-only view of what can be written to is no gift"
    given = np.ones((4, 4, 3), np.uint8)
    given.setflags(write=False)
    assert Image(given).pixels is given
    with pytest.raises(ValueError, match="read-only"):
        Image(given).pixels[0] = 1


def test_a_hash_is_computed_once_and_is_what_it_always_was(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for part in (array, array.T, array[:, ::2], array[0, 0, 0, None]):
        head = f"{part.dtype.str}{part.shape}:{part.nbytes}\n".encode()
        assert digest(part) == hashlib.sha256(head + part.tobytes()).hexdigest()
    for artifact in examples():
        before = artifact.content_hash()
        with monkeypatch.context() as patch:
            patch.setattr(hashlib, "sha256", None)
            assert artifact.content_hash() == before
        assert replace(artifact).content_hash() == before


def test_clips_of_usual_lengths_fit_into_half_a_gigabyte() -> None:
    for width, height, seconds in ((3840, 2160, 34), (1920, 1080, 120), (1280, 720, 120)):
        count = 30 * seconds
        size = clips.size_within(width, height, count, clips.Timing(30, 0, count))
        assert size[0] * size[1] * count * 3 < 2**29 and size[0] >= 256
