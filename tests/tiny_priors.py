"""Random Stable unCLIPs and Zero-1-to-3s of a few hundred kilobytes in the published folders' layout and names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, PNDMScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from models.zero123 import CameraProjection
from tests.tiny_published import CLIP_TOKENS, NEWER_READING, PIECES, READING, SIDE, TOWER, WIDTH, write_older_tokenizer

LATENT_SIDE, FACTOR = 8, 2
# unet/ of the published folders but for its sizes; of Stable unCLIP with linear projections and a vector.
UNET: dict[str, Any] = {
    "sample_size": LATENT_SIDE,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
    "sample_size": LATENT_SIDE * FACTOR,
}
LEVELS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def unclip_folder(folder: Path, safetensors: bool = True, seed: int = 0) -> Path:
    """Like ``sd2-community/stable-diffusion-2-1-unclip``."""
    torch.manual_seed(seed)
    write_index(folder, "StableUnCLIPImg2ImgPipeline")
    unet = UNet2DConditionModel(
        **UNET, in_channels=4, cross_attention_dim=TOWER["hidden_size"], use_linear_projection=True,
        class_embed_type="projection", projection_class_embeddings_input_dim=2 * WIDTH,
    )  # fmt: skip
    normalizer = StableUnCLIPImageNormalizer(WIDTH)
    with torch.no_grad():
        normalizer.mean.normal_(std=0.2)
        normalizer.std.uniform_(0.5, 1.5)
    write_common(folder, unet, safetensors)
    write_model(normalizer, folder / "image_normalizer", "diffusion_pytorch_model", safetensors)
    PNDMScheduler(**LEVELS, prediction_type="v_prediction", skip_prk_steps=True).save_pretrained(folder / "scheduler")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(folder / "image_noising_scheduler")
    config = CLIPTextConfig(
        **TOWER, vocab_size=len(PIECES), max_position_embeddings=CLIP_TOKENS,
        bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    write_model(CLIPTextModel(config), folder / "text_encoder", "model", safetensors)
    write_older_tokenizer(folder / "tokenizer")
    return folder


def zero123_folder(folder: Path, safetensors: bool = True, seed: int = 1) -> Path:
    """Like ``ashawkey/zero123-xl-diffusers``."""
    torch.manual_seed(seed)
    write_index(folder, "Zero123Pipeline")
    write_common(folder, UNet2DConditionModel(**UNET, in_channels=8, cross_attention_dim=WIDTH), safetensors)
    write_model(CameraProjection(WIDTH), folder / "clip_camera_projection", "diffusion_pytorch_model", safetensors)
    DDIMScheduler(**LEVELS, clip_sample=False).save_pretrained(folder / "scheduler")
    return folder


def write_index(folder: Path, kind: str) -> None:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))


def write_common(folder: Path, unet: UNet2DConditionModel, safetensors: bool) -> None:
    write_model(unet, folder / "unet", "diffusion_pytorch_model", safetensors)
    write_model(AutoencoderKL(**VAE), folder / "vae", "diffusion_pytorch_model", safetensors)
    eyes = CLIPVisionModelWithProjection(CLIPVisionConfig(**TOWER, image_size=SIDE, patch_size=8, projection_dim=WIDTH))
    write_model(eyes, folder / "image_encoder", "model", safetensors)
    (folder / "feature_extractor").mkdir()
    reading = json.dumps({**READING, **NEWER_READING})
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(reading)


def write_model(model: nn.Module, folder: Path, name: str, safetensors: bool) -> None:
    """As safetensors, or as a ``.bin`` file."""
    model.save_pretrained(folder)  # type: ignore[operator]
    if not safetensors:
        for stored in folder.glob("*.safetensors"):
            stored.unlink()
        torch.save(model.state_dict(), folder / f"{'pytorch_model' if name == 'model' else name}.bin")
