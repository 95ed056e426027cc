"""The aligned space: nearest vectors, our audio encoder, its losses and measures, and two steps of its recipe."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import ClapAudioConfig

from models.bind import BindAudio, load_bind_audio, nearest, windows
from models.mel import LITE_MEL
from models.sound_text import load_sound_text
from tests.test_sound_generator_recipes import write_frozen, write_tables
from training import bind_audio, loop
from training.bind_audio import contrastive_loss, load_task, new_encoder, recalls
from training.publish import checksum_of, write_sums

WIDTH = 16
WINDOW = 65_536  # samples that the lite encoder hears at a time


def tiny() -> BindAudio:
    torch.manual_seed(0)
    config = ClapAudioConfig(
        spec_size=128,
        num_mel_bins=LITE_MEL.bands,
        depths=[1, 1],
        num_attention_heads=[1, 2],
        patch_embeds_hidden_size=16,
        hidden_size=32,
        projection_dim=WIDTH,
        num_hidden_layers=2,
    )
    return BindAudio(config, LITE_MEL)


def unit(count: int, width: int = WIDTH, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def tones(pitches: Tensor, samples: int = WINDOW, seed: int = 0) -> Tensor:
    """(B, samples): a tone of each pitch in Hz, in noise that the seed picks."""
    noise = torch.randn(len(pitches), samples, generator=torch.Generator().manual_seed(seed))
    return 0.3 * torch.sin(2 * torch.pi * pitches[:, None] * torch.arange(samples) / 16_000) + 0.02 * noise


# ------------------------------------------------------------------------------------------------------------- nearest


@given(st.lists(st.integers(-3, 3), max_size=12), st.integers(0, 15))
def test_the_nearest_come_first_and_ties_keep_their_order(cosines: list[int], k: int) -> None:
    query = torch.tensor([1.0, 0.0])
    found, values = nearest(query, torch.tensor([[c / 3, 0.1] for c in cosines]).reshape(-1, 2), k)
    expected = sorted(range(len(cosines)), key=lambda index: -cosines[index])[:k]
    assert found.tolist() == expected
    assert values.tolist() == pytest.approx([cosines[index] / 3 for index in expected])


@pytest.mark.parametrize(
    ("query", "vectors", "k"),
    [
        (torch.ones(2), torch.ones(4, 3), 1),
        (torch.ones(1, 3), torch.ones(4, 3), 1),
        (torch.ones(3), torch.ones(3), 1),
        (torch.ones(3), torch.ones(4, 3), -1),
        (torch.ones(3), torch.tensor([[1.0, torch.nan, 0.0]]), 1),
    ],
)
def test_nearest_refuses_what_has_no_answer(query: Tensor, vectors: Tensor, k: int) -> None:
    with pytest.raises(ValueError, match=r"expected|not finite"):
        nearest(query, vectors, k)


# ---------------------------------------------------------------------------------------------------- our audio encoder


@given(st.integers(1, 70), st.integers(1, 20))
def test_windows_cover_a_sound_with_as_few_as_can(length: int, samples: int) -> None:
    parts = windows(torch.arange(1, length + 1)[None], samples)[0]
    assert parts.shape == (-(-length // samples), samples)
    assert set(parts.flatten().tolist()) - {0} == set(range(1, length + 1))
    assert length < samples or (parts.diff(dim=1) == 1).all()


@torch.no_grad()
def test_sounds_of_any_length_become_unit_vectors() -> None:
    model = tiny().eval()
    for samples in (1, 9_000, WINDOW, WINDOW + 1, 150_000):
        vectors = model.embed(tones(torch.tensor([300.0, 900.0]), samples))
        assert vectors.shape == (2, WIDTH) and vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    assert model.embed(torch.zeros(1, WINDOW)).isfinite().all()


@torch.no_grad()
def test_a_long_sound_lies_between_its_windows_and_a_batch_changes_nothing() -> None:
    model, sounds = tiny().eval(), tones(torch.tensor([300.0, 900.0, 2500.0]))
    alone = torch.cat([model.embed(sound[None]) for sound in sounds])
    torch.testing.assert_close(model.embed(sounds), alone, atol=1e-5, rtol=0)
    joined = model.embed(torch.cat([sounds[0], sounds[2]])[None])
    torch.testing.assert_close(joined, F.normalize(alone[[0]] + alone[[2]], dim=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(WINDOW,), (0, WINDOW), (2, 0), (1, 2, WINDOW)])
def test_other_shapes_of_sounds_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, N\)"):
        tiny().embed(torch.zeros(shape))


def test_other_numbers_and_spectrograms_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        tiny().embed(torch.full((1, WINDOW), torch.nan))
    for shape in [(1, 255, 64), (1, 256, 40), (256, 64)]:
        with pytest.raises(ValueError, match=r"expected \(B, 256, 64\)"):
            tiny().embed_sounds(torch.zeros(shape))


@torch.no_grad()
def test_its_files_give_the_encoder_back(tmp_path: Path) -> None:
    model, sounds = tiny().eval(), tones(torch.tensor([300.0, 900.0]))
    rounded = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    model.load_state_dict(rounded)
    model.save_pretrained(tmp_path / "bind-audio")
    loaded = load_bind_audio(tmp_path / "bind-audio")
    torch.testing.assert_close(loaded.embed(sounds), model.embed(sounds))
    assert (loaded.mel, loaded.width, loaded.scale, loaded.training) == (LITE_MEL, WIDTH, model.scale, False)


def test_training_brings_unheard_sounds_to_their_frozen_vectors() -> None:
    model, targets = tiny(), unit(4)
    pitches, classes = torch.tensor([250.0, 700.0, 1800.0, 4500.0]), torch.arange(16) % 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    same = classes[:, None] == classes[None, :]
    for step in range(30):
        vectors = model.embed(tones(pitches[classes], seed=step))
        loss = contrastive_loss(vectors, targets[classes], same, model.scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        unheard = model.eval().embed(tones(pitches, seed=99))
    right = torch.eye(4, dtype=torch.bool)
    assert recalls(unheard, targets, right)[1] == 1 and recalls(targets, unheard, right.T)[1] == 1


def test_sounds_of_one_class_are_not_told_apart_by_the_loss() -> None:
    sounds, others, scale = unit(3), unit(3, seed=1), torch.tensor(10.0)
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    loss = contrastive_loss(sounds, others, same, scale)
    torch.testing.assert_close(contrastive_loss(sounds, others[[1, 0, 2]], same, scale), loss)
    torch.testing.assert_close(contrastive_loss(others, sounds, same.T, scale), loss)
    assert not torch.isclose(contrastive_loss(sounds, others, torch.eye(3, dtype=torch.bool), scale), loss)


def test_recall_counts_queries_that_have_an_answer() -> None:
    answers, right = torch.eye(12), torch.zeros(4, 12, dtype=torch.bool)
    queries = F.normalize(answers[[0, 1, 2, 3]] + 0.5 * answers[[4, 5, 6, 7]] - answers[11], dim=1)
    right[0, [0, 9]] = True  # the nearest of two
    right[1, 5] = True  # the second nearest
    right[2, 11] = True  # the farthest
    found = recalls(queries, answers, right)
    assert [round(float(found[rank]), 3) for rank in (1, 5)] == [0.333, 0.667]


# ---------------------------------------------------------------------------------------------------------- the recipe


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tables and frozen models of random weights; the recipe takes two steps of four clips."""
    weights = tmp_path / "assets" / "weights"
    encoder = Path("assets/weights/text-encoder-lite").resolve()
    write_tables(tmp_path)
    write_frozen(weights)
    (weights / "text-encoder-lite").symlink_to(encoder)
    for module in (loop, bind_audio):
        monkeypatch.setattr(module, "STATE", tmp_path / "state")
    monkeypatch.setattr(bind_audio, "BATCH", 4)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["recipe", "--data", ".", "--steps", "2"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_recipe_writes_an_encoder_and_compares_it_with_words_alone(workplace: Path) -> None:
    weights = workplace / "assets" / "weights"
    bind_audio.main()
    model = load_bind_audio(weights / "bind-audio-lite")
    assert (model.mel, model.width) == (LITE_MEL, 256)
    before = checksum_of(weights / "bind-audio-lite")
    write_sums(weights / "bind-audio-lite")
    assert checksum_of(weights / "bind-audio-lite") == before

    rows = json.loads((workplace / "state" / "bind-audio" / "comparison.json").read_text())
    assert set(rows) == {"pictures and words", "words alone"}
    for row in rows.values():
        assert len(row) == 24 and all(0 <= value <= 1 for value in row.values())
        assert row["heldout-class_sound_to_text_r5"] == row["heldout-file_picture_to_sound_r10"] == 1  # three classes


def test_the_encoder_begins_with_the_tower_of_the_sound_space_and_half_of_each_loss(workplace: Path) -> None:
    weights = workplace / "assets" / "weights"
    task = load_task(workplace, permissive_only=False)
    assert {item.name for item in task.sounds.items} == {"bell", "hum", "agogo"}  # no picture shows a whistle
    torch.manual_seed(1)
    model, space = new_encoder(weights / "sound-text-lite", 256).eval(), load_sound_text(weights / "sound-text-lite")
    ours, theirs = model.audio.state_dict(), space.audio.state_dict()
    differing = {name.split(".")[0] for name, value in ours.items() if not torch.equal(value, theirs[name])}
    assert differing == {"audio_projection"}

    frozen = load_file(weights / "picture-text-lite" / "model.safetensors")
    losses = []
    for share in (0.0, 0.5, 1.0):
        torch.manual_seed(2)
        losses.append(task.loss(model, task.sounds.items[:8], np.random.default_rng(3), share))
    assert losses[0] != losses[2]
    torch.testing.assert_close(losses[1], (losses[0] + losses[2]) / 2)
    losses[1].backward()
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)
    assert all(value.grad is None for value in task.space.parameters())
    assert all(torch.equal(value.half(), frozen[name]) for name, value in task.space.state_dict().items())
