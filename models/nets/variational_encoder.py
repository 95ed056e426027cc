"""CrossFlow's text variational encoder (arXiv 2412.15213, section 3.2): token states -> mean and log-variance of z0.

A post-norm transformer, three layers that halve the width, and a head over all tokens at once; parameter names as
released.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nets.attention import attention

if TYPE_CHECKING:
    from models.nets.crossflow import CrossFlowConfig

REDUCTIONS = 3


class EncoderNorm(nn.Module):
    """Layer norm with the unbiased deviation and epsilon outside the root, as the released weights expect."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(width))
        self.b = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        deviation = x.std(-1, keepdim=True)
        return self.g * (x - x.mean(-1, keepdim=True)) / (deviation + 1e-5) + self.b


class EncoderAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.W_Q, self.W_K, self.W_V, self.W_O = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``x`` (B, L, d); ``mask`` (B, L) true where a token is: padding is hidden as key, never as query."""
        q, k, v = (w(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w in (self.W_Q, self.W_K, self.W_V))
        mixed = attention(q, k, v, mask[:, None, None, :])
        return cast(Tensor, self.W_O(mixed.transpose(1, 2).flatten(2)))


class EncoderFeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.ffn_1 = nn.Linear(width, hidden)
        self.ffn_2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.ffn_2(F.relu(self.ffn_1(x))))


class EncoderLayer(nn.Module):
    """Post-norm transformer layer."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.attn = EncoderAttention(width, heads)
        self.feed_forward = EncoderFeedForward(width, hidden)
        self.norm1, self.norm2 = EncoderNorm(width), EncoderNorm(width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.attn(x, mask)))
        return cast(Tensor, self.norm2(x + self.dropout(self.feed_forward(x))))


class ReductionLayer(EncoderLayer):
    """An encoder layer whose output is projected to half its width."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__(width, hidden, heads)
        self.reduction = nn.Linear(width, width // 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return cast(Tensor, self.reduction(super().forward(x, mask)))


class Compressor(nn.Module):
    def __init__(self, width: int, compressed: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, compressed)
        self.ln_fc1 = nn.LayerNorm(compressed)
        self.fc2 = nn.Linear(compressed, compressed)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(F.relu(self.ln_fc1(self.fc1(x)))))


class Adaptor(nn.Module):
    """Head of the 512 px models: two linear layers give one plane, three convolutions give mean and log-variance."""

    def __init__(self, features: int, latent_channels: int, latent_size: int) -> None:
        super().__init__()
        self.size = latent_size
        plane = latent_size**2
        self.fc1, self.ln_fc1 = nn.Linear(features, plane), nn.LayerNorm(plane)
        self.fc2, self.ln_fc2 = nn.Linear(plane, plane), nn.LayerNorm(plane)
        self.conv1, self.ln_conv1 = nn.Conv2d(1, 32, 3, padding=1), nn.LayerNorm((32, latent_size, latent_size))
        self.conv2, self.ln_conv2 = nn.Conv2d(32, 64, 3, padding=1), nn.LayerNorm((64, latent_size, latent_size))
        self.conv3 = nn.Conv2d(64, 2 * latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.ln_fc1(self.fc1(x)))
        x = F.relu(self.ln_fc2(self.fc2(x))).view(-1, 1, self.size, self.size)
        x = F.relu(self.ln_conv1(self.conv1(x)))
        x = F.relu(self.ln_conv2(self.conv2(x)))
        return cast(Tensor, self.conv3(x)).flatten(1)


class TextVariationalEncoder(nn.Module):
    def __init__(self, config: CrossFlowConfig) -> None:
        super().__init__()
        width = config.compressed_width or config.text_width
        if config.compressed_width:
            self.compressor = Compressor(config.text_width, width)
        self.layers = nn.ModuleList(
            EncoderLayer(width, config.encoder_hidden, config.encoder_heads) for _ in range(config.encoder_layers)
        )
        widths = [width >> i for i in range(REDUCTIONS)]
        self.reduction_layers = nn.ModuleList(
            ReductionLayer(w, config.encoder_hidden, config.encoder_heads) for w in widths
        )
        features = config.tokens * (width >> REDUCTIONS)
        if config.encoder_head == "linear":
            self.linear = nn.Linear(features, 2 * config.latent_elements)
        else:
            self.adaptor = Adaptor(features, config.latent_channels, config.latent_size)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Token states (B, L, d) and their 0/1 mask (B, L) -> mean and log-variance, each flat (B, C*H*W)."""
        x = self.compressor(states) if hasattr(self, "compressor") else states
        for layer in (*self.layers, *self.reduction_layers):
            x = layer(x, mask.bool())
        head = self.linear if hasattr(self, "linear") else self.adaptor
        mean, log_variance = head(x.flatten(1)).float().chunk(2, dim=-1)
        return mean, log_variance
