"""Sounds and clips as other programs make them, as bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

from pipelines.media import Video

RATE = 48_000
CLOCK = 90_000  # time stamps a second

Codec = tuple[str, str]  # the muxer, and the encoder

CORNERS = np.zeros((32, 48, 3), np.uint8)  # red above on the left, blue below on the right
CORNERS[:16, :24], CORNERS[16:, 24:] = (200, 40, 40), (40, 40, 200)


def tone(seconds: float = 1, channels: int = 1, sample_rate: int = RATE) -> np.ndarray:
    """(channels, N) float32: 440 Hz, half as loud as possible."""
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * sample_rate)) / sample_rate)
    return np.tile(wave.astype(np.float32), (channels, 1))


def sound_file(codec: Codec, samples: np.ndarray, sample_rate: int = RATE, **options: str) -> bytes:
    """``samples``: (channels, N) float32; ``options``: of the muxer."""
    file = io.BytesIO()
    with av.open(file, "w", format=codec[0], options=options) as container:
        track = add_sound(container, codec[1], len(samples), sample_rate)
        mux_sound(container, track, samples, sample_rate)
    return file.getvalue()


def add_sound(container: Any, encoder: str, channels: int, sample_rate: int = RATE) -> Any:
    track = container.add_stream(encoder, rate=sample_rate)
    track.layout = {1: "mono", 2: "stereo", 8: "7.1"}[channels]
    return track


def mux_sound(container: Any, track: Any, samples: np.ndarray, sample_rate: int = RATE) -> None:
    context = track.codec_context
    context.open(strict=False)
    resampler = av.AudioResampler(context.format, context.layout, sample_rate, context.frame_size or 1024)
    frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1), format="flt", layout=context.layout.name)
    frame.sample_rate = sample_rate
    for block in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(track.encode(block))
    container.mux(track.encode())


def clip_file(
    codec: Codec,
    frames: Sequence[np.ndarray],
    starts: Sequence[float] | None = None,
    sound: np.ndarray | None = None,
    rotation: int = 0,
    **options: str,
) -> bytes:
    """``frames``: (H, W, 3) uint8, shown from ``starts`` on (seconds; 25 a second if not given).

    ``sound``: (channels, N) float32 at 48 kHz; ``rotation``: degrees, counter-clockwise, that players turn it;
    ``options``: of the muxer.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=codec[0], options=options) as container:
        picture: Any = container.add_stream(codec[1], rate=25)
        picture.height, picture.width = frames[0].shape[:2] if frames else (48, 64)
        picture.pix_fmt = "yuvj420p" if codec[1] == "mjpeg" else "yuv420p"
        if starts is not None:
            picture.codec_context.time_base = Fraction(1, CLOCK)
        if rotation:
            picture.set_display_rotation(rotation)
        track = None if sound is None else add_sound(container, "aac", len(sound))
        container.start_encoding()
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = index if starts is None else round(starts[index] * CLOCK)
            frame.time_base = Fraction(1, 25) if starts is None else Fraction(1, CLOCK)
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        if sound is not None:
            mux_sound(container, track, sound)
    return file.getvalue()


def hollow(data: bytes, seconds: float, copies: int) -> bytes:
    """An MP4 with the header of ``data`` and ``copies`` packets of nonsense over ``seconds``."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(file, "w", format="mp4") as target:
        track = target.add_stream_from_template(source.streams[0])
        target.start_encoding()
        for index in range(copies):
            packet = av.Packet(b"\0\0\0\4junk")
            packet.stream = track
            packet.time_base = Fraction(1, CLOCK)
            packet.pts = packet.dts = round(index * seconds * CLOCK / copies)
            packet.is_keyframe = True
            target.mux(packet)
    return file.getvalue()


def greys(clip: Video) -> np.ndarray:
    """The mean brightness of each frame."""
    return np.asarray(clip.frames.mean(axis=(1, 2, 3)))


def shades(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """(H, W, 3) uint8, grey, from 20 on evenly to 230."""
    return [np.full((height, width, 3), round(shade), np.uint8) for shade in np.linspace(20, 230, count)]
