"""V2A-Mapper's pipeline, and what both sound pipelines share, on tiny untrained models."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import Cancelled, UserError
from models.manager import ModelManager
from models.mel import AUDIOLDM_MEL, LITE_MEL, MelConfig
from pipelines.base import Produced, Progress, Runtime, precision
from pipelines.media import Artifact, Audio, Image, Text, Video
from pipelines.sounds import LOUDNESS, SoundMaker, Wanted, finished, loudness, true_peak
from pipelines.spaces import picture_vector
from pipelines.v2a_mapper.pipeline import V2AMapper
from tests.tiny_models import resident
from tests.tiny_sounds import clip, events, picture, produced, sound_manager

V2A = V2AMapper()
RATE = 16_000
GENERATION = {"sound-generator", "audio-autoencoder", "vocoder"}


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> ModelManager:
    return sound_manager(tmp_path_factory.mktemp("models"))


def samples(manager: ModelManager, *given: Artifact, **params: Any) -> np.ndarray:
    return produced(manager, V2A, *given, **params)[0].samples


def metered_peak(sound: Audio) -> float:
    """The true peak by FFmpeg's own meter, which also oversamples, but otherwise than ours."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=RATE, format="fltp", layout="mono", time_base=Fraction(1, RATE))
    meter = graph.add("ebur128", "peak=true:metadata=1:framelog=quiet")
    graph.link_nodes(source, meter, graph.add("abuffersink")).configure()
    frame = av.AudioFrame.from_ndarray(np.pad(sound.samples, ((0, 0), (0, RATE))), format="fltp", layout="mono")
    frame.sample_rate, frame.pts = RATE, 0
    graph.push(frame)
    graph.push(None)
    peak = 0.0
    while True:
        try:
            peak = float(graph.pull().metadata.get("lavfi.r128.true_peaks_ch0", peak))
        except EOFError:
            return peak


# ------------------------------------------------------------------------------------------------------ level, length


