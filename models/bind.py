"""The aligned space: encoders of further media into a frozen picture-text space, one medium at a time.

ImageBind's idea (arXiv 2305.05665): if every medium is trained towards vectors that stay where they are, all media meet
there, also those that were never seen together. Each encoder has a folder of its own, so a new medium touches none of
the others.

- :class:`BindAudio`, ours: sounds in CLIP-lite's space (``models/picture_text.py``).
- :class:`LanguageBindAudio`, published (arXiv 2310.01852): sounds in the space of OpenCLIP's ViT-L/14;
  :class:`WordsEars` leads them on to another space.

Shapes: B media, N samples, D dimensions, M bands, F frames.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ClapAudioConfig, CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.audio_utils import mel_filter_bank

from models.errors import UserError
from models.mel import MelConfig, log_mel
from models.sound_text import SoundTower

CONFIG, WEIGHTS, PUBLISHED_WEIGHTS = "config.json", "model.safetensors", "pytorch_model.bin"
SAMPLE_RATE = 16_000
SHARPNESS = 0.02  # difference of cosines by which one word counts e times another


class Bind(nn.Module, ABC):
    """An encoder of one medium into a picture-text space of ``width`` dimensions."""

    width: int

    @abstractmethod
    def embed(self, media: Tensor) -> Tensor:
        """A batch of the medium -> unit vectors (B, D) float32; no vector depends on the rest of the batch."""


def nearest(query: Tensor, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` of ``vectors`` (N, D) nearest to ``query`` (D,), all of unit length, or all N if there are fewer.

    Gives their indices (K,) and cosines (K,), the nearest first; of equally near ones, the earlier first. Raises
    :class:`ValueError` for other shapes, a negative ``k``, and numbers that are not finite.
    """
    if query.ndim != 1 or vectors.ndim != 2 or vectors.shape[1] != len(query) or k < 0:
        raise ValueError(f"expected (D,), (N, D) and k >= 0, not {tuple(query.shape)}, {tuple(vectors.shape)}, {k}")
    cosines = vectors.float() @ query.float()
    if not cosines.isfinite().all():
        raise ValueError("a vector has numbers that are not finite")
    found, order = cosines.sort(descending=True, stable=True)
    return order[:k], found[:k]


def among_words(heard: Tensor, said: Tensor, there: Tensor | None = None) -> tuple[Tensor, int]:
    """The mean of the words' unit vectors ``said`` (K, D), each weighted by how near a sound's ``heard`` (D,) is; and
    the nearest. ``there`` (K, E): the same words in another space, for the mean.

    Sounds lie beside words and pictures but not among them, and what a generator of shapes makes of such a place is
    nothing in particular: of 14 known things that sound it made none that a judge has among five, and four this way.
    """
    cosines = said @ heard.to(said)
    wanted = said if there is None else there
    return F.normalize((cosines / SHARPNESS).softmax(0) @ wanted, dim=0), int(cosines.argmax())


# ---------------------------------------------------------------------------------------------------------------- ours


class BindAudio(SoundTower, Bind):
    """Sounds through the tower of CLAP-lite, projected into a frozen picture-text space. A window has ``frames``."""

    def __init__(self, config: ClapAudioConfig, mel: MelConfig) -> None:
        super().__init__(config, mel)
        self.width = config.projection_dim

    def embed(self, media: Tensor) -> Tensor:
        """Waveforms (B, N) in [-1, 1] at ``mel.sample_rate``, N > 0 -> unit vectors (B, D) float32.

        A shorter sound than a window ends in silence. A longer one is heard in as few windows as cover it, evenly
        spread, and has the direction of their mean. Raises :class:`ValueError` for other shapes and samples that are
        not finite.
        """
        require_waveforms(media)
        parts = windows(media.float(), self.mel.samples(self.frames))
        vectors = self.embed_sounds(log_mel(parts.flatten(0, 1), self.mel))
        return F.normalize(vectors.unflatten(0, parts.shape[:2]).mean(1), dim=-1)


def load_bind_audio(folder: Path) -> BindAudio:
    """A folder of our encoder of sounds; float32 on the CPU."""
    return BindAudio.load(folder)


