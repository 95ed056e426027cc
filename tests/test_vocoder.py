"""Vocoders of both kinds, and Griffin-Lim, behind one call: length, level, gradients, files, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from models.errors import UserError
from models.mel import AUDIOLDM_MEL, LITE_MEL, log_mel, mel_filters
from models.nets.vocoder import HifiGanVocoder, IstftVocoder, VocoderConfig, load_vocoder
from training.sound_measures import (
    griffin_lim,
    linear_magnitudes,
    mel_error,
    save_spectrograms,
    stft_distance,
    with_phases_of,
)


def tiny() -> IstftVocoder:
    torch.manual_seed(0)
    return IstftVocoder(VocoderConfig(width=16, hidden=32, blocks=2), LITE_MEL).eval()


def hifigan_config(channels: int, rates: tuple[int, ...] = (5, 4, 2, 2, 2)) -> SpeechT5HifiGanConfig:
    """vocoder/config.json of AudioLDM's published folders, at ``channels`` 1024."""
    return SpeechT5HifiGanConfig(
        model_in_dim=64,
        sampling_rate=16_000,
        upsample_initial_channel=channels,
        upsample_rates=list(rates),
        upsample_kernel_sizes=[16, 16, 8, 4, 4],
        resblock_kernel_sizes=[3, 7, 11],
        resblock_dilation_sizes=[[1, 3, 5]] * 3,
        normalize_before=False,
    )


def noise(count: int = 2, frames: int = 48) -> Tensor:
    """Noise that swells and fades, (count, frames * hop)."""
    torch.manual_seed(1)
    samples = LITE_MEL.samples(frames)
    return torch.randn(count, samples) * 0.1 * (1 + torch.sin(torch.arange(samples) / 2_000))


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 70))
def test_a_hop_for_every_frame(count: int, frames: int) -> None:
    with torch.no_grad():
        waveforms = tiny()(torch.randn(count, frames, 64))
    assert waveforms.shape == (count, LITE_MEL.samples(frames)) and torch.isfinite(waveforms).all()


def test_even_an_untrained_vocoder_has_the_loudness() -> None:
    mels = log_mel(noise(), LITE_MEL)
    with torch.no_grad():
        made = tiny()(mels)
    assert mel_error(log_mel(made, LITE_MEL), mels, LITE_MEL).max() < 8


def test_silence_is_silent_and_loudness_bounded() -> None:
    with torch.no_grad():
        assert tiny()(torch.full((1, 20, 64), LITE_MEL.silence)).abs().max() < 1e-3
        assert torch.isfinite(tiny()(torch.full((1, 20, 64), 10.0))).all()


def test_a_sound_of_a_batch_is_voiced_as_it_is_alone() -> None:
    mels = log_mel(noise(4), LITE_MEL)
    with torch.no_grad():
        together, alone = tiny()(mels), torch.cat([tiny()(mel[None]) for mel in mels])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_every_weight_learns_from_the_waveform() -> None:
    vocoder, waveforms = tiny(), noise()
    stft_distance(vocoder(log_mel(waveforms, LITE_MEL)), waveforms).mean().backward()
    for name, parameter in vocoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_files_of_ours_give_the_same_sound(tmp_path: Path) -> None:
    vocoder = tiny()
    vocoder.save_pretrained(tmp_path)
    loaded = load_vocoder(tmp_path)
    assert isinstance(loaded, IstftVocoder) and loaded.config == vocoder.config and loaded.mel == LITE_MEL
    mels = log_mel(noise(), LITE_MEL)
    with torch.no_grad():
        torch.testing.assert_close(loaded(mels), vocoder(mels), atol=3e-3, rtol=0)  # float16 in the file


