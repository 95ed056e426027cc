"""The one mel definition: equal to the reference implementation, and what every frame and band means."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from models.mel import AUDIOLDM_MEL, LITE_MEL, MelConfig, load_mel_config, log_mel, magnitudes_of, mel_filters

CONFIGS = {"lite": LITE_MEL, "audioldm": AUDIOLDM_MEL, "narrow": replace(LITE_MEL, bands=40, lowest=60, highest=7000)}


def tone(hertz: float, samples: int = 16_000, amplitude: float = 0.5) -> Tensor:
    return amplitude * torch.sin(2 * math.pi * hertz * torch.arange(samples) / 16_000)


def reference_filters(config: MelConfig) -> np.ndarray:
    """As librosa's: (bins, bands)."""
    bins = config.fft_size // 2 + 1
    return mel_filter_bank(bins, config.bands, config.lowest, config.highest, config.sample_rate, "slaney", "slaney")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_filters_are_the_reference_implementations(config: MelConfig) -> None:
    torch.testing.assert_close(mel_filters(config).double().numpy(), reference_filters(config), atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_spectrogram_is_the_reference_implementations(config: MelConfig) -> None:
    torch.manual_seed(0)
    waveform = tone(440, 8_000) + 0.1 * torch.randn(8_000)
    expected = spectrogram(
        waveform.numpy().astype(np.float64),
        window_function(config.fft_size, "hann", periodic=True),
        config.fft_size,
        config.hop,
        power=1.0,
        center=True,
        pad_mode="reflect",
        mel_filters=reference_filters(config),
        mel_floor=config.floor,
        log_mel="log",
    ).T[: config.frames(8_000)]
    made = log_mel(waveform[None], config)[0] * config.deviation + config.mean
    np.testing.assert_allclose(made.numpy(), expected, atol=2e-3)


@given(st.integers(LITE_MEL.shortest, 6_000), st.integers(1, 3))
def test_a_frame_for_every_hop(samples: int, count: int) -> None:
    mels = log_mel(torch.zeros(count, samples), LITE_MEL)
    assert mels.shape == (count, LITE_MEL.frames(samples), LITE_MEL.bands)
    assert LITE_MEL.samples(mels.shape[1]) <= samples < LITE_MEL.samples(mels.shape[1] + 1)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_silence_is_the_lowest_value(config: MelConfig) -> None:
    assert torch.allclose(log_mel(torch.zeros(1, 4_000), config), torch.tensor(config.silence))
    assert log_mel(1e-4 * torch.randn(1, 4_000), config).min() >= config.silence - 1e-5


@pytest.mark.parametrize("hertz", [150, 440, 1_000, 3_000, 6_500])
def test_a_tone_is_loudest_in_the_band_around_it(hertz: float) -> None:
    peak = log_mel(tone(hertz)[None], LITE_MEL)[0, 30].argmax()
    weights = mel_filters(LITE_MEL)[round(hertz / 16_000 * 1024)]
    assert weights[peak] > 0


@given(st.floats(0.05, 1.0))
def test_loudness_adds_its_logarithm(gain: float) -> None:
    loud = log_mel(tone(440)[None], LITE_MEL)[0, 30].max()
    soft = log_mel(gain * tone(440)[None], LITE_MEL)[0, 30].max()
    assert (soft - loud).item() * LITE_MEL.deviation == pytest.approx(math.log(gain), abs=1e-3)


def test_standardising_can_be_undone() -> None:
    mels = log_mel(tone(440)[None], LITE_MEL)
    plain = log_mel(tone(440)[None], replace(LITE_MEL, mean=0.0, deviation=1.0))
    torch.testing.assert_close(magnitudes_of(mels, LITE_MEL), plain.exp())
    assert magnitudes_of(torch.tensor(-100.0), LITE_MEL).item() == pytest.approx(LITE_MEL.floor)


def test_a_vocoder_can_learn_through_it() -> None:
    waveform = tone(440)[None].requires_grad_()
    log_mel(waveform, LITE_MEL).sum().backward()
    assert waveform.grad is not None and torch.isfinite(waveform.grad).all() and waveform.grad.abs().sum() > 0


def test_autocast_changes_nothing() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        low = log_mel(tone(440)[None], LITE_MEL)
    assert torch.equal(low, log_mel(tone(440)[None], LITE_MEL))


@pytest.mark.parametrize("shape", [(4_000,), (1, 1, 4_000), (1, LITE_MEL.shortest - 1), (2, 0)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        log_mel(torch.zeros(shape), LITE_MEL)


def test_a_definition_is_stored_beside_weights(tmp_path: Path) -> None:
    assert load_mel_config(tmp_path) == AUDIOLDM_MEL
    LITE_MEL.save(tmp_path)
    assert load_mel_config(tmp_path) == LITE_MEL


def test_both_sizes_hear_the_same_bands() -> None:
    assert torch.equal(mel_filters(LITE_MEL), mel_filters(AUDIOLDM_MEL))