def windows(waveforms: Tensor, samples: int) -> Tensor:
    """(B, N) -> (B, W, samples): as few windows as cover a sound, evenly spread; a shorter sound ends in silence."""
    length = waveforms.shape[1]
    count, spare = -(-length // samples), max(0, length - samples)
    padded = F.pad(waveforms, (0, max(0, samples - length)))
    starts = [spare * index // max(1, count - 1) for index in range(count)]
    return torch.stack([padded[:, start : start + samples] for start in starts], 1)


def require_waveforms(waveforms: Tensor, shortest: int = 1) -> None:
    """Raises :class:`ValueError` unless these are sounds (B, N) of finite samples, none shorter than ``shortest``."""
    if waveforms.ndim != 2 or not len(waveforms) or waveforms.shape[1] < shortest:
        raise ValueError(f"expected (B, N) with B > 0 and N >= {shortest}, not {tuple(waveforms.shape)}")
    if not waveforms.isfinite().all():
        raise ValueError("a sound has samples that are not finite")


# -------------------------------------------------------------------------------------------------------- LanguageBind

WINDOW, HOP, FFT_SIZE = 400, 160, 512  # samples: 25 ms every 10 ms, as Kaldi's defaults
LOWEST = 20.0  # Hz
PREEMPHASIS = 0.97
CHUNKS = 3
# What a tower's configuration takes from the published ``vision_config``; both have the same defaults.
TOWER_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)


@dataclass(frozen=True)
class FilterBank:
    """Kaldi's logarithmic filter bank: ``bands`` and ``frames`` of a chunk; ``mean`` and ``deviation`` of the bands."""

    bands: int
    frames: int
    mean: float
    deviation: float

    def chunks(self, waveforms: Tensor) -> Tensor:
        """(B, N) in [-1, 1] at 16 kHz, N >= 400 -> (B, 3, M, F) float32, of half a deviation.

        A shorter sound is repeated, one three times the same. Of a longer one, three chunks from its beginning on, from
        a third and from two thirds of what is left (LanguageBind draws each from its third at random).
        """
        bands = self.bands_of(waveforms)
        found = bands.shape[1]
        if found < self.frames:
            bands = bands.repeat(1, -(-self.frames // found), 1)[:, : self.frames]
        thirds = np.array_split(np.arange(bands.shape[1] - self.frames + 1), CHUNKS)
        starts = [int(third[0]) if len(third) else 0 for third in thirds]
        chosen = torch.stack([bands[:, start : start + self.frames] for start in starts], 1)
        return (chosen.transpose(2, 3) - self.mean) / (2 * self.deviation)

    def bands_of(self, waveforms: Tensor) -> Tensor:
        """(B, N) -> logarithms (B, F, M): no padding, each frame without its mean, a Hann window, power."""
        frames = (waveforms - waveforms.mean(1, keepdim=True)).unfold(1, WINDOW, HOP)
        frames = frames - frames.mean(-1, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], -1)
        window = torch.hann_window(WINDOW, periodic=False, device=waveforms.device)
        power = torch.fft.rfft((frames - PREEMPHASIS * before) * window, FFT_SIZE).abs().square()
        return (power @ kaldi_filters(self.bands).to(waveforms.device)).clamp(min=torch.finfo(torch.float32).eps).log()


@lru_cache
def kaldi_filters(bands: int) -> Tensor:
    """(257, M): triangles on Kaldi's mel scale from 20 Hz to 8 kHz."""
    filters = mel_filter_bank(
        FFT_SIZE // 2 + 1,
        bands,
        LOWEST,
        SAMPLE_RATE / 2,
        SAMPLE_RATE,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    return torch.from_numpy(filters).float()


class SpectrogramEmbeddings(nn.Module):
    """CLIP's patch embeddings for pictures that are not square: (B, 3, M, F) -> (B, 1 + patches, width).

    transformers' own class knows squares only; the names of the parameters are the same.
    """

    def __init__(self, config: CLIPVisionConfig, positions: int) -> None:
        super().__init__()
        width, patch = config.hidden_size, cast(int, config.patch_size)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding(positions, width)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding.weight


class LanguageBindAudio(Bind):
    """LanguageBind's audio tower: a ViT that sees spectrograms, in the space of OpenCLIP's ViT-L/14.

    The pictures and words of that space are those of ``laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K``, which LanguageBind
    kept frozen (arXiv 2310.01852, section 3.2).
    """

    def __init__(self, config: CLIPVisionConfig, filter_bank: FilterBank) -> None:
        super().__init__()
        patch = cast(int, config.patch_size)
        self.width = config.projection_dim
        self.filter_bank = filter_bank
        self.tower = CLIPVisionModelWithProjection(config)
        positions = 1 + (filter_bank.bands // patch) * (filter_bank.frames // patch)
        self.tower.vision_model.embeddings = SpectrogramEmbeddings(config, positions)

    def embed(self, media: Tensor) -> Tensor:
        """Waveforms (B, N) in [-1, 1] at 16 kHz, N >= 400 -> unit vectors (B, D) float32.

        Raises :class:`ValueError` for other shapes and samples that are not finite.
        """
        require_waveforms(media, WINDOW)
        chunks = self.filter_bank.chunks(media.float())
        return F.normalize(self.tower(pixel_values=chunks).image_embeds.float(), dim=-1)


class WordsEars(nn.Module):
    """LanguageBind's sounds in another space of pictures and words, by way of words that both know.

    ``said`` (K, D): unit vectors of the words in LanguageBind's space; ``there`` (K, E): in the other.
    """

    hears: ClassVar[Literal["waveforms"]] = "waveforms"
    sample_rate = SAMPLE_RATE
    samples = 10 * SAMPLE_RATE

    def __init__(self, ears: LanguageBindAudio, said: Tensor, there: Tensor) -> None:
        super().__init__()
        self.ears = ears
        self.said: Tensor
        self.there: Tensor
        self.register_buffer("said", said)
        self.register_buffer("there", there)

    @torch.no_grad()
    def embed_sounds(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, N) in [-1, 1] at 16 kHz -> unit vectors (B, E) float32; less than 25 ms ends in silence."""
        heard = self.ears.embed(F.pad(waveforms, (0, max(0, WINDOW - waveforms.shape[1]))))
        with torch.autocast(heard.device.type, enabled=False):  # small differences of cosines count
            return torch.stack([among_words(one, self.said, self.there)[0] for one in heard])


def load_language_bind_audio(folder: Path) -> LanguageBindAudio:
    """The published folder ``LanguageBind/LanguageBind_Audio_FT`` (MIT): ``config.json`` and ``pytorch_model.bin``.

    Float32 on the CPU; the text tower in the same file is left out. Raises :class:`UserError` for the kin of that
    checkpoint whose layers hold low-rank updates apart (``LanguageBind_Audio``) or attend over time (the videos).
    """
    config = json.loads((folder / CONFIG).read_text())
    published: dict[str, Any] = config["vision_config"]
    if published.get("lora_r", 2) or published.get("add_time_attn", False):  # 2 is what LanguageBind's class has
        raise UserError(
            "These are weights of LanguageBind with low-rank updates or attention over time, which aren't read here.",
            "Take LanguageBind/LanguageBind_Audio_FT, the fully tuned audio encoder.",
        )
    filter_bank = FilterBank(*(published[key] for key in ("num_mel_bins", "target_length", "audio_mean", "audio_std")))
    taken = {key: published[key] for key in TOWER_FIELDS if key in published}
    with torch.device("meta"):
        model = LanguageBindAudio(CLIPVisionConfig(**taken, projection_dim=config["projection_dim"]), filter_bank)
    stored = torch.load(folder / PUBLISHED_WEIGHTS, map_location="cpu", weights_only=True, mmap=True)
    kept = {name: value.float() for name, value in stored.items() if name.startswith(("vision_model.", "visual_"))}
    kept.pop("vision_model.embeddings.position_ids", None)  # 0, 1, 2, ...; older files store it
    model.tower.load_state_dict(kept, assign=True)
    return model.eval()
