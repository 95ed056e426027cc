"""The recipes of the two sound generators: losses, changes of the clips, linked pictures, whole runs."""

from __future__ import annotations

import io
import json
import shutil
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
from diffusers import AutoencoderTiny, DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from models.mel import LITE_MEL
from models.nets.efficientnet_lite import EfficientNetLite2
from models.picture_text import PictureText, PictureTextConfig
from models.sound_generator import load_sound_generator
from models.sound_text import SoundText
from tests.test_sound_generator import Knowing, tiny, vectors
from training import loop, picture_sound, sound_diffusion, sound_generator
from training.picture_sound import Links, bare, kinds_of, load_links, read_pictures_as_sounds, rows_by_key
from training.pictures import Picture
from training.sound_diffusion import (
    CONFIG,
    SCHEDULE,
    Evaluation,
    Listener,
    diffusion_loss,
    mix,
    shifted,
    soften,
    spread_timesteps,
    velocity_errors,
)
from training.sound_text import audio_config
from training.sounds import Sound, Sounds, load_sounds

# ------------------------------------------------------------------------------------------------- losses and changes


def test_the_generator_learns_a_batch() -> None:
    model = tiny().train()
    latents, conditions = torch.randn(4, 4, 16, 8).mul(0.2).add(1), vectors(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    values = []
    for _ in range(40):
        loss, _ = diffusion_loss(model, latents, conditions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[0] > 0.9 and np.mean(values[-10:]) < 0.6  # to guess nothing costs about 1


def test_the_velocity_of_training_is_that_of_sampling() -> None:
    model = Knowing(tiny().unet, DDIMScheduler(**SCHEDULE), torch.zeros(12), 16, 8)
    model.answer = torch.randn(1, 4, 16, 8)
    for step in (0, 500, 998, 999):
        error = velocity_errors(model, model.answer, vectors(1), torch.tensor([step]), torch.randn(1, 4, 16, 8))
        assert error.shape == (1,) and error.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_null_condition_learns_where_it_replaces_another(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound_diffusion, "NULL_SHARE", share)
    model = tiny()
    losses = []
    for conditions in (vectors(3), -vectors(3)):
        torch.manual_seed(2)
        loss, _ = diffusion_loss(model, torch.ones(3, 4, 16, 8), conditions)
        losses.append(loss.item())
    loss.backward()
    assert (losses[0] == losses[1]) == (share == 1)
    assert bool(model.null_condition.grad is not None and model.null_condition.grad.any()) == (share == 1)


def test_softened_conditions_are_near_unit_vectors() -> None:
    torch.manual_seed(0)
    before = vectors(500, 256)
    after = soften(before)
    torch.testing.assert_close(after.norm(dim=1), torch.ones(500))
    sines = (1 - (before * after).sum(1).square()).sqrt()
    assert 0.08 < sines.min() < 0.12 and 0.26 < sines.max() < 0.34


@given(st.integers(1, 64), st.floats(0, 1))
def test_time_steps_are_spread_over_the_schedule(count: int, offset: float) -> None:
    steps = spread_timesteps(count, torch.tensor(offset))
    assert steps.min() >= 0 and steps.max() < 1000
    assert count == 1 or steps.diff().sub(1000 / count).abs().max() < 1.1


def test_a_mixed_clip_holds_its_predecessor_and_all_have_one_peak() -> None:
    waveforms = torch.zeros(2, 8)
    waveforms[0, 2], waveforms[1, 5] = 0.5, 0.25
    mixed = mix(waveforms, torch.tensor([True, False]), torch.tensor([-20.0, 0.0]))
    torch.testing.assert_close(mixed[0, 5] / mixed[0, 2], torch.tensor(0.05))
    torch.testing.assert_close(mixed.amax(1), torch.full((2,), 0.89))
    assert mixed[1, 2] == 0
    assert mix(torch.zeros(1, 8), torch.tensor([True]), torch.zeros(1)).abs().max() == 0


def sound(row: int, name: str = "hum", emoji: tuple[str, ...] = (), stamp: str = "", loop: bool = False) -> Sound:
    return Sound(row, name, f"a {name}", emoji, stamp, loop, True, "train")


def test_loops_begin_anywhere_and_other_clips_at_their_beginning() -> None:
    clips = [np.arange(1, 51, dtype=np.int16), np.arange(1, 51, dtype=np.int16)]
    items = [sound(0, loop=True), sound(1)]
    starts = set()
    for seed in range(40):
        loop_clip, other = shifted(Sounds(clips, items), items, np.random.default_rng(seed)) * 32_768
        starts.add(int(loop_clip[0]))
        assert set(np.diff(loop_clip.numpy()).tolist()) == {1.0, -49.0}
        assert other[:50].tolist() == clips[1].tolist() and other[50:].abs().max() == 0
    assert len(starts) > 15


# --------------------------------------------------------------------------------------------------- linked pictures


def test_pictures_are_found_by_emoji_and_stamp() -> None:
    keys = [("🔔", True), ("🔔", False), ("", True), ("bells/one", True), ("bells/two", True)]
    pictures = [Picture(row, "bell", "emoji", (), False, "train") for row in range(6)]  # the last one is a shape
    rows = rows_by_key(keys, pictures, permissive_only=False)
    assert rows == {"🔔": [0, 1], "bells/one": [3], "bells/two": [4]}
    assert rows_by_key(keys, pictures, permissive_only=True)["🔔"] == [0]
    assert rows_by_key(keys, pictures[1:3], permissive_only=False) == {"🔔": [1]}

    item = sound(0, "bell", (bare("🔔\ufe0f") + "\ufe0f", "🛎️"), "bells/two")
    assert kinds_of(item, ["bells/one", "bells/two"], rows) == [[4], [3, 4], [0, 1]]
    assert kinds_of(sound(0, "bell", ("🛎️",)), [], rows) == []
    assert kinds_of(sound(0, "speech", ("🔔",), "bells/one"), ["bells/two"], rows) == [[0, 1]]


def test_a_random_picture_is_drawn_and_the_photograph_is_not_lost_among_emoji() -> None:
    links = Links(torch.eye(9), {7: [[0], list(range(1, 9))]})
    rng = np.random.default_rng(0)
    drawn = torch.cat([links.draw([sound(7)], rng) for _ in range(400)]).argmax(1)
    assert set(drawn.tolist()) == set(range(9))
    assert 150 < (drawn == 0).sum() < 250


# ------------------------------------------------------------------------------------------------------ whole recipes

NAMES = ("whistle", "bell", "hum", "agogo")  # bell and agogo are held-out classes


def tone(hertz: float) -> bytes:
    samples = 0.5 * np.sin(2 * np.pi * hertz * np.arange(8000) / 16_000)
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.float32), 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (128, 128), (shade, 255 - shade, 90)).save(file, format="PNG")
    return file.getvalue()


