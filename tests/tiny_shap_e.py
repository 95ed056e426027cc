"""Random Shap-Es of a few hundred kilobytes in the published folders' layout and names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import HeunDiscreteScheduler, PriorTransformer
from diffusers.pipelines.shap_e import ShapERenderer
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModel

from tests.tiny_published import CLIP_TOKENS, OLDER_READING, PIECES, READING, SIDE, TOWER, WIDTH, write_older_tokenizer

LATENT = 8  # dimensions of one
HIDDEN = 8  # width of the network that is a shape
ROWS = 4 * HIDDEN  # latents of an object: a row of weights each
POSITION = 93  # of a point's sines and cosines
# The published config.json of prior/, but for its sizes; the two differ in what they are given.
PRIOR: dict[str, Any] = {
    "added_emb_type": None,
    "additional_embeddings": 0,
    "attention_head_dim": 8,
    "clip_embed_dim": 2 * LATENT,
    "embedding_dim": LATENT,
    "encoder_hid_proj_type": None,
    "norm_in_type": "layer",
    "num_attention_heads": 2,
    "num_embeddings": ROWS,
    "num_layers": 2,
    "time_embed_act_fn": "gelu",
    "time_embed_dim": 32,
}
SCHEDULE: dict[str, Any] = {
    "beta_schedule": "exp",
    "num_train_timesteps": 1024,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "sample",
    "use_karras_sigmas": True,
}
SHAPES = ((HIDDEN, POSITION), (HIDDEN, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, HIDDEN))


def shap_e_folder(folder: Path, safetensors: bool = False, seed: int = 0) -> Path:
    """Like ``openai/shap-e``."""
    torch.manual_seed(seed)
    _write_common(folder, "ShapEPipeline", {"embedding_proj_dim": WIDTH}, safetensors)
    config = CLIPTextConfig(
        **TOWER, vocab_size=len(PIECES), max_position_embeddings=CLIP_TOKENS, projection_dim=WIDTH,
        bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    _save(CLIPTextModelWithProjection(config), folder / "text_encoder", "pytorch_model.bin", safetensors)
    write_older_tokenizer(folder / "tokenizer")
    return folder


def shap_e_pictures_folder(folder: Path, safetensors: bool = False, seed: int = 1) -> Path:
    """Like ``openai/shap-e-img2img``."""
    torch.manual_seed(seed)
    given = {"embedding_proj_dim": TOWER["hidden_size"], "embedding_proj_norm_type": "layer"}
    _write_common(folder, "ShapEImg2ImgPipeline", given, safetensors)
    config = CLIPVisionConfig(**TOWER, image_size=SIDE, patch_size=8)
    _save(CLIPVisionModel(config), folder / "image_encoder", "pytorch_model.bin", safetensors)
    (folder / "image_processor").mkdir()
    (folder / "image_processor" / "preprocessor_config.json").write_text(json.dumps({**READING, **OLDER_READING}))
    return folder


def _write_common(folder: Path, kind: str, given: dict[str, Any], safetensors: bool) -> None:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    prior = PriorTransformer(**PRIOR, **given)
    renderer = ShapERenderer(param_shapes=SHAPES, d_latent=LATENT, d_hidden=HIDDEN)
    with torch.no_grad():  # untrained, all objects would be much alike
        for model in (prior, renderer):
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 or "bias" in name:
                    parameter.normal_(std=0.5)
    _save(prior, folder / "prior", "diffusion_pytorch_model.bin", safetensors)
    _save(renderer, folder / "shap_e_renderer", "diffusion_pytorch_model.bin", safetensors)
    HeunDiscreteScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")


def _save(model: Any, folder: Path, name: str, safetensors: bool) -> None:
    """As the published folders have it, a ``.bin`` file; or as safetensors."""
    model.save_pretrained(folder)
    if not safetensors:
        for stored in folder.glob("*.safetensors"):
            stored.unlink()
        torch.save(model.state_dict(), folder / name)
