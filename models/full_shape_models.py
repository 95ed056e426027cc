"""The full profile's models of shapes, which the pipeline of Shap-E leases."""

from __future__ import annotations

from models.sources import Hub
from models.spec import FLOAT32_BYTES, ModelSpec, imported_later

# Of the renderer no safetensors are published; of the .bin files tensors alone are read.
COMMON = (
    "model_index.json",  # first, because the folder is that of the first
    "prior/config.json",
    "prior/diffusion_pytorch_model.bin",
    "scheduler/scheduler_config.json",
    "shap_e_renderer/config.json",
    "shap_e_renderer/diffusion_pytorch_model.bin",
)
SHAP_E = Hub(
    "openai/shap-e",
    "449e95759dfa179ee740abe3cfd3f4838aa51b9b",
    (
        *COMMON,
        "text_encoder/config.json",
        "text_encoder/pytorch_model.bin",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
    ),
)
SHAP_E_PICTURES = Hub(
    "openai/shap-e-img2img",
    "0e0aba80f08d368aaf6af9cb93583707481cc29b",
    (
        *COMMON,
        "image_encoder/config.json",
        "image_encoder/pytorch_model.bin",
        "image_processor/preprocessor_config.json",
    ),
)


def shape_models() -> list[ModelSpec]:
    load = imported_later("models.shap_e", "load_shap_e")
    return [
        ModelSpec("shap-e-words", "full", SHAP_E, load, "MIT", FLOAT32_BYTES * 665_643_718),
        ModelSpec("shap-e-pictures", "full", SHAP_E_PICTURES, load, "MIT", FLOAT32_BYTES * 845_437_382),
    ]
