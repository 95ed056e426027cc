"""The full profile's models of shapes, which the pipelines of Shap-E and of XBind by published models lease."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from models.errors import UserError
from models.full_sound_models import BYTE_PAIRS, CLIP
from models.sounding_things import sounding_things
from models.sources import Hub, Together
from models.spec import FLOAT32_BYTES, ModelSpec, imported_later

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model.safetensors", "model.safetensors"

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


# Their authors name no commit; the checksum in an artifact's provenance says which files they were.
UNCLIP = Hub(
    "sd2-community/stable-diffusion-2-1-unclip",
    "main",
    (
        "model_index.json",  # first, because the folder is that of the first
        "feature_extractor/preprocessor_config.json",
        "image_encoder/config.json",
        f"image_encoder/{TRANSFORMERS}",
        "image_noising_scheduler/scheduler_config.json",
        "image_normalizer/config.json",
        f"image_normalizer/{DIFFUSERS}",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        f"text_encoder/{TRANSFORMERS}",
        *(f"tokenizer/{name}" for name in BYTE_PAIRS if name != "tokenizer.json"),
        "unet/config.json",
        f"unet/{DIFFUSERS}",
        "vae/config.json",
        f"vae/{DIFFUSERS}",
    ),
)
ZERO123 = Hub(
    "ashawkey/zero123-xl-diffusers",
    "main",
    (
        "model_index.json",
        "clip_camera_projection/config.json",
        f"clip_camera_projection/{DIFFUSERS}",
        "feature_extractor/preprocessor_config.json",
        "image_encoder/config.json",
        f"image_encoder/{TRANSFORMERS}",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        f"unet/{DIFFUSERS}",
        "vae/config.json",
        f"vae/{DIFFUSERS}",
    ),
)
OPEN_CLIP = ("config.json", TRANSFORMERS, "preprocessor_config.json", *BYTE_PAIRS)
VIT_H = Hub("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "main", OPEN_CLIP)
VIT_L = Hub("laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", "main", OPEN_CLIP)
LANGUAGE_BIND = Hub("LanguageBind/LanguageBind_Audio_FT", "main", ("config.json", "pytorch_model.bin"))
IMAGE_BIND = Hub("nielsr/imagebind-huge", "51fc1ff707903501e60bdb2f73dd4e8818eef099", (TRANSFORMERS,))
IMAGE_BIND_WORDS = replace(CLIP, files=BYTE_PAIRS)
IMAGE_BIND_LICENCE = "CC-BY-NC-SA-4.0"
IMAGE_BIND_PARAMETERS = 1_072_345_088


def shape_models() -> list[ModelSpec]:
    load = imported_later("models.shap_e", "load_shap_e")
    return [
        ModelSpec("shap-e-words", "full", SHAP_E, load, "MIT", FLOAT32_BYTES * 665_643_718),
        ModelSpec("shap-e-pictures", "full", SHAP_E_PICTURES, load, "MIT", FLOAT32_BYTES * 845_437_382),
    ]


def xbind_models() -> list[ModelSpec]:
    """The spaces that prompts are read into, and the two priors of XBind's optimisation (arXiv 2411.14715)."""
    return [
        ModelSpec(
            "aligned-space",
            "full",
            VIT_H,
            imported_later("models.published_spaces", "load_picture_space"),
            "MIT",
            FLOAT32_BYTES * 986_109_441,
        ),
        ModelSpec(
            "aligned-ears",
            "full",
            Together((LANGUAGE_BIND, VIT_L, VIT_H)),
            load_words_ears,
            "MIT",
            FLOAT32_BYTES * 303_966_208,
            note="LanguageBind, led to ViT-H/14's space by way of words, without training: that step is ours",
        ),
        ModelSpec(
            "imagebind",
            "full",
            Together((IMAGE_BIND, IMAGE_BIND_WORDS)),
            load_published_image_bind,
            IMAGE_BIND_LICENCE,
            FLOAT32_BYTES * IMAGE_BIND_PARAMETERS,
            restricted=True,
        ),
        ModelSpec(
            "stable-unclip",
            "full",
            UNCLIP,
            imported_later("models.stable_unclip", "load_stable_unclip"),
            "CreativeML Open RAIL++-M",
            FLOAT32_BYTES * 1_926_293_675,
        ),
        ModelSpec(
            "zero123",
            "full",
            ZERO123,
            imported_later("models.zero123", "load_zero123"),
            "MIT",
            FLOAT32_BYTES * 1_247_746_219,
        ),
    ]


def load_words_ears(folder: Path) -> object:
    """LanguageBind's audio tower in ``folder``, led to the space of ViT-H/14 by way of :func:`sounding_things`.

    Raises :class:`~models.errors.UserError` as the loaders of its three parts do.
    """
    from models.bind import WordsEars, load_language_bind_audio
    from models.published_spaces import PublishedPictureText, load_picture_space

    things = [f"the sound of {thing}" for thing in sounding_things()]
    said = []
    for source in (VIT_L, VIT_H):
        space = load_picture_space(source.resolve(lambda share, said: None).folder)
        assert isinstance(space, PublishedPictureText)
        said.append(space.embed_words(things))
        del space  # four gigabytes, before the next one comes
    ears = load_language_bind_audio(folder)
    if ears.width != said[0].shape[1]:
        raise UserError(
            f"The ears in '{folder}' and the words of {VIT_L.repo} do not meet.", "Take LanguageBind's own."
        )
    return WordsEars(ears, *said)


def load_published_image_bind(folder: Path) -> object:
    """With the tokenizer of the folder, or else CLIP's. Raises as ``models.image_bind.load_image_bind`` does."""
    from models.image_bind import load_image_bind

    own = any((folder / name).exists() for name in BYTE_PAIRS)
    return load_image_bind(folder, words=folder if own else IMAGE_BIND_WORDS.resolve(lambda share, said: None).folder)
