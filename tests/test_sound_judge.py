"""The judge of sounds: what it hears, what it never hears, its measures, and two steps of its recipe."""

from __future__ import annotations

import io
import json
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from models.errors import UserError
from models.mel import LITE_MEL
from tests.tiny_networks import begin_statistics
from training import loop, sound_judge
from training.sound_judge import (
    JUDGE_MEL,
    SoundJudge,
    augment,
    bend_spectrum,
    evaluate,
    hits,
    is_reserved_sound,
    judged,
    known_classes,
    load_sound_judge,
    reserved_files,
)
from training.sounds import SAMPLES, Sound, Sounds, load_sounds, split_of

# Bell and agogo are held-out classes, and held-out concepts of pictures.
NAMES = {"whistle": "\U0001f3b5", "bell": "\U0001f514", "hum": "\U0001f41d", "agogo": "\U0001f941"}
CLIPS = 160


def tone(hertz: float) -> bytes:
    file = io.BytesIO()
    samples = 0.5 * np.sin(2 * np.pi * hertz * np.arange(2_000) / 16_000)
    soundfile.write(file, samples, 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def picture(*colour: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (128, 128), colour).save(file, format="PNG")
    return file.getvalue()


def write_tables(folder: Path) -> None:
    """Four classes of 40 short tones, two of a file; an emoji of each in three styles, a photograph of each."""
    sounds = [
        {
            "class": list(NAMES)[index % 4],
            "caption": f"a {list(NAMES)[index % 4]} sounds",
            "emoji": [list(NAMES.values())[index % 4]],
            "stamp": "",
            "loop": False,
            "source": "tones",
            "path": f"{list(NAMES)[index % 4]}{index // 8}.wav",
            "licence_family": "permissive" if index % 16 < 8 else "gpl",
            "audio": tone(300 * (1 + index % 4) + index),
        }
        for index in range(CLIPS)
    ]
    emoji = [
        {
            "image": picture(60 * index, 90, 60 * style),
            "caption": name,
            "style": ("noto", "twemoji", "fxemoji")[style],
            "keywords": [f"{name} sign"],
            "more_keywords": [],
            "is_flag": False,
            "emoji": character,
            "licence": "MIT",
        }
        for index, (name, character) in enumerate(NAMES.items())
        for style in range(3)
    ]
    stamps = [
        {
            "image": picture(9, 60 * index, 200),
            "caption": f"A {name}.",
            "name": name,
            "style": "photo",
            "id": f"photos/{name}",
            "licence_family": "gpl",
        }
        for index, name in enumerate(NAMES)
    ]
    tables = {"sounds16k": sounds, "emoji128": emoji, "stamps128": stamps}
    tables["shapes64"] = [{"icon": picture(9, 9, 9), "name": "Chair"}]
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    classes = {name: {"stamps": [f"photos/{name}"]} for name in NAMES}
    (folder / "sounds_mapping.json").write_text(json.dumps({"classes": classes}))


def tiny_judge(classes: int = 4) -> SoundJudge:
    torch.manual_seed(0)
    return SoundJudge([f"class {index}" for index in range(classes)]).eval()


def tones(*hertz: float) -> Tensor:
    """(B, SAMPLES): half a second each, then silence."""
    times = torch.arange(SAMPLES) / 16_000
    return torch.stack([0.5 * torch.sin(2 * torch.pi * one * times) * (times < 0.5) for one in hertz])


# ------------------------------------------------------------------------------------------------------ what it hears


def test_it_has_ears_of_its_own() -> None:
    for field in ("fft_size", "hop", "bands"):
        assert getattr(JUDGE_MEL, field) != getattr(LITE_MEL, field)
    model = tiny_judge()
    mels = model.hear(tones(440, 880))
    assert mels.shape == (2, 204, 80)
    features, logits = judged(model, tones(440, 880))
    assert features.shape == (2, 256) and logits.shape == (2, 4)


@pytest.mark.parametrize("shape", [(1, SAMPLES - 1), (1, SAMPLES + 1), (SAMPLES,), (1, 1, SAMPLES)])
def test_clips_of_another_length_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        tiny_judge().features(torch.zeros(shape))


def test_what_nobody_hears_it_does_not_hear_either() -> None:
    torch.manual_seed(0)
    model, silence = tiny_judge(), torch.zeros(1, SAMPLES)
    hiss = 1e-4 * torch.randn(1, SAMPLES)
    torch.testing.assert_close(model.hear(hiss), model.hear(silence))
    assert not torch.allclose(model.hear(100 * hiss), model.hear(silence), atol=0.1)


def test_a_verdict_does_not_depend_on_the_other_clips() -> None:
    model, waveforms = tiny_judge(), tones(300, 500, 2000)
    together, alone = judged(model, waveforms)[1], judged(model, waveforms[1:2])[1]
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)


