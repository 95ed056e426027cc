"""Brain decoder of STTM (arXiv 2403.06361) as large as it was published: the tokens of a picture, not one vector.

Its authors published code and no weights; ``python -m training.brain_decoder --size published`` trains it. Around the
adapters and residual blocks of the small one (:mod:`models.nets.brain_decoder`), wider, it has what that leaves out:

- the core ends in tokens, which attend to each other: CLIP's of the picture, the first of them its class token;
- a projector makes of them what is compared with CLIP's; its class token is ``semantic``, by which things are named;
- a diffusion prior (DALL-E 2's, arXiv 2204.06125, as a transformer decoder over tokens) makes of the unprojected ones
  what CLIP's tokens would have been, for generators that read these; the app's painter reads words, and asks for none;
- a network with adapters of its own gives ``low_level``, the latents of the image autoencoder.

One thing differs from its authors' code: there the attention's logits are multiplied by the root of a head's width, and
here divided, as their paper has it. Weights trained there would not mean the same.

Shapes: B scans of V voxels; T tokens, of D numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from diffusers import DDPMScheduler
from diffusers.models.autoencoders.vae import Decoder
from torch import Tensor, nn
from torch.nn import functional as F

from models.nets.brain_decoder import BrainDecoder, load_brain_decoder
from models.nets.brain_subjects import (
    Decoded,
    ResidualBlock,
    SubjectAdapter,
    SubjectDecoder,
    damaged_config,
    no_decoder,
    read_config,
)

AT_ONCE = 32  # scans whose tokens attend to each other at once
NULL_CONDITION = 0.2  # share of scans that the prior is trained without
NULL_SCAN = 0.4  # share of steps that the low-level network is trained without the scans' own low-level features
KEPT_TOKENS = (0.35, 0.40)  # of what the prior reads in training, at least and at most


@dataclass(frozen=True)
class TokenDecoderConfig:
    """``width`` of what adapters give; ``blocks`` of the core and of the low-level network; ``dropout`` behind the
    first layer of an adapter and behind all others. ``tokens`` of ``dimension`` numbers, which inside the core have
    ``token_width``; they attend in ``attention_width`` numbers by ``attention_heads``. ``projector_width`` of the
    projector. ``prior_*``: of the diffusion prior, which has ``timesteps``. ``latents`` (C, H, W) of the low level, and
    ``channels`` of what makes them, from the finest to the coarsest."""

    width: int
    blocks: int
    dropout: tuple[float, float]
    tokens: int
    dimension: int
    token_width: int
    attention_width: int
    attention_heads: int
    projector_width: int
    prior_layers: int
    prior_heads: int
    prior_width: int
    timesteps: int
    latents: tuple[int, int, int]
    channels: tuple[int, ...]


# For CLIP ViT-L/14 and the latents of Stable Diffusion for pictures of 512 x 512.
PUBLISHED = TokenDecoderConfig(
    width=4096,
    blocks=4,
    dropout=(0.5, 0.15),
    tokens=257,
    dimension=768,
    token_width=128,
    attention_width=768,
    attention_heads=8,
    projector_width=2048,
    prior_layers=6,
    prior_heads=12,
    prior_width=3072,
    timesteps=100,
    latents=(4, 64, 64),
    channels=(64, 128, 256),
)


class TokenAttention(nn.Module):
    """Tokens (B, T, token_width), attending to each other -> (B, T, D)."""

    def __init__(self, config: TokenDecoderConfig) -> None:
        super().__init__()
        self.heads = config.attention_heads
        width, inside, outside = config.token_width, config.attention_width, config.dimension
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, inside) for _ in range(3))
        self.projection = nn.Linear(inside, width)
        self.dropout = nn.Dropout(config.dropout[1])
        self.out = nn.Sequential(
            nn.Linear(width, 2 * outside),
            nn.LayerNorm(2 * outside),
            nn.GELU(),
            nn.Dropout(config.dropout[1]),
            nn.Linear(2 * outside, outside),
        )

    def forward(self, x: Tensor) -> Tensor:
        read = self.before(x)
        query, key, value = (
            layer(read).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        said = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.projection(said))
        return cast(Tensor, self.out(self.after(x)))


class TokenCore(nn.Module):
    """What adapters give (B, width) -> the ``features`` (B, width), and tokens (B, T, D) of them."""

    def __init__(self, config: TokenDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.Sequential(*(ResidualBlock(config.width, config.dropout[1]) for _ in range(config.blocks)))
        self.to_tokens = nn.Sequential(
            nn.LayerNorm(config.width), nn.GELU(), nn.Linear(config.width, config.tokens * config.token_width)
        )
        self.attention = TokenAttention(config)

    def features(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.blocks(hidden))

    def tokens(self, features: Tensor) -> Tensor:
        tokens = self.to_tokens(features).unflatten(1, (self.config.tokens, self.config.token_width))
        return cast(Tensor, self.attention(tokens))


def projector(config: TokenDecoderConfig) -> nn.Sequential:
    """Tokens (B, T, D) -> what is compared with CLIP's, (B, T, D)."""
    dimension, width = config.dimension, config.projector_width
    layers: list[nn.Module] = []
    for inside, outside in ((dimension, width), (width, width), (width, dimension)):
        layers += [nn.LayerNorm(inside), nn.GELU(), nn.Linear(inside, outside)]
    return nn.Sequential(*layers)