def noise(level: float, seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    return level * np.random.default_rng(seed).standard_normal(round(seconds * RATE)).astype(np.float32)


@given(st.floats(-50, 20), st.floats(0.5, 2), st.integers(0, 99))
@settings(max_examples=20)
def test_no_level_clips(decibels: float, seconds: float, seed: int) -> None:
    sound = finished(noise(10 ** (decibels / 20), seconds, seed), RATE)
    assert metered_peak(sound) <= 0.89 and np.abs(sound.samples).max() <= 0.89


def test_quiet_and_loud_sounds_come_out_as_loud() -> None:
    for level in (0.05, 0.3, 2.0):
        sound = finished(noise(level), RATE)
        assert loudness(sound.samples[0], RATE) == pytest.approx(LOUDNESS, abs=0.3)


def test_the_meter_reads_what_the_recommendation_says() -> None:
    """EBU Tech 3341: a sine of 1 kHz at -23 dB of full scale, in both channels; one channel is 3 dB less."""
    tone = 10 ** (-23 / 20) * np.sin(2 * np.pi * 1000 * np.arange(4 * RATE) / RATE)
    assert loudness(tone.astype(np.float32), RATE) == pytest.approx(-26, abs=0.15)


def test_the_true_peak_lies_between_the_samples() -> None:
    wave = np.sin(np.pi / 2 * np.arange(4000) + np.pi / 4).astype(np.float32)
    assert np.abs(wave).max() < 0.71 and true_peak(wave) > 0.98


def test_a_click_is_held_below_the_peak_and_silence_stays_silent() -> None:
    click = np.zeros(RATE, np.float32)
    click[8000] = 0.01
    assert 0.05 < np.abs(finished(click, RATE).samples).max() <= 0.89
    assert not finished(np.zeros(RATE, np.float32), RATE).samples.any()


def test_a_sound_ends_softly() -> None:
    last = np.abs(finished(np.full(RATE, 0.2, np.float32), RATE).samples[0, -400:])
    assert last[-1] < 0.02 * last[0] and (np.diff(last) <= 0).all()


@pytest.mark.parametrize("mel", [LITE_MEL, AUDIOLDM_MEL], ids=["lite", "AudioLDM"])
def test_a_sound_is_as_long_as_asked_at_either_hop(tmp_path: Path, mel: MelConfig) -> None:
    """Shorter than the window of the generator, and beyond it, where windows overlap."""
    manager = sound_manager(tmp_path, mel)
    for seconds in (0.5, 2.317):
        [sound] = produced(manager, V2A, picture(0), duration=seconds, steps=1)
        assert sound.samples.shape == (1, round(seconds * RATE)) and sound.sample_rate == RATE
        assert np.isfinite(sound.samples).all() and sound.samples.any() and metered_peak(sound) <= 0.89


def test_another_vocoders_spectrograms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not mean the same by a spectrogram"):
        produced(sound_manager(tmp_path, LITE_MEL, AUDIOLDM_MEL), V2A, picture(0))


# ------------------------------------------------------------------------------------------------ pictures and clips


def vector(manager: ModelManager, shown: Image | Video) -> torch.Tensor:
    with manager.lease("picture-text") as space:
        return picture_vector(space, shown, Runtime(manager, micro_batch=3))


def test_a_clip_is_the_mean_of_its_frames_in_any_order(manager: ModelManager) -> None:
    frames = clip(8)
    alone = torch.stack([vector(manager, Image(frame)) for frame in frames.frames])
    expected = torch.nn.functional.normalize(alone.mean(0), dim=0)
    torch.testing.assert_close(vector(manager, frames), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        vector(manager, replace(frames, frames=frames.frames[::-1])), expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("count", "rate", "looked_at"), [(3, 12.0, 3), (48, 12.0, 8), (120, 12.0, 16), (900, 30.0, 16)]
)
def test_frames_are_looked_at_all_over_the_clip(manager: ModelManager, count: int, rate: float, looked_at: int) -> None:
    """One white frame among black ones: seen or not, whatever lies between those that are looked at."""
    black = np.zeros((count, 4, 4, 3), np.uint8)
    dark, seen = vector(manager, Video(black, rate)), []
    for index in {*np.linspace(0, count - 1, looked_at).round().astype(int).tolist(), 1}:
        lit = black.copy()
        lit[index] = 255
        if not torch.allclose(vector(manager, Video(lit, rate)), dark, atol=1e-4):
            seen.append(index)
    assert {0, count - 1} <= set(seen) and len(seen) == looked_at


def test_the_middle_of_a_picture_counts(manager: ModelManager) -> None:
    square = picture(3, 20, 20)
    wide = np.full((20, 50, 3), 200, np.uint8)
    wide[:, 15:35] = square.pixels
    assert torch.equal(vector(manager, Image(wide)), vector(manager, square))


def test_large_pictures_are_seen_as_small_ones(manager: ModelManager) -> None:
    torch.testing.assert_close(
        vector(manager, picture(1, 1536, 1700)), vector(manager, picture(1, 512, 512)), atol=2e-2, rtol=0
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 2)])
def test_any_size_of_picture_sounds(manager: ModelManager, size: tuple[int, int]) -> None:
    sound = samples(manager, Image(np.zeros((*size, 3), np.uint8)))
    assert np.isfinite(sound).all() and sound.any()


def test_a_clip_gets_the_sound_for_as_long_as_it_lasts(manager: ModelManager, tmp_path: Path) -> None:
    silent = clip(18, 12.0)
    sound, sounding = produced(manager, V2A, silent, duration=None)
    assert isinstance(sound, Audio) and sound.samples.shape == (1, round(1.5 * RATE))
    assert isinstance(sounding, Video) and np.array_equal(sounding.frames, silent.frames)
    assert sounding.audio is not None and np.array_equal(sounding.audio.samples, sound.samples)
    assert [item.provenance and item.provenance.index for item in (sound, sounding)] == [0, 1]
    sounding.save(tmp_path / "clip.mp4")
    heard = Video.load(tmp_path / "clip.mp4").audio
    assert heard is not None and heard.duration == pytest.approx(1.5, abs=0.1) and np.abs(heard.samples).max() > 0.05


@pytest.mark.parametrize(("count", "rate"), [(2, 12.0), (36, 12.0)])
def test_a_sound_of_another_length_is_cut_or_repeated(manager: ModelManager, count: int, rate: float) -> None:
    sound, sounding = produced(manager, V2A, clip(count, rate), duration=1.25)
    assert sound.duration == 1.25 and sounding.audio.samples.shape[1] == round(count / rate * RATE)
    shared = min(sound.samples.shape[1], sounding.audio.samples.shape[1])
    assert np.array_equal(sounding.audio.samples[:, :shared], sound.samples[:, :shared])


