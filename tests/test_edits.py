"""Plain edits: what they all have in common, and what sounds and clips must survive."""

from __future__ import annotations

from dataclasses import replace

import gradio as gr
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.settings import Settings
from app.studio import Saved, Studio
from app.ui import build
from app.ui.panels import EDIT, Panels
from pipelines.base import Pipeline, Registry
from pipelines.edits import EDITS
from pipelines.media import Audio, Image, load_artifact
from tests.edit_examples import RATE, REGISTRY, clip, edited, inputs_of, noise, refused, same, seeds, tone
from tests.media_examples import few

each_edit = pytest.mark.parametrize("edit", list(REGISTRY), ids=lambda edit: edit.name)


# All of them


@each_edit
def test_it_is_declared_as_an_edit_that_can_be_drawn_and_described(edit: Pipeline) -> None:
    assert (
        edit.is_edit
        and not edit.uses_chance
        and not edit.models
        and edit.name.startswith(f"{edit.routes[0].inputs[0]}-")
    )
    assert all(field.description for field in edit.params_type.model_fields.values())
    assert edit.parse_params({}) == edit.params_type()


@each_edit
def test_the_same_request_gives_the_same_whatever_the_seed_and_says_from_what(edit: Pipeline) -> None:
    inputs = inputs_of(edit)
    before = [item.content_hash() for item in inputs]
    first, again, other = (edited(edit.name, *inputs, seed=seed) for seed in (0, 0, 99))
    assert same(first, again) and same(first, other) and first.medium == edit.routes[0].output
    made_by = first.provenance
    assert made_by and (made_by.pipeline, made_by.parents, made_by.models) == (edit.name, tuple(before), ())
    assert [item.content_hash() for item in inputs] == before


@each_edit
def test_what_the_gallery_keeps_can_be_remixed(edit: Pipeline, tiny_settings: Settings, tiny_studio: Studio) -> None:
    studio = Studio(tiny_settings, REGISTRY, tiny_studio.manager)
    [made] = [event for event in studio.generate(edit.name, inputs_of(edit), {}) if isinstance(event, Saved)]
    name, inputs, params = studio.remix(made.entry.id)
    [again] = [event for event in studio.generate(name, inputs, params) if isinstance(event, Saved)]
    assert again.artifact.medium == made.artifact.medium
    assert same(again.artifact, made.artifact)
    assert load_artifact(again.entry.path).provenance == again.artifact.provenance


def test_edits_share_one_tab_of_the_page_and_keep_their_endpoints(
    tiny_settings: Settings, tiny_registry: Registry, tiny_studio: Studio
) -> None:
    studio = Studio(tiny_settings, Registry([*tiny_registry, *REGISTRY]), tiny_studio.manager)
    with gr.Blocks(), gr.Tabs() as rooms, gr.Tab("Studio", id="studio"):
        places = Panels(studio, rooms).places
    assert set(places) == {pipeline.name for pipeline in studio.registry}
    _, systems = places["tiny-paint"]
    assert [place[systems] for place in places.values()].count(EDIT) == len(EDITS)
    assert list(places["audio-gain"].values()) == ["studio", EDIT, "audio", "audio-gain"]
    names = {dependency["api_name"] for dependency in build(studio).get_config_file()["dependencies"]}
    assert {f"generate_{edit.name.replace('-', '_')}" for edit in REGISTRY} <= names


# Sounds


@few
@given(seeds, st.floats(-60, 24), st.floats(0.01, 1))
def test_gain_never_clips_and_is_exact_where_nothing_would(seed: int, gain: float, peak: float) -> None:
    sound = noise(seed, peak=peak)
    louder = edited("audio-gain", sound, gain=gain)
    wanted = sound.samples * 10 ** (gain / 20)
    if np.abs(wanted).max() <= 1:
        assert np.abs(louder.samples - wanted).max() <= 2**-22
    else:
        # Held back, never turned over, and never by more than the loudest moment needs.
        assert np.abs(louder.samples).max() <= 1 and (louder.samples * wanted >= 0).all()
        assert (np.abs(louder.samples) >= np.abs(wanted) / np.abs(wanted).max() - 2**-20).all()
        tops = np.abs(louder.samples) == 1
        assert not (tops[:, 1:] & tops[:, :-1]).any(), "flat tops: it was clipped"


