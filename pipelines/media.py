"""What flows between pipelines: typed immutable artifacts, each saved in the ordinary file format of its medium.

A file carries its provenance where its format has room for it, and always a JSON sidecar beside it
(``apple.png.json``). Saving the same artifact twice gives the same bytes, except in ``.ogg``, whose stream gets a
random serial number, and ``.mp4``, whose encoders are not exact to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from inspect import isabstract
from pathlib import Path
from typing import Self

import numpy as np

from models.errors import UserError
from models.records import ModelRecord
from pipelines.artifact import Artifact, Provenance, digest, freeze, load_as, once, provenance_of, set_array, suffix_of
from pipelines.formats.audio import decode_audio, encode_audio
from pipelines.formats.clips import MAX_FRAME_RATE
from pipelines.formats.containers import decode_sound, demuxer_of, is_only_sound
from pipelines.formats.glb_texture import TEXTURED
from pipelines.formats.image import (
    decode_animation,
    decode_image,
    encode_animation,
    encode_gif,
    encode_image,
    is_animation,
    is_picture,
)
from pipelines.formats.mesh import decode_mesh, encode_mesh, encode_textured_obj
from pipelines.formats.scans.artifact import MAX_AXIS, decode_scan, encode_scan
from pipelines.formats.scans.files import UNKNOWN, UPLOADED
from pipelines.formats.scans.surfaces import space_called
from pipelines.formats.video import decode_video, encode_video

__all__ = [
    "MEDIA",
    "Artifact",
    "Audio",
    "BrainScan",
    "Image",
    "Mesh",
    "ModelRecord",
    "Provenance",
    "Text",
    "Video",
    "known_media",
    "load_artifact",
    "medium_of_suffix",
    "suffixes_of",
]

MAX_CHARACTERS = 1_000_000
MAX_SAMPLE_RATE = 384_000


@dataclass(frozen=True, eq=False)
class Text(Artifact):
    """Plain text, at most a million characters, none of them NUL.

    ``.txt`` in UTF-8, with the provenance in the sidecar only. An empty text cannot be saved.
    """

    medium = "text"
    suffixes = (".txt",)

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise TypeError(f"a text must be a str, not {type(self.text).__name__}")
        # A byte order mark is how some editors begin a file, no part of what was written.
        object.__setattr__(self, "text", self.text.lstrip("\ufeff"))
        if len(self.text) > MAX_CHARACTERS:
            raise UserError(f"The text is longer than {MAX_CHARACTERS:,} characters.", "Use a shorter one.")
        if "\0" in self.text or any("\ud800" <= character <= "\udfff" for character in self.text):
            raise UserError("The text has characters that are not text.", "Type it again, or save it as UTF-8.")

    @once
    def content_hash(self) -> str:
        return digest(self.medium, self.text)

    def encode(self, suffix: str) -> bytes:
        if not self.text:
            raise UserError("The text is empty.", "Write a few words.")
        return self.text.encode()

    @classmethod
    def decode(cls, data: bytes, suffix: str) -> Self:
        return cls(data.decode())


@dataclass(frozen=True, eq=False)
class Image(Artifact):
    """``pixels``: (H, W, 3) uint8, sRGB. ``.png`` and ``.webp`` are lossless, ``.jpg`` is not.

    Loading turns a photo upright (EXIF), lays transparency on white and brings every colour mode to 8-bit RGB. It
    also reads BMP, TIFF, AVIF and HEIC, and of an animation the first frame.
    """

    medium = "image"
    suffixes = (".png", ".webp", ".jpg", ".jpeg")

    pixels: np.ndarray

    def __post_init__(self) -> None:
        set_array(self, "pixels", np.uint8, (None, None, 3))

    @once
    def content_hash(self) -> str:
        return digest(self.medium, self.pixels)

    def encode(self, suffix: str) -> bytes:
        return encode_image(self.pixels, suffix, self.note())

    @classmethod
    def decode(cls, data: bytes, suffix: str) -> Self:
        pixels, note = decode_image(data)
        return cls(pixels, provenance=provenance_of(note))


@dataclass(frozen=True, eq=False)
class Audio(Artifact):
    """``samples``: (channels, N) float32 in [-1, 1]; ``sample_rate`` in Hz. ``.wav`` and ``.flac`` are lossless.

    Samples are rounded to the 24-bit steps that those files hold (2**-23, below -138 dB), so a file gives back
    exactly these samples. Loading clips what other programs left outside the range, and also reads MP3, AAC, Opus and
    the sound of a clip.
    """

    medium = "audio"
    suffixes = (".wav", ".flac", ".ogg")

    samples: np.ndarray
    sample_rate: int

    def __post_init__(self) -> None:
        set_array(self, "samples", np.float32, (None, None))
        if not isinstance(self.sample_rate, int) or not 1 <= self.sample_rate <= MAX_SAMPLE_RATE:
            raise UserError(f"A sample rate of {self.sample_rate} Hz is not possible.", "Use 8000 to 48000 Hz.")
        if np.abs(self.samples).max() > 1:
            raise UserError("The sound has samples outside [-1, 1].", "Scale it down.")
        steps = np.clip(np.rint(self.samples * np.float32(2**23)), -(2**23), 2**23 - 1)
        freeze(self, "samples", steps / np.float32(2**23) + np.float32(0))  # no -0.0: files do not have it

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.samples.shape[1] / self.sample_rate

    @once
    def content_hash(self) -> str:
        return digest(self.medium, self.samples, str(self.sample_rate))

    def encode(self, suffix: str) -> bytes:
        return encode_audio(self.samples, self.sample_rate, suffix, self.note())

    @classmethod
    def decode(cls, data: bytes, suffix: str) -> Self:
        if demuxer_of(data) is None:
            samples, sample_rate, note = decode_audio(data)
            return cls(samples, sample_rate, provenance=provenance_of(note))
        sound = decode_sound(data)
        if sound is None:
            raise UserError("The file has no sound in it.", "Use one with sound.")
        return cls(*sound)


@dataclass(frozen=True, eq=False)
class Video(Artifact):
    """``frames``: (T, H, W, 3) uint8, sRGB; ``frame_rate`` in Hz; ``audio``: its sound.

    ``.mp4`` is H.264 with AAC: lossy, and an odd height or width gets one more row or column of the same colours.
    ``.webp`` is an animation with lossless frames and no sound, ``.gif`` one in 256 colours.

    Loading also reads QuickTime, WebM, Matroska and AVI. It turns a phone's clip upright, repeats and leaves out
    frames so that a clip of uneven rate lasts as long as it did and stays in step with its sound, and scales a clip
    of many large frames down until they fit into 128 megapixels.
    """

    medium = "video"
    suffixes = (".mp4", ".webp", ".gif")

    frames: np.ndarray
    frame_rate: float
    audio: Audio | None = None

    def __post_init__(self) -> None:
        set_array(self, "frames", np.uint8, (None, None, None, 3))
        if not math.isfinite(self.frame_rate) or not 0 < self.frame_rate <= MAX_FRAME_RATE:
            raise UserError(f"A frame rate of {self.frame_rate} Hz is not possible.", "Use 1 to 60 Hz.")

    @once
    def content_hash(self) -> str:
        sound = self.audio.content_hash() if self.audio else ""
        return digest(self.medium, self.frames, repr(float(self.frame_rate)), sound)

    def encode(self, suffix: str) -> bytes:
        if suffix == ".webp":
            return encode_animation(self.frames, self.frame_rate, self.note())
        if suffix == ".gif":
            return encode_gif(self.frames, self.frame_rate, self.note())
        sound = (self.audio.samples, self.audio.sample_rate) if self.audio else None
        return encode_video(self.frames, self.frame_rate, sound, self.note())

    @classmethod
    def decode(cls, data: bytes, suffix: str) -> Self:
        if is_picture(data):
            frames, frame_rate, note = decode_animation(data)
            return cls(frames, frame_rate, provenance=provenance_of(note))
        frames, frame_rate, sound, note = decode_video(data)
        audio = Audio(*sound) if sound else None
        return cls(frames, frame_rate, audio, provenance=provenance_of(note))


@dataclass(frozen=True, eq=False)
class Mesh(Artifact):
    """``vertices``: (V, 3) float32, metres, Y up; ``faces``: (F, 3) int32; ``vertex_colors``: (V, 3) uint8.

    ``.obj`` keeps 10 decimals, all others are lossless. ``.obj`` and ``.ply`` have their provenance in the sidecar
    only. With colours, ``.obj`` is saved together with its material (``.mtl``) and a texture (``.png``), by
    which other programs show them; ``.textured.glb`` is a GLB with such a texture in it, for programs that show no
    colours of vertices. Loading puts all parts of a file together, and leaves out textures of others.
    """

    medium = "mesh"
    suffixes = (".glb", TEXTURED, ".obj", ".ply")

    vertices: np.ndarray
    faces: np.ndarray
    vertex_colors: np.ndarray | None = None

    def __post_init__(self) -> None:
        set_array(self, "vertices", np.float32, (None, 3))
        set_array(self, "faces", np.int32, (None, 3))
        if self.faces.min() < 0 or self.faces.max() >= len(self.vertices):
            raise UserError("The 3-D object has faces whose corners do not exist.", "Export it again.")
        if self.vertex_colors is not None:
            set_array(self, "vertex_colors", np.uint8, (len(self.vertices), 3))

    @once
    def content_hash(self) -> str:
        return digest(self.medium, self.vertices, self.faces, self.vertex_colors)

    def encode(self, suffix: str) -> bytes:
        return encode_mesh(self.vertices, self.faces, self.vertex_colors, suffix, self.note())

    def files(self, name: str) -> dict[str, bytes]:
        if self._suffix_for(Path(name)) != ".obj" or self.vertex_colors is None:
            return super().files(name)
        return encode_textured_obj(self.vertices, self.faces, self.vertex_colors, name)

    @classmethod
    def decode(cls, data: bytes, suffix: str) -> Self:
        vertices, faces, vertex_colors, note = decode_mesh(data, suffix)
        return cls(vertices, faces, vertex_colors, provenance=provenance_of(note))


@dataclass(frozen=True, eq=False)
class BrainScan(Artifact):
    """``values``: float32, 1 to 4 axes (voxels, trials and voxels, or X Y Z and trials); ``space``: what they index;
    ``subject``: whose; ``units``: "percent signal change", the same "x 300", "z-scored" or "unknown"; ``origin``:
    "simulated", "measured" or "uploaded", which says neither; ``affine`` (4, 4) float32: from a volume's voxels to
    millimetres to the right, to the front and up, where its file says.

    All formats are lossless; a NIfTI file holds at most 32767 values along an axis. Loading a scan of another program
    gives ``"unknown"`` for what its file does not say, and the numbers as they are stored. It also reads NumPy arrays,
    volumes in MGH, CIFTI-2 (the cortex: all vertices of both hemispheres, 0 where the file has none), one hemisphere
    in GIFTI or MGH, and the first 64 trials of NSD's HDF5. Betas with their mask, and two hemispheres, are read by
    :func:`pipelines.formats.scans.betas.read_betas`.
    """

    medium = "scan"
    suffixes = (".nii.gz", ".nii", ".npz")

    values: np.ndarray
    space: str
    subject: str
    units: str = UNKNOWN
    origin: str = UPLOADED
    affine: np.ndarray | None = None

    def __post_init__(self) -> None:
        set_array(self, "values", np.float32, (None,) * max(1, min(4, np.ndim(self.values))))
        if self.affine is not None:
            set_array(self, "affine", np.float32, (4, 4))

    @property
    def kept_as(self) -> str:
        return ".nii.gz" if max(self.values.shape) <= MAX_AXIS else ".npz"

    @once
    def content_hash(self) -> str:
        affine = () if self.affine is None else (self.affine,)  # a scan without one keeps the hash that it had
        return digest(self.medium, self.values, self.space, self.subject, self.units, self.origin, *affine)

    def encode(self, suffix: str) -> bytes:
        said = {name: getattr(self, name) for name in ("space", "subject", "units", "origin")}
        return encode_scan(self.values, said | {"provenance": self.note()}, suffix, self.affine)

    @classmethod
    def decode(cls, data: bytes, suffix: str) -> Self:
        values, space, subject, units, origin, note, affine = decode_scan(data)
        return cls(values, space, subject, units, origin, affine, provenance=provenance_of(note))

    def called(self, name: str) -> Self:
        """Of one hemisphere that does not say which it is, the side may stand in the file's name ("lh.betas.mgh")."""
        space = space_called(self.space, name)
        return self if space == self.space else replace(self, space=space)


