"""Files that hold tracks (MP4, QuickTime, Matroska, WebM, AVI) and bare sounds (MP3, AAC), by PyAV.

Only the demuxers and decoders that are named here see a file. It is gone through packet by packet before anything is
decoded, because headers are often wrong about lengths, and recordings of browsers say nothing of theirs.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition

from models.errors import UserError
from pipelines.formats.audio import checked, cut_off, refuse_cut_off_riff, refuse_too_much

PICTURE_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4"})
SOUND_CODECS = frozenset({"aac", "alac", "flac", "mp3", "opus", "vorbis", "pcm_alaw", "pcm_mulaw", "pcm_u8"}) | {
    f"pcm_{kind}{order}" for kind in ("s16", "s24", "s32", "f32") for order in ("le", "be")
}
_OTHER_DECODERS = frozenset({"libdav1d", "libopus", "mp3float"})  # as FFmpeg calls what decodes some of these

_MATROSKA = b"\x1aE\xdf\xa3"
_SEGMENT = b"\x18S\x80g"
# Where a file has which bytes, and the demuxer for it.
_DEMUXERS = (
    *((4, kind, "mp4") for kind in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")),
    (0, _MATROSKA, "matroska"),
    (8, b"AVI ", "avi"),
    *((0, start, "mp3") for start in (b"ID3", b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xe3")),
    *((0, start, "aac") for start in (b"\xff\xf1", b"\xff\xf9", b"\xff\xf0", b"\xff\xf8")),
)

Sound = tuple[np.ndarray, int]


def demuxer_of(data: bytes) -> str | None:
    """What reads the file, by how it begins; ``None`` for files of another kind."""
    return next((name for place, start, name in _DEMUXERS if data.startswith(start, place)), None)


def open_tracks(data: bytes) -> InputContainer:
    """The tracks of a file that :func:`demuxer_of` knows. Raises :class:`UserError` for one that is not whole."""
    name = demuxer_of(data)
    if name is None:
        raise ValueError("the file begins like none that holds tracks")
    _refuse_unfinished(data, name)
    decoders = ",".join(PICTURE_CODECS | SOUND_CODECS | _OTHER_DECODERS)
    return av.open(io.BytesIO(data), "r", format=name, options={"codec_whitelist": decoders}, metadata_errors="replace")


def picture_tracks(container: InputContainer) -> list[Any]:
    """The video streams but for covers of sounds."""
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def is_only_sound(data: bytes) -> bool:
    """Whether nothing in the file can be seen, and something be heard."""
    with open_tracks(data) as container:
        return not picture_tracks(container) and len(container.streams.audio) > 0


def refuse_other_codecs(stream: Any, codecs: frozenset[str], hint: str) -> None:
    """Raises :class:`UserError` that names the codec unless it is one of ``codecs``."""
    context = stream.codec_context
    if context is None or context.codec.canonical_name not in codecs:
        name = context.codec.long_name if context else "an unknown codec"
        raise UserError(f"The {stream.type} in the file is in {name}, which cannot be read.", hint)


def decode_sound(data: bytes, start: float | None = None) -> Sound | None:
    """(channels, N) float32 samples clipped to [-1, 1] and their rate in Hz, of the first sound track if there is one.

    ``start``: where on the clock of the file the sound begins, in seconds, with silence if there is nothing yet;
    ``None``: where the track does. Raises :class:`UserError` for a codec that is not read and for too long a sound.
    """
    with open_tracks(data) as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        refuse_other_codecs(stream, SOUND_CODECS, "Save it with AAC, MP3 or Opus.")
        first = None
        for packet in container.demux(stream):
            if packet.pts is not None and packet.time_base:
                begins = float(packet.pts * packet.time_base)
                first = begins if first is None else first
                refuse_too_much((begins - first) * stream.rate, stream.rate, stream.channels)
    with open_tracks(data) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="flt", rate=stream.rate)
        blocks: list[np.ndarray] = []
        count = 0
        for frame in container.decode(stream):
            if not blocks and start is not None and frame.time is not None:
                count = round((frame.time - start) * stream.rate)
                refuse_too_much(count, stream.rate, stream.channels)
                blocks.append(np.zeros((max(0, count), stream.channels), np.float32))
            for block in resampler.resample(frame):
                count += block.samples
                refuse_too_much(count, stream.rate, stream.channels)
                blocks.append(block.to_ndarray().reshape(-1, stream.channels))
        if count <= 0:
            return None
        return checked(np.concatenate(blocks)[-count:].T), stream.rate


def _refuse_unfinished(data: bytes, demuxer: str) -> None:
    """FFmpeg shows what is left of a file that was cut off; its format says how long it was."""
    if demuxer == "avi":
        refuse_cut_off_riff(data)
    elif demuxer == "matroska":
        _refuse_cut_off_matroska(data)
    elif demuxer == "mp4":
        _refuse_unfinished_mp4(data)


def _refuse_unfinished_mp4(data: bytes) -> None:
    offset = 0
    kinds = set()
    while offset + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, offset)
        kinds.add(kind)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, offset + 8)
        # A box of size 0 goes on to the end.
        offset = offset + max(size, 8) if size else len(data)
    if offset != len(data):
        raise cut_off()
    if b"moov" not in kinds:
        raise UserError("The file has no index: its recording was not finished.", "Record or export it again.")


def _refuse_cut_off_matroska(data: bytes) -> None:
    offset = 0
    for kind in (_MATROSKA, _SEGMENT):
        if not data.startswith(kind, offset):
            return
        offset += 4
        length = 9 - data[offset].bit_length()  # a number says by its leading zeros how many bytes it has
        most = (1 << 7 * length) - 1
        size = int.from_bytes(data[offset : offset + length], "big") & most
        if size == most:  # not known: what a recording of a browser says
            return
        offset += length + size
    if offset > len(data):
        raise cut_off()