def test_clips_of_extreme_length_stay_within_bounds(manager: ModelManager) -> None:
    assert V2A.shape_of_work([clip(4, 0.01)], V2A.parse_params({})) == (1, 30)
    [sound, _] = produced(manager, V2A, clip(1, 60.0), duration=None)
    assert sound.duration == 0.5


# ---------------------------------------------------------------------------------------------------- seeds, batches


def test_equal_seeds_give_equal_sounds_and_others_others(manager: ModelManager) -> None:
    first, again, other = (samples(manager, picture(0), seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and np.abs(first - other).mean() > 1e-3
    assert np.abs(first - samples(manager, picture(9), seed=3)).mean() > 1e-4


def test_variations_come_from_consecutive_seeds_whatever_the_batch(manager: ModelManager) -> None:
    batch = produced(manager, V2A, picture(0), seed=2**31 - 2, num_sounds=3)
    assert [item.provenance.index for item in batch] == [0, 1, 2]
    parts = produced(manager, V2A, picture(0), seed=2**31 - 2, num_sounds=3, micro_batch=1)
    for one, part, seed in zip(batch, parts, (2**31 - 2, 2**31 - 1, 0), strict=True):
        alone = samples(manager, picture(0), seed=seed)
        np.testing.assert_allclose(one.samples, alone, atol=1e-3)
        np.testing.assert_allclose(part.samples, alone, atol=1e-3)


def test_a_batch_of_pictures_and_clips_keeps_its_order(manager: ModelManager) -> None:
    inputs: list[list[Artifact]] = [[picture(0)], [clip(15)], [picture(1)]]
    params = V2A.parse_params({"steps": 1, "guidance": 1.0})
    made = [e.artifact for e in V2A.run_batch(inputs, params, Runtime(manager)) if isinstance(e, Produced)]
    assert [item.medium for item in made] == ["audio", "audio", "video", "audio"]
    last = samples(manager, picture(1), steps=1, guidance=1.0, duration=4.0)
    assert isinstance(made[-1], Audio)
    np.testing.assert_allclose(made[-1].samples, last, atol=1e-3)
    assert made[-1].provenance is not None and made[-1].provenance.parents == (picture(1).content_hash(),)


# ------------------------------------------------------------------------------------------------- mappers and words


def test_both_mappers_and_guidance_matter(manager: ModelManager) -> None:
    plain = samples(manager, picture(0))
    for change in ({"mapper": "regression"}, {"guidance": 8.0}, {"steps": 5}, {"words": "rain"}):
        assert np.abs(plain - samples(manager, picture(0), **change)).max() > 1e-3, change


def test_the_ends_between_picture_and_words_are_exact(manager: ModelManager) -> None:
    seen = samples(manager, picture(0))
    assert np.array_equal(seen, samples(manager, picture(0), words="rain", share=0.0))
    said = samples(manager, picture(0), words="rain", share=1.0)
    assert np.array_equal(said, samples(manager, picture(5), words="rain", share=1.0))
    assert not np.array_equal(said, samples(manager, picture(0), words="dog", share=1.0))
    between = samples(manager, picture(0), words="rain", share=0.5)
    assert not np.array_equal(between, seen) and not np.array_equal(between, said)


def test_words_alone_are_the_vector_of_the_sentence(manager: ModelManager) -> None:
    with manager.lease("sentence-encoder") as encoder, manager.lease("sound-text") as space, precision(manager):
        condition = space.embed_sentences(encoder.sentence_embeddings(["rain"]))[0]
    with ExitStack() as stack:
        maker = SoundMaker.lease("sound-generator", Runtime(manager), stack)
        making = maker.make([Wanted(condition, 7, 0.5, "")], 2, 2.5)
        with pytest.raises(StopIteration) as ended:
            while True:
                next(making)
    [sound] = ended.value.value
    assert np.array_equal(sound.samples, samples(manager, picture(0), words="rain", share=1.0, seed=7))


@pytest.mark.parametrize(
    ("params", "leased"),
    [
        ({}, {"picture-text", "v2a-mapper"}),
        ({"mapper": "regression"}, {"picture-text", "v2a-regression"}),
        ({"words": "rain"}, {"picture-text", "v2a-mapper", "sentence-encoder", "sound-text"}),
        ({"words": "rain", "share": 0.0}, {"picture-text", "v2a-mapper"}),
        ({"words": "rain", "share": 1.0}, {"sentence-encoder", "sound-text"}),
    ],
)
def test_only_what_a_run_needs_is_leased(tmp_path: Path, params: dict[str, Any], leased: set[str]) -> None:
    manager = sound_manager(tmp_path)
    produced(manager, V2A, picture(0), **{"steps": 1, **params})
    assert set(resident(manager)) == leased | GENERATION
    assert set(V2A.models_for([picture(0)], V2A.parse_params(params))) == leased | GENERATION


# -------------------------------------------------------------------------------------- progress, stop, provenance


def test_progress_counts_every_step_and_shows_previews(manager: ModelManager) -> None:
    run = events(manager, V2A, [picture(0)], micro_batch=2, steps=12, num_sounds=3)
    seen = [event for event in run if isinstance(event, Progress)]
    assert [(event.step, event.total) for event in seen] == [(0, 12), *((step, 24) for step in range(1, 25))]
    previews = [event.preview for event in seen if event.preview]
    frames = -(-RATE // 2 // LITE_MEL.hop)  # of the half second that is asked for, not of the whole window
    assert {preview.pixels.shape for preview in previews} == {(256, frames, 3), (128, frames, 3)}
    assert len(previews) >= 8 and not np.array_equal(previews[0].pixels, previews[1].pixels)


def test_stopping_ends_a_run_within_a_step(manager: ModelManager) -> None:
    runtime = Runtime(manager, threading.Event())
    stream, seen = V2A.run([picture(0)], V2A.parse_params({"steps": 150}), runtime), 0
    with pytest.raises(Cancelled):
        for _ in stream:
            seen += 1
            if seen == 4:
                runtime.cancelled.set()
    assert seen == 4 and all(row.leases == 0 for row in manager.status())


def test_a_run_that_nobody_follows_any_more_leaves_nothing_behind(manager: ModelManager) -> None:
    before = threading.active_count()
    stream = V2A.run([picture(0)], V2A.parse_params({"steps": 150}), Runtime(manager))
    for _ in range(3):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before and all(row.leases == 0 for row in manager.status())


def test_provenance_names_what_was_shown_and_how(manager: ModelManager) -> None:
    [sound] = produced(manager, V2A, picture(4), seed=9, words="rain", share=0.25)
    made_by = sound.provenance
    assert made_by.pipeline == "v2a" and made_by.seed == 9 and made_by.params["share"] == 0.25
    assert made_by.inputs == ({"medium": "image", "hash": picture(4).content_hash()},)
    assert {record.key for record in made_by.models} >= GENERATION
    again = V2A.parse_params({**made_by.params, "seed": made_by.seed})
    [same] = [e.artifact for e in V2A.run([picture(4)], again, Runtime(manager)) if isinstance(e, Produced)]
    assert same.content_hash() == sound.content_hash()


# ---------------------------------------------------------------------------------------------------------- bad input


def test_a_video_without_frames_is_refused() -> None:
    with pytest.raises(UserError, match="video is empty"):
        Video(np.zeros((0, 4, 4, 3), np.uint8), 12.0)


def test_only_pictures_and_clips_are_taken(manager: ModelManager) -> None:
    with pytest.raises(UserError, match="A picture or a clip is needed here, not text"):
        produced(manager, V2A, Text("rain"))


@pytest.mark.parametrize(
    ("words", "problem"), [("\u200b\x00", "'words' is empty"), ("rain " * 20_000, "100,000 characters")]
)
def test_words_that_say_nothing_or_far_too_much(manager: ModelManager, words: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        produced(manager, V2A, picture(0), words=words)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guidance", float("nan")),
        ("guidance", 0.5),
        ("duration", 0),
        ("duration", 0.4),
        ("duration", 31),
        ("duration", float("inf")),
        ("steps", 0),
        ("share", -0.1),
        ("share", float("nan")),
        ("mapper", "none"),
        ("num_sounds", 0),
        ("seed", -1),
        ("lenght", 3),
    ],
)
def test_params_out_of_bounds_are_named(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"'{name}'"):
        V2A.parse_params({name: value})