def test_it_learns_to_tell_tones_apart_and_its_files_give_it_back(tmp_path: Path) -> None:
    model, waveforms, answers = tiny_judge(), tones(300, 600, 1200, 2400), torch.arange(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(12):
        loss = F.cross_entropy(model.logits(model.features(waveforms * (0.3 + torch.rand(4, 1)))), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    begin_statistics(model)
    with torch.no_grad():
        model.features(waveforms)
    model.eval()
    assert hits(judged(model, waveforms)[1], answers, 1).mean() == 1
    model.save_pretrained(tmp_path)
    loaded = load_sound_judge(tmp_path)
    assert loaded.classes == model.classes and loaded.mel == JUDGE_MEL
    for before, after in zip(judged(model, waveforms), judged(loaded, waveforms), strict=True):
        torch.testing.assert_close(before, after, atol=0.02, rtol=0.02)  # it is kept in float16


def test_a_missing_judge_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="judge of sounds is missing") as refusal:
        load_sound_judge(tmp_path / "sound-judge")
    assert "training.sound_judge" in refusal.value.hint


# -------------------------------------------------------------------------------------------------- what it never hears


def test_a_tenth_of_the_files_is_reserved() -> None:
    reserved = [is_reserved_sound("package", f"{index}.ogg") for index in range(5000)]
    assert 0.085 < np.mean(reserved) < 0.115


@given(st.text(min_size=1), st.text(), st.text())
def test_of_known_classes_just_what_the_generators_never_hear_is_reserved(name: str, source: str, path: str) -> None:
    split = split_of(name, source, path)
    if split != "heldout-class":
        assert is_reserved_sound(source, path) == (split == "heldout-file")


def test_reserved_rows_are_whole_files(tmp_path: Path) -> None:
    write_tables(tmp_path)
    reserved, loaded = reserved_files(tmp_path), load_sounds(tmp_path)
    assert 0 < len(reserved) < CLIPS / 4
    assert {item.row for item in loaded.items if item.split == "heldout-file"} <= set(reserved)
    assert all(loaded.items[row].split != "train" for row in reserved)
    rows = pq.read_table(tmp_path / "sounds16k.parquet").to_pylist()
    files = set(reserved.values())
    assert {index for index, row in enumerate(rows) if f"{row['source']}|{row['path']}" in files} == set(reserved)


def test_a_class_is_known_by_a_clip_that_is_not_reserved() -> None:
    items = [Sound(row, name, "", (), "", False, True, "train") for row, name in enumerate(["a", "a", "b"])]
    assert known_classes(Sounds([], items), [0, 2]) == {"a"}


# -------------------------------------------------------------------------------------------- augmentation and measures


@given(st.integers(0, 30))
def test_augmented_clips_stay_in_range(seed: int) -> None:
    torch.manual_seed(seed)
    waveforms = torch.rand(4, 2_000) * 2 - 1
    made = augment(waveforms)
    assert made.shape == waveforms.shape and made.abs().max() <= 1 and made.isfinite().all()


def test_an_equaliser_changes_levels_and_no_frequencies() -> None:
    torch.manual_seed(0)
    waveforms = tones(1000, 1000)
    torch.testing.assert_close(bend_spectrum(waveforms, 0.0), waveforms, atol=1e-5, rtol=0)
    bent = bend_spectrum(waveforms)
    before, after = (torch.fft.rfft(x).abs() for x in (waveforms, bent))
    assert torch.equal(before.argmax(1), after.argmax(1))
    gains = 20 * torch.log10(after.amax(1) / before.amax(1))
    assert (gains.abs() < 16).all() and not torch.isclose(gains[0], gains[1], atol=0.1)


def test_hits_count_the_first_and_the_first_five() -> None:
    logits = torch.arange(10.0).flip(0).expand(3, 10)  # class 0 is the likeliest, class 9 the least likely
    answers = torch.tensor([0, 4, 5])
    assert hits(logits, answers, 1).tolist() == [1, 0, 0]
    assert hits(logits, answers, 5).tolist() == [1, 1, 0]
    assert hits(logits[:, :2], torch.tensor([0, 1, 1]), 5).tolist() == [1, 1, 1]


# --------------------------------------------------------------------------------------------------------- the recipe


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tables, where states and weights go as well; the recipe takes two steps of four clips."""
    write_tables(tmp_path)
    monkeypatch.setattr(loop, "STATE", tmp_path / "state")
    monkeypatch.setattr(sound_judge, "BATCH", 4)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("permissive_only", [False, True])
def test_the_recipe_hears_all_classes_but_no_reserved_clip(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, permissive_only: bool
) -> None:
    heard: set[int] = set()
    crops = Sounds.crops

    def listen(self: Sounds, items: list[Sound], samples: int, rng: np.random.Generator) -> Tensor:
        heard.update(item.row for item in items)
        return crops(self, items, samples, rng)

    monkeypatch.setattr(Sounds, "crops", listen)
    monkeypatch.setattr(sound_judge, "BATCH", 32)
    switch = ["--permissive-only"] if permissive_only else []
    monkeypatch.setattr(sys, "argv", ["recipe", "--data", ".", "--steps", "2", *switch])
    sound_judge.main()
    loaded, reserved = load_sounds(workplace), reserved_files(workplace)
    assert heard and not heard & set(reserved)
    assert {loaded.items[row].name for row in heard} == set(NAMES)
    assert all(loaded.items[row].permissive for row in heard) or not permissive_only
    folder = workplace / "assets" / "weights" / ("sound-judge-permissive" if permissive_only else "sound-judge")
    model = load_sound_judge(folder)
    assert model.classes == tuple(sorted(NAMES)) and (folder / "SHA256SUMS").exists()
    metrics = evaluate(model, loaded, [loaded.items[row] for row in reserved])
    assert set(metrics) == {f"{split}_top{first}" for split in ("heldout-file", "heldout-class") for first in (1, 5)}
    assert metrics["heldout-class_top5"] == 1  # there are only four classes
