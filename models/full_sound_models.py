"""The full profile's models of pictures, words and sounds, which Describe, V2A-Mapper and CLIPSonic lease.

For some of them nothing has been published: ours stands in where that is possible, and the others have to be trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from models.sounding_things import sounding_things
from models.sources import Bundled, Hub, Together, Unpublished
from models.spec import FLOAT32_BYTES, ModelSpec, bytes_in_memory, imported_later

BYTE_PAIRS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
WORD_PIECES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
WIDTH = 512  # of CLIP's and of CLAP's vectors
DRAWS = 3  # names that a seed draws: enough to differ, few enough to be about something

# No safetensors are published of these three; of the .bin files tensors alone are read.
CLIP = Hub(
    "openai/clip-vit-base-patch32",
    "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
    ("config.json", "pytorch_model.bin", "preprocessor_config.json", *BYTE_PAIRS),
)
CLAP = Hub(
    "sanchit-gandhi/clap-htsat-unfused-s-full-v2",
    "b7dd0c32f9ec6ba91b32507be179f344b8272780",
    ("config.json", "pytorch_model.bin", "preprocessor_config.json", *BYTE_PAIRS),
)
BLIP = Hub(
    "Salesforce/blip-image-captioning-base",
    "82a37760796d32b1411fe092ab5d4e227313294b",
    ("config.json", "pytorch_model.bin", "preprocessor_config.json", *WORD_PIECES),
)
AUDIOLDM = partial(Hub, "cvssp/audioldm-s-full-v2", "feeb3d14203495a4b6ac0893cbdedb2159b4819c")
AUDIOLDM_WORDS = AUDIOLDM(
    (
        "model_index.json",  # first, because the folder is that of the first
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        *(f"tokenizer/{name}" for name in BYTE_PAIRS),
    )
)
AUDIOLDM_GENERATOR = AUDIOLDM(
    (
        *AUDIOLDM_WORDS.files,
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "vae/config.json",
        "vocoder/config.json",
    )
)
AUDIOLDM_LICENCE = "CC-BY-NC-SA-4.0"
CLAP_LICENCE = f"its uploader names none; AudioLDM's, of which it is a part, is {AUDIOLDM_LICENCE}"
OUR_LICENCE = "Apache-2.0"


def description_models() -> list[ModelSpec]:
    """The spaces of pictures and sounds with words, and what puts either into sentences."""
    ours = (Bundled("sound-captioner-lite"), Bundled("sound-text-lite"))
    return [
        ModelSpec(
            key="picture-text",
            profile="full",
            source=CLIP,
            load=imported_later("models.published_spaces", "load_picture_space"),
            licence="MIT",
            bytes=FLOAT32_BYTES * 151_277_313,
        ),
        ModelSpec(
            key="sound-text",
            profile="full",
            source=CLAP,
            load=load_published_sound_space,
            licence=CLAP_LICENCE,
            bytes=FLOAT32_BYTES * 153_492_890,
            restricted=True,
        ),
        ModelSpec(
            key="picture-captioner",
            profile="full",
            source=BLIP,
            load=imported_later("models.captioner", "load_captioner"),
            licence="BSD-3-Clause",
            bytes=FLOAT32_BYTES * 223_971_644,
        ),
        ModelSpec(
            key="sound-captioner",
            profile="full",
            source=Together(ours),
            load=imported_later("models.listening_captioner", "load_listening_captioner"),
            licence=OUR_LICENCE,
            bytes=sum(bytes_in_memory(source.path) for source in ours),
            note="that of the lite profile, with its space of sounds",
        ),
    ]


def sound_models() -> list[ModelSpec]:
    """The bridges from pictures to sounds, and what makes sounds of vectors."""
    return [
        _words_bridge("v2a-mapper", DRAWS),
        _words_bridge("v2a-regression", 0),
        _of_audioldm("sound-generator", AUDIOLDM_GENERATOR, "models.sound_generator", 185_036_552),
        _of_audioldm(
            "audio-autoencoder",
            AUDIOLDM(("config.json", "diffusion_pytorch_model.safetensors"), "vae"),
            "models.nets.audio_autoencoder",
            55_376_873,
        ),
        _of_audioldm(
            "vocoder", AUDIOLDM(("config.json", "model.safetensors"), "vocoder"), "models.nets.vocoder", 55_264_897
        ),
    ]


def clipsonic_models() -> list[ModelSpec]:
    """What CLIPSonic has of its own."""
    return [
        unpublished("clipsonic-prior", "training.text_prior", "models.bridges", "load_bridge"),
        unpublished("clipsonic-mean-shift", "training.text_prior", "models.bridges", "load_bridge"),
        unpublished("clipsonic", "training.picture_sound", "models.sound_generator", "load_sound_generator"),
    ]


def _words_bridge(key: str, draws: int) -> ModelSpec:
    return ModelSpec(
        key=key,
        profile="full",
        source=Together((CLIP, CLAP)),
        load=partial(load_words_bridge, draws=draws),
        licence=CLAP_LICENCE,
        bytes=FLOAT32_BYTES * 2 * WIDTH * len(sounding_things()),
        restricted=True,
        note="ours, by way of words and without training: V2A-Mapper's own was never published",
    )


def unpublished(key: str, recipe: str, module: str, load: str) -> ModelSpec:
    """A model that the user has to train by ``recipe``. Its size is not known either."""
    return ModelSpec(key, "full", Unpublished(key, recipe), imported_later(module, load), "that of your own weights", 0)


def _of_audioldm(key: str, source: Hub, module: str, parameters: int) -> ModelSpec:
    load: Callable[[Path], object] = imported_later(module, f"load_{key.replace('-', '_')}")
    return ModelSpec(key, "full", source, load, AUDIOLDM_LICENCE, FLOAT32_BYTES * parameters, restricted=True)


def load_published_sound_space(folder: Path) -> object:
    """The space in ``folder``, which has to be that of AudioLDM if AudioLDM is on this machine.

    Raises as ``models.published_spaces.load_sound_space`` does.
    """
    from models.published_spaces import load_sound_space

    audioldm = None if AUDIOLDM_WORDS.missing() else AUDIOLDM_WORDS.resolve(lambda share, said: None).folder
    return load_sound_space(folder, audioldm)


def load_words_bridge(folder: Path, draws: int) -> object:
    """From the CLIP in ``folder`` to the published CLAP by way of :func:`sounding_things`; or a bridge of the user's.

    Training-free, and ours: V2A-Mapper (arXiv 2308.09300) learns this step from the frames and the sound of videos.
    Raises :class:`~models.errors.UserError` if the folder holds neither.
    """
    from models.bridges import WordsBridge, load_bridge
    from models.published_spaces import PublishedPictureText, PublishedSoundText, load_picture_space

    if json.loads((folder / "config.json").read_text()).get("model_type") != "clip":
        return load_bridge(folder)
    things = sounding_things()
    pictures = load_picture_space(folder)
    assert isinstance(pictures, PublishedPictureText)
    seen = pictures.embed_words([f"a photo of {thing}" for thing in things])
    del pictures  # half a gigabyte, before the other one comes
    sounds = load_published_sound_space(CLAP.resolve(lambda share, said: None).folder)
    assert isinstance(sounds, PublishedSoundText)
    return WordsBridge.between(seen, sounds.embed_words([f"the sound of {thing}" for thing in things]), draws)
