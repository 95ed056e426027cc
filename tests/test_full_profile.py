"""The loaders of the full profile, on tiny random checkpoints in the published on-disk layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from models.autoencoder import load_autoencoder
from models.catalog import catalog
from models.full_models import Pixels
from models.nets.crossflow import CrossFlow
from models.spec import FLOAT32_BYTES
from models.text_encoder import load_text_encoder

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "red", "apple", "blue", "car", ",", "flat", "style"]


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """Like openai/clip-vit-large-patch14: both towers in one file, the text model under ``text_model.``."""
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = CLIPTextConfig(vocab_size=len(WORDS), bos_token_id=1, eos_token_id=2, pad_token_id=0, **tower)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=CLIPVisionConfig(image_size=28, patch_size=14, **tower).to_dict()
    )
    CLIPModel(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    return tmp_path


def test_clip_states_are_those_of_the_text_tower_alone(clip_folder: Path) -> None:
    encoder = load_text_encoder(clip_folder)
    encoded = encoder.encode(["a red apple"], tokens=77)
    reference = CLIPModel.from_pretrained(clip_folder).text_model(input_ids=torch.tensor([[1, 4, 5, 6, 2] + [0] * 72]))
    assert encoded.states.shape == (1, 77, 32)
    torch.testing.assert_close(encoded.states, reference.last_hidden_state)
    assert encoded.mask.sum() == 5


def test_a_long_prompt_leaves_room_for_its_style(clip_folder: Path) -> None:
    encoder = load_text_encoder(clip_folder)
    caption, cut = encoder.fit("a red apple " * 10, ", flat style", tokens=12)
    assert cut and caption.endswith(", flat style")
    assert len(encoder.tokenizer(caption).input_ids) == 12
    assert encoder.fit("a red apple", ", flat style", tokens=12) == ("a red apple, flat style", False)


def test_t5_states_are_masked_and_times_ten(tmp_path: Path) -> None:
    torch.manual_seed(0)
    T5EncoderModel(
        T5Config(vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    ).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    encoded = load_text_encoder(tmp_path).encode(["a blue car"], tokens=9)
    ids, mask = torch.tensor([[1, 4, 7, 8, 2, 0, 0, 0, 0]]), torch.tensor([[1] * 5 + [0] * 4])
    reference = T5EncoderModel.from_pretrained(tmp_path)(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(encoded.states, 10 * reference)


def test_stable_diffusion_autoencoder_uses_crossflows_scale(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.18215,
    ).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["scaling_factor"] == 0.18215
    loaded, pixels = load_autoencoder(tmp_path), torch.rand(1, 3, 32, 32) * 2 - 1
    latents = loaded.encode(pixels)
    assert latents.shape == (1, 4, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(latents, model.encode(pixels).latent_dist.mode() * 0.23010)
        torch.testing.assert_close(loaded.decode(latents), model.decode(latents / 0.23010).sample.clamp(-1, 1))


@pytest.mark.parametrize("pixels", [256, 512])
def test_the_catalogue_offers_both_sizes_of_crossflow(pixels: Pixels, tmp_path: Path) -> None:
    spec = catalog("full", pixels=pixels)["crossflow"]
    assert spec.skeleton is not None and spec.source.missing() == (f"t2i_{pixels}px_clip_dimr.pth",)
    model = spec.skeleton(tmp_path)
    assert isinstance(model, CrossFlow)
    assert model.config.latent_size == pixels // 8
    assert model.config.faint is None  # its sources were never trained to be like pictures
    assert sum(parameter.numel() for parameter in model.parameters()) * FLOAT32_BYTES == spec.bytes