MEDIA: tuple[type[Artifact], ...] = (Text, Image, Audio, Video, Mesh, BrainScan)


def known_media() -> tuple[type[Artifact], ...]:
    """:data:`MEDIA`, and the media that installed packages define besides, the one imported last first."""
    others = [kind for kind in Artifact.__subclasses__() if kind not in MEDIA and not isabstract(kind)]
    return (*MEDIA, *reversed(others))


def medium_of_suffix(suffix: str) -> str:
    """The medium of files that end so: ``".png"`` gives ``"image"``, and so does ``".webp"`` (it may be a video too).

    Raises :class:`UserError` for a suffix of no medium.
    """
    return _kinds_of_suffix(suffix.lower())[0].medium


def suffixes_of(medium: str) -> tuple[str, ...]:
    """How the names of all files end that :func:`load_artifact` reads as this medium."""
    return tuple(end for end in _readable() if any(kind.medium == medium for kind in _kinds_of_suffix(end)))


def load_artifact(path: Path | str, medium: str | None = None) -> Artifact:
    """Read any supported file; what it is follows from its suffix.

    Where two media share the suffix, the file is a video if it moves, else a picture or a sound; unless ``medium``
    says as which of them to read it. Raises :class:`UserError` for a missing, empty, too large, damaged or
    unsupported file.
    """
    path = Path(path)
    suffix = suffix_of(path, _readable()) or path.suffix.lower()
    kinds = _kinds_of_suffix(suffix)
    kinds = tuple(kind for kind in kinds if kind.medium == medium) or kinds

    def kind_of(data: bytes) -> type[Artifact]:
        if len(kinds) == 1:
            return kinds[0]
        moves = is_animation(data) if is_picture(data) else not is_only_sound(data)
        return next(kind for kind in kinds if (kind is Video) == moves)

    return load_as(path, suffix, kind_of)


# The suffixes that are read and never written, and those that two media share.
_READ: dict[str, tuple[type[Artifact], ...]] = {
    **dict.fromkeys((".webp", ".gif"), (Image, Video)),
    **dict.fromkeys((".jfif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"), (Image,)),
    **dict.fromkeys((".mp3", ".m4a", ".aac", ".opus"), (Audio,)),
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi"), (Video, Audio)),
    **dict.fromkeys((".npy", ".hdf5", ".h5", ".gii", ".mgh", ".mgz"), (BrainScan,)),
}


def _readable() -> list[str]:
    written = [suffix for kind in known_media() for suffix in kind.suffixes]
    return list(dict.fromkeys([*written, *_READ]))


def _kinds_of_suffix(suffix: str) -> tuple[type[Artifact], ...]:
    written = tuple(kind for kind in known_media() if suffix in kind.suffixes)[:1]
    kinds = _READ.get(suffix, written)
    if not kinds:
        raise UserError(
            f"Files that end in '{suffix[:20]}' are not supported.", f"Supported are: {', '.join(_readable())}."
        )
    return kinds
