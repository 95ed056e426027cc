"""Still pictures (PNG, WebP and JPEG; others are only read) and animations (WebP and GIF), by Pillow.

What telephones save, HEIC, it reads by pi-heif, which has a decoder alone: the encoder that others bring is GPL.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pi_heif
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from models.errors import UserError
from pipelines.formats.clips import Timing, clip_of, size_within, steady

MAX_PIXELS = 64 * 2**20
MAX_EXIF_BYTES = 60_000

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
GIF_COLORS = 256
FASTEST_GIF = 50.0  # Hz: browsers show what is faster at 10 Hz
SEEN_FOR_COLORS = 2**20  # pixels of a clip by which its colours are chosen

_USUAL_DURATION = 100  # ms: what browsers give a frame that asks for none
_PNG_KEY = "synesthete"
_DESCRIPTION = 0x010E  # Exif ImageDescription
_FRAME_RATE = 0xC764  # DNG FrameRate
_PAGE_NUMBER = 0x0129  # TIFF PageNumber: which page, of how many

pi_heif.register_heif_opener()


def encode_image(pixels: np.ndarray, suffix: str, note: str | None) -> bytes:
    """``pixels``: (H, W, 3) uint8."""
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    if suffix == ".png":
        image.save(file, "PNG", pnginfo=_png_text(note))
    elif suffix == ".webp":
        _check_webp_size(image)
        image.save(file, "WEBP", lossless=True, exif=_exif(note))
    else:
        image.save(file, "JPEG", quality=95, subsampling=0, exif=_exif(note))
    return file.getvalue()


def decode_image(data: bytes) -> tuple[np.ndarray, str | None]:
    """(H, W, 3) uint8 pixels, upright, transparency on white, and the embedded note. An animation stands still."""
    image = _open(data)
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels()
    note = image.info.get(_PNG_KEY) or image.getexif().get(_DESCRIPTION)
    return np.asarray(_to_rgb(ImageOps.exif_transpose(image))), note


def is_picture(data: bytes) -> bool:
    """Whether the file is in one of the formats that Pillow reads here, be it still or moving."""
    try:
        _open(data)
    except UnidentifiedImageError:
        return False
    return True


def is_animation(data: bytes) -> bool:
    """Whether the picture has several frames, or was saved as an animation of frames that are all the same."""
    image = _open(data)
    several = getattr(image, "is_animated", False) and image.format != "HEIF"  # a burst, of which one was chosen
    return several or _FRAME_RATE in image.getexif()


def encode_animation(frames: np.ndarray, frame_rate: float, note: str | None) -> bytes:
    """``frames``: (T, H, W, 3) uint8. Frames that repeat are stored once and last longer."""
    images = [Image.fromarray(frame) for frame in frames]
    _check_webp_size(images[0])
    edges = np.rint(np.arange(len(frames) + 1) * 1000 / frame_rate).astype(int)
    exif = _exif(note)
    exif[_FRAME_RATE] = TiffImagePlugin.IFDRational(Fraction(frame_rate).limit_denominator(10**6))
    exif[_PAGE_NUMBER] = (0, len(frames))
    file = io.BytesIO()
    durations = np.diff(edges).tolist()
    images[0].save(
        file, "WEBP", save_all=True, append_images=images[1:], duration=durations, loop=0, lossless=True, exif=exif
    )
    return file.getvalue()


def encode_gif(frames: np.ndarray, frame_rate: float, note: str | None) -> bytes:
    """``frames``: (T, H, W, 3) uint8, of which as many are kept as browsers show, in the 256 colours that fit best.

    All have one palette, and each pixel the nearest of its colours, so that nothing flickers.
    """
    every = math.ceil(frame_rate / FASTEST_GIF)
    frames, frame_rate = frames[::every], frame_rate / every
    some = frames.reshape(-1, 1, 3)[:: -(-frames.size // (3 * SEEN_FOR_COLORS))]
    palette = Image.fromarray(some).quantize(GIF_COLORS, Image.Quantize.MEDIANCUT, kmeans=1)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    hundredths = np.rint(np.arange(len(frames) + 1) * 100 / frame_rate).astype(int)
    file = io.BytesIO()
    options = {"comment": note.encode()} if note else {}
    durations = (10 * np.diff(hundredths)).tolist()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, **options)
    return file.getvalue()


def decode_animation(data: bytes) -> tuple[np.ndarray, float, str | None]:
    """(T, H, W, 3) uint8 frames at a steady rate, the rate in Hz, and the embedded note.

    Frames are scaled down where the clip would be too large.
    """
    image = _open(data)
    exif = image.getexif()
    comment = image.info.get("comment")  # bytes in a GIF
    note = comment.decode(errors="replace") if isinstance(comment, bytes) else exif.get(_DESCRIPTION)
    count = getattr(image, "n_frames", 1)
    size_within(*image.size, count, Timing(1000 / _USUAL_DURATION, 0, count))
    ends = np.cumsum([_seek(image, index) for index in range(count)]) / 1000
    starts = np.concatenate([[0], ends[:-1]])
    timing = steady(starts, ends[-1])
    if _FRAME_RATE in exif:
        rate = float(exif[_FRAME_RATE])
        _, length = exif.get(_PAGE_NUMBER, (0, max(1, round(ends[-1] * rate))))
        timing = Timing(rate, 0, length)
    size = size_within(*image.size, count, timing)

    def shown() -> Iterator[tuple[float, Image.Image]]:
        for index, start in enumerate(starts):
            _seek(image, index)
            frame = _to_rgb(image)
            yield start, frame if frame.size == size else frame.resize(size, Image.Resampling.BOX)

    return clip_of(shown(), np.asarray, timing), timing.rate, note


def _seek(image: Image.Image, index: int) -> int:
    """Go to a frame; returns for how many milliseconds it is shown."""
    image.seek(index)
    image.load()  # WebP says only then how long
    return int(image.info.get("duration") or _USUAL_DURATION)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels() from error


def _too_many_pixels() -> UserError:
    return UserError("The picture has too many pixels.", f"Use one of at most {MAX_PIXELS:,}, such as 8000 x 8000.")


def _check_webp_size(image: Image.Image) -> None:
    if max(image.size) > 16_383:
        raise UserError("A WebP picture has at most 16383 pixels on a side.", "Save it as PNG.")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # grey: convert() would clip it instead of scaling it.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F", "LAB"):
        raise UserError("The picture's colours are in a form for science or print.", "Save it in RGB of 8 or 16 bits.")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _png_text(note: str | None) -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    if note:
        text.add_text(_PNG_KEY, note)
    return text


def _exif(note: str | None) -> Image.Exif:
    """Exif with the note, unless it is longer than a JPEG's Exif may be; then the sidecar alone has it."""
    exif = Image.Exif()
    if note and len(note) <= MAX_EXIF_BYTES:
        exif[_DESCRIPTION] = note
    return exif
