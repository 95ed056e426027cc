"""Clips: MP4 (H.264, AAC) is written, and every container of :mod:`pipelines.formats.containers` read, by PyAV."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice, repeat
from typing import Any

import av
import numpy as np
from av.container import InputContainer

from pipelines.formats.clips import MAX_FRAMES, clip_of, no_picture, size_within, steady
from pipelines.formats.containers import (
    PICTURE_CODECS,
    Sound,
    decode_sound,
    open_tracks,
    picture_tracks,
    refuse_other_codecs,
)

_SOUND_RATE = 48_000
_AAC_FRAME = 1024


def encode_video(frames: np.ndarray, frame_rate: float, sound: Sound | None, note: str | None) -> bytes:
    """``frames``: (T, H, W, 3) uint8; ``sound``: (channels, N) float32 and its rate in Hz, stored at 48 kHz."""
    file = io.BytesIO()
    # bitexact leaves out the encoder's version; one thread makes the bytes independent of the number of cores.
    options = {"fflags": "+bitexact"}
    with av.open(file, "w", format="mp4", container_options=options) as container:
        if note:
            container.metadata["comment"] = note
        picture: Any = container.add_stream("libx264", rate=Fraction(frame_rate).limit_denominator(10_000))
        picture.height, picture.width = _even(frames[0]).shape[:2]
        picture.pix_fmt = "yuv420p"
        picture.options = {"crf": "18", "preset": "medium"}
        picture.thread_count = 1
        picture.codec_context.flags |= av.codec.context.Flags.bitexact
        track: Any = _add_sound(container, sound)
        for frame in frames:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(_even(frame), format="rgb24")))
        container.mux(picture.encode())
        if sound is not None:
            for block in _sound_blocks(*sound):
                container.mux(track.encode(block))
            container.mux(track.encode())
    return file.getvalue()


def decode_video(data: bytes) -> tuple[np.ndarray, float, Sound | None, str | None]:
    """(T, H, W, 3) uint8 frames at a steady rate, the rate in Hz, the sound if there is any, and the embedded note.

    Frames come upright, and scaled down where the clip would be too large. The sound begins with the first of them.
    """
    with open_tracks(data) as container:
        note = container.metadata.get("comment")
        tracks = picture_tracks(container)
        if not tracks:
            raise no_picture()
        refuse_other_codecs(tracks[0], PICTURE_CODECS, "Save it as H.264 in an .mp4 file.")
        starts, end = _times(container, tracks[0])
        timing = steady(starts, end, float(tracks[0].average_rate or 0))
        width, height = size_within(tracks[0].width, tracks[0].height, len(starts), timing)
    sound = decode_sound(data, timing.start)

    def pixels_of(frame: av.VideoFrame) -> np.ndarray:
        way = None if (width, height) == (frame.width, frame.height) else "AREA"
        pixels = frame.reformat(width, height, "rgb24", interpolation=way).to_ndarray()
        return np.rot90(pixels, round(frame.rotation / 90))

    with open_tracks(data) as container:
        return clip_of(_shown(container, starts), pixels_of, timing), timing.rate, sound, note


def _times(container: InputContainer, stream: Any) -> tuple[np.ndarray, float]:
    """When the frames are shown, in seconds, sorted, and until when the last one is. Raises :class:`UserError`."""
    packets = (packet for packet in container.demux(stream) if packet.dts is not None or packet.pts is not None)
    stamps = [
        (packet.dts if packet.pts is None else packet.pts, packet.duration or 0)
        for packet in islice(packets, MAX_FRAMES + 1)
        if not packet.is_discard
    ]
    if not stamps:
        raise no_picture()
    starts, durations = np.array(sorted(stamps), np.float64).T * float(stream.time_base)
    unknown = (starts[-1] - starts[0]) / max(1, len(starts) - 1)
    return starts, starts[-1] + (durations[-1] or unknown)


def _shown(container: InputContainer, starts: np.ndarray) -> Iterator[tuple[float, av.VideoFrame]]:
    """Each decoded frame, from when on it is shown in seconds."""
    # AVI stores in which order frames are decoded, not when they are shown.
    is_timed = container.format.name != "avi"
    for frame, start in zip(
        container.decode(picture_tracks(container)[0]), chain(starts, repeat(starts[-1])), strict=False
    ):
        yield (frame.time if is_timed and frame.time is not None else float(start)), frame


def _even(frame: np.ndarray) -> np.ndarray:
    """H.264 halves the colours' resolution, so it needs even sizes: the last row or column is repeated."""
    rows, columns = frame.shape[0] % 2, frame.shape[1] % 2
    return np.pad(frame, ((0, rows), (0, columns), (0, 0)), mode="edge") if rows or columns else frame


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
