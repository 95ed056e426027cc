"""Bridges between spaces of unit vectors: a picture's vector becomes a sound's, or a sentence's becomes a picture's.

- :class:`DiffusionBridge`, the generative one of V2A-Mapper (arXiv 2308.09300) and CLIPSonic (2306.09635): unCLIP's
  diffusion prior (2204.06125). One vector has many right answers, and a seed picks one.
- :class:`RegressionBridge`, V2A-Mapper's other one: the mean of the right answers.
- :class:`MeanShift`: one cloud of vectors moved onto the other, without training.
- :class:`WordsBridge`, ours and of no paper: by way of words that both spaces know, without training.

``load_bridge(folder)(vectors, seeds)`` is the same for all. Shapes: B vectors of D dimensions, at both ends.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from diffusers import DDPMScheduler, PriorTransformer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import UserError
from models.packing import save_half

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TIMES = 1000  # of the diffusion's training
HEAD_WIDTH, DROPOUT = 64, 0.05
SHARPNESS = 100.0  # what CLIP multiplies cosines by before a softmax
LENGTH_TOLERANCE = 1e-2  # of a unit vector that has been through 16-bit floats


class Bridge(nn.Module, ABC):
    """From one space of ``width`` dimensions to another; the ``others`` say how it is built."""

    def __init__(self, width: int, **others: float | bool) -> None:
        super().__init__()
        self.width = width
        self.config = {"width": width, **others}
        self.scale = math.sqrt(width)  # gives the components of unit vectors about unit deviation

    @abstractmethod
    def forward(self, vectors: Tensor, seeds: Sequence[int]) -> Tensor:
        """Unit vectors (B, D) and one seed each -> unit vectors (B, D) float32.

        No answer depends on the rest of the batch. Raises :class:`ValueError` for other shapes, another number of
        seeds, and vectors that are not of unit length (a network trained on those fails silently on others) or NaN.
        """

    def _require(self, vectors: Tensor, seeds: Sequence[int]) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self.width or not len(vectors):
            raise ValueError(f"expected (B, {self.width}) with B > 0, not {tuple(vectors.shape)}")
        if len(seeds) != len(vectors):
            raise ValueError(f"expected {len(vectors)} seeds, one a vector, not {len(seeds)}")
        _require_unit(vectors)

    def save_pretrained(self, folder: Path) -> None:
        """``config.json`` and ``model.safetensors`` in float16."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps({"_class_name": type(self).__name__, **self.config}, indent=2) + "\n")
        save_half(self.state_dict(), folder / WEIGHTS)


