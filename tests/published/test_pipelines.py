"""The pipelines of sounds and words on published spaces: CLIP and CLAP, tiny and random."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.manager import ModelManager
from models.mel import AUDIOLDM_MEL
from models.nets.audio_autoencoder import load_audio_autoencoder
from models.nets.vocoder import load_vocoder
from models.published_spaces import PublishedPictureText, PublishedSoundText, load_picture_space, load_sound_space
from models.sound_generator import load_sound_generator
from pipelines.audioldm.pipeline import AudioLDM
from pipelines.base import Produced, Progress, Runtime
from pipelines.clipsonic.pipeline import CLIPSonic
from pipelines.describe.pipeline import Describe, in_words
from pipelines.media import Artifact, Audio, Text
from pipelines.spaces import picture_vector, sound_vector, words_vector
from pipelines.v2a_mapper.pipeline import V2AMapper
from tests.test_describe_pipeline import captioner, tone
from tests.tiny_models import resident
from tests.tiny_published import SAMPLE_RATE, SIDE, noises, pixels_of
from tests.tiny_sounds import clip, events, picture, produced, sound_manager


@pytest.fixture
def exact(folders: Path, tmp_path: Path) -> Runtime:
    """In float32 on every machine, so that numbers can be compared."""
    manager = published_manager(folders, tmp_path)
    manager.dtype = torch.float32
    return Runtime(manager, micro_batch=2)


def published_manager(folders: Path, folder: Path) -> ModelManager:
    """Both published spaces, tiny generators of ours."""
    return sound_manager(
        folder,
        instead={
            "picture-text": partial(load_picture_space, folders / "clip"),
            "sound-text": partial(load_sound_space, folders / "clap"),
            "picture-captioner": partial(captioner, 0.0),
            "sound-captioner": partial(captioner, 0.0),
        },
    )


def test_a_picture_and_words_sound_by_the_published_spaces(folders: Path, tmp_path: Path) -> None:
    manager = published_manager(folders, tmp_path)
    made = [
        produced(manager, V2AMapper(), picture(0), words=words, share=share, steps=1)[0].samples
        for words, share in (("", 0.5), ("rain", 0.5), ("rain", 1.0), ("dog", 1.0))
    ]
    assert all(samples.shape == (1, SAMPLE_RATE // 2) and np.isfinite(samples).all() for samples in made)
    assert all(np.abs(made[a] - made[b]).max() > 1e-3 for a in range(4) for b in range(a))
    assert set(resident(manager)) == {
        "picture-text",
        "v2a-mapper",
        "sound-text",
        "sound-generator",
        "audio-autoencoder",
        "vocoder",
    }


def test_words_are_asked_for_by_the_published_space(folders: Path, tmp_path: Path) -> None:
    manager = published_manager(folders, tmp_path)
    run = list(events(manager, CLIPSonic(), [Text("the sound of rain")], bridge="mean_shift"))
    assert 'Asked for "a photo of rain"' in {event.message for event in run if isinstance(event, Progress)}
    assert isinstance(run[-1], Produced)
    shift = {"picture-text", "clipsonic-mean-shift", "clipsonic", "audio-autoencoder", "vocoder"}
    assert set(resident(manager)) == shift
    said = [produced(manager, CLIPSonic(), Text("rain"), bridge=way)[0].samples for way in ("prior", "zero_shot")]
    shown = produced(manager, CLIPSonic(), picture(0))[0].samples
    assert all(np.isfinite(samples).all() and samples.any() for samples in (*said, shown))
    assert not np.array_equal(said[0], said[1]) and not np.array_equal(said[1], shown)
    assert "sentence-encoder" not in resident(manager)


def test_words_make_a_sound_by_published_weights_alone(folders: Path, tmp_path: Path) -> None:
    manager = published_manager(folders, tmp_path)
    rain, dog = (produced(manager, AudioLDM(), Text(words))[0].samples for words in ("rain", "a dog"))
    assert set(resident(manager)) == {"sound-text", "sound-generator", "audio-autoencoder", "vocoder"}
    assert np.isfinite(rain).all() and rain.any() and not np.array_equal(rain, dog)


def test_vectors_in_a_pipeline_are_those_of_the_space(
    exact: Runtime, sights: PublishedPictureText, sounds: PublishedSoundText
) -> None:
    square = picture(1, SIDE, SIDE)
    for key, space in (("picture-text", sights), ("sound-text", sounds)):
        vector, heard = words_vector(key, "rain on a roof", exact)
        torch.testing.assert_close(vector, space.embed_words(["rain on a roof"]))
        assert heard == "rain on a roof"
    torch.testing.assert_close(
        picture_vector(sights, square, exact), sights.embed_pictures(pixels_of(square.pixels))[0]
    )


def test_pictures_and_sounds_are_described_by_the_published_spaces(
    exact: Runtime, sights: PublishedPictureText
) -> None:
    shown: list[Artifact] = [picture(0), clip(9), tone(440, 2), tone(3000, 23, 44_100, channels=2)]
    run = Describe().run_batch([[one] for one in shown], Describe().parse_params({}), exact)
    texts = [event.artifact.text for event in run if isinstance(event, Produced) and isinstance(event.artifact, Text)]
    assert len(texts) == 4 and len(set(texts)) == 4
    with exact.lease("picture-captioner") as captions:
        [expected] = captions.describe([picture_vector(sights, picture(0), exact)], 5)
    assert texts[0] == in_words(expected, None)


def test_a_short_sound_is_heard_again_and_again_and_a_long_one_in_parts(
    exact: Runtime, sounds: PublishedSoundText
) -> None:
    """No silence comes after a short one, of which CLAP would hear ten seconds."""
    [short], long = noises(1, 1.5), torch.cat([noises(1, 5, seed)[0] for seed in range(5)])
    heard, heard_long = (sound_vector(sounds, Audio(one[None].numpy(), SAMPLE_RATE), exact) for one in (short, long))
    torch.testing.assert_close(heard, sounds.embed_sounds(short[None])[0], atol=1e-4, rtol=0)
    silence_after = sounds.embed_sounds(F.pad(short, (0, 160_000 - len(short)))[None])[0]
    assert (heard - silence_after).abs().max() > 1e-2
    parts = sounds.embed_sounds(torch.stack([long[start : start + 160_000] for start in (0, 120_000, 240_000)]))
    torch.testing.assert_close(heard_long, F.normalize(parts.mean(0), dim=0), atol=1e-4, rtol=0)
    assert ((heard_long - parts).abs().amax(1) > 1e-3).all()


def test_the_whole_full_profile_sounds(folders: Path, tmp_path: Path) -> None:
    """Published spaces and AudioLDM's own generator, autoencoder and vocoder: only the mapper is ours."""
    audioldm = folders / "audioldm"
    manager = sound_manager(
        tmp_path,
        AUDIOLDM_MEL,
        instead={
            "picture-text": partial(load_picture_space, folders / "clip"),
            "sound-text": partial(load_sound_space, folders / "clap", audioldm),
            "sound-generator": partial(load_sound_generator, audioldm),
            "audio-autoencoder": partial(load_audio_autoencoder, audioldm / "vae"),
            "vocoder": partial(load_vocoder, audioldm / "vocoder"),
        },
    )
    [sound] = produced(manager, V2AMapper(), picture(0), words="rain", steps=1)
    assert sound.samples.shape == (1, SAMPLE_RATE // 2) and np.isfinite(sound.samples).all() and sound.samples.any()
    assert "sentence-encoder" not in resident(manager)
