"""The models of the lite profile whose weights are in this repository, and the small language model."""

from __future__ import annotations

from models.precision import Precision
from models.request_models import small_language_model
from models.sources import Bundled
from models.spec import ModelSpec, bytes_in_memory, imported_later

SHARED_ALIKE = "CC-BY-SA-4.0"  # trained on models of games that are


def lite_models() -> list[ModelSpec]:
    def spec(
        key: str, module: str, load: str, lossless: Precision = "float32", licence: str = "Apache-2.0"
    ) -> ModelSpec:
        source = Bundled(f"{key}-lite")
        size = bytes_in_memory(source.path)
        return ModelSpec(key, "lite", source, imported_later(module, load), licence, size, lossless=lossless)

    return [
        spec("text-encoder", "models.text_encoder", "load_text_encoder"),
        spec("crossflow", "models.nets.crossflow", "load_crossflow", lossless="int8"),
        spec("autoencoder", "models.autoencoder", "load_autoencoder"),
        spec("picture-text", "models.published_spaces", "load_picture_space"),
        spec("sound-text", "models.published_spaces", "load_sound_space"),
        spec("picture-captioner", "models.captioner", "load_captioner"),
        spec("sound-captioner", "models.captioner", "load_captioner"),
        spec("v2a-mapper", "models.bridges", "load_bridge"),
        spec("v2a-regression", "models.bridges", "load_bridge"),
        spec("sound-generator", "models.sound_generator", "load_sound_generator"),
        spec("audio-autoencoder", "models.nets.audio_autoencoder", "load_audio_autoencoder"),
        spec("vocoder", "models.nets.vocoder", "load_vocoder"),
        spec("clipsonic-prior", "models.bridges", "load_bridge"),
        spec("clipsonic-mean-shift", "models.bridges", "load_bridge"),
        spec("clipsonic", "models.sound_generator", "load_sound_generator"),
        spec("bind-audio", "models.bind", "load_bind_audio"),
        spec("shape-generator", "models.nets.shape_generator", "load_shape_generator", licence=SHARED_ALIKE),
        spec("shape-autoencoder", "models.nets.shape_autoencoder", "load_shape_autoencoder", licence=SHARED_ALIKE),
        spec("view-diffusion", "models.nets.view_diffusion", "load_view_diffusion"),
        spec("brain-decoder", "models.nets.brain_decoder", "load_brain_decoder"),
        spec("neuropictor", "models.nets.map_decoder", "load_map_decoder"),
        spec("category-decoder", "models.nets.category_decoder", "load_category_decoder"),
        small_language_model("language-model", "lite"),
    ]
