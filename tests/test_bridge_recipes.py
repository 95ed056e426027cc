"""The recipes of the bridges between spaces: pairs, measures, whole runs."""

from __future__ import annotations

import io
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from models.bridges import DiffusionBridge, MeanShift, RegressionBridge, load_bridge
from models.mel import LITE_MEL
from models.nets.efficientnet_lite import EfficientNetLite2
from models.picture_text import PictureText, PictureTextConfig
from models.sound_text import SoundText
from training import bridges, loop, mapper, picture_text, text_prior
from training.bridges import Pairs, frechet_distance, make_task, measure
from training.publish import write_sums
from training.sound_text import audio_config

WIDTH = 16
AXES = torch.eye(WIDTH)
SEEDS = range(64)


# --------------------------------------------------------------------------------------------------- pairs and measures


def test_pairs_are_drawn_by_the_seed_alone_and_kinds_alike() -> None:
    kinds = [[[0], [1, 2, 3]], [[4]]]
    pairs = Pairs(AXES[:5], AXES[5:7], kinds, torch.tensor([0, 1]))
    indices = np.array([0] * 2000 + [1])
    sources, targets = pairs.draw(indices, (1, 2))
    assert torch.equal(sources, pairs.draw(indices, (1, 2))[0])
    assert not torch.equal(sources, pairs.draw(indices, (1, 3))[0])
    share = sources[:2000, :5].mean(0)
    np.testing.assert_allclose(share, [1 / 2, 1 / 6, 1 / 6, 1 / 6, 0], atol=0.05)
    assert torch.equal(sources[2000], AXES[4]) and torch.equal(targets[[0, 2000]], AXES[5:7])
    assert torch.equal(pairs.all()[0], pairs.all()[0])


def test_a_task_keeps_splits_apart() -> None:
    labels = ["cat", "cat", "cat", "dog", "dog", "owl", "cat"]
    splits = ["train", "train", "file", "class", "class", "lonely", "train"]
    kinds: list[list[list[int]]] = [[[0]], [[1]], [[2]], [[3]], [[4]], [[5]], []]
    targets = AXES[:7]
    task = make_task(AXES[8:14], targets, kinds, labels, splits, one_space=False)
    assert torch.equal(task.train.targets, targets[:2])  # the last has no source
    assert set(task.held_out) == {"class"}  # one pair has no distribution
    means = F.normalize(torch.stack([targets[[0, 1, 6]].mean(0), targets[3:5].mean(0), targets[5]]), dim=1)
    torch.testing.assert_close(task.means, means)
    found = task.ceiling()
    assert found["class_cosine"] == pytest.approx(1) and found["class_nearest_class"] == 1
    assert found["class_frechet_x100"] == pytest.approx(0, abs=1e-6)


def test_measures_of_known_vectors() -> None:
    true, means = AXES[[0, 0, 1, 1]], AXES[:2]
    classes = torch.tensor([0, 0, 1, 1])
    swapped = measure(AXES[[0, 1, 1, 0]], true, classes, means)
    assert swapped["cosine"] == pytest.approx(0.5) and swapped["nearest_class"] == pytest.approx(0.5)
    assert swapped["frechet_x100"] == pytest.approx(0, abs=1e-6)
    features = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features + 2) == pytest.approx(16, rel=1e-5)


def test_vectors_are_kept_for_the_weights_that_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridges, "STATE", tmp_path / "state")
    calls = []

    def batches() -> Iterator[Tensor]:
        calls.append(1)
        yield from AXES.split(5)

    for content in ("one", "two"):
        (tmp_path / "config.json").write_text(content)
        write_sums(tmp_path)
        for _ in range(2):
            assert torch.equal(bridges.vectors_of_space("axes", tmp_path, WIDTH, batches), AXES)
    assert len(calls) == 2


# ------------------------------------------------------------------------------------------------------- whole recipes


def picture(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (128, 128), colour).save(file, "PNG")
    return file.getvalue()


