"""Pictures and animations of other programs: read as they look, or refused before they cost anything."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from app.ui.inputs import artifact_of
from pipelines.media import Image, Video
from tests.media_examples import read, refuse
from tests.media_files import CORNERS, greys, shades


@pytest.mark.parametrize("suffix", [".gif", ".bmp", ".tif", ".tiff", ".avif", ".jfif"])
def test_a_picture_is_read_as_it_looks(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"it{suffix}"
    PIL.Image.fromarray(CORNERS).save(path, quality=95)
    pixels = read(path, Image).pixels
    assert pixels.shape == CORNERS.shape
    assert np.abs(pixels[4::8, 4::8].astype(int) - CORNERS[4::8, 4::8]).mean() < 4


@pytest.mark.parametrize("name", ["it.png", "it.gif", "it.tiff", "it.jpg"])
@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "WEBP"])
def test_a_picture_with_the_name_of_another_format_is_read(name: str, format: str, tmp_path: Path) -> None:
    path = tmp_path / name
    PIL.Image.fromarray(CORNERS).save(path, format=format, lossless=True)
    np.testing.assert_array_equal(read(path, Image).pixels, CORNERS)


HEIC = Path(__file__).parent / "golden" / "on_its_side.heic"  # CORNERS four times as large, stored on its side


def test_what_a_telephone_saves_is_read_upright_and_still(tmp_path: Path) -> None:
    for name in ("it.heic", "it.HEIF", "it.jpg"):
        (tmp_path / name).write_bytes(HEIC.read_bytes())
        pixels = read(tmp_path / name, Image).pixels
        assert pixels.shape == (128, 192, 3)
        assert np.abs(pixels[16::32, 16::32].astype(int) - CORNERS[4::8, 4::8]).max() < 8


@pytest.mark.parametrize("kept", [30, 100, 500, 900])
def test_half_a_file_of_a_telephone(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "it.heic"
    path.write_bytes(HEIC.read_bytes()[:kept])
    assert "damaged" in refuse(path).sentence


def test_a_telephones_file_that_claims_too_much(tmp_path: Path) -> None:
    data, side = HEIC.read_bytes(), (30_000).to_bytes(4, "big")
    sizes = [at.end() + 4 for at in re.finditer(b"ispe", data)]
    for at in sizes:
        data = data[:at] + side + side + data[at + 8 :]
    path = tmp_path / "it.heic"
    path.write_bytes(data)
    assert sizes and "too many pixels" in refuse(path).sentence


def png(header: bytes, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def deep_png(values: np.ndarray, colour_type: int) -> bytes:
    """``values``: (H, W, channels) uint16, in a PNG of 16 bits, which Pillow writes only for grey."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return png(header, zlib.compress(rows))


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3)])
def test_sixteen_bits_keep_their_brightness(colour_type: int, channels: int, tmp_path: Path) -> None:
    levels = np.array([0, 40, 128, 255])
    values = np.repeat(levels * 257, channels).reshape(1, 4, channels).astype(np.uint16)
    (tmp_path / "it.png").write_bytes(deep_png(values, colour_type))
    pixels = read(tmp_path / "it.png", Image).pixels
    np.testing.assert_array_equal(pixels[0], np.repeat(levels[:, None], 3, axis=1))
    if channels == 1:
        path = tmp_path / "it.tiff"
        PIL.Image.fromarray(values[..., 0]).save(path)
        np.testing.assert_array_equal(read(path, Image).pixels, pixels)


def test_colours_of_print_and_of_science(tmp_path: Path) -> None:
    path = tmp_path / "it.tiff"
    PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path)
    assert (read(path, Image).pixels == (255, 0, 0)).all()
    PIL.Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(path)
    assert "science" in refuse(path).sentence


def test_one_pixel_and_a_transparent_palette(tmp_path: Path) -> None:
    path = tmp_path / "it.gif"
    dot = PIL.Image.new("P", (1, 1), 1)
    dot.putpalette([0, 0, 0, 10, 20, 30])
    dot.save(path)
    assert read(path, Image).pixels.tolist() == [[[10, 20, 30]]]
    dot.save(path, transparency=1)
    assert read(path, Image).pixels.tolist() == [[[255, 255, 255]]]


def test_a_turned_tiff_comes_upright(tmp_path: Path) -> None:
    path = tmp_path / "it.tiff"
    PIL.Image.fromarray(CORNERS).save(path, tiffinfo={274: 6})
    np.testing.assert_array_equal(read(path, Image).pixels, np.rot90(CORNERS, -1))


def bomb(format: str) -> bytes:
    """A picture whose header says 30,000 x 30,000 pixels."""
    if format == "PNG":
        return png(struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0), zlib.compress(bytes(1000)))
    file = io.BytesIO()
    PIL.Image.new("RGB", (7, 9)).save(file, format)
    data = file.getvalue()
    places = {"GIF": ("<HH", 6), "BMP": ("<ii", 18)}
    if format in places:
        layout, at = places[format]
    elif format == "JPEG":
        layout, at = ">HH", data.index(b"\xff\xc0") + 5
    else:  # TIFF: the values of its first two entries, each 12 bytes
        at = data.index(struct.pack("<HHI", 256, 4, 1)) + 8
        return (
            data[:at] + struct.pack("<H", 30_000) + data[at + 2 : at + 12] + struct.pack("<H", 30_000) + data[at + 14 :]
        )
    size = struct.calcsize(layout)
    return data[:at] + struct.pack(layout, 30_000, 30_000) + data[at + size :]


MEASURE = """
import resource, sys
from models.errors import UserError
from pipelines.media import load_artifact
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = used()
for path in sys.argv[1:]:
    try:
        load_artifact(path)
    except UserError as error:
        assert "too many pixels" in error.sentence, error
    else:
        raise AssertionError(path)
print(used() - before)
"""


def test_bombs_are_refused_by_their_headers_in_little_memory(tmp_path: Path) -> None:
    formats = ("PNG", "GIF", "BMP", "JPEG", "TIFF")
    paths = [tmp_path / f"it.{format.lower()}" for format in formats]
    for path, format in zip(paths, formats, strict=True):
        path.write_bytes(bomb(format))
    ran = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 200  # MB


# Animations.


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_is_a_clip_unless_a_picture_is_wanted(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"it{suffix}"
    frames = [PIL.Image.fromarray(frame) for frame in shades(3)]
    options: Any = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[50, 100, 150], **options)
    clip = read(path, Video)
    assert clip.frame_rate == pytest.approx(20)
    assert greys(clip).tolist() == [20, 125, 125, 230, 230, 230]
    still = read(path, Image, "image")
    assert (still.pixels == 20).all()
    assert artifact_of("image", str(path), "Picture").content_hash() == still.content_hash()
    assert artifact_of("video", str(path), "Clip").content_hash() == clip.content_hash()


def test_of_an_apng_the_first_frame_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "it.png"
    frames = [PIL.Image.fromarray(frame) for frame in shades(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    assert (read(path, Image).pixels == 20).all()


def test_frames_that_ask_for_no_time_get_a_tenth_of_a_second(tmp_path: Path) -> None:
    path = tmp_path / "it.gif"
    frames = [PIL.Image.fromarray(frame) for frame in shades(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=0)
    clip = read(path, Video)
    assert clip.frame_rate == pytest.approx(10) and len(clip.frames) == 3