class TokenPrior(nn.Module):
    """Predicts a picture's clean tokens from noisy ones, given a brain's."""

    def __init__(self, config: TokenDecoderConfig) -> None:
        super().__init__()
        dimension = config.dimension
        places = config.tokens, dimension
        self.time = nn.Embedding(config.timesteps, dimension)
        self.place, self.brain_place = (nn.Parameter(torch.randn(places) * dimension**-0.5) for _ in range(2))
        self.no_brain = nn.Parameter(torch.randn(places))
        layer = nn.TransformerDecoderLayer(
            dimension, config.prior_heads, config.prior_width, dropout=0.0, activation="gelu", batch_first=True
        )
        self.layers = nn.TransformerDecoder(layer, config.prior_layers)

    def forward(self, noisy: Tensor, timestep: Tensor, brain: Tensor) -> Tensor:
        """``noisy`` and ``brain`` (B, T, D) and steps (B,) -> (B, T, D). In training some scans are left out whole, and
        of the others more than half of the tokens."""
        if self.training:
            kept = torch.rand(len(brain), 1, 1, device=brain.device) >= NULL_CONDITION
            brain = torch.where(kept, brain, self.no_brain.to(brain.dtype))
        brain = brain + self.brain_place
        if self.training:
            least, most = (round(share * brain.shape[1]) for share in KEPT_TOKENS)
            count = max(1, int(torch.randint(least, most + 1, ())))
            order = torch.rand(brain.shape[:2], device=brain.device).argsort(1)[:, :count]
            brain = brain.gather(1, order[..., None].expand(-1, -1, brain.shape[2]))
        tokens = torch.cat([self.time(timestep)[:, None], noisy + self.place], 1)
        return cast(Tensor, self.layers(tokens, brain)[:, 1:])


class LowLevelNetwork(nn.Module):
    """z-scored voxels (B, V), and the core's features (B, width) of them -> latents (B, C, H, W)."""

    def __init__(self, config: TokenDecoderConfig) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout[1]
        outside, height, _ = config.latents
        self.side = height // 2 ** (len(config.channels) - 1)
        self.adapters = nn.ModuleDict()
        self.blocks = nn.Sequential(*(self._block(width, dropout) for _ in range(config.blocks)))
        self.no_scan = nn.Parameter(torch.randn(width))
        self.merge = self._block(width, dropout)
        self.to_grid = nn.Linear(width, config.channels[0] * self.side**2, bias=False)
        self.norm = nn.GroupNorm(1, config.channels[0])
        self.decoder = Decoder(
            in_channels=config.channels[0],
            out_channels=outside,
            up_block_types=("UpDecoderBlock2D",) * len(config.channels),
            block_out_channels=config.channels,
            layers_per_block=1,
        )

    @staticmethod
    def _block(width: int, dropout: float) -> nn.Module:
        return ResidualBlock(width, dropout, bias=False, activation=nn.SiLU)

    def forward(self, subject: str, values: Tensor, features: Tensor) -> Tensor:
        """In training some steps leave the scans' own features out, so that those of the core are used as well."""
        hidden = self.blocks(self.adapters[subject](values))
        if self.training and torch.rand(()) < NULL_SCAN:
            hidden = self.no_scan.expand_as(hidden)
        grid = self.to_grid(self.merge(hidden + features))
        return cast(Tensor, self.decoder(self.norm(grid.unflatten(1, (-1, self.side, self.side)))))


