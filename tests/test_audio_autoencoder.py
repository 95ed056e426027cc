"""Sound autoencoders of both classes: shapes, scale, files, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from hypothesis import given
from hypothesis import strategies as st

from models.errors import UserError
from models.mel import AUDIOLDM_MEL, LITE_MEL
from models.nets.audio_autoencoder import AudioAutoencoder, load_audio_autoencoder

# vae/config.json of AudioLDM's published folders
AUDIOLDM_VAE = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [128, 256, 512],
    "layers_per_block": 2,
    "latent_channels": 8,
}


def tiny(**changes: object) -> AutoencoderTiny:
    torch.manual_seed(0)
    values = {
        "in_channels": 1,
        "out_channels": 1,
        "encoder_block_out_channels": (8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8),
        "num_encoder_blocks": (0, 1, 1),
        "num_decoder_blocks": (1, 1, 0),
        "latent_channels": 4,
        "scaling_factor": 2.5,
        "shift_factor": 0.25,
    }
    return AutoencoderTiny(**{**values, **changes}).eval()


def small_kl() -> AutoencoderKL:
    torch.manual_seed(0)
    sizes = {"block_out_channels": [8, 16, 16], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    return AutoencoderKL(**{**AUDIOLDM_VAE, **sizes}, scaling_factor=0.9).eval()


@given(st.integers(1, 3), st.integers(1, 12))
def test_every_fourth_frame_and_band_is_a_latent(count: int, quarters: int) -> None:
    autoencoder = AudioAutoencoder(tiny(), LITE_MEL)
    latents = autoencoder.encode(torch.randn(count, 4 * quarters, 64))
    assert latents.shape == (count, 4, quarters, 16)
    assert autoencoder.decode(latents).shape == (count, 4 * quarters, 64)


@pytest.mark.parametrize("model", [tiny(), small_kl()], ids=["tiny", "kl"])
def test_decoding_undoes_the_scale_of_encoding(model: AutoencoderTiny | AutoencoderKL) -> None:
    autoencoder = AudioAutoencoder(model, LITE_MEL)
    mels = torch.randn(2, 32, 64)
    with torch.no_grad():
        encoded = model.encode(mels[:, None])
        raw = encoded.latents if isinstance(model, AutoencoderTiny) else encoded.latent_dist.mode()
        straight = model.decode(raw).sample[:, 0].clamp(min=LITE_MEL.silence)
    torch.testing.assert_close(autoencoder.decode(autoencoder.encode(mels)), straight)
    torch.testing.assert_close(autoencoder.encode(mels), (raw - autoencoder.shift) * autoencoder.scale)


def test_nothing_is_decoded_below_silence() -> None:
    autoencoder = AudioAutoencoder(tiny(), LITE_MEL)
    assert autoencoder.decode(torch.full((1, 4, 4, 16), 1e3)).min() >= LITE_MEL.silence
    assert autoencoder.decode(torch.full((1, 4, 4, 16), -1e3)).min() >= LITE_MEL.silence


def test_a_sound_of_a_batch_is_coded_as_it_is_alone() -> None:
    autoencoder = AudioAutoencoder(tiny(), LITE_MEL)
    mels = torch.randn(3, 16, 64)
    alone = torch.cat([autoencoder.encode(mel[None]) for mel in mels])
    torch.testing.assert_close(autoencoder.encode(mels), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 30, 64), (1, 32, 63), (32, 64), (1, 0, 64), (1, 1, 32, 64)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        AudioAutoencoder(tiny(), LITE_MEL).encode(torch.zeros(shape))


def test_files_of_ours_carry_their_mel(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    LITE_MEL.save(tmp_path)
    loaded = load_audio_autoencoder(tmp_path)
    assert (loaded.mel, loaded.scale, loaded.shift, loaded.factor) == (LITE_MEL, 2.5, 0.25, 4)
    mels = torch.randn(1, 8, 64)
    torch.testing.assert_close(loaded.encode(mels), AudioAutoencoder(model, LITE_MEL).encode(mels))


def test_published_files_have_audioldms_mel(tmp_path: Path) -> None:
    small_kl().save_pretrained(tmp_path)
    loaded = load_audio_autoencoder(tmp_path)
    assert (loaded.mel, loaded.scale, loaded.shift) == (AUDIOLDM_MEL, 0.9, 0.0)
    assert loaded.decode(loaded.encode(torch.randn(1, 16, 64))).shape == (1, 16, 64)


def test_audioldms_configuration_is_the_sheets_size() -> None:
    with torch.device("meta"):
        model = AutoencoderKL(**AUDIOLDM_VAE)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(55.4e6, rel=0.002)
    assert AudioAutoencoder(model, AUDIOLDM_MEL).factor == 4


def test_other_weights_are_refused(tmp_path: Path) -> None:
    tiny(in_channels=3, out_channels=3).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="pictures of 3 channels"):
        load_audio_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(UserError, match="no sound autoencoder"):
        load_audio_autoencoder(tmp_path)
