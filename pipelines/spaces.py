"""From what is shown or said to unit vectors of the spaces that pictures and sounds share with words.

Shapes: D dimensions of a vector, d of a sentence's embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torch.nn import functional as F

from pipelines.base import Runtime, precision
from pipelines.media import Image, Video

if TYPE_CHECKING:  # they import transformers, which takes seconds that a mere listing need not spend
    from models.picture_text import PictureText
    from models.published_spaces import PublishedPictureText
    from models.text_encoder import TextEncoder

TOKENS = 32  # of a sentence, as the spaces were trained
LARGEST_SIDE = 512  # of a picture on its way to a network that sees it smaller still
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
