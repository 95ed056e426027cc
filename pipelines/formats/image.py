"""Still pictures (PNG, WebP, JPEG) and animated WebP, by Pillow."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin

from models.errors import UserError

MAX_PIXELS = 64 * 2**20
MAX_ANIMATION_PIXELS = 256 * 2**20
MAX_EXIF_BYTES = 60_000

_FORMATS = ("PNG", "JPEG", "WEBP")
_PNG_KEY = "synesthete"
_DESCRIPTION = 0x010E  # Exif ImageDescription
_FRAME_RATE = 0xC764  # DNG FrameRate
_PAGE_NUMBER = 0x0129  # TIFF PageNumber: which page, of how many


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
    """(H, W, 3) uint8 pixels, upright, transparency on white; and the embedded note."""
    image = _open(data)
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(image)
    note = image.info.get(_PNG_KEY) or image.getexif().get(_DESCRIPTION)
    return np.asarray(_to_rgb(ImageOps.exif_transpose(image))), note


def is_animation(data: bytes) -> bool:
    """Whether a WebP file has several frames, or was saved as an animation of frames that are all the same."""
    image = _open(data)
    return getattr(image, "n_frames", 1) > 1 or _FRAME_RATE in image.getexif()


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


def decode_animation(data: bytes) -> tuple[np.ndarray, float, str | None]:
    """(T, H, W, 3) uint8 frames at a steady rate, the rate in Hz, and the embedded note."""
    image: Any = _open(data)
    exif = image.getexif()
    count = getattr(image, "n_frames", 1)
    if image.width * image.height * count > MAX_ANIMATION_PIXELS:
        raise _too_large(image)
    frames, durations = [], []
    for index in range(count):
        image.seek(index)
        frames.append(np.asarray(_to_rgb(image)))
        durations.append(max(1, image.info.get("duration", 100)))
    frame_rate = float(exif.get(_FRAME_RATE, 1000 / min(durations)))
    _, length = exif.get(_PAGE_NUMBER, (0, max(1, round(sum(durations) * frame_rate / 1000))))
    if image.width * image.height * length > MAX_ANIMATION_PIXELS:
        raise _too_large(image)
    starts = np.rint(np.arange(length) * 1000 / frame_rate)
    shown = np.searchsorted(np.cumsum(durations), starts, side="right").clip(max=count - 1)
    return np.stack([frames[index] for index in shown]), frame_rate, exif.get(_DESCRIPTION)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError("The picture has too many pixels.", f"Use at most {MAX_PIXELS:,}.") from error


def _too_large(image: Image.Image) -> UserError:
    frames = getattr(image, "n_frames", 1)
    size = f"{image.width} x {image.height} pixels" + (f" and {frames} frames" if frames > 1 else "")
    return UserError(f"The picture has {size}: too many.", "Use a smaller one.")


def _check_webp_size(image: Image.Image) -> None:
    if max(image.size) > 16_383:
        raise UserError("A WebP picture has at most 16383 pixels on a side.", "Save it as PNG.")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip it instead of scaling it.
        return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
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
