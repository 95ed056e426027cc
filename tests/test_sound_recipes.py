"""The sound recipes' rules: the table and its split, crops, augmentation, losses, retrieval, and two steps of each."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from diffusers import AutoencoderTiny
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.mel import LITE_MEL, log_mel
from models.nets.audio_autoencoder import load_audio_autoencoder
from models.nets.vocoder import IstftVocoder, VocoderConfig, load_vocoder
from models.sound_text import SoundText, load_sound_text
from training import audio_autoencoder, loop, sound_text, sounds, vocoder
from training.audio_autoencoder import autoencoder_loss
from training.sound_text import audio_config, contrastive_loss, hide_bands, phrases_of, retrieval
from training.sounds import SAMPLES, Sound, Sounds, at_length, augment, decode, load_sounds, random_crop, split_of
from training.vocoder import vocoder_loss

TINY_AUTOENCODER = {
    **audio_autoencoder.CONFIG,
    "encoder_block_out_channels": (8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8),
    "num_encoder_blocks": (0, 1, 1),
    "num_decoder_blocks": (1, 1, 0),
}
TINY_VOCODER = VocoderConfig(width=16, hidden=32, blocks=1)
NAMES = ("whistle", "bell", "hum", "agogo")  # bell and agogo are held-out classes


def encoded(samples: np.ndarray, sample_rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def tone(hertz: float, seconds: float = 0.5) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * 16_000)) / 16_000)).astype(np.float32)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A folder with a table of 40 short tones, ten of each class, every other one permissive."""
    rows = [
        {
            "class": NAMES[index % 4],
            "caption": f"a {NAMES[index % 4]} sounding",
            "emoji": ["🔔"],
            "stamp": "",
            "loop": index % 3 == 0,
            "source": "tones",
            "path": f"tone{index}.wav",
            "licence_family": "permissive" if index % 8 < 4 else "gpl",
            "audio": encoded(tone(200 * (1 + index % 4) + index)),
        }
        for index in range(40)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / sounds.TABLE)
    return tmp_path


# ------------------------------------------------------------------------------------------------------- the table


def test_the_table_is_read_in_its_order(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_sounds(table)
    assert "NOT the table of the shipped weights" in capsys.readouterr().out
    assert [item.row for item in loaded.items] == list(range(40))
    assert loaded.items[1].name == "bell" and loaded.items[1].emoji == ("🔔",)
    np.testing.assert_allclose(loaded.clips[5] / 32_768, tone(405), atol=1e-4)
    assert {item.name for item in loaded.select("heldout-class")} == {"bell", "agogo"}
    permissive = loaded.select("train", permissive_only=True)
    assert permissive and all(item.permissive for item in permissive)
    assert len(permissive) < len(loaded.select("train"))


def test_a_missing_table_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"sounds16k\.parquet is missing"):
        load_sounds(tmp_path)


@pytest.mark.parametrize(
    "broken", [encoded(tone(200), 44_100), encoded(np.stack([tone(200)] * 2, 1)), encoded(np.zeros(0, np.float32))]
)
def test_other_clips_are_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match="not 16 kHz mono"):
        decode(broken)


def test_the_split_holds_out_a_tenth_of_classes_and_a_tenth_of_the_other_files() -> None:
    splits = [[split_of(f"class {i}", "package", f"{i}/{j}.ogg") for j in range(3)] for i in range(4000)]
    held = [row[0] == "heldout-class" for row in splits]
    assert 0.085 < np.mean(held) < 0.115
    files = [split == "heldout-file" for row, out in zip(splits, held, strict=True) if not out for split in row]
    assert 0.085 < np.mean(files) < 0.115


@given(st.text(min_size=1), st.text(), st.text(), st.text())
def test_a_held_out_class_is_held_out_in_every_file(name: str, source: str, path: str, other: str) -> None:
    held = "heldout-class"
    assert (split_of(name, source, path) == held) == (split_of(name, source, other) == held)


# ------------------------------------------------------------------------------------------------ clips of one length


@given(st.integers(1, 60), st.integers(1, 60), st.booleans())
def test_clips_are_cut_repeated_or_followed_by_silence(length: int, samples: int, loop: bool) -> None:
    clip = np.arange(1, length + 1, dtype=np.int16)
    made = at_length(clip, samples, loop)
    assert len(made) == samples and made.dtype == np.int16
    expected = [clip[i % length] if loop or i < length else 0 for i in range(samples)]
    assert made.tolist() == expected


@given(st.integers(1, 60), st.integers(1, 60), st.booleans(), st.integers(0, 9))
def test_a_crop_is_a_part_of_the_clip_or_has_all_of_it(length: int, samples: int, loop: bool, seed: int) -> None:
    clip = np.arange(1, length + 1, dtype=np.int16)
    crop = random_crop(clip, samples, loop, np.random.default_rng(seed))
    assert len(crop) == samples
    sounding = crop[crop > 0]
    if loop or length >= samples:
        assert len(sounding) == samples
    else:
        assert sounding.tolist() == clip.tolist()
    steps = np.diff(sounding.astype(int))
    assert ((steps == 1) | (steps == 1 - length)).all()


