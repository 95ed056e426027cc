"""LanguageBind's audio encoder: its published layout on a tiny random checkpoint, and Kaldi's filter bank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import ASTFeatureExtractor, CLIPVisionConfig

from models.bind import FilterBank, LanguageBindAudio, load_language_bind_audio
from models.errors import UserError
from tests.test_bind import tones

BANDS, FRAMES, PATCH, HIDDEN, PROJECTION = 28, 42, 14, 8, 12
SAMPLES = 400 + 160 * (FRAMES - 1)
VISION: dict[str, Any] = {
    "add_time_attn": False,
    "attention_dropout": 0.0,
    "audio_mean": -4.2677393,
    "audio_sample_rate": 16000,
    "audio_std": 4.5689974,
    "force_patch_dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": HIDDEN,
    "image_size": 224,
    "intermediate_size": 16,
    "layer_norm_eps": 1e-05,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "lora_r": 0,
    "model_type": "clip_vision_model",
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_frames": 1,
    "num_hidden_layers": 2,
    "num_mel_bins": BANDS,
    "patch_size": PATCH,
    "projection_dim": 512,
    "target_length": FRAMES,
    "video_decode_backend": "decord",
}


def published_state() -> dict[str, Tensor]:
    """Random tensors under the names, and in the proportions, of the published ``pytorch_model.bin``."""
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "text_model.embeddings.token_embedding.weight": (9, 6),
        "text_model.final_layer_norm.weight": (6,),
        "text_projection.weight": (PROJECTION, 6),
        "visual_projection.weight": (PROJECTION, HIDDEN),
        "vision_model.embeddings.class_embedding": (HIDDEN,),
        "vision_model.embeddings.patch_embedding.weight": (HIDDEN, 3, PATCH, PATCH),
        "vision_model.embeddings.position_embedding.weight": (1 + 2 * 3, HIDDEN),
    }
    norms = ["vision_model.pre_layrnorm", "vision_model.post_layernorm"]
    for index in range(2):
        layer = f"vision_model.encoder.layers.{index}"
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        linear = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "out")}
        for name, (out, into) in (linear | {"mlp.fc1": (16, HIDDEN), "mlp.fc2": (HIDDEN, 16)}).items():
            shapes |= {f"{layer}.{name}.weight": (out, into), f"{layer}.{name}.bias": (out,)}
    shapes |= {f"{norm}.{kind}": (HIDDEN,) for norm in norms for kind in ("weight", "bias")}
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return state | {"vision_model.embeddings.position_ids": torch.arange(7)[None]}


def published_tower(state: dict[str, Tensor], chunks: Tensor) -> Tensor:
    """What the published code computes of (B, 3, M, F), written out: unit vectors (B, D)."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"vision_model.{name}.weight"], state[f"vision_model.{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        weight, bias = (state[f"vision_model.{name}.{kind}"] for kind in ("weight", "bias"))
        return F.layer_norm(x, (HIDDEN,), weight, bias, 1e-5)

    embeddings = "vision_model.embeddings"
    patches = F.conv2d(chunks, state[f"{embeddings}.patch_embedding.weight"], stride=PATCH)
    rows = [patches[:, :, band, frame] for band in range(2) for frame in range(3)]
    x = torch.stack([state[f"{embeddings}.class_embedding"].expand_as(rows[0]), *rows], 1)
    x = norm("pre_layrnorm", x + state[f"{embeddings}.position_embedding.weight"])
    for index in range(2):
        layer = f"encoder.layers.{index}"
        seen = norm(f"{layer}.layer_norm1", x)
        q, k, v = (
            linear(f"{layer}.self_attn.{name}_proj", seen).unflatten(2, (2, 4)).transpose(1, 2) for name in "qkv"
        )
        attended = (q @ k.transpose(2, 3) / 2).softmax(-1) @ v
        x = x + linear(f"{layer}.self_attn.out_proj", attended.transpose(1, 2).flatten(2))
        x = x + linear(f"{layer}.mlp.fc2", F.gelu(linear(f"{layer}.mlp.fc1", norm(f"{layer}.layer_norm2", x))))
    return F.normalize(norm("post_layernorm", x[:, 0]) @ state["visual_projection.weight"].T, dim=1)


def write_published(folder: Path, **vision: Any) -> dict[str, Tensor]:
    config = {"model_type": "LanguageBindAudio", "projection_dim": PROJECTION, "text_config": {"hidden_size": 6}}
    (folder / "config.json").write_text(json.dumps({**config, "vision_config": {**VISION, **vision}}))
    state = published_state()
    torch.save(state, folder / "pytorch_model.bin")
    return state


@torch.no_grad()
def test_the_published_layout_computes_what_the_published_code_does(tmp_path: Path) -> None:
    state = write_published(tmp_path)
    model = load_language_bind_audio(tmp_path)
    sounds = tones(torch.tensor([300.0, 900.0]), 2 * SAMPLES)
    vectors = model.embed(sounds)
    assert isinstance(model, LanguageBindAudio) and vectors.shape == (2, model.width) == (2, PROJECTION)
    torch.testing.assert_close(vectors, published_tower(state, model.filter_bank.chunks(sounds)), atol=1e-5, rtol=0)
    assert not model.training and all(value.device.type == "cpu" for value in model.state_dict().values())


def test_the_published_sizes_give_as_many_positions_as_the_published_file_has() -> None:
    config = CLIPVisionConfig(hidden_size=HIDDEN, num_attention_heads=2, num_hidden_layers=1, patch_size=14)
    embeddings = LanguageBindAudio(config, FilterBank(112, 1036, -4.27, 4.57)).tower.vision_model.embeddings
    assert embeddings.position_embedding.weight.shape == (593, HIDDEN)


@pytest.mark.parametrize("vision", [{"lora_r": 16}, {"add_time_attn": True}])
def test_other_checkpoints_of_the_family_are_refused(tmp_path: Path, vision: dict[str, Any]) -> None:
    write_published(tmp_path, **vision)
    with pytest.raises(UserError, match="LanguageBind_Audio_FT"):
        load_language_bind_audio(tmp_path)


def test_a_checkpoint_that_lacks_a_layer_is_refused(tmp_path: Path) -> None:
    state = write_published(tmp_path)
    state.pop("vision_model.encoder.layers.1.mlp.fc2.bias")
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(RuntimeError, match=r"layers\.1\.mlp\.fc2\.bias"):
        load_language_bind_audio(tmp_path)


def test_the_filter_bank_is_kaldis() -> None:
    bank = FilterBank(112, FRAMES, VISION["audio_mean"], VISION["audio_std"])
    sounds = tones(torch.tensor([300.0, 3000.0]), SAMPLES)
    reference = ASTFeatureExtractor(num_mel_bins=112, max_length=FRAMES)(
        list(sounds.numpy()), sampling_rate=16_000, return_tensors="pt"
    )["input_values"]
    chunks = bank.chunks(sounds)
    assert chunks.shape == (2, 3, 112, FRAMES)
    for chunk in chunks.unbind(1):
        torch.testing.assert_close(chunk.transpose(1, 2), reference.float(), atol=2e-3, rtol=0)


@given(st.integers(400, 4 * SAMPLES))
def test_short_sounds_repeat_and_long_ones_are_heard_in_thirds(samples: int) -> None:
    bank = FilterBank(BANDS, FRAMES, 0.0, 0.5)
    sound = tones(torch.tensor([500.0]), samples)
    chunks, bands = bank.chunks(sound)[0], bank.bands_of(sound)[0].T
    assert chunks.shape == (3, BANDS, FRAMES)
    found, spare = bands.shape[1], bands.shape[1] - FRAMES
    torch.testing.assert_close(chunks[0], bands[:, torch.arange(FRAMES) % found])
    if spare >= 2:
        sizes = [len(third) for third in np.array_split(range(spare + 1), 3)]
        torch.testing.assert_close(chunks[2], bands[:, sum(sizes[:2]) :][:, :FRAMES])
    elif spare <= 0:
        torch.testing.assert_close(chunks[0], chunks[2])


def test_a_sound_shorter_than_a_frame_is_refused(tmp_path: Path) -> None:
    write_published(tmp_path)
    with pytest.raises(ValueError, match="N >= 400"):
        load_language_bind_audio(tmp_path).embed(torch.zeros(1, 399))
