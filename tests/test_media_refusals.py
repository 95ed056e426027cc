"""Files, values and folders that cannot be used: each is refused in one plain sentence, before it does harm."""

from __future__ import annotations

import errno
import gzip
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from models.errors import UserError
from pipelines.media import MEDIA, Artifact, Audio, BrainScan, Image, Mesh, Text, Video, load_artifact, medium_of_suffix
from tests.media_examples import assert_plain, every_file, few, made, refuse, unprivileged

ZERO_FACES = np.array([[0, 1, 2]], np.int32)
CORNERS = np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Text("a\0b"),
        lambda: Text("\ud800"),
        lambda: Text("a" * 1_000_001),
        lambda: Image(np.zeros((0, 4, 3), np.uint8)),
        lambda: Audio(np.full((1, 4), np.nan, np.float32), 8000),
        lambda: Audio(np.full((1, 4), np.inf, np.float32), 8000),
        lambda: Audio(np.full((1, 4), 1.5, np.float32), 8000),
        lambda: Audio(np.zeros((1, 0), np.float32), 8000),
        lambda: Audio(np.zeros((1, 4), np.float32), 0),
        lambda: Video(np.zeros((2, 4, 4, 3), np.uint8), float("nan")),
        lambda: Video(np.zeros((2, 4, 4, 3), np.uint8), 0.0),
        lambda: Mesh(CORNERS * np.nan, ZERO_FACES),
        lambda: Mesh(CORNERS, ZERO_FACES + 1),
        lambda: Mesh(CORNERS, ZERO_FACES - 1),
        lambda: Mesh(CORNERS, np.zeros((0, 3), np.int32)),
        lambda: BrainScan(np.full(3, np.nan, np.float32), "MNI152", "s"),
    ],
)
def test_values_that_no_file_holds_are_refused(build: Any) -> None:
    with pytest.raises(UserError) as caught:
        build()
    assert_plain(caught.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Text(b"bytes"),  # type: ignore[arg-type]
        lambda: Image([[0]]),  # type: ignore[arg-type]
        lambda: Image(np.zeros((4, 4, 3), np.float32)),
        lambda: Image(np.zeros((4, 4, 4), np.uint8)),
        lambda: Image(np.zeros((4, 4), np.uint8)),
        lambda: Audio(np.zeros((1, 4), np.float64), 8000),
        lambda: Audio(np.zeros(4, np.float32), 8000),
        lambda: Video(np.zeros((4, 4, 3), np.uint8), 8.0),
        lambda: Mesh(CORNERS, ZERO_FACES.astype(np.int64)),
        lambda: Mesh(CORNERS, ZERO_FACES, np.zeros((2, 3), np.uint8)),
        lambda: BrainScan(np.zeros((1, 1, 1, 1, 1), np.float32), "MNI152", "s"),
    ],
)
def test_wrong_types_and_shapes_are_bugs(build: Any) -> None:
    with pytest.raises(TypeError):
        build()


# Files that cannot be used.


def test_suffixes_name_media() -> None:
    assert [medium_of_suffix(kind.suffixes[0]) for kind in MEDIA] == [kind.medium for kind in MEDIA]
    assert medium_of_suffix(".PNG") == "image"
    with pytest.raises(UserError, match="not supported"):
        medium_of_suffix(".exe")


def test_missing_empty_folder_and_unsupported(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "plan.xyz").write_text("x")
    (tmp_path / "none").write_text("x")
    assert "no file" in refuse(tmp_path / "missing.png").sentence
    assert "empty" in refuse(tmp_path / "empty.png").sentence
    assert "folder" in refuse(tmp_path / "folder.png").sentence
    assert "supported" in refuse(tmp_path / "plan.xyz").sentence
    assert "supported" in refuse(tmp_path / "none").sentence