def test_crops_begin_everywhere() -> None:
    clip = np.arange(1, 11, dtype=np.int16)
    rng = np.random.default_rng(0)
    assert {int(random_crop(clip, 4, False, rng)[0]) for _ in range(300)} == set(range(1, 8))
    assert {int(np.argmax(random_crop(clip, 13, False, rng) == 1)) for _ in range(300)} == {0, 1, 2, 3}


@given(st.integers(0, 99), st.floats(0, 1))
def test_augmented_clips_stay_in_range(seed: int, mixed: float) -> None:
    torch.manual_seed(seed)
    waveforms = torch.rand(6, 50) * 2 - 1
    made = augment(waveforms, mixed, -20, 0)
    assert made.shape == waveforms.shape and made.abs().max() <= 1


def test_a_mixed_clip_holds_its_neighbour_at_the_level_asked_for() -> None:
    torch.manual_seed(0)
    waveforms = torch.zeros(2, 8)
    waveforms[0, 2], waveforms[1, 5] = 0.5, 0.5
    made = augment(waveforms, 1.0, -20, -20)
    torch.testing.assert_close(made[0, 5] / made[0, 2], torch.tensor(0.1))
    alone = augment(waveforms, 0.0, -20, -20)
    assert alone[0, 5] == 0 and 0.5 * 10 ** (-18 / 20) <= alone[0, 2] <= 0.5


# ---------------------------------------------------------------------------------------------------------- the losses


def losses(model: nn.Module, step: Callable[[], Tensor], count: int, rate: float = 3e-3) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    values = []
    for _ in range(count):
        loss = step()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


def test_the_autoencoder_learns_a_batch() -> None:
    torch.manual_seed(0)
    model = AutoencoderTiny(**TINY_AUTOENCODER)
    waveforms = torch.from_numpy(np.stack([tone(300 * k) for k in range(1, 5)]))
    mels = log_mel(waveforms, LITE_MEL)[:, :28]
    values = losses(model, lambda: autoencoder_loss(model, mels)[0], 60)
    assert values[-1] < values[0] / 2


def test_the_vocoder_learns_a_batch() -> None:
    torch.manual_seed(0)
    model = IstftVocoder(TINY_VOCODER, LITE_MEL)
    waveforms = torch.from_numpy(np.stack([tone(300 * k) for k in range(1, 5)]))[:, :7_936]
    mels = log_mel(waveforms, LITE_MEL)
    values = losses(model, lambda: vocoder_loss(model(mels), waveforms)[0], 60)
    assert values[-1] < values[0] * 0.8


def tiny_space() -> SoundText:
    torch.manual_seed(0)
    return SoundText(audio_config(), LITE_MEL)


def test_the_space_learns_a_batch_and_its_files_give_it_back(tmp_path: Path) -> None:
    model = tiny_space()
    mels, sentences = torch.randn(4, 256, 64), nn.functional.normalize(torch.randn(4, 384), dim=-1)
    same = torch.eye(4, dtype=torch.bool)
    values = losses(model, lambda: contrastive_loss(model, mels, sentences, same)[0], 12, 1e-3)
    assert values[-1] < values[0] / 2
    model.eval().save_pretrained(tmp_path)
    loaded = load_sound_text(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded.embed_sounds(mels), model.embed_sounds(mels), atol=5e-3, rtol=0)
        torch.testing.assert_close(
            loaded.embed_sentences(sentences), model.embed_sentences(sentences), atol=5e-3, rtol=0
        )
    assert loaded.mel == LITE_MEL


def test_the_space_has_unit_vectors_and_refuses_other_shapes() -> None:
    model = tiny_space().eval()
    with torch.no_grad():
        vectors = model.embed_sounds(torch.full((2, 256, 64), LITE_MEL.silence))
    assert vectors.shape == (2, 256)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    for shape in [(1, 255, 64), (1, 257, 64), (1, 256, 40), (256, 64)]:
        with pytest.raises(ValueError, match="expected"):
            model.embed_sounds(torch.zeros(shape))


def test_sounds_of_one_class_are_not_told_apart_by_the_loss() -> None:
    model = tiny_space().eval()
    mels, sentences = torch.randn(3, 256, 64), torch.randn(3, 384)
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    swapped = [1, 0, 2]
    with torch.no_grad():
        loss = contrastive_loss(model, mels, sentences, same)[0]
        torch.testing.assert_close(contrastive_loss(model, mels, sentences[swapped], same)[0], loss)
        told_apart = contrastive_loss(model, mels, sentences, torch.eye(3, dtype=torch.bool))[0]
    assert not torch.isclose(loss, told_apart)


def test_hiding_leaves_most_of_a_spectrogram() -> None:
    torch.manual_seed(0)
    hidden = hide_bands(torch.ones(64, 40, 20)) == 0
    share = hidden.float().mean((1, 2))
    assert share.max() <= 0.5 and share.mean() > 0.1
    whole_frames, whole_bands = hidden.all(2), hidden.all(1)
    assert torch.equal(hidden, whole_frames[:, :, None] | whole_bands[:, None, :])