def write_tables(folder: Path) -> None:
    """40 tones, the first class without any picture; emoji in three styles, two stamps, one shape."""
    sounds = [
        {
            "class": NAMES[index % 4],
            "caption": f"a {NAMES[index % 4]}",
            "emoji": [] if index % 4 == 0 else ["🔔️"],
            "stamp": "hums/hum" if index % 8 == 2 else "",
            "loop": index % 3 == 0,
            "source": "tones",
            "path": f"tone{index}.wav",
            "licence_family": "permissive" if index % 8 < 4 else "gpl",
            "audio": tone(200 * (1 + index % 4) + index),
        }
        for index in range(40)
    ]
    emoji = [
        {
            "image": picture(60 * index),
            "caption": "hum",
            "style": style,
            "keywords": [],
            "more_keywords": [],
            "is_flag": False,
            "emoji": "🔔",
            "licence": licence,
        }
        for index, (style, licence) in enumerate(
            [("noto", "Apache-2.0"), ("openmoji", "CC-BY-SA-4.0"), ("fxemoji", "MIT")]
        )
    ]
    stamps = [
        {"image": picture(200 + index), "caption": "A hum.", "style": style, "name": "hum", "id": key}
        | {"licence_family": "gpl"}
        for index, (key, style) in enumerate([("hums/hum", "photo"), ("hums/other", "drawing")])
    ]
    tables = {"sounds16k": sounds, "emoji128": emoji, "stamps128": stamps}
    tables["shapes64"] = [{"icon": picture(9), "name": "chair"}]
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    classes = {name: {"stamps": ["hums/other"] if name == "hum" else []} for name in NAMES}
    (folder / "sounds_mapping.json").write_text(json.dumps({"classes": classes}))


