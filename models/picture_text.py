"""CLIP-lite: pictures and sentences as unit vectors of one space, near each other where they mean the same.

A frozen network names the picture. Its ten likeliest classes, each by the sentence embedding of its name, make a
"sense" (ConSE, arXiv 1312.5650), which goes through the very layers that sentences go through: so an ordinary
photograph lands near its name before anything is trained. Two more layers over the network's features add what
ImageNet has no name for: emoji, icons, drawings.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.nets.efficientnet_lite import CLASSES, DEVIATION, FEATURES, MEAN, SIZE, EfficientNetLite2
from models.packing import save_half

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SENTENCE_WIDTH = 384
LIKELIEST = 10


@dataclass(frozen=True)
class PictureTextConfig:
    """``width`` of the space, ``hidden`` width of both heads, ``dropout`` of the picture head in training."""

    width: int = 256
    hidden: int = 512
    dropout: float = 0.3


class PictureTextHeads(nn.Module):
    """All that is trained: from sentence embeddings, and from what the frozen network sees, into the space."""

    def __init__(self, config: PictureTextConfig) -> None:
        super().__init__()
        self.text = nn.Sequential(
            nn.Linear(SENTENCE_WIDTH, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.width)
        )
        self.picture = nn.Sequential(
            nn.LayerNorm(FEATURES + SENTENCE_WIDTH),
            nn.Dropout(config.dropout),
            nn.Linear(FEATURES + SENTENCE_WIDTH, config.hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.width),
        )
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # CLIP's temperature of 0.07 to begin with
        self._start_from_the_sense()

    def _start_from_the_sense(self) -> None:
        """Sentences start as a projection that keeps their angles, and pictures where their sense is."""
        for layer in self.text:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight)
                nn.init.zeros_(layer.bias)
        last = cast(nn.Linear, self.picture[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def embed_pictures(self, features: Tensor, senses: Tensor) -> Tensor:
        """Features (B, 1280) and senses (B, 384), see :class:`PictureText` -> unit vectors (B, D) float32."""
        # A unit vector's entries are about 1 / sqrt(width): beside the features they would drown in the norm.
        seen = torch.cat([features, senses * math.sqrt(SENTENCE_WIDTH)], -1)
        return F.normalize((self.text(senses) + self.picture(seen)).float(), dim=-1)

    def embed_sentences(self, sentence_embeddings: Tensor) -> Tensor:
        """Unit vectors of the text encoder (B, 384) -> unit vectors (B, D) float32."""
        return F.normalize(cast(Tensor, self.text(sentence_embeddings)).float(), dim=-1)

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by before a softmax: at most 100, as in CLIP."""
        return self.log_scale.exp().clamp(max=100)


class PictureText(nn.Module):
    """A space of ``config.width`` dimensions.

    ``class_names``: (1000, 384) sentence embeddings of the names of the backbone's classes; kept in float16.
    """

    reads: ClassVar[Literal["sentences"]] = "sentences"
    class_names: Tensor

    def __init__(self, config: PictureTextConfig, backbone: EfficientNetLite2, class_names: Tensor) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.heads = PictureTextHeads(config)
        self.register_buffer("class_names", class_names.half())

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] of any size -> unit vectors (B, D) float32.

        Raises :class:`ValueError` for other shapes. They are squeezed to a square: cut beforehand what is far from one.
        """
        features = self.features(pixels)
        return self.heads.embed_pictures(features, self.senses(features))

    def embed_sentences(self, sentence_embeddings: Tensor) -> Tensor:
        """Unit vectors of the text encoder (B, 384) -> unit vectors (B, D) float32."""
        return self.heads.embed_sentences(sentence_embeddings)

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by before a softmax."""
        return self.heads.scale

    def features(self, pixels: Tensor) -> Tensor:
        """What the backbone sees in pictures (B, 3, H, W) in [-1, 1]: (B, 1280) float32 in [0, 6]."""
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.numel():
            raise ValueError(f"expected (B, 3, H, W), not {tuple(pixels.shape)}")
        resized = F.interpolate(pixels.float(), (SIZE, SIZE), mode="bicubic", antialias=True).clamp(-1, 1)
        mean, deviation = (pixels.new_tensor(value, dtype=torch.float32)[:, None, None] for value in (MEAN, DEVIATION))
        return self.backbone.features(((resized + 1) / 2 - mean) / deviation).float()

    def senses(self, features: Tensor) -> Tensor:
        """(B, 1280) -> unit vectors (B, 384): the names of the likeliest classes, each weighed by its probability."""
        probabilities, likeliest = self.backbone.classify(features).float().softmax(-1).topk(LIKELIEST)
        return F.normalize((probabilities[..., None] * self.class_names[likeliest].float()).sum(1), dim=-1)

    def save_pretrained(self, folder: Path) -> None:
        """``config.json`` and ``model.safetensors`` in float16, the backbone inside."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        save_half(self.state_dict(), folder / WEIGHTS)


def load_picture_text(folder: Path) -> PictureText:
    """A folder as :meth:`PictureText.save_pretrained` writes it; float32 on the CPU, but for the names of classes."""
    config = PictureTextConfig(**json.loads((folder / CONFIG).read_text()))
    model = PictureText(config, EfficientNetLite2(), torch.empty(CLASSES, SENTENCE_WIDTH))
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval()
