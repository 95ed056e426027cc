"""Artifacts and their files: what is saved comes back, and the files of other programs come as they look."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipelines.artifact import sidecar_path
from pipelines.media import (
    Artifact,
    Audio,
    BrainScan,
    Image,
    Mesh,
    ModelRecord,
    Provenance,
    Text,
    Video,
    load_artifact,
)
from tests.media_examples import every_file, examples, few, made, meshes

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1, max_size=80)
bytes_ = st.integers(0, 255)
floats = st.floats(-1e6, 1e6, width=32)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
provenances = st.builds(
    Provenance,
    pipeline=words,
    inputs=st.lists(st.fixed_dictionaries({"medium": st.just("text"), "text": words}), max_size=2).map(tuple),
    params=st.dictionaries(words, json_values, max_size=4),
    index=st.integers(0, 7),
    seed=st.integers(0, 2**31 - 1),
    parents=st.lists(words, max_size=2).map(tuple),
    models=st.lists(st.builds(ModelRecord, key=words, checksum=words, precision=words), max_size=2).map(tuple),
    version=words,
)


def pixels(*shape: Any) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(np.uint8, st.tuples(*shape, st.just(3)), elements=bytes_)


sides = st.integers(1, 12)
texts = st.builds(Text, words)
images = st.builds(Image, pixels(sides, sides))
audios = st.builds(
    Audio,
    arrays.arrays(np.float32, st.tuples(st.integers(1, 2), st.integers(1, 50)), elements=st.floats(-1, 1, width=32)),
    st.sampled_from([8000, 22050, 44100, 48000]),
)
videos = st.builds(
    Video, pixels(st.integers(2, 5), sides, sides), st.sampled_from([1.0, 8.0, 12.5, 23.976, 24.0, 30.0, 59.94])
)
objects = st.builds(
    meshes, arrays.arrays(np.float32, st.tuples(st.integers(3, 9), st.just(3)), elements=floats), st.booleans()
)
scans = st.builds(
    BrainScan,
    arrays.arrays(np.float32, arrays.array_shapes(min_dims=1, max_dims=4, max_side=5), elements=floats),
    words,
    words,
)

SIDECAR_ONLY = (".txt", ".obj", ".ply")
LOSSLESS = [
    (texts, ".txt"),
    (images, ".png"),
    (images, ".webp"),
    (audios, ".wav"),
    (audios, ".flac"),
    (videos, ".webp"),
    (objects, ".glb"),
    (objects, ".ply"),
    (scans, ".nii.gz"),
    (scans, ".nii"),
    (scans, ".npz"),
]


# What is saved comes back.


@pytest.mark.parametrize(("strategy", "suffix"), LOSSLESS, ids=lambda value: value if isinstance(value, str) else None)
def test_a_lossless_file_gives_back_the_artifact(strategy: Any, suffix: str, tmp_path: Path) -> None:
    @few
    @given(artifact=strategy, provenance=provenances)
    def check(artifact: Artifact, provenance: Provenance) -> None:
        path = tmp_path / f"it{suffix}"
        artifact.with_provenance(provenance).save(path)
        loaded = load_artifact(path)
        assert type(loaded) is type(artifact)
        assert loaded.provenance == provenance
        if isinstance(artifact, Video) and isinstance(loaded, Video):
            assert loaded.frame_rate == pytest.approx(artifact.frame_rate, rel=1e-6)
            np.testing.assert_array_equal(loaded.frames, artifact.frames)
        else:
            assert loaded.content_hash() == artifact.content_hash()

    check()


@few
@given(artifact=objects)
def test_obj_keeps_ten_decimals(artifact: Mesh, tmp_path: Path) -> None:
    artifact.save(tmp_path / "it.obj")
    loaded = Mesh.load(tmp_path / "it.obj")
    np.testing.assert_allclose(loaded.vertices, artifact.vertices, rtol=1e-6, atol=1e-10)
    np.testing.assert_array_equal(loaded.faces, artifact.faces)
    if artifact.vertex_colors is not None:
        np.testing.assert_array_equal(loaded.vertex_colors, artifact.vertex_colors)


@few
@given(provenance=provenances)
def test_provenance_survives_json(provenance: Provenance) -> None:
    text = provenance.to_json()
    assert Provenance.from_json(text) == provenance
    assert Provenance.from_json(text).to_json() == text
    assert text.isascii()


def test_provenance_does_not_depend_on_the_order_of_settings() -> None:
    assert made(params={"a": 1, "b": (2, 3)}).to_json() == made(params={"b": [2, 3], "a": 1}).to_json()


@pytest.mark.parametrize(("artifact", "suffix"), every_file())
def test_every_format_carries_provenance_and_a_sidecar(artifact: Artifact, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"it{suffix}"
    artifact.with_provenance(made()).save(path)
    sidecar = json.loads(sidecar_path(path).read_bytes())
    assert sidecar["medium"] == artifact.medium
    assert sidecar["content_hash"] == artifact.content_hash()
    assert Provenance.model_validate(sidecar["provenance"]) == made()
    assert load_artifact(path).provenance == made()
    sidecar_path(path).unlink()
    assert load_artifact(path).provenance == (None if suffix in SIDECAR_ONLY else made())
    assert {left.name for left in tmp_path.iterdir()} == set(artifact.files(path.name))


@pytest.mark.parametrize(("artifact", "suffix"), every_file())
def test_long_provenance_is_kept_whole(artifact: Artifact, suffix: str, tmp_path: Path) -> None:
    long = made(inputs=({"medium": "text", "text": "a very long prompt " * 6000},))
    artifact.with_provenance(long).save(tmp_path / f"it{suffix}")
    assert load_artifact(tmp_path / f"it{suffix}").provenance == long


@pytest.mark.parametrize(("artifact", "suffix"), every_file(".ogg", ".mp4"))
def test_saving_twice_gives_the_same_bytes(artifact: Artifact, suffix: str) -> None:
    artifact = artifact.with_provenance(made())
    assert artifact.encode(suffix) == artifact.encode(suffix)
    other = artifact.with_provenance(made(seed=8)).encode(suffix)
    assert (artifact.encode(suffix) == other) == (suffix in SIDECAR_ONLY)


def test_files_without_provenance_have_none(tmp_path: Path) -> None:
    for artifact in examples():
        path = tmp_path / f"it{artifact.suffixes[0]}"
        artifact.save(path)
        assert load_artifact(path).provenance is None


def test_a_sidecar_of_another_file_is_not_believed(tmp_path: Path) -> None:
    Text("one", provenance=made()).save(tmp_path / "it.txt")
    (tmp_path / "it.txt").write_text("two")
    assert load_artifact(tmp_path / "it.txt").provenance is None


@pytest.mark.parametrize("sidecar", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_a_broken_sidecar_harms_nothing(sidecar: bytes, tmp_path: Path) -> None:
    Text("one", provenance=made()).save(tmp_path / "it.txt")
    sidecar_path(tmp_path / "it.txt").write_bytes(sidecar)
    assert load_artifact(tmp_path / "it.txt").provenance is None


def test_comments_of_other_programs_are_no_provenance(tmp_path: Path) -> None:
    with soundfile.SoundFile(tmp_path / "it.wav", "w", 8000, 1) as sound:
        sound.comment = '{"recorded by": "me"}'
        sound.write(np.zeros(100))
    assert load_artifact(tmp_path / "it.wav").provenance is None


def test_lossy_files_come_close(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], (1, 48, 3))
    Image(ramp).save(tmp_path / "it.jpg")
    assert np.abs(Image.load(tmp_path / "it.jpg").pixels.astype(int) - ramp).mean() < 2
    tone = (0.5 * np.sin(np.arange(48_000) / 20)).astype(np.float32)[None]
    Audio(tone, 48_000).save(tmp_path / "it.ogg")
    loaded = Audio.load(tmp_path / "it.ogg")
    assert loaded.samples.shape == tone.shape and loaded.sample_rate == 48_000
    assert np.abs(loaded.samples - tone).mean() < 0.02


def test_mp4_keeps_frames_rate_and_sound(tmp_path: Path) -> None:
    shades = np.linspace(10, 240, 9).astype(np.uint8)
    frames = np.tile(shades[:, None, None, None], (1, 15, 21, 3))  # odd sizes are padded by one
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16_000)).astype(np.float32)[None]
    Video(frames, 23.976, Audio(tone, 16_000)).save(tmp_path / "it.mp4")
    loaded = load_artifact(tmp_path / "it.mp4")
    assert isinstance(loaded, Video) and loaded.frames.shape == (9, 16, 22, 3)
    assert loaded.frame_rate == pytest.approx(23.976, abs=1e-3)
    assert np.abs(loaded.frames.mean(axis=(1, 2, 3)) - shades).max() < 4
    assert loaded.audio is not None and loaded.audio.samples.shape[0] == 1
    assert loaded.audio.duration == pytest.approx(0.5, abs=0.05)
    spectrum = np.abs(np.fft.rfft(loaded.audio.samples[0]))
    assert spectrum.argmax() / loaded.audio.duration == pytest.approx(440, abs=10)


def test_an_animation_keeps_frames_that_repeat(tmp_path: Path) -> None:
    frames = np.zeros((7, 4, 4, 3), np.uint8)
    frames[3:5] = 200
    Video(frames, 24.0).save(tmp_path / "it.webp")
    loaded = load_artifact(tmp_path / "it.webp")
    assert isinstance(loaded, Video)
    np.testing.assert_array_equal(loaded.frames, frames)


def test_an_animation_of_another_program_gets_a_steady_rate(tmp_path: Path) -> None:
    shades = [PIL.Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (0, 100, 200)]
    shades[0].save(
        tmp_path / "it.webp", save_all=True, append_images=shades[1:], duration=[50, 100, 150], lossless=True
    )
    loaded = load_artifact(tmp_path / "it.webp")
    assert isinstance(loaded, Video) and loaded.frame_rate == 20
    assert loaded.frames[:, 0, 0, 0].tolist() == [0, 100, 100, 200, 200, 200]


# Artifacts are immutable, and their hash is their content's.


@pytest.mark.parametrize("artifact", examples(), ids=lambda artifact: artifact.medium)
def test_hash_is_of_the_content_alone(artifact: Artifact) -> None:
    again = next(example for example in examples() if example.medium == artifact.medium)
    assert artifact.with_provenance(made()).content_hash() == again.content_hash()
    assert len(artifact.content_hash()) == 64
    others = [example.content_hash() for example in examples() if example.medium != artifact.medium]
    assert artifact.content_hash() not in others


def test_hash_tells_shapes_and_rates_apart() -> None:
    samples = np.zeros((1, 12), np.float32)
    zeros = np.zeros((2, 6, 3), np.uint8)
    hashes = [
        Audio(samples, 8000).content_hash(),
        Audio(samples, 16_000).content_hash(),
        Audio(samples.reshape(2, 6), 8000).content_hash(),
        Image(zeros).content_hash(),
        Image(zeros.reshape(6, 2, 3)).content_hash(),
        BrainScan(samples, "a", "bc").content_hash(),
        BrainScan(samples, "ab", "c").content_hash(),
    ]
    assert len(set(hashes)) == len(hashes)


def test_arrays_are_copies_that_cannot_be_written() -> None:
    source = np.zeros((4, 4, 3), np.uint8)
    image = Image(source)
    source[:] = 9
    assert image.pixels.max() == 0
    with pytest.raises(ValueError, match="read-only"):
        image.pixels[0, 0] = 1
    assert Image(np.zeros((3, 4, 4), np.uint8).transpose(1, 2, 0)).pixels.flags.c_contiguous


# Pictures of other programs.


def saved(image: PIL.Image.Image, path: Path, **options: Any) -> np.ndarray:
    image.save(path, **options)
    loaded = load_artifact(path)
    assert isinstance(loaded, Image)
    return loaded.pixels


def test_photos_are_turned_upright(tmp_path: Path) -> None:
    picture = PIL.Image.new("RGB", (32, 16), "blue")
    picture.paste("red", (0, 0, 16, 16))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    loaded = saved(picture, tmp_path / "it.jpg", exif=exif, quality=95)
    assert loaded.shape == (32, 16, 3)
    assert loaded[2, 8, 0] > 200 and loaded[29, 8, 2] > 200


def test_a_long_sound_fits_into_ogg() -> None:
    samples = 3_500_000  # at once, so many would be too many for the encoder
    data = Audio(np.zeros((1, samples), np.float32), 48_000).encode(".ogg")
    assert soundfile.info(io.BytesIO(data)).frames == samples


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    clear = PIL.Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = PIL.Image.new("LA", (4, 4), (0, 128))
    assert (saved(clear, tmp_path / "clear.png") == 255).all()
    assert (saved(clear, tmp_path / "clear.webp", lossless=True) == 255).all()
    assert np.abs(saved(half, tmp_path / "half.png").astype(int) - 127).max() <= 1
    palette = PIL.Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert (saved(palette, tmp_path / "palette.png", transparency=1) == 255).all()
    assert (saved(palette, tmp_path / "opaque.png") == (10, 20, 30)).all()


def test_colour_modes_become_rgb(tmp_path: Path) -> None:
    deep = PIL.Image.fromarray(np.array([[0, 128 * 257, 255 * 257]], np.uint16))
    np.testing.assert_array_equal(saved(deep, tmp_path / "deep.png")[0, :, 0], [0, 128, 255])
    assert (saved(PIL.Image.new("1", (3, 3), 1), tmp_path / "bits.png") == 255).all()
    assert (saved(PIL.Image.new("L", (3, 3), 77), tmp_path / "grey.png") == 77).all()
    cmyk = saved(PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "print.jpg", quality=95)
    assert cmyk[..., 0].min() > 240 and cmyk[..., 1:].max() < 15


def test_a_jpeg_called_png_is_still_a_picture(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (4, 4), "white").save(tmp_path / "it.png", format="JPEG")
    assert (Image.load(tmp_path / "it.png").pixels > 250).all()
