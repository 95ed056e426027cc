"""From what is shown or said to unit vectors of the spaces that pictures and sounds share with words.

Shapes: D dimensions of a vector, d of a sentence's embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torch.nn import functional as F

from models.mel import MelConfig, log_mel
from pipelines.base import Runtime, precision
from pipelines.edits.audio import at_speed
from pipelines.media import Audio, Image, Video

if TYPE_CHECKING:  # they import transformers, which takes seconds that a mere listing need not spend
    from models.bind import BindAudio
    from models.picture_text import PictureText
    from models.published_spaces import PublishedPictureText, PublishedSoundText
    from models.sound_text import SoundText
    from models.text_encoder import TextEncoder

TOKENS = 32  # of a sentence, as the spaces were trained
PHRASES = 64  # that are read together
LARGEST_SIDE = 512  # of a picture on its way to a network that sees it smaller still
MOST_WINDOWS = 8  # of a sound that are listened to
LEVEL = 0.5  # peak of a sound that is listened to; clips in training have 0.1 to 0.9
SILENCE = 1e-4  # peak, -80 decibels, below which nothing is heard
FEWEST_FRAMES, MOST_FRAMES, FRAMES_A_SECOND = 8, 16, 2  # of a clip that are looked at


def sentence_embedding(encoder: TextEncoder, words: str, runtime: Runtime) -> tuple[Tensor, str]:
    """The unit vector of a sentence, (1, d), and as much of it as the encoder takes."""
    heard, _ = encoder.fit(words, "", TOKENS)
    with precision(runtime.models):
        return encoder.sentence_embeddings([heard], TOKENS).to(runtime.models.device), heard


def words_vector(key: str, words: str, runtime: Runtime) -> tuple[Tensor, str]:
    """Where the space ``key`` has a sentence, (1, D), and as much of it as the sentence encoder takes.

    A published space reads words itself, so the encoder is not even leased.
    """
    with runtime.lease(key) as space:
        if space.reads == "words":
            with precision(runtime.models):
                return space.embed_words([words]), words
        with runtime.lease("sentence-encoder") as encoder:
            sentence, heard = sentence_embedding(encoder, words, runtime)
        with precision(runtime.models):
            return space.embed_sentences(sentence), heard


def words_vectors(key: str, phrases: Sequence[str], runtime: Runtime) -> Tensor:
    """Where the space ``key`` has short phrases, (N, D) unit vectors."""
    parts = [list(phrases[i : i + PHRASES]) for i in range(0, len(phrases), PHRASES)]
    with runtime.lease(key) as space:
        if space.reads == "words":
            with precision(runtime.models):
                return F.normalize(torch.cat([space.embed_words(part) for part in parts]).float(), dim=1)
        with runtime.lease("sentence-encoder") as encoder, precision(runtime.models):
            sentences = torch.cat([encoder.sentence_embeddings(part, TOKENS) for part in parts])
            return F.normalize(space.embed_sentences(sentences.to(runtime.models.device)).float(), dim=1)


def picture_vector(space: PictureText | PublishedPictureText, shown: Image | Video, runtime: Runtime) -> Tensor:
    """The unit vector (D,) of a picture, or of a clip: the mean of its frames' (fact sheet ``v2a_mapper.md``, 3)."""
    vectors = []
    for part in _squares(shown).split(runtime.micro_batch):
        runtime.raise_if_cancelled()
        with precision(runtime.models):
            vectors.append(space.embed_pictures(part.to(runtime.models.device)).float())
    return F.normalize(F.normalize(torch.cat(vectors), dim=-1).mean(0), dim=-1)


def _squares(shown: Image | Video) -> Tensor:
    """(count, 3, S, S) float32 in [-1, 1]: the middle square of a picture or of each frame that is looked at."""
    frames = shown.pixels[None] if isinstance(shown, Image) else shown.frames[_looked_at(shown)]
    height, width = frames.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    squares = [PillowImage.fromarray(frame) for frame in frames[:, top : top + side, left : left + side]]
    if side > LARGEST_SIDE:
        size = (LARGEST_SIDE, LARGEST_SIDE)
        squares = [square.resize(size, PillowImage.Resampling.BICUBIC) for square in squares]
    pixels = torch.from_numpy(np.stack([np.asarray(square) for square in squares]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def _looked_at(clip: Video) -> np.ndarray:
    """Indices of 8 to 16 frames, by its duration, spread evenly from the first to the last; of fewer, of all."""
    seconds = len(clip.frames) / clip.frame_rate
    wanted = min(max(round(FRAMES_A_SECOND * seconds), FEWEST_FRAMES), MOST_FRAMES)
    return np.linspace(0, len(clip.frames) - 1, min(wanted, len(clip.frames))).round().astype(int)


def is_heard(sound: Audio) -> bool:
    return bool(np.abs(sound.samples.mean(0)).max() > SILENCE)


def sound_vector(space: SoundText | PublishedSoundText | BindAudio, sound: Audio, runtime: Runtime) -> Tensor:
    """The unit vector (D,) of a sound: the mean of those of its windows, as for the frames of a clip."""
    device = runtime.models.device
    if space.hears == "waveforms":
        heard = parts_of(sound, space.sample_rate, space.samples).to(device)
    else:
        windows = windows_of(sound, space.mel, space.mel.samples(space.frames))
        heard = log_mel(windows.to(device), space.mel)
    with precision(runtime.models), torch.no_grad():
        vectors = [space.embed_sounds(part) for part in heard.split(runtime.micro_batch)]
    return F.normalize(torch.cat(vectors).float().mean(0), dim=0)


def windows_of(sound: Audio, mel: MelConfig, samples: int) -> Tensor:
    """(W, samples) float32: :func:`parts_of` at the rate of ``mel``, with a peak of ``LEVEL`` over all of them.

    A sound that is shorter than one window is followed by silence.
    """
    parts = parts_of(sound, mel.sample_rate, samples)
    windows = F.pad(parts, (0, samples - parts.shape[1]))
    return windows * (LEVEL / windows.abs().max().clamp(min=SILENCE))


def parts_of(sound: Audio, sample_rate: int, samples: int) -> Tensor:
    """(W, up to ``samples``) float32 at ``sample_rate``: the mean of the channels.

    A sound that is longer than one window is listened to in up to 8, spread evenly over all of it; only these are
    resampled.
    """
    length = max(1, round(samples / sample_rate * sound.sample_rate))
    total = sound.samples.shape[1]
    count = min(MOST_WINDOWS, -(-total // length))
    starts = np.linspace(0, max(0, total - length), count).round().astype(int)
    heard = []
    for start in starts:
        part = Audio(sound.samples[:, start : start + length].mean(0, keepdims=True), sound.sample_rate)
        # At this speed it has as many samples a second as are wanted.
        heard.append(at_speed(part, sound.sample_rate / sample_rate).samples[0, :samples])
    return torch.from_numpy(np.stack(heard))