@few
@given(seeds, st.floats(-24, 24))
def test_gain_there_and_back_is_nothing_in_the_quiet_range(seed: int, gain: float) -> None:
    sound = noise(seed, peak=0.05)
    back = edited("audio-gain", edited("audio-gain", sound, gain=gain), gain=-gain)
    assert np.abs(back.samples - sound.samples).max() <= 2**-18


def test_a_steady_tone_stays_pure_when_it_is_held_back() -> None:
    sound = tone(200.0, peak=0.9)
    louder = edited("audio-gain", sound, gain=20).samples[0]
    inner = slice(400, -400)
    assert np.abs(louder[inner] - sound.samples[0][inner] / np.abs(sound.samples).max()).max() < 1e-3


@pytest.mark.parametrize(
    ("params", "start", "end"),
    [
        ({}, 0, 2),
        ({"start": 0.5}, 0.5, 2),
        ({"end": 1.5}, 0, 1.5),
        ({"start": 0.5, "length": 1}, 0.5, 1.5),
        ({"share": 0.5}, 0, 1),
        ({"start": 1, "share": 0.5}, 1, 1.5),
        ({"end": 2.04}, 0, 2),  # a duration that somebody rounded
    ],
)
def test_trimming_keeps_the_part_that_is_asked_for(params: dict[str, float], start: float, end: float) -> None:
    sound = noise(0)
    frames = clip(sound=sound)
    kept = edited("audio-trim", sound, **params)
    assert np.array_equal(kept.samples, sound.samples[:, round(start * RATE) : round(end * RATE)])
    shown = edited("video-trim", frames, **params)
    assert np.array_equal(shown.frames, frames.frames[round(start * 6) : round(end * 6)])
    assert shown.audio is not None and same(shown.audio, kept)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"start": 2.1}, "2.00 s long"),
        ({"end": 5}, "cannot be cut at 5 s"),
        ({"start": 1, "length": 1.5}, "cannot be cut at 2.5 s"),
        ({"start": 2}, "Nothing"),
        ({"start": 1, "end": 0.5}, "Nothing"),
        ({"end": 1, "length": 1}, "Both"),
        ({"length": -1}, "'length' cannot be '-1'"),
        ({"share": 0}, "'share' cannot be '0'"),
        ({"start": -1}, "'start' cannot be '-1'"),
        ({"end": float("nan")}, "'end' cannot be 'nan'"),
        ({"length": 1e300}, "cannot be cut at 1e+300 s"),
    ],
)
def test_trimming_outside_of_it_is_refused(params: dict[str, float], words: str) -> None:
    assert words in refused("audio-trim", noise(0), **params)
    assert words in refused("video-trim", clip(), **params)


@few
@given(seeds, st.floats(0, 1), st.floats(0, 1))
def test_a_fade_begins_or_ends_in_silence_and_leaves_the_middle(seed: int, fade_in: float, fade_out: float) -> None:
    sound = noise(seed)
    faded = edited("audio-fade", sound, fade_in=fade_in, fade_out=fade_out).samples
    rise, fall = round(fade_in * RATE), round(fade_out * RATE)
    assert rise == 0 or not faded[:, 0].any()
    assert fall == 0 or not faded[:, -1].any()
    middle = slice(rise, faded.shape[1] - fall)
    assert np.array_equal(faded[:, middle], sound.samples[:, middle])
    assert (np.abs(faded) <= np.abs(sound.samples)).all()


def test_fades_longer_than_the_sound_are_refused() -> None:
    assert "2.00 s long" in refused("audio-fade", noise(0), fade_in=1.5, fade_out=1)


@pytest.mark.parametrize("factor", [0.25, 0.5, 0.7, 1.5, 2.0, 4.0])
def test_speed_changes_duration_and_pitch_by_its_factor(factor: float) -> None:
    faster = edited("audio-speed", tone(440.0), factor=factor)
    assert faster.sample_rate == RATE and abs(faster.duration - 2 / factor) < 1e-3
    loudest = np.abs(np.fft.rfft(faster.samples[0])).argmax() / faster.duration
    assert abs(loudest - 440 * factor) < 2
    assert abs(np.abs(faster.samples).max() - 0.5) < 0.01


