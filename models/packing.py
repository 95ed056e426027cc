"""Weights in few bits: int8 rows with a scale each, NF4 blocks with a scale each, and the lite weights' files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

# Below this a tensor is a rounding error of the file's size, and often one that the result hangs on.
PACKED_FROM_ELEMENTS = 16_384
INT8_RANGE = 127
SCALE = ".scale"


def save_half(state: Mapping[str, Tensor], path: Path) -> None:
    """What is floating point in ``state`` as float16, in a safetensors file; other tensors as they are."""
    halves = {name: value.detach().half() if value.is_floating_point() else value for name, value in state.items()}
    save_file({name: value.contiguous() for name, value in halves.items()}, path)


def pack_int8(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in about a quarter of its float32 size.

    Every floating tensor of at least two dimensions and :data:`PACKED_FROM_ELEMENTS` elements becomes int8 of the same
    shape under its own name, and a float32 scale per row (first dimension) under ``<name>.scale``; other floating
    tensors become float16, or float32 where float16's range is too small; tensors that are not floating stay.
    Raises ValueError for a tensor with values that are not numbers.
    """
    packed = {}
    for name, value in state.items():
        if not value.is_floating_point():
            packed[name] = value.contiguous()
            continue
        value = value.detach().float()
        if not torch.isfinite(value).all():
            raise ValueError(f"'{name}' holds values that are not numbers")
        if value.ndim >= 2 and value.numel() >= PACKED_FROM_ELEMENTS:
            packed[name], packed[name + SCALE] = quantize_rows(value)
        else:
            half = value.half()
            packed[name] = (half if torch.isfinite(half).all() else value).contiguous()
    return packed


def unpack_int8(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict that :func:`pack_int8` was given, in float32 and rounded; any other just becomes float32."""
    unpacked = {}
    for name, value in state.items():
        if is_packed(state, name):
            unpacked[name] = dequantize_rows(value, state[name + SCALE])
        elif not is_packed(state, name.removesuffix(SCALE)):
            unpacked[name] = value.float() if value.is_floating_point() else value
    return unpacked


def is_packed(state: Mapping[str, Tensor], name: str) -> bool:
    """Whether ``name`` is a tensor of int8 rows with its scales beside it."""
    return name in state and state[name].dtype == torch.int8 and name + SCALE in state


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, ...) floating -> int8 of the same shape in [-127, 127], and float32 scales (N,): each row's largest / 127."""
    rows = weight.detach().float().flatten(1)
    scale = (rows.abs().amax(1) / INT8_RANGE).clamp_min(torch.finfo(torch.float32).tiny)  # rows of zeros
    steps = (rows / scale[:, None]).round().clamp(-INT8_RANGE, INT8_RANGE)
    return steps.to(torch.int8).view(weight.shape), scale


def dequantize_rows(rows: Tensor, scale: Tensor) -> Tensor:
    """int8 (N, ...) and scales (N,) -> float32 (N, ...)."""
    return rows.float() * scale.view(-1, *(1,) * (rows.ndim - 1))


# ---------------------------------------------------------------------------------------- NF4 (arXiv 2305.14314)

BLOCK = 64
# Sixteen levels, equally likely for a normal variable, with an exact zero; as bitsandbytes has them.
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def quantize_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) floating, K in whole blocks of 64 -> (N, K/2) int8 of two levels each, and scales (N, K/64) float32.

    The earlier of two levels is in the higher four bits, as bitsandbytes wants it. The bytes are called int8, because
    libraries take uint8 for the type that activations should have.
    """
    blocks = weight.detach().float().unflatten(1, (-1, BLOCK))
    scale = blocks.abs().amax(-1)
    levels = torch.tensor(LEVELS, device=weight.device)
    middles = (levels[1:] + levels[:-1]) / 2
    nearest = torch.bucketize(blocks / scale.clamp_min(torch.finfo(torch.float32).tiny)[..., None], middles)
    high, low = nearest.to(torch.uint8).flatten(1).unflatten(1, (-1, 2)).unbind(-1)
    return ((high << 4) | low).view(torch.int8), scale


def dequantize_blocks(packed: Tensor, scale: Tensor) -> Tensor:
    """What :func:`quantize_blocks` gave -> float32 (N, K)."""
    levels = torch.tensor(LEVELS, device=packed.device)
    # Both levels of a byte are looked up at once, as one number of eight bytes: half the look-ups, twice the speed.
    pairs = torch.cartesian_prod(levels, levels).view(torch.int64).flatten()
    values = pairs.index_select(0, packed.view(torch.uint8).flatten().int()).view(torch.float32)
    return values.view(*scale.shape, BLOCK).mul_(scale[..., None]).flatten(1)
