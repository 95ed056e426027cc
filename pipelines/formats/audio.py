"""Sound files (WAV, FLAC, Ogg Vorbis), by libsndfile."""

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
    _refuse_truncated_wav(data)
    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        if sound.channels > MAX_CHANNELS or sound.frames * sound.channels > MAX_SAMPLES:
            raise UserError("The sound is too long, or has too many channels.", "Use a shorter one in stereo.")
        samples = sound.read(sound.frames, dtype="float32", always_2d=True)
        if len(samples) < sound.frames:
            raise ValueError(f"the file promises {sound.frames} samples and has {len(samples)}")
        if not np.isfinite(samples).all():
            raise UserError("The sound has samples that are not finite numbers.", "Export it again.")
        return samples.T.clip(-1, 1), sound.samplerate, sound.comment


def _refuse_truncated_wav(data: bytes) -> None:
    """libsndfile silently reads what is left. A size of 0 or of all ones is how programs mark a stream."""
    if data[:4] == b"RIFF":
        (size,) = struct.unpack_from("<I", data, 4)
        if size not in (0, 0xFFFFFFFF) and len(data) < size + 8:
            raise ValueError(f"the file promises {size + 8} bytes and has {len(data)}")
