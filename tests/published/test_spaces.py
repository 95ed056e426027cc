"""CLIP and CLAP as spaces: what transformers computes, from the published folders, and AudioLDM's own CLAP."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoProcessor, ClapAudioConfig, ClapModel, CLIPModel

from models.errors import UserError
from models.mel import LITE_MEL
from models.nets.efficientnet_lite import CLASSES, EfficientNetLite2
from models.picture_text import SENTENCE_WIDTH, PictureText, PictureTextConfig
from models.published_spaces import (
    PEAK,
    SENTENCES,
    PublishedPictureText,
    PublishedSoundText,
    levelled,
    load_picture_space,
    load_sound_space,
    require_words_of,
    upsampled,
)
from models.sound_generator import load_sound_generator
from models.sound_text import SoundText
from tests.tiny_published import (
    CLAP_TOKENS,
    CLIP_TOKENS,
    SAMPLE_RATE,
    SIDE,
    WIDTH,
    Weights,
    audioldm_tower,
    clap_folder,
    clip_folder,
    noises,
    pixels_of,
)
from training.sound_text import audio_config

SECONDS = 10
WORDS = ["rain", "a photo of rain on a roof", "Ein Hund, 犬!", ""]


def colours(*sizes: tuple[int, int]) -> list[np.ndarray]:
    """Smooth pictures (H, W, 3) uint8, each of its own colours."""
    made = []
    for number, (height, width) in enumerate(sizes):
        few = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(number))
        smooth = F.interpolate(few, (height, width), mode="bilinear") * 255
        made.append(smooth[0].permute(1, 2, 0).round().to(torch.uint8).numpy())
    return made


def assert_units_apart(vectors: Tensor) -> None:
    """Of unit length, and none near another: otherwise any two spaces would agree."""
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    assert vectors.dtype == torch.float32
    assert torch.pdist(vectors).min() > 0.01


# --------------------------------------------------------------------------------------------------- pictures, words


@pytest.mark.parametrize(("weights", "older"), [("safetensors", False), ("bin", True)])
def test_clip_sees_and_reads_as_transformers_does(tmp_path: Path, weights: Weights, older: bool) -> None:
    clip_folder(tmp_path, weights, older)
    space, processor, model = (
        load_picture_space(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
        CLIPModel.from_pretrained(tmp_path),
    )
    assert isinstance(space, PublishedPictureText) and space.reads == "words" and not space.training
    shown = colours((SIDE, SIDE), (SIDE, SIDE), (SIDE, SIDE))
    with torch.no_grad():
        expected = model(**processor(text=WORDS, images=shown, padding=True, return_tensors="pt"))
    torch.testing.assert_close(space.embed_pictures(pixels_of(*shown)), expected.image_embeds, atol=1e-4, rtol=0)
    torch.testing.assert_close(space.embed_words(WORDS), expected.text_embeds, atol=1e-4, rtol=0)
    assert_units_apart(torch.cat([expected.image_embeds, expected.text_embeds]))


@pytest.mark.parametrize(
    ("size", "tolerance"),
    [((200, 131), 1e-4), ((33, 90), 1e-4), ((7, 9), 1e-4), ((48, 48), 5e-3), ((20, 20), 5e-3)],
)
def test_pictures_of_any_size_are_scaled_and_cut_as_transformers_does(
    folders: Path, sights: PublishedPictureText, size: tuple[int, int], tolerance: float
) -> None:
    """At simple ratios a few numbers lie just between two levels, and Pillow rounds those either way."""
    processor, model = AutoProcessor.from_pretrained(folders / "clip"), CLIPModel.from_pretrained(folders / "clip")
    [shown] = colours(size)
    with torch.no_grad():
        seen = model.get_image_features(**processor(images=shown, return_tensors="pt")).pooler_output
    vectors = sights.embed_pictures(pixels_of(shown))
    torch.testing.assert_close(vectors, F.normalize(seen, dim=1), atol=tolerance, rtol=0)
    [upright], [mirrored] = sights.scaled(pixels_of(shown)), sights.scaled(pixels_of(shown[:, ::-1].copy()))
    assert upright.shape == (3, SIDE, SIDE) and (upright - mirrored).abs().max() > 0.1


def test_of_a_long_text_clip_reads_the_first_words(sights: PublishedPictureText) -> None:
    long = "rain and a dog " * 20
    tokens = sights.tokenizer(long).input_ids
    cut = torch.tensor([[*tokens[: CLIP_TOKENS - 1], tokens[-1]]])
    with torch.no_grad():
        expected = F.normalize(sights.clip.get_text_features(cut).pooler_output, dim=1)
    torch.testing.assert_close(sights.embed_words([long]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (0, 3, 8, 8), (1, 3, 0, 8)])
def test_what_is_no_picture_is_refused(sights: PublishedPictureText, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        sights.embed_pictures(torch.zeros(shape))


# ----------------------------------------------------------------------------------------------------- sounds, words


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_clap_hears_and_reads_as_transformers_does(tmp_path: Path, weights: Weights) -> None:
    clap_folder(tmp_path, weights)
    space, processor, model = (
        load_sound_space(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
        ClapModel.from_pretrained(tmp_path),
    )
    assert isinstance(space, PublishedSoundText) and not space.training
    assert (space.reads, space.hears, space.sample_rate, space.samples) == ("words", "waveforms", SAMPLE_RATE, 160_000)
    for seconds in (0.1, 3.3, SECONDS):
        waveforms = noises(2, seconds)
        heard = [*upsampled(levelled(waveforms)).numpy()]
        inputs = processor(text=WORDS, audio=heard, sampling_rate=48_000, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs)
        torch.testing.assert_close(space.embed_sounds(waveforms), expected.audio_embeds, atol=1e-4, rtol=0)
        assert_units_apart(expected.audio_embeds)
    torch.testing.assert_close(space.embed_words(WORDS), expected.text_embeds, atol=1e-4, rtol=0)
    assert_units_apart(expected.text_embeds)


@pytest.mark.parametrize("hertz", [50, 440, 3000, 5000])
def test_upsampling_finds_the_wave_between_the_samples(hertz: float) -> None:
    def wave(rate: int) -> Tensor:
        return (2 * torch.pi * hertz * torch.arange(rate // 10) / rate + 0.3).sin()[None]

    found, inner = upsampled(wave(SAMPLE_RATE)), slice(60, -60)  # at its ends a sound begins and stops at once
    assert found.shape == (1, 4800)
    torch.testing.assert_close(found[:, inner], wave(48_000)[:, inner], atol=0.01, rtol=0)


def test_a_sound_is_the_same_at_any_level_and_offset(sounds: PublishedSoundText) -> None:
    waveforms = noises(2, 1)
    torch.testing.assert_close(
        sounds.embed_sounds(0.01 * waveforms + 0.2), sounds.embed_sounds(waveforms), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(levelled(waveforms + 3).abs().amax(1), torch.full((2,), PEAK))
    assert not levelled(torch.full((1, 9), 0.25)).any()
    assert sounds.embed_sounds(torch.zeros(1, 1)).isfinite().all()


def test_of_a_long_text_clap_reads_the_first_words(sounds: PublishedSoundText) -> None:
    long = "rain and a dog " * 20
    tokens = sounds.tokenizer(long).input_ids
    assert len(tokens) > CLAP_TOKENS
    cut = torch.tensor([[*tokens[: CLAP_TOKENS - 1], tokens[-1]]])
    with torch.no_grad():
        expected = F.normalize(sounds.clap.get_text_features(cut).pooler_output, dim=1)
    torch.testing.assert_close(sounds.embed_words([long]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("waveforms", "problem"),
    [
        (torch.zeros(160_000), "expected"),
        (torch.zeros(1, 160_001), "N <= 160000"),
        (torch.zeros(1, 0), "expected"),
        (torch.zeros(0, 9), "expected"),
        (torch.full((1, 9), torch.inf), "not finite"),
    ],
)
def test_what_is_no_sound_is_refused(sounds: PublishedSoundText, waveforms: Tensor, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        sounds.embed_sounds(waveforms)


# ------------------------------------------------------------------------------------------------------------ loading


def test_our_own_folders_are_loaded_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = torch.randn(CLASSES, SENTENCE_WIDTH)
    PictureText(PictureTextConfig(width=WIDTH, hidden=8), EfficientNetLite2(), names).save_pretrained(tmp_path / "see")
    config = ClapAudioConfig.from_dict({**audio_config().to_dict(), "projection_dim": WIDTH})
    SoundText(config, LITE_MEL).save_pretrained(tmp_path / "hear")
    seen, heard = load_picture_space(tmp_path / "see"), load_sound_space(tmp_path / "hear")
    assert isinstance(seen, PictureText) and seen.reads == "sentences" and seen.config.width == WIDTH
    assert isinstance(heard, SoundText) and (heard.reads, heard.hears) == ("sentences", "mels")


@pytest.mark.parametrize("values", [{"model_type": "bert"}, {}, {"width": 4, "layers": 2}])
def test_other_weights_are_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="no space of pictures and words"):
        load_picture_space(tmp_path)
    with pytest.raises(UserError, match="no space of sounds and words"):
        load_sound_space(tmp_path)


def test_weights_that_lack_something_are_refused(tmp_path: Path) -> None:
    clip_folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors, such as 'visual_projection\.weight'"):
        load_picture_space(tmp_path)


def test_a_clap_that_draws_parts_at_random_is_refused(tmp_path: Path) -> None:
    model = clap_folder(tmp_path)
    model.config.audio_config.enable_fusion = True
    model.config.audio_config.fusion_type = "aff_2d"
    ClapModel(model.config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="draws at random"):
        load_sound_space(tmp_path)


# ----------------------------------------------------------------------------------------------------------- AudioLDM


def test_the_clap_of_an_audioldm_is_accepted(folders: Path, sounds: PublishedSoundText) -> None:
    require_words_of(folders / "audioldm", sounds)
    assert isinstance(load_sound_space(folders / "clap", folders / "audioldm"), PublishedSoundText)


@pytest.mark.parametrize("difference", [1e-3, torch.nan])
def test_a_clap_that_is_only_nearly_that_of_an_audioldm_is_refused(
    folders: Path, tmp_path: Path, difference: float
) -> None:
    clap = ClapModel.from_pretrained(folders / "clap")
    with torch.no_grad():
        clap.text_projection.linear2.bias[3] += difference
    shutil.copytree(folders / "clap", tmp_path / "clap")
    clap.save_pretrained(tmp_path / "clap")
    assert isinstance(load_sound_space(tmp_path / "clap"), PublishedSoundText)
    with pytest.raises(UserError, match="not the one that the sound generator"):
        load_sound_space(tmp_path / "clap", folders / "audioldm")


def test_an_audioldm_of_another_width_is_refused(sounds: PublishedSoundText, tmp_path: Path) -> None:
    clap = clap_folder(tmp_path / "clap")
    narrow = ClapModel(type(clap.config)(**{**clap.config.to_dict(), "projection_dim": 8}))
    audioldm_tower(narrow, tmp_path)
    with pytest.raises(UserError, match="not the one that the sound generator"):
        require_words_of(tmp_path, sounds)


def test_the_null_condition_of_an_audioldm_is_the_empty_sentence_of_its_clap(
    folders: Path, sounds: PublishedSoundText
) -> None:
    generator = load_sound_generator(folders / "audioldm")
    assert SENTENCES[0] == ""
    torch.testing.assert_close(generator.null_condition.detach(), sounds.embed_words([""])[0], atol=1e-5, rtol=0)