class DiffusionBridge(Bridge):
    """A diffusion prior: a transformer over four tokens (condition, time, noisy target, query) predicts the target.

    Both ends are multiplied by the square root of D, or they would drown in the noise. ``one_space``: whether both
    ends live in one space, so that the nearest of several answers is a sensible choice. ``guidance``: the usual one.
    """

    def __init__(self, width: int, heads: int, layers: int, one_space: bool, guidance: float = 1.0) -> None:
        super().__init__(width, heads=heads, layers=layers, one_space=one_space, guidance=guidance)
        self.one_space = one_space
        self.guidance = guidance
        self.prior = PriorTransformer(
            embedding_dim=width,
            num_attention_heads=heads,
            attention_head_dim=HEAD_WIDTH,
            num_layers=layers,
            num_embeddings=0,
            additional_embeddings=4,
            encoder_hid_proj_type=None,
            dropout=DROPOUT,
        )
        self.prior.clip_mean.requires_grad_(False)  # unCLIP whitens its vectors; ours are scaled
        self.prior.clip_std.requires_grad_(False)
        self.null = nn.Parameter(torch.zeros(width))
        schedule = DDPMScheduler(num_train_timesteps=TIMES, beta_schedule="squaredcos_cap_v2")
        self.signal: Tensor
        self.register_buffer("signal", schedule.alphas_cumprod, persistent=False)

    def add_noise(self, targets: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """Unit vectors (B, D) as they are at ``times`` (B,) in [0, TIMES): scaled, and the more noise the later."""
        signal = self.signal[times][:, None]
        return signal.sqrt() * self.scale * targets + (1 - signal).sqrt() * noise

    def predict(self, noisy: Tensor, times: Tensor, vectors: Tensor, dropped: Tensor) -> Tensor:
        """The target times sqrt(D), (B, D) float32, guessed from what :meth:`add_noise` made of it.

        ``vectors`` (B, D) are the conditions; where ``dropped`` (B,) is true, the learned null stands for them.
        """
        conditions = torch.where(dropped[:, None], self.null, vectors * self.scale)
        return cast(Tensor, self.prior(noisy, times, conditions).predicted_image_embedding.float())

    @torch.no_grad()
    def forward(
        self, vectors: Tensor, seeds: Sequence[int], steps: int = 12, guidance: float | None = None, best_of: int = 1
    ) -> Tensor:
        """``steps`` of deterministic DDIM from the noise of each seed; ``guidance`` 1 takes the conditions as they are,
        ``None`` is this bridge's own.

        Of ``best_of`` answers the one nearest to its vector is kept, which makes sense in one space only.
        """
        self._require(vectors, seeds)
        guidance = self.guidance if guidance is None else guidance
        if not 1 <= steps <= TIMES or best_of < 1 or not math.isfinite(guidance):
            raise ValueError(f"cannot sample with steps {steps}, guidance {guidance} and best_of {best_of}")
        if best_of > 1 and not self.one_space:
            raise ValueError("best_of needs both ends in one space: nearness to a vector of another space says nothing")
        vectors = vectors.float()
        # Drawn on the CPU, one generator a vector, so that it depends neither on device nor on batch.
        draws = [torch.randn(best_of, self.width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        made = self._denoise(torch.cat(draws).to(vectors), vectors.repeat_interleave(best_of, 0), steps, guidance)
        made = F.normalize(made, dim=-1).unflatten(0, (-1, best_of))
        nearest = (made * vectors[:, None]).sum(-1).argmax(1)
        return made[torch.arange(len(made)), nearest]

    def _denoise(self, noisy: Tensor, vectors: Tensor, steps: int, guidance: float) -> Tensor:
        """DDIM (arXiv 2010.02502, equation 12 with sigma 0), from nothing but noise to none, at even distances."""
        times = torch.linspace(TIMES, 0, steps + 1)[:-1].round().long() - 1
        signals = [*self.signal[times], torch.ones(())]
        for step, time in enumerate(times):
            target = self._guided(noisy, time.expand(len(noisy)).to(noisy.device), vectors, guidance)
            noise = (noisy - signals[step].sqrt() * target) / (1 - signals[step]).sqrt()
            noisy = signals[step + 1].sqrt() * target + (1 - signals[step + 1]).sqrt() * noise
        return noisy

    def _guided(self, noisy: Tensor, times: Tensor, vectors: Tensor, guidance: float) -> Tensor:
        """Classifier-free guidance (arXiv 2207.12598)."""
        dropped = torch.zeros(len(noisy), dtype=torch.bool, device=noisy.device)
        told = self.predict(noisy, times, vectors, dropped)
        if guidance == 1:
            return told
        untold = self.predict(noisy, times, vectors, ~dropped)
        return untold + guidance * (told - untold)


class RegressionBridge(Bridge):
    """Two layers around a residual; ``hidden``: the width between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden=hidden)
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.LayerNorm(hidden), nn.Linear(hidden, width))

    def predict(self, vectors: Tensor) -> Tensor:
        """Unit vectors (B, D) -> the targets times sqrt(D), (B, D) float32; shorter where many would be right."""
        scaled = vectors * self.scale
        return cast(Tensor, scaled + self.layers(scaled)).float()

    @torch.no_grad()
    def forward(self, vectors: Tensor, seeds: Sequence[int]) -> Tensor:
        """The same for every seed."""
        self._require(vectors, seeds)
        return F.normalize(self.predict(vectors.float()), dim=-1)


class MeanShift(Bridge):
    """Every vector is moved by the difference of the two spaces' means."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.mean_from: Tensor
        self.mean_to: Tensor
        self.register_buffer("mean_from", torch.zeros(width))
        self.register_buffer("mean_to", torch.zeros(width))

    @classmethod
    def between(cls, sources: Tensor, targets: Tensor) -> Self:
        """From the cloud of ``sources`` (N, D) to that of ``targets`` (M, D)."""
        bridge = cls(sources.shape[1])
        bridge.mean_from.copy_(sources.mean(0))
        bridge.mean_to.copy_(targets.mean(0))
        return bridge

    @torch.no_grad()
    def forward(self, vectors: Tensor, seeds: Sequence[int]) -> Tensor:
        """The same for every seed."""
        self._require(vectors, seeds)
        return F.normalize(vectors.float() - self.mean_from + self.mean_to, dim=-1)


class WordsBridge(Bridge):
    """What is seen is called something, and what is called so is heard; the two spaces may have different widths.

    ``seen`` (N, D) and ``heard`` (N, ``heard_width``) are unit vectors of the same ``names`` in either space. How well
    each fits is CLIP's softmax over all. A seed draws by that, ``draws`` times, and the mean of what was drawn is the
    answer; no draws stand for endlessly many, which come to the mean of all, weighted.
    """

    def __init__(self, width: int, heard_width: int, names: int, draws: int) -> None:
        super().__init__(width, heard_width=heard_width, names=names, draws=draws)
        self.draws = draws
        self.seen: Tensor
        self.heard: Tensor
        self.register_buffer("seen", torch.zeros(names, width))
        self.register_buffer("heard", torch.zeros(names, heard_width))

    @classmethod
    def between(cls, seen: Tensor, heard: Tensor, draws: int) -> Self:
        """From ``seen`` to ``heard``, whose rows belong together."""
        bridge = cls(seen.shape[1], heard.shape[1], len(seen), draws)
        bridge.seen.copy_(seen)
        bridge.heard.copy_(heard)
        return bridge

    @torch.no_grad()
    def forward(self, vectors: Tensor, seeds: Sequence[int]) -> Tensor:
        """The same for every seed if there are no draws."""
        self._require(vectors, seeds)
        with torch.autocast(vectors.device.type, enabled=False):  # a hundredth of a cosine makes a difference
            shares = (SHARPNESS * vectors.float() @ self.seen.T).softmax(-1)
            if self.draws:
                rows = zip(shares.cpu(), seeds, strict=True)
                shares = torch.stack([self._drawn(row, seed) for row, seed in rows]).to(shares)
            return F.normalize(shares @ self.heard, dim=-1)

    def _drawn(self, shares: Tensor, seed: int) -> Tensor:
        """How often each name is drawn, (N,), in shares of all draws."""
        drawn = shares.multinomial(self.draws, replacement=True, generator=torch.Generator().manual_seed(seed))
        return drawn.bincount(minlength=len(shares)) / self.draws


KINDS: dict[str, type[Bridge]] = {
    kind.__name__: kind for kind in (DiffusionBridge, RegressionBridge, MeanShift, WordsBridge)
}


def load_bridge(folder: Path) -> Bridge:
    """A folder of any kind, float32 on the CPU. Raises :class:`UserError` if it holds something else."""
    values: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    kind = values.pop("_class_name", None)
    if kind not in KINDS:
        raise UserError(f"The weights in '{folder}' are no bridge between spaces.", f"It must be {', '.join(KINDS)}.")
    bridge = KINDS[kind](**values)
    bridge.load_state_dict(load_file(folder / WEIGHTS))
    return bridge.eval()


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The unit vector at the share ``t`` in [0, 1] of the way along the arc from ``a`` to ``b``, unit vectors (..., D).

    At 0 and 1 it is ``a`` and ``b`` bit for bit. Between opposite vectors, where every way is as short, it takes one
    and the same. Raises :class:`ValueError` for another ``t``, for shapes that differ and for other vectors.
    """
    if a.shape != b.shape or not a.ndim or a.shape[-1] < 2 or not 0 <= t <= 1:
        raise ValueError(f"cannot go {t} of the way from {tuple(a.shape)} to {tuple(b.shape)}")
    _require_unit(a)
    _require_unit(b)
    if t in (0, 1):
        return (b if t else a).clone()
    start, end = F.normalize(a.double(), dim=-1), F.normalize(b.double(), dim=-1)
    cosine = (start * end).sum(-1, keepdim=True)
    aside = end - cosine * start
    sine = aside.norm(dim=-1, keepdim=True)
    # Nearly equal or opposite vectors have no direction from one to the other: any will do, the angle is still right.
    direction = torch.where(sine > 1e-7, F.normalize(aside, dim=-1), _perpendicular(start))
    angle = t * torch.atan2(sine, cosine)
    return F.normalize(angle.cos() * start + angle.sin() * direction, dim=-1).to(a.dtype)


def _perpendicular(vectors: Tensor) -> Tensor:
    """For each of (..., D) a unit vector at a right angle: the axis that it has least of, less what it has."""
    axis = F.one_hot(vectors.abs().argmin(-1), vectors.shape[-1]).to(vectors)
    return F.normalize(axis - (axis * vectors).sum(-1, keepdim=True) * vectors, dim=-1)


def _require_unit(vectors: Tensor) -> None:
    lengths = vectors.float().norm(dim=-1)
    if not ((lengths - 1).abs() < LENGTH_TOLERANCE).all():  # NaN is not below it either
        raise ValueError(f"expected unit vectors, not of lengths {lengths.flatten()[:4].tolist()}")
