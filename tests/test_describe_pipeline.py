"""The describe pipeline on tiny untrained models: what is said, what is looked at and listened to, what is leased."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import ClapAudioConfig

from models.captioner import END_PIECE, Captioner, CaptionerConfig, Concept, Description, load_captioner
from models.errors import Cancelled, UserError
from models.manager import ModelManager
from models.mel import LITE_MEL
from models.nets.efficientnet_lite import CLASSES
from models.picture_text import SENTENCE_WIDTH, PictureText, PictureTextConfig
from models.sound_text import SoundText
from pipelines.base import Produced, Progress, Runtime
from pipelines.describe.pipeline import Describe, frames_of, in_words
from pipelines.media import Artifact, Audio, Image, Text, Video
from pipelines.spaces import LEVEL, picture_vector, windows_of
from tests.test_captioner import blip_folder
from tests.tiny_models import manager_of, resident, spec_of
from tests.tiny_sounds import WIDTH, Backbone, clip, picture
from training.sound_text import audio_config

DESCRIBE = Describe()
WORDS = ("big", "loud", "red", "blue", "dog", "bell", "apple", "rain", "barking", "ring", "song")
NAMES = ("apple", "bell", "dog", "rain", "drum", "car", "cat", "bird")
SENTENCES = tuple(name if name == "rain" else f"a {name}" for name in NAMES)
AGREEING, DENYING = (" ".join(WORDS),), ("a drum",)  # the one concept's sentence: every word that is said, and none
SIGHT, HEARING = {"picture-text", "picture-captioner"}, {"sound-text", "sound-captioner"}
SAMPLES = 65_536


def captioner(sure: float, width: int = WIDTH, sentences: Sequence[str] = SENTENCES) -> Captioner:
    config = CaptionerConfig(width=width, hidden=16, layers=1, heads=2, prefix=2, tokens=4, dropout=0.0, sure=sure)
    model = Captioner(config, (END_PIECE, *WORDS), sentences, F.normalize(torch.randn(len(sentences), width), dim=1))
    with torch.no_grad():
        model.prefix.weight.mul_(10)  # untrained spaces put everything in one place: every difference must count
        model.decoder.get_input_embeddings().weight.mul_(30)
    return model


def picture_text() -> PictureText:
    backbone: Any = Backbone()
    names = F.normalize(torch.randn(CLASSES, SENTENCE_WIDTH), dim=1)
    return PictureText(PictureTextConfig(width=WIDTH, hidden=32), backbone, names)


def manager_with(
    folder: Path, sure: float = 0.0, see: Callable[[], nn.Module] | None = None, sentences: Sequence[str] = SENTENCES
) -> ModelManager:
    models: dict[str, Callable[[], nn.Module]] = {
        "picture-text": picture_text,
        "picture-captioner": see or (lambda: captioner(sure, sentences=sentences)),
        "sound-text": lambda: SoundText(
            ClapAudioConfig.from_dict({**audio_config().to_dict(), "projection_dim": WIDTH}), LITE_MEL
        ),
        "sound-captioner": lambda: captioner(sure, sentences=sentences),
    }

    def load(index: int, build: Callable[[], nn.Module]) -> nn.Module:
        torch.manual_seed(index)
        return build().eval()

    def spec(index: int, key: str) -> Any:
        return spec_of(key, folder, load=lambda _: load(index, models[key]))

    return manager_of(100_000, *(spec(index, key) for index, key in enumerate(models)))


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> ModelManager:
    return manager_with(tmp_path_factory.mktemp("models"))


def tone(hertz: float, seconds: float = 1.0, rate: int = 16_000, channels: int = 1, level: float = 0.5) -> Audio:
    wave = level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return Audio(np.repeat(wave[None], channels, 0).astype(np.float32), rate)


def written(manager: ModelManager, *inputs: Artifact, **params: Any) -> list[Text]:
    run = DESCRIBE.run_batch([[one] for one in inputs], DESCRIBE.parse_params(params), Runtime(manager))
    return [event.artifact for event in run if isinstance(event, Produced) and isinstance(event.artifact, Text)]


def lines(manager: ModelManager, shown: Artifact, **params: Any) -> list[str]:
    [text] = written(manager, shown, **params)
    return text.text.splitlines()


# --------------------------------------------------------------------------------------------------------------- words

APPLE = Description("a red apple", 0.824, True, (Concept("red apple", 0.712), Concept("tomato", 0.5)))
BARK = Description("a dog barking", 0.31, False, ())


@pytest.mark.parametrize(
    ("seen", "heard", "text"),
    [
        (APPLE, None, "a red apple\nConfidence 82 %. Nearest concepts: red apple 0.71, tomato 0.50."),
        (None, BARK, "Perhaps a dog barking\nConfidence 31 %."),
        (
            APPLE,
            BARK,
            "a red apple. It sounds like perhaps a dog barking.\n"
            "Seen: Confidence 82 %. Nearest concepts: red apple 0.71, tomato 0.50.\nHeard: Confidence 31 %.",
        ),
        (BARK, APPLE, "Perhaps a dog barking. It sounds like a red apple.\n"),
        (replace(APPLE, sentence="", nearest=()), None, "nothing that has a name\nConfidence 82 %."),
    ],
)
def test_descriptions_are_said_in_plain_words(seen: Description | None, heard: Description | None, text: str) -> None:
    assert in_words(seen, heard).startswith(text)


def test_a_picture_is_what_its_vector_is_called(manager: ModelManager) -> None:
    shown = picture(0)
    with manager.lease("picture-text") as space, manager.lease("picture-captioner") as captions:
        [expected] = captions.describe([picture_vector(space, shown, Runtime(manager))], 3)
    assert lines(manager, shown, nearest=3) == in_words(expected, None).splitlines()
    assert expected.sentence and len(expected.nearest) == 3


def test_the_number_of_concepts_is_that_asked_for(manager: ModelManager) -> None:
    for count in (1, 5, 20):
        details = lines(manager, picture(0), nearest=count)[1]
        assert sum(f" {name} " in details for name in NAMES) == min(count, len(NAMES))
    assert "Nearest" not in lines(manager, picture(0), nearest=0)[1]


def test_what_is_unsure_or_denied_by_concepts_nearby_is_said_with_perhaps(tmp_path: Path) -> None:
    sure = manager_with(tmp_path, sentences=AGREEING)
    for perhaps in (manager_with(tmp_path, 1.1, sentences=AGREEING), manager_with(tmp_path, sentences=DENYING)):
        for shown in (picture(0), tone(440)):
            sentence, details = lines(sure, shown, nearest=0)
            assert set(sentence.split()) <= set(WORDS)
            assert lines(perhaps, shown, nearest=0) == [f"Perhaps {sentence}", details]


def test_what_is_denied_by_concepts_nearby_gives_way_to_the_nearest_of_them(tmp_path: Path) -> None:
    agreeing = manager_with(tmp_path, sentences=AGREEING)
    for shown in (picture(0), tone(440)):
        said = lines(agreeing, shown)[0].split()
        other = next(word for word in WORDS if word not in said)
        assert lines(manager_with(tmp_path, sentences=(other,)), shown)[0] == f"Perhaps {other}"


def test_different_things_have_different_details(manager: ModelManager) -> None:
    for things in ([picture(seed) for seed in range(4)], [tone(hertz) for hertz in (150, 440, 2000, 6000)]):
        assert len({text.text for text in written(manager, *things)}) > 1


# --------------------------------------------------------------------------------------------------------------- clips


def test_a_clip_of_one_picture_is_that_picture(manager: ModelManager) -> None:
    still = Video(np.repeat(picture(2).pixels[None], 6, 0), 12.0)
    assert lines(manager, still)[0] == lines(manager, picture(2))[0]


def test_a_clip_with_sound_has_a_second_sentence(manager: ModelManager) -> None:
    sound = tone(440)
    shown = replace(clip(), audio=sound)
    (sight, seen), (hearing, heard) = lines(manager, clip()), lines(manager, sound)
    hearing = hearing.replace("Perhaps", "perhaps")
    assert lines(manager, shown) == [f"{sight}. It sounds like {hearing}.", f"Seen: {seen}", f"Heard: {heard}"]


def test_a_silent_track_is_no_sound(manager: ModelManager) -> None:
    silent = Audio(np.full((2, 16_000), 1e-6, np.float32), 16_000)
    assert lines(manager, replace(clip(), audio=silent)) == lines(manager, clip())


@pytest.mark.parametrize(
    ("shown", "leased"),
    [
        (picture(0), SIGHT),
        (clip(), SIGHT),
        (tone(440), HEARING),
        (replace(clip(), audio=tone(440)), SIGHT | HEARING),
    ],
)
def test_only_what_a_run_needs_is_leased(tmp_path: Path, shown: Artifact, leased: set[str]) -> None:
    manager = manager_with(tmp_path)
    written(manager, shown)
    assert set(resident(manager)) == leased
    assert all(row.leases == 0 for row in manager.status())


def test_a_captioner_that_reads_pictures_needs_no_space(tmp_path: Path) -> None:
    blip_folder(tmp_path / "blip", "safetensors")
    manager = manager_with(tmp_path, see=lambda: load_captioner(tmp_path / "blip"))
    texts = [text.text for text in written(manager, picture(0, 40, 60), clip(20))]
    assert resident(manager) == ["picture-captioner"]
    assert all(text.splitlines()[1].startswith("Confidence ") and "Nearest" not in text for text in texts)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=15)
def test_up_to_eight_frames_are_read_the_ends_among_them(count: int, height: int, width: int) -> None:
    frames = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.full((1, height, width, 3), 8, np.uint8)
    read = frames_of(Video(frames, 10.0), 12)
    assert read.shape == (min(count, 8), 3, 12, 12)
    levels = ((read.mean((1, 2, 3)) + 1) * 127.5 / 8).round().tolist()
    assert levels[0] == 0 and levels[-1] == count - 1 and levels == sorted(set(levels))


# -------------------------------------------------------------------------------------------------------------- sounds


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 192_000])
def test_a_tone_is_heard_at_its_pitch_whatever_its_rate(rate: int) -> None:
    windows = windows_of(tone(1000, 2.0, rate, channels=8), LITE_MEL, SAMPLES)
    assert windows.shape == (1, SAMPLES)
    spectrum = torch.fft.rfft(windows[0]).abs()
    assert abs(float(spectrum.argmax()) * 16_000 / SAMPLES - 1000) < 2
    assert windows[0, 33_000:].abs().max() < 1e-3  # two seconds, then silence
    assert float(windows.abs().max()) == pytest.approx(LEVEL, rel=1e-5)


def test_a_long_sound_is_listened_to_in_eight_places_up_to_its_end() -> None:
    seconds = 60
    pitches = np.repeat(200 + 50 * np.arange(seconds), 16_000)
    wave = 0.5 * np.sin(2 * np.pi * np.cumsum(pitches) / 16_000)
    windows = windows_of(Audio(wave[None].astype(np.float32), 16_000), LITE_MEL, SAMPLES)
    assert windows.shape == (8, SAMPLES)
    last_second = torch.fft.rfft(windows[:, -16_000:]).abs().argmax(1)
    assert last_second[-1] == 200 + 50 * (seconds - 1) and (last_second.diff() > 0).all()


@given(st.integers(1, 400), st.integers(1, 40), st.integers(1, 3))
@settings(max_examples=20)
def test_any_sound_fills_whole_windows(length: int, rate: int, channels: int) -> None:
    samples = np.random.default_rng(length).uniform(-1, 1, (channels, length)).astype(np.float32)
    windows = windows_of(Audio(samples, rate * 1000), LITE_MEL, 2048)
    assert windows.shape[1] == 2048 and 1 <= len(windows) <= 8
    assert torch.isfinite(windows).all() and windows.abs().max() <= LEVEL * 1.001


def test_a_sound_is_the_same_however_loud(manager: ModelManager) -> None:
    assert lines(manager, tone(440, level=0.9))[0] == lines(manager, tone(440, level=0.01))[0]


# ------------------------------------------------------------------------------------- batches, progress, provenance


def test_a_batch_keeps_its_order(manager: ModelManager) -> None:
    mixed: list[Artifact] = [tone(440), picture(0), replace(clip(), audio=tone(2000)), picture(3)]
    texts = written(manager, *mixed)
    assert [text.text.splitlines() for text in texts] == [lines(manager, one) for one in mixed]


def test_progress_counts_what_is_described(manager: ModelManager) -> None:
    run = DESCRIBE.run_batch([[picture(0)], [tone(440)]], DESCRIBE.parse_params({}), Runtime(manager))
    assert [(event.step, event.total) for event in run if isinstance(event, Progress)] == [(0, 2), (1, 2), (2, 2)]


def test_stopping_ends_a_run_before_the_next(manager: ModelManager) -> None:
    runtime, made = Runtime(manager, threading.Event()), 0
    with pytest.raises(Cancelled):
        for event in DESCRIBE.run_batch([[picture(seed)] for seed in range(9)], DESCRIBE.parse_params({}), runtime):
            if isinstance(event, Produced):
                made += 1
                runtime.cancelled.set()
    assert made == 1 and all(row.leases == 0 for row in manager.status())


def test_the_text_is_kept_with_what_it_describes(manager: ModelManager, tmp_path: Path) -> None:
    [text] = written(manager, picture(4), nearest=2)
    text.save(tmp_path / "said.txt")
    made_by = Text.load(tmp_path / "said.txt").provenance
    assert made_by is not None and made_by == text.provenance
    assert made_by.pipeline == "describe" and made_by.params == {"nearest": 2}
    assert made_by.parents == (picture(4).content_hash(),)
    assert {record.key for record in made_by.models} == SIGHT


def test_each_text_names_the_models_that_described_it(manager: ModelManager) -> None:
    given = [picture(0), tone(440), replace(clip(), audio=tone(440))]
    texts = written(manager, *given)
    named = [{record.key for record in text.provenance.models} for text in texts if text.provenance]
    assert named == [SIGHT, HEARING, SIGHT | HEARING]
    assert named == [set(DESCRIBE.models_for([item], DESCRIBE.parse_params({}))) for item in given]


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("shown", "problem"),
    [
        (Text("an apple"), "A picture, a sound or a clip is needed here, not text"),
        (Audio(np.zeros((1, 16_000), np.float32), 16_000), "The sound is silent"),
        (Audio(np.full((8, 100), 5e-5, np.float32), 192_000), "The sound is silent"),
    ],
)
def test_what_cannot_be_described_is_refused_before_anything_loads(
    tmp_path: Path, shown: Artifact, problem: str
) -> None:
    manager = manager_with(tmp_path)
    with pytest.raises(UserError, match=problem):
        written(manager, shown)
    assert not resident(manager)


def test_a_captioner_of_another_space_is_refused(tmp_path: Path) -> None:
    manager = manager_with(tmp_path, see=lambda: captioner(0.0, width=24))
    with pytest.raises(UserError, match="24 dimensions, and its space has 16"):
        written(manager, picture(0))


@pytest.mark.parametrize("shown", [picture(0, 1, 1), picture(0, 1, 700), Image(np.zeros((9, 9, 3), np.uint8))])
def test_odd_pictures_are_described(manager: ModelManager, shown: Image) -> None:
    assert len(lines(manager, shown)) == 2


@pytest.mark.parametrize(("name", "value"), [("nearest", -1), ("nearest", 21), ("nearest", 2.5), ("nearst", 3)])
def test_params_out_of_bounds_are_named(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"'{name}'"):
        DESCRIBE.parse_params({name: value})
