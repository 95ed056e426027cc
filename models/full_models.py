"""The published checkpoints of the full profile."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from models.full_brain_models import neuropictor
from models.full_shape_models import shape_models, xbind_models
from models.full_sound_models import clipsonic_models, description_models, sound_models, unpublished
from models.lite_models import lite_models
from models.request_models import LANGUAGE_MODEL_FILES, load_language_model
from models.sources import Hub
from models.spec import FLOAT32_BYTES, ModelSpec, imported_later

Pixels = Literal[256, 512]
CROSSFLOW_FILES: dict[Pixels, str] = {256: "t2i_256px_clip_dimr.pth", 512: "t2i_512px_clip_dimr.pth"}
CROSSFLOW_PARAMETERS: dict[Pixels, int] = {256: 1_060_935_402, 512: 1_082_921_590}


def full_models(pixels: Pixels) -> list[ModelSpec]:
    return [
        ModelSpec(
            key="text-encoder",
            profile="full",
            source=Hub(
                "openai/clip-vit-large-patch14",
                "32bd64288804d66eefd0ccbe215aa642df71cc41",
                (
                    "config.json",
                    "model.safetensors",
                    "tokenizer.json",
                    "tokenizer_config.json",
                    "special_tokens_map.json",
                    "vocab.json",
                    "merges.txt",
                ),
            ),
            load=imported_later("models.text_encoder", "load_text_encoder"),
            licence="MIT",
            bytes=FLOAT32_BYTES * 123_060_480,
        ),
        ModelSpec(
            key="crossflow",
            profile="full",
            # Its authors name no commit; the checksum in an artifact's provenance says which file it was.
            source=Hub("QHL067/CrossFlow", "main", (CROSSFLOW_FILES[pixels],), "pretrained_models"),
            load=partial(load_published_crossflow, pixels=pixels),
            licence="for research; its authors name no licence",
            bytes=FLOAT32_BYTES * CROSSFLOW_PARAMETERS[pixels],
            restricted=True,
            skeleton=partial(published_crossflow_skeleton, pixels=pixels),
        ),
        ModelSpec(
            key="autoencoder",
            profile="full",
            source=Hub(
                "stabilityai/sd-vae-ft-ema",
                "f04b2c4b98319346dad8c65879f680b1997b204a",
                ("config.json", "diffusion_pytorch_model.safetensors"),
            ),
            load=imported_later("models.autoencoder", "load_autoencoder"),
            licence="MIT",
            bytes=FLOAT32_BYTES * 83_653_863,
        ),
        *description_models(),
        *sound_models(),
        *clipsonic_models(),
        *shape_models(),
        *xbind_models(),
        unpublished("bind-audio", "training.bind_audio", "models.bind", "load_bind_audio"),
        unpublished(
            "shape-generator", "training.shape_generator", "models.nets.shape_generator", "load_shape_generator"
        ),
        unpublished(
            "shape-autoencoder", "training.shape_autoencoder", "models.nets.shape_autoencoder", "load_shape_autoencoder"
        ),
        unpublished("view-diffusion", "training.view_diffusion", "models.nets.view_diffusion", "load_view_diffusion"),
        unpublished(
            "brain-decoder",
            "training.brain_decoder --size published",
            "models.nets.token_decoder",
            "load_subject_decoder",
        ),
        neuropictor(),
        replace(next(spec for spec in lite_models() if spec.key == "category-decoder"), profile="full"),
        ModelSpec(
            key="language-model",
            profile="full",
            source=Hub(
                "HuggingFaceTB/SmolLM2-1.7B-Instruct",
                "31b70e2e869a7173562077fd711b654946d38674",
                LANGUAGE_MODEL_FILES,
            ),
            load=load_language_model,
            licence="Apache-2.0",
            bytes=FLOAT32_BYTES * 1_711_376_384,
            skeleton=imported_later("models.language_model", "language_model_skeleton"),
        ),
    ]


def load_published_crossflow(folder: Path, pixels: Pixels) -> object:
    from models.nets.crossflow import load_published, published_config

    return load_published(folder / CROSSFLOW_FILES[pixels], published_config(pixels, "clip"))


def published_crossflow_skeleton(folder: Path, pixels: Pixels) -> object:
    import torch

    from models.nets.crossflow import CrossFlow, published_config

    with torch.device("meta"):
        return CrossFlow(published_config(pixels, "clip"))