class TokenDecoder(SubjectDecoder):
    """See the top of this file. Subjects' names are those of NSD's folders, "subj01", because "S1" is simulated."""

    learnt_from: ClassVar[Literal["measured", "simulated"]] = "measured"

    def __init__(self, config: TokenDecoderConfig) -> None:
        super().__init__(config.dimension)
        self.config = config
        self.core = TokenCore(config)
        self.projector = projector(config)
        self.prior = TokenPrior(config)
        self.low_level = LowLevelNetwork(config)

    def new_adapter(self, voxels: int, mask_hash: str) -> SubjectAdapter:
        return SubjectAdapter(voxels, mask_hash, self.config.width, self.config.dropout)

    def add_subject(self, subject: str, mask_hash: str, mean: Tensor, std: Tensor) -> None:
        super().add_subject(subject, mask_hash, mean, std)
        self.low_level.adapters[subject] = self.new_adapter(len(mean), mask_hash).to(self.center.device)

    @torch.no_grad()
    def decode(self, subject: str, values: Tensor) -> Decoded:
        self.check(subject, values)
        found: list[Decoded] = []
        for some in values.float().split(AT_ONCE):
            features = self.core.features(self.adapters[subject](some))
            semantic = self.projector(self.core.tokens(features))[:, 0].float()
            low_level = self.low_level(subject, some, features).float()
            found.append(Decoded(F.normalize(semantic, dim=-1), low_level))
        return Decoded(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    @torch.no_grad()
    def vectors(self, subject: str, values: Tensor) -> Tensor:
        self.check(subject, values)
        tokens = (self.brain_tokens(subject, some) for some in values.float().split(AT_ONCE))
        return torch.cat([F.normalize(self.projector(some)[:, 0].float(), dim=-1) for some in tokens])

    def brain_tokens(self, subject: str, values: Tensor) -> Tensor:
        """What the prior reads of z-scored voxels (B, V): (B, T, D)."""
        return self.core.tokens(self.core.features(self.adapters[subject](values)))

    @torch.no_grad()
    def picture_tokens(self, brain: Tensor, seed: int) -> Tensor:
        """CLIP's tokens of what was seen, by all steps of the prior: (B, T, D) of a brain's (B, T, D), divided by the
        length of the class token, as generators take them that are guided by a picture."""
        schedule = prior_schedule(self.config.timesteps)
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randn(brain.shape, generator=generator).to(brain.device)
        for step in schedule.timesteps:
            clean = self.prior(tokens, step.to(brain.device).expand(len(brain)), brain).float()
            tokens = schedule.step(clean, step, tokens, generator=generator).prev_sample
        return tokens / tokens[:, :1].norm(dim=-1, keepdim=True).clamp(min=1e-6)


@cache
def prior_schedule(timesteps: int) -> DDPMScheduler:
    """Of the prior, which predicts clean tokens; they are scaled to a deviation of about one (:func:`scaled`)."""
    scheduler = DDPMScheduler(timesteps, beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(timesteps)
    return scheduler


def scaled(tokens: Tensor) -> Tensor:
    """CLIP's tokens (B, T, D), of which the class token has length 1, as the prior knows them."""
    return tokens * tokens.shape[-1] ** 0.5


def load_subject_decoder(folder: Path) -> BrainDecoder | TokenDecoder:
    """A folder of either size, as :meth:`SubjectDecoder.save_pretrained` writes it; float32 on the CPU, ready.

    Raises :class:`UserError` if it holds something else, or a weight too few or too many.
    """
    values = read_config(folder)
    if values.get("_class_name") != TokenDecoder.__name__:
        return load_brain_decoder(folder)
    names = {field.name for field in fields(TokenDecoderConfig)}
    if values.keys() != names | {"_class_name", "subjects"}:
        raise no_decoder(folder)
    settings: dict[str, Any] = {
        name: tuple(values[name]) if isinstance(values[name], list) else values[name] for name in names
    }
    with damaged_config(folder):
        decoder = TokenDecoder(TokenDecoderConfig(**settings))
        decoder.add_subjects(values["subjects"])
    decoder.read_pretrained(folder)
    return decoder