def test_retrieval_counts_in_both_directions() -> None:
    texts = torch.eye(12)[:, :12]
    found = texts[[0, 0, 3]]
    metrics = retrieval(torch.cat([found, texts[[5]]]), texts, torch.tensor([0, 0, 3, 4]))
    assert metrics["sound_to_text_r1"] == pytest.approx(0.75)
    assert metrics["text_to_sound_r1"] == pytest.approx(2 / 3)  # class 4 has a sound, but it lies at text 5
    assert metrics["text_to_sound_r5"] == 1


def test_a_clip_is_called_by_its_caption_and_its_class() -> None:
    item = Sound(0, "dog", "a dog barking", (), "", False, True, "train")
    assert phrases_of(item) == ("a dog barking", "dog", "the sound of dog")


# ------------------------------------------------------------------------------------------------- whole recipes


@pytest.fixture
def workplace(table: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of :func:`table`, where states and weights go as well; recipes take two steps of four clips."""
    for module in (loop, audio_autoencoder, vocoder):
        monkeypatch.setattr(module, "STATE", table / "state")
    for module in (audio_autoencoder, vocoder, sound_text):
        monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(audio_autoencoder, "CONFIG", TINY_AUTOENCODER)
    monkeypatch.setattr(vocoder, "CONFIG", TINY_VOCODER)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (table / "assets" / "weights").mkdir(parents=True)
    encoder = Path("assets/weights/text-encoder-lite").resolve()
    (table / "assets" / "weights" / "text-encoder-lite").symlink_to(encoder)
    monkeypatch.chdir(table)
    return table


def run(monkeypatch: pytest.MonkeyPatch, recipe: Callable[[], None], *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe", "--data", ".", "--steps", "2", *arguments])
    recipe()


def test_the_autoencoder_recipe_writes_weights_with_latents_of_unit_deviation(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, audio_autoencoder.main)
    folder = workplace / "assets" / "weights" / "audio-autoencoder-lite"
    autoencoder = load_audio_autoencoder(folder)
    assert autoencoder.mel == LITE_MEL and (folder / "SHA256SUMS").exists()
    loaded = load_sounds(workplace)
    latents = autoencoder.encode(log_mel(loaded.waveforms(loaded.select("train")[::8]), LITE_MEL))
    assert latents.std().item() == pytest.approx(1, abs=0.02) and abs(latents.mean().item()) < 0.02
    metrics = audio_autoencoder.evaluate(autoencoder.model, loaded, "audio-autoencoder", 2)
    assert set(metrics) == {"heldout-file_error_db", "heldout-class_error_db"}
    assert (workplace / "state" / "audio-autoencoder" / "heldout-class-step2.png").exists()


def test_the_vocoder_recipe_is_measured_beside_griffin_lim(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, vocoder.main)
    model = load_vocoder(workplace / "assets" / "weights" / "vocoder-lite")
    assert isinstance(model, IstftVocoder) and model.config == TINY_VOCODER
    held_out = vocoder.held_out_waveforms(load_sounds(workplace))[:10]
    assert held_out.shape[1] == SAMPLES
    with torch.no_grad():
        metrics = vocoder.evaluate(model, held_out, "vocoder", 2) | vocoder.rival_metrics(held_out)
    assert all(np.isfinite(float(value)) and float(value) > 0 for value in metrics.values()) and len(metrics) == 5
    assert metrics["true_phases_distance"] < metrics["griffin_lim_distance"]
    assert (workplace / "state" / "vocoder" / "step2.png").exists()


def test_the_permissive_recipe_never_touches_other_clips(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: set[int] = set()
    crops = Sounds.crops

    def listen(self: Sounds, items: list[Sound], samples: int, rng: np.random.Generator) -> Tensor:
        heard.update(item.row for item in items)
        return crops(self, items, samples, rng)

    monkeypatch.setattr(Sounds, "crops", listen)
    run(monkeypatch, vocoder.main, "--permissive-only")
    loaded = load_sounds(workplace)
    assert heard and all(loaded.items[row].permissive and loaded.items[row].split == "train" for row in heard)
    assert (workplace / "assets" / "weights" / "vocoder-permissive-lite" / "model.safetensors").exists()
    assert not (workplace / "assets" / "weights" / "vocoder-lite").exists()


def test_the_space_recipe_measures_retrieval_on_both_kinds_of_held_out_clips(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, sound_text.main)
    model = load_sound_text(workplace / "assets" / "weights" / "sound-text-lite")
    loaded = load_sounds(workplace)
    table = sound_text.PhraseTable(loaded.items)
    with torch.no_grad():
        metrics = sound_text.evaluate(model, loaded, table, sorted(NAMES))
    assert len(metrics) == 12 and all(0 <= float(value) <= 1 for value in metrics.values())
    assert metrics["heldout-class_sound_to_text_r5"] == 1  # there are only four classes