def test_a_file_of_another_medium_is_refused(tmp_path: Path) -> None:
    Text("hello").save(tmp_path / "it.txt")
    with pytest.raises(UserError, match="not a name for image"):
        Image.load(tmp_path / "it.txt")
    with pytest.raises(UserError, match="not a name for text"):
        Text("hello").save(tmp_path / "it.png")
    with pytest.raises(UserError, match="empty"):
        Text("").save(tmp_path / "nothing.txt")
    assert {path.name for path in tmp_path.iterdir()} == {"it.txt", "it.txt.json"}


@pytest.mark.parametrize("suffix", sorted({suffix for kind in MEDIA for suffix in kind.suffixes} - {".txt"}))
def test_a_text_with_another_suffix_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"it{suffix}"
    path.write_text("This is no such file, whatever its name says. " * 20)
    refuse(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_bytes(b"\x89PNG\r\n\xff\xfe\x00")
    refuse(tmp_path / "it.txt")


# A shorter file of the formats left out is a whole one.
@pytest.mark.parametrize(("artifact", "suffix"), every_file(".txt", ".obj", ".ogg"))
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.9])
def test_truncated_files_are_refused(artifact: Artifact, suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"it{suffix}"
    data = artifact.encode(suffix)
    path.write_bytes(data[: int(len(data) * share)])
    refuse(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # what decoders say about damage
@few
@given(flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=20))
@pytest.mark.parametrize(("artifact", "suffix"), every_file())
def test_damaged_files_give_an_artifact_or_a_plain_error(
    artifact: Artifact, suffix: str, flips: list[tuple[float, int]], tmp_path: Path
) -> None:
    data = bytearray(artifact.encode(suffix))
    for place, value in flips:
        data[int(place * len(data))] = value
    path = tmp_path / f"it{suffix}"
    path.write_bytes(data)
    try:
        load_artifact(path).content_hash()
    except UserError as error:
        assert_plain(error)


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 13_000, 20_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_decoding(side: int, tmp_path: Path) -> None:
    (tmp_path / "it.png").write_bytes(png_of_size(side, side))
    assert "many" in refuse(tmp_path / "it.png").sentence


def test_a_gzip_bomb_is_refused_before_unpacking(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape((2000, 2000, 2000))
    header.set_data_dtype(np.float32)
    header["vox_offset"] = 352
    (tmp_path / "it.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(1_000_000)))
    assert "too many values" in refuse(tmp_path / "it.nii.gz").sentence


def glb(header: dict[str, Any], binary: bytes = b"\0" * 4) -> bytes:
    body = json.dumps(header).encode()
    body += b" " * (-len(body) % 4)
    size = 12 + 8 + len(body) + 8 + len(binary)
    chunks = struct.pack("<I4s", len(body), b"JSON") + body + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, size) + chunks


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ({"accessors": [{"count": 2**40, "componentType": 5126, "type": "VEC3"}]}, "too many"),
        ({"nodes": [{}] * 20_000}, "too many"),
        ({"extensionsRequired": ["KHR_draco_mesh_compression"]}, "compressed"),
    ],
)
def test_a_glb_that_promises_too_much_is_refused(header: dict[str, Any], word: str, tmp_path: Path) -> None:
    (tmp_path / "it.glb").write_bytes(glb({"asset": {"version": "2.0"}, **header}))
    assert word in refuse(tmp_path / "it.glb").sentence


@pytest.mark.parametrize("count", ["-1099511627776", "NaN"])
def test_a_glb_that_promises_less_than_nothing_is_refused(count: str, tmp_path: Path) -> None:
    """So that it makes no room for what is too much beside it."""
    accessors = [{"count": 2**40, "componentType": 5126, "type": "VEC3"}, {"count": "less"}]
    data = glb({"asset": {"version": "2.0"}, "accessors": accessors})
    (tmp_path / "it.glb").write_bytes(_with_number(data, '"less"', count))
    assert "damaged" in refuse(tmp_path / "it.glb").sentence


