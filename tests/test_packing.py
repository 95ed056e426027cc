"""Weights in few bits: what rounding may change, and the lite weights' files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.nets.crossflow import CrossFlow
from models.packing import PACKED_FROM_ELEMENTS, dequantize_blocks, pack_int8, quantize_blocks, unpack_int8
from models.quantized_layers import bitsandbytes_works
from tests.quantized_models import CPU, WIDE

# ---------------------------------------------------------------------------------------- packed files


def test_packed_weights_are_a_quarter_and_come_back_within_half_a_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = CrossFlow(WIDE).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "plain.safetensors")
    save_file(pack_int8(state), tmp_path / "packed.safetensors")
    assert (tmp_path / "packed.safetensors").stat().st_size < 0.31 * (tmp_path / "plain.safetensors").stat().st_size
    back = unpack_int8(load_file(tmp_path / "packed.safetensors"))
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert back[name].dtype == torch.float32 and back[name].shape == value.shape
        if value.numel() >= PACKED_FROM_ELEMENTS and value.ndim >= 2:
            step = value.flatten(1).abs().amax(1) / 127
            error = (back[name] - value).flatten(1).abs().amax(1)
            assert (error <= 0.501 * step + 1e-12).all(), name
        else:
            torch.testing.assert_close(back[name], value, rtol=1e-3, atol=1e-7)


@settings(max_examples=30)
@given(rows=st.integers(1, 5), seed=st.integers(0, 2**16), exponent=st.integers(-30, 30))
def test_packing_holds_at_every_scale_of_the_weights(rows: int, seed: int, exponent: int) -> None:
    weight = torch.randn(rows, PACKED_FROM_ELEMENTS, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    weight[0, 1:] = 0  # one outlier in a row must not spoil the others
    packed = pack_int8({"w": weight})
    assert packed["w"].dtype == torch.int8
    error = (unpack_int8(packed)["w"] - weight).abs().amax(1)
    assert (error <= 0.501 * weight.abs().amax(1) / 127).all()
    assert torch.equal(pack_int8(unpack_int8(packed))["w"], packed["w"])


def test_a_state_without_packed_tensors_becomes_float32() -> None:
    state = {"a.weight": torch.randn(3, 4).half(), "a.scale": torch.ones(3).bfloat16(), "steps": torch.tensor(7)}
    back = unpack_int8(state)
    assert back.keys() == state.keys()
    assert back["a.weight"].dtype == back["a.scale"].dtype == torch.float32
    assert back["steps"].dtype == torch.int64 and torch.equal(back["a.weight"], state["a.weight"].float())


def test_what_float16_cannot_hold_stays_float32() -> None:
    packed = pack_int8({"big": torch.tensor([1e6, -3.0]), "small": torch.tensor([0.5])})
    assert packed["big"].dtype == torch.float32 and packed["small"].dtype == torch.float16
    assert torch.equal(unpack_int8(packed)["big"], torch.tensor([1e6, -3.0]))


def test_rows_of_zeros_stay_zero() -> None:
    assert not unpack_int8(pack_int8({"w": torch.zeros(4, PACKED_FROM_ELEMENTS)}))["w"].any()


@pytest.mark.parametrize("bad", [torch.full((2, PACKED_FROM_ELEMENTS), torch.nan), torch.tensor([torch.inf])])
def test_weights_that_are_no_numbers_are_not_packed(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"'head.bias' holds"):
        pack_int8({"fine": torch.ones(3), "head.bias": bad})


# ---------------------------------------------------------------------------------------- NF4


@settings(max_examples=20)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 4), seed=st.integers(0, 99), exponent=st.integers(-20, 20))
def test_nf4_is_within_half_the_widest_gap(rows: int, blocks: int, seed: int, exponent: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 64 * blocks, generator=generator) * 10.0**exponent
    packed, scale = quantize_blocks(weight)
    assert packed.shape == (rows, 32 * blocks) and packed.dtype == torch.int8
    back = dequantize_blocks(packed, scale)
    error = (back - weight).unflatten(1, (-1, 64)).abs().amax(-1)
    assert (error <= 0.1521 * scale).all()
    again, _ = quantize_blocks(back)
    assert torch.equal(again, packed)


def test_zeros_stay_zeros_in_nf4() -> None:
    weight = torch.zeros(2, 128)
    weight[0, 3] = 5.0
    assert torch.equal(dequantize_blocks(*quantize_blocks(weight)), weight)


@pytest.mark.skipif(not bitsandbytes_works(CPU), reason="bitsandbytes does not work on this CPU")
def test_our_nf4_is_that_of_bitsandbytes() -> None:
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    packed, scale = quantize_blocks(weight)
    theirs, their_scale = torch.ops.bitsandbytes.quantize_4bit(weight, 64, "nf4", torch.uint8)
    assert torch.equal(packed.view(torch.uint8).flatten(), theirs.flatten())
    assert torch.equal(scale.flatten(), their_scale)