def tone(hertz: float) -> bytes:
    file = io.BytesIO()
    samples = 0.5 * np.sin(2 * np.pi * hertz * np.arange(4_000) / 16_000)
    soundfile.write(file, samples, 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


# Bell and agogo are held-out classes and concepts; each has an emoji in two styles.
NAMES = {"whistle": "\U0001f3b5", "bell": "\U0001f514", "hum": "\U0001f41d", "agogo": "\U0001f941\ufe0f"}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tables of eight pictures and 24 clips, and untrained spaces; recipes take two steps of four pairs."""
    emoji = [
        {
            "image": picture((40 * index, 90, 20 * style)),
            "caption": name,
            "style": ("noto", "twemoji")[style],
            "keywords": [f"{name} sound"],
            "more_keywords": [],
            "is_flag": False,
            "emoji": character.replace("\ufe0f", ""),
            "licence": ("Apache-2.0", "CC-BY-4.0")[style],
        }
        for index, (name, character) in enumerate(NAMES.items())
        for style in range(2)
    ]
    stamp = {"image": picture((1, 2, 3)), "caption": "A flute.", "name": "flute", "style": "photo", "id": "music/flute"}
    shape = {"icon": picture((9, 9, 9)), "name": "Chair", "licence": "CC0"}
    clips = [
        {
            "class": list(NAMES)[index % 4],
            "caption": "it sounds",
            "emoji": [list(NAMES.values())[index % 4]],
            "stamp": "",
            "loop": False,
            "source": "tones",
            "path": f"tone{index}.wav",
            "licence_family": "permissive" if index % 8 < 4 else "gpl",
            "audio": tone(200 + 30 * index),
        }
        for index in range(40)
    ]
    for name, rows in {
        "emoji128": emoji,
        "stamps128": [stamp | {"licence_family": "gpl"}],
        "shapes64": [shape],
        "sounds16k": clips,
    }.items():
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    (tmp_path / "sounds_mapping.json").write_text(json.dumps({"classes": {name: {"stamps": []} for name in NAMES}}))
    for module in (loop, bridges, picture_text):
        monkeypatch.setattr(module, "STATE", tmp_path / "state")
    monkeypatch.setattr(bridges, "BATCH", 4)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    weights = tmp_path / "assets" / "weights"
    weights.mkdir(parents=True)
    (weights / "text-encoder-lite").symlink_to(Path("assets/weights/text-encoder-lite").resolve())
    torch.manual_seed(0)
    space = PictureText(PictureTextConfig(), EfficientNetLite2(), torch.randn(1000, 384)).eval()
    heard = SoundText(audio_config(), LITE_MEL)
    spaces: dict[str, PictureText | SoundText] = {"picture-text-lite": space, "sound-text-lite": heard}
    for name, model in spaces.items():
        model.save_pretrained(weights / name)
        write_sums(weights / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, recipe: Callable[[], None]) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe", "--data", ".", "--steps", "2"])
    recipe()


def test_the_mapper_recipe_writes_both_mappers(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, mapper.main)
    weights = workplace / "assets" / "weights"
    loaded = load_bridge(weights / "v2a-mapper-lite")
    assert isinstance(loaded, DiffusionBridge) and not loaded.one_space and loaded.width == 256
    assert sum(p.numel() for p in loaded.parameters()) == pytest.approx(3.5e6, rel=0.1)
    assert isinstance(load_bridge(weights / "v2a-regression-lite"), RegressionBridge)
    assert (weights / "v2a-mapper-lite" / "SHA256SUMS").exists()
    rows = json.loads((workplace / "state" / "v2a-mapper" / "comparison.json").read_text())
    assert list(rows) == ["no bridge", "mean shift", "regression", "diffusion", "diffusion, guidance 1", "true"]
    assert {name.split("_")[0] for name in rows["diffusion"]} == {"heldout-class", "heldout-file"}
    assert all(math.isfinite(value) for found in rows.values() for value in found.values())
    assert rows["true"]["heldout-class_frechet_x100"] < 1e-3 < rows["no bridge"]["heldout-class_frechet_x100"]


def test_the_permissive_mapper_learns_from_permissive_clips_alone(workplace: Path) -> None:
    whole = mapper.load_task(Path("."), False)
    (Path("assets/weights") / "sound-text-permissive-lite").symlink_to("sound-text-lite")
    (Path("assets/weights") / "picture-text-permissive-lite").symlink_to("picture-text-lite")
    permissive = mapper.load_task(Path("."), True)
    assert 0 < len(permissive.train.targets) < len(whole.train.targets)
    assert len(permissive.held_out["heldout-file"].targets) == len(whole.held_out["heldout-file"].targets)


def test_the_prior_recipe_never_needs_a_sound(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "sounds16k.parquet").unlink()
    run(monkeypatch, text_prior.main)
    weights = workplace / "assets" / "weights"
    prior = load_bridge(weights / "clipsonic-prior-lite")
    assert isinstance(prior, DiffusionBridge) and prior.one_space
    assert isinstance(load_bridge(weights / "clipsonic-mean-shift-lite"), MeanShift)
    rows = json.loads((workplace / "state" / "clipsonic-prior" / "comparison.json").read_text())
    assert list(rows)[-2:] == ["diffusion, best of 4", "true"]
    assert "heldout-concept_cosine_to_source" in rows["true"]
    assert rows["no bridge"]["heldout-concept_cosine_to_source"] == pytest.approx(1, abs=1e-4)
