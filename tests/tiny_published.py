"""Random CLIPs and CLAPs of a few kilobytes in the published folders' layout, and things to see and hear."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextModelWithProjection,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedModel,
    RobertaTokenizer,
)

from tests.test_sound_generator import audioldm_folder

Weights = Literal["safetensors", "bin"]
WIDTH = 16  # of both spaces
SIDE = 32  # of CLIP's pictures
SAMPLE_RATE = 16_000
CLIP_TOKENS, CLAP_TOKENS = 77, 64
TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_factor": 4.0,  # untrained, all things would be much alike
}
BYTES = sorted(ByteLevel.alphabet())
# preprocessor_config.json of clip-vit-base-patch32 and of clip-vit-large-patch14, at our side
OLDER_READING: dict[str, Any] = {"crop_size": SIDE, "feature_extractor_type": "CLIPFeatureExtractor", "size": SIDE}
NEWER_READING: dict[str, Any] = {
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_convert_rgb": True,
    "do_rescale": True,
    "image_processor_type": "CLIPImageProcessor",
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": SIDE},
}
READING: dict[str, Any] = {
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "CLIPProcessor",
    "resample": 3,
}


def clip_folder(
    folder: Path, weights: Weights = "safetensors", older: bool = False, seed: int = 0, width: int = WIDTH
) -> CLIPModel:
    """Like ``openai/clip-vit-large-patch14``, or with ``older`` like ``openai/clip-vit-base-patch32``."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    text = {
        **TOWER,
        "vocab_size": len(tokenizer.get_vocab()),
        "max_position_embeddings": CLIP_TOKENS,
        "bos_token_id": 0,
        "eos_token_id": 2,  # wrong in the published files too: CLIP goes by the highest number
        "pad_token_id": 1,
    }
    vision = {**TOWER, "image_size": SIDE, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width, initializer_factor=4.0))
    _save(model.eval(), folder, weights, "vision_model")
    tokenizer.save_pretrained(folder)
    reading = OLDER_READING if older else NEWER_READING
    (folder / "preprocessor_config.json").write_text(json.dumps({**READING, **reading}))
    return model


def clap_folder(folder: Path, weights: Weights = "safetensors", seed: int = 0) -> ClapModel:
    """Like ``laion/clap-htsat-unfused`` and ``sanchit-gandhi/clap-htsat-unfused-s-full-v2``."""
    torch.manual_seed(seed)
    text = {**TOWER, "vocab_size": 5 + len(BYTES), "max_position_embeddings": CLAP_TOKENS + 2}
    audio = {
        "depths": [1, 1],
        "num_attention_heads": [2, 4],
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "initializer_factor": 4.0,
    }
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=WIDTH))
    levels = model.audio_model.audio_encoder.batch_norm
    levels.running_mean.fill_(-30)  # decibels
    levels.running_var.fill_(400)
    _save(model.eval(), folder, weights, "text_model")
    _clap_tokenizer().save_pretrained(folder)
    ClapFeatureExtractor(frequency_min=50, frequency_max=14_000, truncation="rand_trunc").save_pretrained(folder)
    return model


def audioldm_tower(clap: ClapModel, folder: Path) -> None:
    """The words of ``clap`` in an AudioLDM folder: ``text_encoder`` and ``tokenizer``."""
    tower = ClapTextModelWithProjection(clap.config.text_config)
    tower.text_model.load_state_dict(clap.text_model.state_dict())
    tower.text_projection.load_state_dict(clap.text_projection.state_dict())
    tower.save_pretrained(folder / "text_encoder")
    _clap_tokenizer().save_pretrained(folder / "tokenizer")


def write_published(folder: Path) -> Path:
    """``clip``, ``clap`` and ``audioldm``, whose text tower is that CLAP's, in ``folder``."""
    clip_folder(folder / "clip")
    clap = clap_folder(folder / "clap")
    audioldm_folder(folder / "audioldm", WIDTH)
    audioldm_tower(clap, folder / "audioldm")
    return folder


PIECES = [*BYTES, *(f"{byte}</w>" for byte in BYTES), "ra", "rai", "rain</w>", "<|startoftext|>", "<|endoftext|>"]
MERGES = [("r", "a"), ("ra", "i"), ("rai", "n</w>")]


def clip_tokenizer() -> CLIPTokenizer:
    vocabulary = {piece: number for number, piece in enumerate(PIECES)}
    return CLIPTokenizer(vocab=vocabulary, merges=MERGES, model_max_length=CLIP_TOKENS)


def write_older_tokenizer(folder: Path) -> None:
    """The same in the files of older versions of transformers."""
    special = {
        "bos_token": "<|startoftext|>",
        **dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>"),
    }
    files: dict[str, Any] = {
        "vocab.json": {piece: number for number, piece in enumerate(PIECES)},
        "special_tokens_map.json": special,
        "tokenizer_config.json": {**special, "model_max_length": CLIP_TOKENS, "tokenizer_class": "CLIPTokenizer"},
    }
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in MERGES)]) + "\n")


def _clap_tokenizer() -> RobertaTokenizer:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *BYTES, "<mask>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=CLAP_TOKENS)


def _save(model: PreTrainedModel, folder: Path, weights: Weights, tower: str) -> None:
    model.save_pretrained(folder)
    if weights == "bin":
        (folder / "model.safetensors").unlink()
        # Published files also hold what newer versions of transformers make themselves.
        positions = {f"{tower}.embeddings.position_ids": model.get_submodule(tower).embeddings.position_ids}
        torch.save({**model.state_dict(), **positions}, folder / "pytorch_model.bin")


def pixels_of(*pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def noises(count: int, seconds: float, seed: int = 0) -> Tensor:
    """(B, N): each of its own colour and shape, with peaks below one."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitches = 150 * 2.0 ** (5 * torch.rand(count, 1, generator=generator))
    tones = (2 * torch.pi * pitches * time).sin() * (2 * torch.pi * 3 * time).cos()
    return 0.4 * tones + 0.05 * torch.randn(count, len(time), generator=generator)