def test_published_files_speak_by_the_same_call(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SpeechT5HifiGan(hifigan_config(64)).eval()
    model.save_pretrained(tmp_path)
    loaded = load_vocoder(tmp_path)
    assert isinstance(loaded, HifiGanVocoder) and loaded.mel == AUDIOLDM_MEL
    mels = torch.randn(2, 12, 64)
    with torch.no_grad():
        assert loaded(mels).shape == (2, AUDIOLDM_MEL.samples(12))
        assert loaded(mels[:1]).shape == (1, AUDIOLDM_MEL.samples(12))
        torch.testing.assert_close(loaded(mels), model(mels)[:, : AUDIOLDM_MEL.samples(12)])


def test_audioldms_configuration_is_the_sheets_size() -> None:
    with torch.device("meta"):
        model = SpeechT5HifiGan(hifigan_config(1024))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(55.3e6, rel=0.002)


@pytest.mark.parametrize("shape", [(1, 8, 63), (8, 64), (1, 0, 64), (1, 1, 8, 64)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    for vocoder in (tiny(), HifiGanVocoder(SpeechT5HifiGan(hifigan_config(32)), AUDIOLDM_MEL)):
        with pytest.raises(ValueError, match="expected"):
            vocoder(torch.zeros(shape))


def test_a_vocoder_of_another_mel_is_refused() -> None:
    with pytest.raises(UserError, match=r"\(64, 160, 16000\).*\(64, 256, 16000\)"):
        HifiGanVocoder(SpeechT5HifiGan(hifigan_config(32)), LITE_MEL)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(UserError, match="no vocoder"):
        load_vocoder(tmp_path)


def test_magnitudes_found_for_mels_have_those_mels() -> None:
    mels = log_mel(noise(), LITE_MEL)
    magnitudes = linear_magnitudes(mels, LITE_MEL)
    assert magnitudes.shape == (2, 513, 48) and magnitudes.min() >= 0
    again = ((magnitudes.transpose(1, 2) @ mel_filters(LITE_MEL)).log() - LITE_MEL.mean) / LITE_MEL.deviation
    assert mel_error(again, mels, LITE_MEL).max() < 0.5


def test_griffin_lim_finds_pitch_and_level_again() -> None:
    samples = LITE_MEL.samples(64)
    tone = 0.5 * torch.sin(2 * math.pi * 1_000 * torch.arange(samples) / 16_000)[None]
    mels = log_mel(tone, LITE_MEL)
    made = griffin_lim(mels, LITE_MEL)
    assert made.shape == tone.shape
    spectrum = torch.fft.rfft(made[0]).abs()
    assert spectrum.argmax() * 16_000 / samples == pytest.approx(1_000, abs=60)
    middle = slice(2_000, -2_000)
    assert made[0, middle].std().item() == pytest.approx(tone[0, middle].std().item(), rel=0.3)
    assert torch.equal(made, griffin_lim(mels, LITE_MEL))


def test_more_griffin_lim_is_nearer() -> None:
    waveforms = noise()
    mels = log_mel(waveforms, LITE_MEL)
    few, many = (stft_distance(griffin_lim(mels, LITE_MEL, count), waveforms).mean() for count in (1, 32))
    assert stft_distance(with_phases_of(waveforms, mels, LITE_MEL), waveforms).mean() < many < few
    assert torch.isfinite(griffin_lim(torch.full((1, 8, 64), LITE_MEL.silence), LITE_MEL)).all()


@given(st.floats(0.001, 0.05))
def test_the_distance_grows_with_the_noise(level: float) -> None:
    waveforms = noise()
    other = torch.randn(waveforms.shape, generator=torch.Generator().manual_seed(2))
    assert stft_distance(waveforms, waveforms).abs().max() < 1e-6
    near, far = (stft_distance(waveforms + scale * other, waveforms) for scale in (level, 3 * level))
    assert (near < far).all() and (near > 0).all()


def test_the_distance_to_silence_is_finite_and_has_a_gradient() -> None:
    made = noise().requires_grad_()
    distance = stft_distance(made, torch.zeros_like(made)).sum()
    distance.backward()
    assert torch.isfinite(distance) and made.grad is not None and torch.isfinite(made.grad).all()


def test_the_mel_error_is_in_decibels_and_leaves_silence_out() -> None:
    waveforms = torch.cat([noise(1), torch.zeros(1, LITE_MEL.samples(40))], 1)
    mels = log_mel(waveforms, LITE_MEL)
    quieter = log_mel(waveforms * 10 ** (-3 / 20), LITE_MEL)
    assert mel_error(quieter, mels, LITE_MEL).item() == pytest.approx(3, abs=0.1)
    assert mel_error(log_mel(torch.zeros_like(waveforms), LITE_MEL)[:, -20:], mels[:, -20:], LITE_MEL).item() == 0


def test_spectrograms_are_drawn_with_low_bands_below(tmp_path: Path) -> None:
    mels = torch.full((1, 30, 64), LITE_MEL.silence)
    mels[:, :, :8] = 2.0
    save_spectrograms(mels, LITE_MEL, tmp_path / "sheets" / "one.png", columns=1)
    with Image.open(tmp_path / "sheets" / "one.png") as picture:
        assert picture.getpixel((5, 60))[0] > 200 and picture.getpixel((5, 5))[0] == 0  # type: ignore[index]