def _with_number(data: bytes, text: str, number: str) -> bytes:
    """A number in place of a text in the header of a GLB, which keeps its length."""
    at = data.index(text.encode())
    end = data.index(b"BIN") - 4
    changed = (data[20:at] + number.encode() + data[at + len(text) : end]).rstrip()
    changed += b" " * (-len(changed) % 4)
    size = len(data) + len(changed) - (end - 20)
    return struct.pack("<4sIII4s", b"glTF", 2, size, len(changed), b"JSON") + changed + data[end:]


def test_a_shape_shown_very_often_is_refused(tmp_path: Path) -> None:
    corners = np.zeros((9000, 3), np.float32)
    faces = np.zeros((9000, 3), np.uint32)
    header = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": list(range(900))}],
        "nodes": [{"mesh": 0}] * 900,
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 9000, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5125, "count": 27_000, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": corners.nbytes},
            {"buffer": 0, "byteOffset": corners.nbytes, "byteLength": faces.nbytes},
        ],
        "buffers": [{"byteLength": corners.nbytes + faces.nbytes}],
    }
    (tmp_path / "it.glb").write_bytes(glb(header, corners.tobytes() + faces.tobytes()))
    assert "too many" in refuse(tmp_path / "it.glb").sentence


def test_a_mesh_may_not_read_other_files(tmp_path: Path) -> None:
    header = {"asset": {"version": "2.0"}, "buffers": [{"uri": "/etc/hostname", "byteLength": 4}]}
    (tmp_path / "it.glb").write_bytes(glb(header))
    refuse(tmp_path / "it.glb")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sound_files_with_nan_are_refused(value: float, tmp_path: Path) -> None:
    samples = np.zeros(100, np.float32)
    samples[7] = value
    soundfile.write(tmp_path / "it.wav", samples, 8000, subtype="FLOAT")
    assert "finite" in refuse(tmp_path / "it.wav").sentence


def test_loud_float_files_are_clipped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "it.wav", np.array([0.5, 1.25, -3.0], np.float32), 8000, subtype="FLOAT")
    assert Audio.load(tmp_path / "it.wav").samples[0].tolist() == [0.5, 1 - 2**-23, -1]


def test_a_sample_rate_beyond_ogg_is_refused_before_the_encoder_has_it() -> None:
    sound = Audio(np.zeros((1, 10), np.float32), 384_000)
    with pytest.raises(UserError, match="384000 Hz does not fit") as refused:
        sound.encode(".ogg")
    assert_plain(refused.value)
    assert Audio.decode(sound.encode(".flac"), ".flac").sample_rate == 384_000


def test_a_long_axis_does_not_fit_nifti(tmp_path: Path) -> None:
    scan = BrainScan(np.zeros(40_000, np.float32), "nsdgeneral", "subj01")
    with pytest.raises(UserError, match="NIfTI"):
        scan.save(tmp_path / "it.nii.gz")
    scan.save(tmp_path / "it.npz")
    assert load_artifact(tmp_path / "it.npz").content_hash() == scan.content_hash()


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "it.npz", values=np.array([{"code": 1}], dtype=object))
    refuse(tmp_path / "it.npz")


# Folders that cannot be written to.


def test_a_missing_folder_and_a_folder_as_target(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Text("x").save(tmp_path / "nowhere" / "it.txt")
    (tmp_path / "it.txt").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        Text("x").save(tmp_path / "it.txt")
    with pytest.raises(UserError, match="too long"):
        Text("x").save(tmp_path / ("n" * 300 + ".txt"))


def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with unprivileged(), pytest.raises(UserError) as caught:
            Text("x").save(tmp_path / "it.txt")
    finally:
        tmp_path.chmod(0o755)
    assert_plain(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "it.txt"
    Text("old", provenance=made()).save(path)

    def full(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="no space"):
            Text("new").save(path)
    assert load_artifact(path).provenance == made()
    assert {file.name for file in tmp_path.iterdir()} == {"it.txt", "it.txt.json"}


def test_faults_that_are_not_the_folder_s_are_not_blamed_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(handle: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Text("x").save(tmp_path / "it.txt")