def test_pitches_that_the_sample_rate_cannot_hold_vanish_instead_of_coming_back_lower() -> None:
    assert np.abs(edited("audio-speed", tone(3000.0), factor=2).samples[:, 200:-200]).max() < 0.01


@few
@given(seeds, st.floats(0.25, 4))
def test_speed_never_clips(seed: int, factor: float) -> None:
    loud = Audio(np.sign(noise(seed, 0.2).samples).astype(np.float32), RATE)
    assert np.abs(edited("audio-speed", loud, factor=factor).samples).max() <= 1


def test_what_would_not_fit_any_file_is_refused() -> None:
    long = replace(clip(), frame_rate=1e-6)
    assert "too long" in refused("video-add-sound", long, noise(0))


@few
@given(seeds, st.integers(1, 3))
def test_reversing_twice_is_nothing(seed: int, channels: int) -> None:
    sound = noise(seed, channels=channels)
    backwards = edited("audio-reverse", sound)
    assert np.array_equal(backwards.samples[:, 0], sound.samples[:, -1])
    assert same(edited("audio-reverse", backwards), sound)
    film = clip(seed, sound=sound)
    turned = edited("video-reverse", film)
    assert np.array_equal(turned.frames[0], film.frames[-1]) and same(turned.audio, backwards)
    assert same(edited("video-reverse", turned), film)


# Clips


@pytest.mark.parametrize(
    ("rate", "factor", "frames", "new_rate"), [(6, 2, 12, 12), (6, 0.5, 12, 3), (30, 4, 6, 60), (60, 1.5, 6, 45)]
)
def test_a_faster_clip_and_its_sound_last_as_long(rate: float, factor: float, frames: int, new_rate: float) -> None:
    film = clip(rate=rate, sound=noise(0, 12 / rate))
    faster = edited("video-speed", film, factor=factor)
    assert (len(faster.frames), faster.frame_rate) == (frames, new_rate)
    assert abs(faster.audio.duration - len(faster.frames) / faster.frame_rate) < 0.01
    assert np.array_equal(faster.frames[0], film.frames[0])


def test_a_clip_is_not_slowed_to_a_standstill() -> None:
    assert "hardly any frames" in refused("video-speed", clip(rate=0.2), factor=0.25)


def test_a_clip_turns_round_in_four_quarters() -> None:
    film = clip()
    turned = film
    for _ in range(4):
        turned = edited("video-rotate", turned)
    assert same(turned, film)
    quarter = edited("video-rotate", film).frames[0]
    assert np.array_equal(quarter, edited("image-rotate", Image(film.frames[0])).pixels)
    assert "'degrees' cannot be '45'" in refused("video-rotate", film, degrees=45)


def test_mute_leaves_the_pictures() -> None:
    film = clip(sound=noise(0))
    silent = edited("video-mute", film)
    assert silent.audio is None and np.array_equal(silent.frames, film.frames)


@few
@given(seeds, st.floats(0.1, 5), st.booleans())
def test_an_added_sound_lasts_as_long_as_the_clip(seed: int, seconds: float, loop: bool) -> None:
    film, sound = clip(sound=noise(9)), noise(seed, seconds)
    for inputs in ((film, sound), (sound, film)):
        made = edited("video-add-sound", *inputs, loop=loop)
        assert made.audio.duration == 2 and np.array_equal(made.frames, film.frames)
        length = min(sound.samples.shape[1], 2 * RATE)
        assert np.array_equal(made.audio.samples[:, :length], sound.samples[:, :length])
        rest = made.audio.samples[:, length:]
        again = np.resize(sound.samples[0], 2 * RATE)[length:]
        assert np.array_equal(rest[0], again) if loop else not rest.any()


def test_a_cut_beyond_the_end_of_the_sound_has_none() -> None:
    assert edited("video-trim", clip(sound=noise(0, 0.5)), start=1).audio is None
