"""MP4 video (H.264, AAC), by PyAV."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np

from models.errors import UserError
from pipelines.formats.audio import MAX_SAMPLES

MAX_VIDEO_PIXELS = 256 * 2**20

_SOUND_RATE = 48_000
_AAC_FRAME = 1024
Sound = tuple[np.ndarray, int]


def encode_video(frames: np.ndarray, frame_rate: float, sound: Sound | None, note: str | None) -> bytes:
    """``frames``: (T, H, W, 3) uint8; ``sound``: (channels, N) float32 and its rate in Hz, stored at 48 kHz."""
    file = io.BytesIO()
    # bitexact leaves out the encoder's version; one thread makes the bytes independent of the number of cores.
    options = {"fflags": "+bitexact"}
    with av.open(file, "w", format="mp4", container_options=options) as container:
        if note:
            container.metadata["comment"] = note
        frames = _even(frames)
        picture: Any = container.add_stream("libx264", rate=Fraction(frame_rate).limit_denominator(10_000))
        picture.height, picture.width = frames.shape[1:3]
        picture.pix_fmt = "yuv420p"
        picture.options = {"crf": "18", "preset": "medium"}
        picture.thread_count = 1
        picture.codec_context.flags |= av.codec.context.Flags.bitexact
        track: Any = _add_sound(container, sound)
        for frame in frames:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(picture.encode())
        if sound is not None:
            for block in _sound_blocks(*sound):
                container.mux(track.encode(block))
            container.mux(track.encode())
    return file.getvalue()


def decode_video(data: bytes) -> tuple[np.ndarray, float, Sound | None, str | None]:
    """(T, H, W, 3) uint8 frames, the rate in Hz, the sound if there is any, and the embedded note."""
    _refuse_truncated(data)
    with av.open(io.BytesIO(data), "r", format="mp4", metadata_errors="replace") as container:
        note = container.metadata.get("comment")
        if not container.streams.video:
            raise UserError("The video has no picture in it.", "Use a file with a video track.")
        stream = container.streams.video[0]
        frame_rate = float(stream.average_rate or 25)
        if stream.width * stream.height * max(1, stream.frames) > MAX_VIDEO_PIXELS:
            raise _too_long()
        frames = []
        pixels = 0  # counted again while decoding: the header may say less than there is
        for frame in container.decode(stream):
            pixels += frame.width * frame.height
            if pixels > MAX_VIDEO_PIXELS:
                raise _too_long()
            frames.append(frame.to_ndarray(format="rgb24"))
        if len(frames) < stream.frames:
            raise ValueError(f"the file promises {stream.frames} frames and has {len(frames)}")
    return np.stack(frames), frame_rate, _decode_sound(data), note


def _refuse_truncated(data: bytes) -> None:
    """FFmpeg shows what is left of a file; its boxes tell how long it was. A box of size 0 goes on to the end."""
    offset = 0
    while offset + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, offset)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, offset + 8)
        if size == 0:
            return
        offset += max(size, 8)
    if offset != len(data):
        raise ValueError(f"the file promises {offset} bytes and has {len(data)}")


def _decode_sound(data: bytes) -> Sound | None:
    with av.open(io.BytesIO(data), "r", format="mp4", metadata_errors="replace") as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp")
        blocks: list[np.ndarray] = []
        size = 0
        for frame in container.decode(stream):
            blocks += [block.to_ndarray() for block in resampler.resample(frame)]
            size += frame.samples * frame.layout.nb_channels
            if size > MAX_SAMPLES:
                raise _too_long()
        if not blocks:
            return None
        return np.concatenate(blocks, axis=1).clip(-1, 1).astype(np.float32), stream.rate


def _even(frames: np.ndarray) -> np.ndarray:
    """H.264 halves the colours' resolution, so it needs even sizes: the last row or column is repeated."""
    height, width = frames.shape[1:3]
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _add_sound(container: Any, sound: Sound | None) -> Any:
    if sound is None:
        return None
    track = container.add_stream("aac", rate=_SOUND_RATE)
    track.layout = _layout(sound[0])
    track.thread_count = 1
    track.codec_context.flags |= av.codec.context.Flags.bitexact
    return track


def _sound_blocks(samples: np.ndarray, sample_rate: int) -> Iterator[av.AudioFrame]:
    layout = _layout(samples)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[:2]), format="fltp", layout=layout)
    frame.sample_rate = sample_rate
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=_SOUND_RATE, frame_size=_AAC_FRAME)
    yield from resampler.resample(frame)
    yield from resampler.resample(None)


def _layout(samples: np.ndarray) -> str:
    return "mono" if samples.shape[0] == 1 else "stereo"


def _too_long() -> UserError:
    return UserError("The video is too long or too large.", "Use a shorter or smaller one.")
