"""Which number format models compute in: the one that this machine multiplies faster."""

from __future__ import annotations

import time

import pytest
import torch

from models import machine
from models.machine import WORTHWHILE_GAIN, bfloat16_gain, compute_dtype

CPU = torch.device("cpu")


def processor(monkeypatch: pytest.MonkeyPatch, matrix_units: bool, instructions: bool, gain: float) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: matrix_units)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": instructions} if instructions else {})
    monkeypatch.setattr(machine, "bfloat16_gain", lambda: gain)


@pytest.mark.parametrize(
    ("matrix_units", "instructions", "gain", "expected"),
    [
        (True, True, 0.0, torch.bfloat16),
        (False, True, 3.5, torch.bfloat16),
        (False, True, 1.1, torch.float32),
        (False, True, 0.5, torch.float32),
        (False, False, 3.5, torch.float32),  # emulated
    ],
)
def test_bfloat16_is_for_processors_that_gain_by_it(
    matrix_units: bool, instructions: bool, gain: float, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(monkeypatch, matrix_units, instructions, gain)
    assert compute_dtype(CPU) == expected


def test_the_gain_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = iter((2.0, 0.5))
    monkeypatch.setattr(machine, "_measured_gain", lambda: next(gains))
    bfloat16_gain.cache_clear()
    try:
        assert [bfloat16_gain(), bfloat16_gain()] == [2.0, 2.0] and WORTHWHILE_GAIN < 2
    finally:
        bfloat16_gain.cache_clear()


@pytest.mark.parametrize(("slow", "fast"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_the_gain_is_above_one_where_bfloat16_is_faster(
    slow: torch.dtype, fast: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def linear(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        time.sleep(0.005 if x.dtype == slow else 0.0005)
        return x

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    assert (machine._measured_gain() > WORTHWHILE_GAIN) == (fast == torch.bfloat16)
