"""Sound files (WAV, FLAC, Ogg Vorbis and Opus), by libsndfile; and what is refused of any sound."""

from __future__ import annotations

import io
import struct

import numpy as np
import soundfile

from models.errors import UserError

MAX_SAMPLES = 64 * 2**20
MAX_CHANNELS = 8
# libsndfile's Vorbis encoder ends the process, without a word, for more than these samples a second or at once.
MAX_VORBIS_RATE = 200_000
BLOCK = 2**16

_WAYS = {".wav": ("WAV", "PCM_24"), ".flac": ("FLAC", "PCM_24"), ".ogg": ("OGG", "VORBIS")}


def encode_audio(samples: np.ndarray, sample_rate: int, suffix: str, note: str | None) -> bytes:
    """``samples``: (channels, N) float32 on the 24-bit grid in [-1, 1).

    Raises :class:`UserError` for a sample rate that the format does not hold.
    """
    container, subtype = _WAYS[suffix]
    if subtype == "VORBIS" and sample_rate > MAX_VORBIS_RATE:
        raise UserError(
            f"A sound of {sample_rate} Hz does not fit into an {suffix} file, which holds up to {MAX_VORBIS_RATE} Hz.",
            "Take .wav or .flac.",
        )
    data = samples.T
    if subtype == "PCM_24":  # libsndfile keeps the upper 24 bits, so nothing is rounded.
        data = (data * np.float32(2**23)).astype(np.int32) << 8
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", sample_rate, samples.shape[0], subtype, format=container) as sound:
        if note:
            sound.comment = note
        for start in range(0, len(data), BLOCK):
            sound.write(data[start : start + BLOCK])
    return file.getvalue()


def decode_audio(data: bytes) -> tuple[np.ndarray, int, str | None]:
    """(channels, N) float32 samples clipped to [-1, 1], the sample rate in Hz, and the embedded note."""
    if data[:4] == b"RIFF":
        refuse_cut_off_riff(data)
    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        refuse_too_much(sound.frames, sound.samplerate, sound.channels)
        samples = sound.read(sound.frames, dtype="float32", always_2d=True)
        if len(samples) < sound.frames:
            raise cut_off()
        return checked(samples.T), sound.samplerate, sound.comment


def refuse_too_much(frames: float, sample_rate: int, channels: int) -> None:
    """Raises :class:`UserError` for a sound with too many channels, or with too many samples of them all."""
    if channels > MAX_CHANNELS:
        raise UserError(f"The sound has {channels} channels.", f"Use one of at most {MAX_CHANNELS}.")
    if frames * channels > MAX_SAMPLES:
        minutes = MAX_SAMPLES / channels / sample_rate / 60
        many = "1 channel" if channels == 1 else f"{channels} channels"
        raise UserError(
            f"The sound is too long: with {many} at {sample_rate} Hz, at most {minutes:.2g} minutes can be read.",
            "Cut it.",
        )


def checked(samples: np.ndarray) -> np.ndarray:
    """``samples`` clipped to [-1, 1]. Raises :class:`UserError` if not all of them are numbers."""
    if not np.isfinite(samples).all():
        raise UserError("The sound has samples that are not finite numbers.", "Export it again.")
    return samples.clip(-1, 1)


def refuse_cut_off_riff(data: bytes) -> None:
    """A decoder silently reads what is left. A size of 0 or of all ones is how programs mark a stream."""
    (size,) = struct.unpack_from("<I", data, 4)
    if size not in (0, 0xFFFFFFFF) and len(data) < size + 8:
        raise cut_off()


def cut_off() -> UserError:
    return UserError("The file breaks off before its end.", "Copy or download it again.")
