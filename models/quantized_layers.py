"""Layers whose weights are held in fewer bits, and that otherwise are what they were.

Each takes and gives what the layer of the same kind takes and gives, autocast or not. The weight is a buffer called
``weight`` still, because libraries take the type of a module's first parameter for that of its activations.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.packing import BLOCK, INT8_RANGE, dequantize_blocks, quantize_blocks, quantize_rows

log = logging.getLogger(__name__)


def _compute_dtype(x: Tensor) -> torch.dtype:
    """What a layer of float32 weights would compute and answer in, given ``x``."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _as(dtype: torch.dtype, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _gradients_wanted(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def _replace_weight(layer: nn.Module, weight: Tensor) -> None:
    del layer.weight
    layer.register_buffer("weight", weight)


class HalfLinear(nn.Linear):
    """float16 or bfloat16 in memory; computes in the type of the activations."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = _compute_dtype(x)
        return F.linear(x.to(dtype), self.weight.to(dtype), _as(dtype, self.bias))


class HalfConv2d(nn.Conv2d):
    """float16 or bfloat16 in memory; computes in the type of the activations."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = _compute_dtype(x)
        return self._conv_forward(x.to(dtype), self.weight.to(dtype), _as(dtype, self.bias))


class HalfEmbedding(nn.Embedding):
    """float16 or bfloat16 in memory; answers in float32."""

    def forward(self, indices: Tensor) -> Tensor:
        return super().forward(indices).float()


Layer = nn.Linear | nn.Conv2d | nn.Embedding
HALVES: dict[type[Layer], Any] = {
    nn.Linear: HalfLinear,
    nn.Conv2d: HalfConv2d,
    nn.Embedding: HalfEmbedding,
}


def hold_half(layer: Layer, weight: Tensor) -> None:
    """Turn a layer of one of the kinds in :data:`HALVES` into one that holds ``weight``, its own in 16 bits."""
    _replace_weight(layer, weight)
    layer.__class__ = HALVES[type(layer)]  # the very same layer, so that what refers to it still does


class Int8Linear(nn.Linear):
    """int8 rows with a float32 scale each; the product with the whole numbers is scaled, which costs less."""

    weight_scale: Tensor

    @classmethod
    def hold(cls, layer: Layer) -> None:
        """Turn an ``nn.Linear`` into this."""
        rows, scale = quantize_rows(layer.weight)
        _replace_weight(layer, rows)
        layer.register_buffer("weight_scale", scale)
        layer.__class__ = cls

    def forward(self, x: Tensor) -> Tensor:
        dtype = _compute_dtype(x)
        return self._scaled(F.linear(x.to(dtype), self.weight.to(dtype)).float()).to(dtype)

    def _scaled(self, product: Tensor) -> Tensor:
        if self.bias is None:
            return product * self.weight_scale
        return torch.addcmul(self.bias, product, self.weight_scale)


class RoundingInt8Linear(Int8Linear):
    """Rounds the activations to int8 as well, by row (a token): whole numbers are multiplied twice as fast.

    A row's result does not depend on the others in its batch, nor on which of three ways computes the product. Where
    gradients are wanted nothing is rounded, for rounding has none.
    """

    def forward(self, x: Tensor) -> Tensor:
        if _gradients_wanted(x):
            return super().forward(x)
        tokens = x.reshape(-1, self.in_features).float()
        largest = tokens.abs().amax(1, keepdim=True)  # no number if one of the row is none, and so is the result then
        scale = (largest / INT8_RANGE).clamp_min(torch.finfo(torch.float32).tiny)
        rows = (tokens / scale).round_().to(torch.int8)
        product = _integer_product(rows, self.weight).float().mul_(scale)
        return self._scaled(product).view(*x.shape[:-1], self.out_features).to(_compute_dtype(x))


def _integer_product(rows: Tensor, weight: Tensor) -> Tensor:
    """int8 (M, K) by int8 (N, K) -> (M, N)."""
    if rows.device.type == "cuda" and bitsandbytes_works(rows.device):
        product: Tensor = torch.ops.bitsandbytes.int8_linear_matmul(rows, weight)
        return product
    if rows.device.type == "cpu" and torch.cpu._is_vnni_supported():
        return torch._int_mm(rows, weight.t())
    with torch.autocast(rows.device.type, enabled=False):
        return F.linear(rows.float(), weight.float())


class Nf4Linear(nn.Linear):
    """Half a byte a weight, and a float32 scale for each 64 in a row; computes in the type of the activations."""

    weight_scale: Tensor

    @staticmethod
    def hold(layer: Layer) -> None:
        """Turn an ``nn.Linear`` whose rows are whole blocks into this."""
        packed, scale = quantize_blocks(layer.weight)
        _replace_weight(layer, packed)
        layer.register_buffer("weight_scale", scale)
        layer.__class__ = Nf4Linear

    def forward(self, x: Tensor) -> Tensor:
        dtype = _compute_dtype(x)
        x, bias = x.to(dtype), _as(dtype, self.bias)
        if not bitsandbytes_works(x.device):
            return F.linear(x, dequantize_blocks(self.weight, self.weight_scale).to(dtype), bias)
        packed, shape = self.weight.view(torch.uint8).view(-1, 1), (self.out_features, self.in_features)
        library = torch.ops.bitsandbytes
        if x.device.type == "cuda" and not _gradients_wanted(x):
            fused: Tensor = library.gemm_4bit(x, packed, shape, self.weight_scale.flatten(), BLOCK, "nf4", bias)
            return fused
        weight = library.dequantize_4bit(packed, self.weight_scale.flatten(), BLOCK, "nf4", shape, dtype)
        return F.linear(x, weight, bias)


@cache
def bitsandbytes_works(device: torch.device) -> bool:
    """Whether the library is there and unpacks NF4 on this device to the very numbers that we do."""
    try:
        # Importing it registers torch.ops.bitsandbytes.
        from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib

        if isinstance(lib, ErrorHandlerMockBNBNativeLibrary):
            raise OSError("its own library could not be loaded")
        packed, scale = quantize_blocks(torch.linspace(-1, 1, 4 * BLOCK, device=device).view(2, -1))
        unpacked = torch.ops.bitsandbytes.dequantize_4bit(
            packed.view(torch.uint8).view(-1, 1), scale.flatten(), BLOCK, "nf4", (2, 2 * BLOCK), torch.float32
        )
        works = torch.equal(unpacked, dequantize_blocks(packed, scale))
    except Exception as error:  # a library for another CPU, driver or torch fails in ways of its own
        log.warning("bitsandbytes does not work on '%s' (%s): NF4 is computed by torch alone", device, error)
        return False
    if not works:
        log.warning("bitsandbytes unpacks NF4 otherwise on '%s': NF4 is computed by torch alone", device)
    return works