def write_frozen(folder: Path) -> None:
    torch.manual_seed(0)
    autoencoder = AutoencoderTiny(
        in_channels=1,
        out_channels=1,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(0, 1, 1),
        num_decoder_blocks=(1, 1, 0),
        latent_channels=8,
    )
    autoencoder.save_pretrained(folder / "audio-autoencoder-lite")
    LITE_MEL.save(folder / "audio-autoencoder-lite")
    SoundText(audio_config(), LITE_MEL).save_pretrained(folder / "sound-text-lite")
    space = PictureText(PictureTextConfig(), EfficientNetLite2(), torch.randn(1000, 384))
    space.save_pretrained(folder / "picture-text-lite")
    for name in ("audio-autoencoder", "sound-text", "picture-text"):
        (folder / f"{name}-permissive-lite").symlink_to(folder / f"{name}-lite")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tables, frozen models of random weights, and recipes that take two steps of four clips with a tiny network."""
    write_tables(tmp_path)
    write_frozen(tmp_path / "assets" / "weights")
    for module in (loop, sound_diffusion):
        monkeypatch.setattr(module, "STATE", tmp_path / "state")
    for recipe in (sound_generator, picture_sound):
        monkeypatch.setattr(recipe, "BATCH", 4)
    monkeypatch.setattr(picture_sound, "REGRESSION_STEPS", 20)
    sizes = {"block_out_channels": (8, 8, 8), "cross_attention_dim": (8, 8, 8), "norm_num_groups": 4}
    monkeypatch.setattr(sound_diffusion, "CONFIG", {**CONFIG, **sizes, "attention_head_dim": 1})
    monkeypatch.setattr(sound_diffusion, "STEPS", 2)
    monkeypatch.setattr(sound_diffusion, "SHOWN", 4)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, recipe: Callable[[], None], *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe", "--data", ".", "--steps", "2", *arguments])
    recipe()


def test_both_recipes_write_generators_one_from_the_other(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, sound_generator.main)
    weights = workplace / "assets" / "weights"
    first = load_sound_generator(weights / "sound-generator-lite")
    assert (weights / "sound-generator-lite" / "SHA256SUMS").exists()
    assert (first.window, first.bands, first.null_condition.shape) == (64, 16, (256,))
    assert first.scheduler.config.prediction_type == "v_prediction"

    run(monkeypatch, picture_sound.main, "--steps", "0")
    assert (weights / "clipsonic-lite" / "SHA256SUMS").exists()
    second = load_sound_generator(weights / "clipsonic-lite").state_dict()
    kept = {name: value for name, value in first.state_dict().items() if name in second and name != "null_condition"}
    assert first.state_dict().keys() - kept == {f"unet.class_embedding.{part}" for part in ("weight", "bias")} | {
        "null_condition"
    }
    assert all(torch.equal(value, second[name]) for name, value in kept.items())


def test_a_generator_that_reads_pictures_as_sounds_makes_what_it_made_of_the_sounds() -> None:
    first = tiny()
    generator = torch.Generator().manual_seed(0)
    seen = torch.nn.functional.normalize(torch.randn(4000, 12, generator=generator), dim=1)
    turned, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator))
    heard = seen @ turned
    second = read_pictures_as_sounds(first, seen, heard)
    noisy, times = torch.randn(3, 4, 16, 8), torch.tensor([10, 500, 990])
    with torch.no_grad():
        expected, found = first(noisy, times, heard[:3]), second(noisy, times, seen[:3])
        other, free = second(noisy, times, seen[3:6]), first(noisy, times, first.null_condition.expand(3, -1))
        found_free = second(noisy, times, second.null_condition.expand(3, -1))
    assert (found - expected).abs().max() < 0.2 * (other - expected).abs().max()
    assert (found_free - free).abs().max() < 0.1 * (other - free).abs().max()


def test_the_less_a_picture_says_the_nearer_its_condition_is_to_the_mean_of_all() -> None:
    """Pictures of two kinds: with the first goes one sound, with the second any."""
    model = tiny()
    generator = torch.Generator().manual_seed(0)
    kinds = torch.nn.functional.normalize(torch.randn(2, 12, generator=generator), dim=1)
    sounds = torch.nn.functional.normalize(torch.randn(1000, 12, generator=generator), dim=1)
    heard = torch.cat([sounds[:1].expand(1000, -1), sounds])
    reads = read_pictures_as_sounds(model, kinds.repeat_interleave(1000, 0), heard).unet.class_embedding
    with torch.no_grad():
        (sure, unsure), layer = reads(kinds), model.unet.class_embedding
        wanted, silent = layer(sounds[0]), layer(sounds.mean(0))
    assert (sure - wanted).norm() < 0.2 * (wanted - silent).norm()
    assert (unsure - silent).norm() < 0.2 * (wanted - silent).norm()


def test_both_recipes_go_on_from_earlier_weights_with_all_layers(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, sound_generator.main)
    weights, earlier = workplace / "assets" / "weights", workplace / "earlier"
    shutil.copytree(weights / "sound-generator-lite", earlier)
    began_with = load_sound_generator(earlier).state_dict()
    for recipe, name in ((sound_generator, "sound-generator"), (picture_sound, "clipsonic")):
        shutil.rmtree(workplace / "state" / name, ignore_errors=True)
        run(monkeypatch, recipe.main, "--steps", "0", "--continue-from", str(earlier))
        unchanged = load_sound_generator(weights / f"{name}-lite").state_dict()
        assert all(torch.equal(value, unchanged[key]) for key, value in began_with.items())
        shutil.rmtree(workplace / "state" / name)
        run(monkeypatch, recipe.main, "--continue-from", str(earlier))
        learned = load_sound_generator(weights / f"{name}-lite").state_dict()
        assert not torch.equal(learned["unet.conv_in.weight"], began_with["unet.conv_in.weight"])


def test_held_out_clips_are_measured_and_shown(workplace: Path) -> None:
    loaded, listener = load_sounds(workplace), Listener(permissive_only=False)
    evaluation = Evaluation(
        sound_diffusion.new_generator().eval(), listener, loaded, "checked", lambda _, vectors: vectors
    )
    with torch.no_grad():
        metrics, again = evaluation(2), evaluation(2)
    names = ("velocity", "relevance", "relevance_other", "relevance_ceiling")
    assert set(metrics) == {f"{split}_{name}" for split in ("heldout-file", "heldout-class") for name in names}
    assert all(np.isfinite(float(value)) for value in metrics.values()) and metrics == again
    assert (workplace / "state" / "checked" / "heldout-class-step2.png").exists()


def test_the_permissive_recipes_hear_and_see_permissive_media_only(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_sounds(workplace)
    everything, permissive = (load_links(workplace, loaded, only) for only in (False, True))
    hum = next(item.row for item in loaded.items if item.stamp)
    assert [len(kind) for kind in everything.kinds[hum]] == [1, 1, 2]
    assert [len(kind) for kind in permissive.kinds[hum]] == [2]
    held_out = next(item.row for item in loaded.select("heldout-file") if item.name == "hum")
    [[unseen]] = everything.kinds[held_out]  # in one style the picture is held out as well
    assert all(unseen not in kind for kind in everything.kinds[hum])
    assert permissive.kinds[held_out] == permissive.kinds[hum][-1:]
    assert all(item.name != "whistle" for item in loaded.items if item.row in everything.kinds)
    torch.testing.assert_close(permissive.vectors.norm(dim=1), torch.ones(2))

    heard: set[int] = set()

    def listen(sounds: Sounds, items: list[Sound], rng: np.random.Generator) -> Tensor:
        heard.update(item.row for item in items)
        return shifted(sounds, items, rng)

    monkeypatch.setattr(sound_generator, "shifted", listen)
    run(monkeypatch, sound_generator.main, "--permissive-only")
    assert heard and all(loaded.items[row].permissive and loaded.items[row].split == "train" for row in heard)
    weights = workplace / "assets" / "weights"
    assert (weights / "sound-generator-permissive-lite" / "config.json").exists()
    assert not (weights / "sound-generator-lite").exists()
