"""CLAP-lite: sounds and sentences as unit vectors of one space, near each other where they mean the same.

Sounds go through transformers' CLAP audio tower (HTSAT) over our mel; sentences come as embeddings of the frozen text
encoder, so that words never heard in training land near those that were, and go through two layers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Literal, Self, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ClapAudioConfig, ClapAudioModelWithProjection

from models.mel import MelConfig, load_mel_config
from models.packing import save_half

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SENTENCE_WIDTH = 384


class SoundTower(nn.Module):
    """CLAP's audio tower over ``mel``, into ``config.projection_dim`` dimensions, and the temperature to train it with.

    ``frames``: the most frames that a sound may have.
    """

    hears: ClassVar[Literal["mels"]] = "mels"

    def __init__(self, config: ClapAudioConfig, mel: MelConfig) -> None:
        super().__init__()
        self.config = config
        self.mel = mel
        self.frames = config.spec_size * (config.spec_size // config.num_mel_bins)
        self.audio = ClapAudioModelWithProjection(config)
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # CLIP's temperature of 0.07 to begin with

    def embed_sounds(self, mels: Tensor) -> Tensor:
        """Standardised log-mels (B, F, M) with F = ``frames`` -> unit vectors (B, D) float32.

        Raises :class:`ValueError` for other shapes: a shorter sound would be stretched, so it is padded beforehand.
        """
        if mels.ndim != 3 or mels.shape[1:] != (self.frames, self.mel.bands):
            raise ValueError(f"expected (B, {self.frames}, {self.mel.bands}), not {tuple(mels.shape)}")
        return F.normalize(self.audio(input_features=mels[:, None]).audio_embeds.float(), dim=-1)

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by before a softmax: at most 100, as in CLIP."""
        return self.log_scale.exp().clamp(max=100)

    def save_pretrained(self, folder: Path) -> None:
        """``config.json``, ``mel.json`` and ``model.safetensors`` in float16."""
        folder.mkdir(parents=True, exist_ok=True)
        self.config.to_json_file(folder / CONFIG)
        self.mel.save(folder)
        save_half(self.state_dict(), folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """A folder as :meth:`save_pretrained` writes it; float32 on the CPU."""
        model = cls(ClapAudioConfig.from_dict(json.loads((folder / CONFIG).read_text())), load_mel_config(folder))
        model.load_state_dict(load_file(folder / WEIGHTS))
        return model.eval()


class SoundText(SoundTower):
    """A space of sounds and sentences."""

    reads: ClassVar[Literal["sentences"]] = "sentences"

    def __init__(self, config: ClapAudioConfig, mel: MelConfig) -> None:
        super().__init__(config, mel)
        self.text = nn.Sequential(nn.Linear(SENTENCE_WIDTH, 512), nn.GELU(), nn.Linear(512, config.projection_dim))

    def embed_sentences(self, sentence_embeddings: Tensor) -> Tensor:
        """Unit vectors of the text encoder (B, 384) -> unit vectors (B, D) float32."""
        return F.normalize(cast(Tensor, self.text(sentence_embeddings)).float(), dim=-1)


def load_sound_text(folder: Path) -> SoundText:
    """A folder of CLAP-lite; float32 on the CPU."""
    return SoundText.load(folder)
