"""The recipe of CLIP-lite: phrases, augmented views, a whole run."""

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
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from models import picture_text as space
from models.picture_text import PictureText, PictureTextConfig, load_picture_text
from tests.test_picture_text import untrained_backbone
from training import loop
from training import picture_text as recipe
from training.picture_text import (
    augment,
    background,
    belong_together,
    draw_phrase,
    may_be_mirrored,
    move,
    on_colour,
    other_words,
    styled_phrase,
)
from training.pictures import Picture, load_pictures, split_of

ASSETS = Path("assets/weights")
GOLDEN = Path("tests/golden/efficientnet_lite2.safetensors")
TINY = PictureTextConfig(width=32, hidden=64, dropout=0.0)


# ---------------------------------------------------------------------------------------------------------- the phrases


def item(concept: str = "owl", style: str = "flat", synonyms: tuple[str, ...] = ("bird", "wise")) -> Picture:
    return Picture(0, concept, style, synonyms, False, "train")


def test_class_names_are_imagenets_in_order() -> None:
    names = recipe.CLASS_NAMES.read_text().splitlines()
    assert len(names) == 1000 and all(name == name.strip() and name for name in names)
    known = {0: "tench", 207: "golden retriever", 388: "giant panda", 805: "soccer ball", 999: "toilet tissue"}
    assert {index: names[index] for index in known} == known


def test_a_picture_is_called_by_concept_synonym_and_style() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_phrase(item(), rng) for _ in range(4000)]
    assert 0.57 < np.mean([phrase == "owl" for phrase in drawn]) < 0.63
    assert 0.22 < np.mean([phrase in ("bird", "wise") for phrase in drawn]) < 0.28
    assert set(drawn) == {"owl", "bird", "wise", "a flat picture of owl"}
    assert {draw_phrase(item(synonyms=()), rng) for _ in range(200)} == {"owl", "a flat picture of owl"}
    assert styled_phrase(item("apple", "emoji")) == "an emoji of apple"


def test_a_held_out_concept_is_never_said() -> None:
    words = tuple(f"word {index}" for index in range(300))
    kept = other_words(item(synonyms=words))
    assert set(words) - set(kept) == {word for word in words if split_of(word, "flat") == "heldout-concept"} != set()


def test_pictures_called_the_same_belong_together() -> None:
    items = [item("owl"), item("owl"), item("eagle"), item("cup")]
    together = belong_together(items, ["owl", "bird", "bird", "cup"])
    assert together.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]


# -------------------------------------------------------------------------------------------------- the augmented views


def ring(size: int = 48) -> Tensor:
    """A red ring on white with a white hole, left of the middle: (1, 3, size, size) in [-1, 1]."""
    y, x = np.mgrid[:size, :size]
    radius = torch.from_numpy(np.hypot(y - size / 2, x - size / 3))
    picture = torch.ones(1, 3, size, size)
    picture[:, 1:, (radius > 6) & (radius < 11)] = -1
    return picture


def test_background_is_the_white_around_not_the_white_inside() -> None:
    found = background(ring())[0, 0]
    assert found[0, 0] and found[24, 40] and not found[24, 16] and not found[24, 24]
    assert not background(-torch.ones(1, 3, 9, 9)).any()


def test_background_is_found_around_every_corner() -> None:
    walls = torch.ones(2, 3, 30, 30)
    walls[:, :, 2:28, 2:28] = -1
    for level in range(4, 24, 4):  # a passage that winds from right to left and back, and ends inside
        walls[:, :, level, 4:26] = 1
        turn = 25 if level % 8 else 4
        walls[:, :, level : level + 5, turn] = 1
    walls[0, :, :5, 4] = 1  # open to the outside in the first picture only
    opened, closed = background(walls)[:, 0]
    assert opened[20, 15] and opened[12, 15] and opened[0, 20] and not opened[6, 15]
    assert not closed[20, 15] and not closed[4, 15] and closed[0, 20]


def test_a_picture_gets_another_background_and_keeps_its_inside() -> None:
    coloured = on_colour(ring(), torch.tensor([0.0, 0.5, 1.0])[None, :, None, None])[0]
    assert coloured[:, 0, 0].tolist() == [-1, 0, 1]
    assert coloured[:, 24, 16].tolist() == [1, 1, 1] and coloured[:, 24, 24].tolist() == [1, -1, -1]


@settings(max_examples=20)
@given(st.integers(0, 999))
def test_views_stay_pictures_on_white(seed: int) -> None:
    torch.manual_seed(seed)
    moved = move(ring().expand(4, -1, -1, -1), torch.ones(4, dtype=torch.bool))
    assert moved.shape == (4, 3, 48, 48) and moved.min() >= -1.0001 and moved.max() <= 1.0001
    assert (moved[:, :, 0, -1] > 0.99).all()
    inked = (moved[:, 1] < 0).float().mean((1, 2)) / (ring()[:, 1] < 0).float().mean()
    assert (inked > 0.35).all() and (inked < 1.8).all()
    augmented = augment(ring(), torch.ones(1, dtype=torch.bool))
    assert augmented.min() >= -1.0001 and augmented.max() <= 1.0001


def test_only_what_may_be_is_mirrored() -> None:
    torch.manual_seed(0)
    pictures, left = ring().expand(64, -1, -1, -1), slice(None, 24)
    ink_left = [
        (move(pictures, torch.full((64,), allowed))[:, 1, :, left] < 0).float().mean((1, 2))
        for allowed in (True, False)
    ]
    ink_right_only = [float((ink < 0.06).float().mean()) for ink in ink_left]
    assert 0.3 < ink_right_only[0] < 0.7 and ink_right_only[1] == 0
    assert may_be_mirrored(item("owl")) and may_be_mirrored(item("bright star"))
    assert not may_be_mirrored(item("left-facing fist")) and not may_be_mirrored(item("b", "letter"))


# -------------------------------------------------------------------------------------------------------- whole recipe


def encoded(index: int) -> bytes:
    """A 128x128 disc of its own colour and place, as WebP."""
    y, x = np.mgrid[:128, :128]
    pixels = np.full((128, 128, 3), 255, np.uint8)
    pixels[(y - 50 - index) ** 2 + (x - 64) ** 2 < 900] = [(index * 40) % 256, (index * 90) % 256, 80]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="WEBP", quality=95)
    return file.getvalue()


def concepts_of(split: str, style: str, count: int) -> list[str]:
    return [name for name in (f"thing {i}" for i in range(400)) if split_of(name, style) == split][:count]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tables of 13 pictures of all splits, a backbone, three names of classes; the recipe looks at 64x64 pixels."""
    splits = {"train": 4, "heldout-pair": 1, "heldout-concept": 1}
    stamps = [name for split, count in splits.items() for name in concepts_of(split, "photo", count)]
    emoji = [name for split, count in splits.items() for name in concepts_of(split, "flat", count)]
    common = {"caption": "", "style": "", "image": b""}
    words = {"keywords": ["round"], "more_keywords": ["disc"], "is_flag": False}
    tables: dict[str, list[dict[str, object]]] = {
        "emoji128": [
            {**common, **words, "caption": name, "style": "fluent-flat", "image": encoded(index)}
            for index, name in enumerate(emoji)
        ],
        "stamps128": [
            {**common, "caption": f"A {name}.", "name": "disc", "style": "photo", "image": encoded(index + 20)}
            for index, name in enumerate(stamps)
        ],
        "shapes64": [{"icon": encoded(40), "name": concepts_of("train", "render", 9)[-1]}],
    }
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    (tmp_path / "backbone").mkdir()
    save_file(untrained_backbone().state_dict(), tmp_path / "backbone" / "model.safetensors")
    (tmp_path / "classes.txt").write_text("disc\nball\ncoin\ndisc\n" * 250)
    monkeypatch.setattr(recipe, "CLASS_NAMES", tmp_path / "classes.txt")
    monkeypatch.setattr(recipe, "BATCH", 4)
    monkeypatch.setattr(space, "SIZE", 64)
    for module in (loop, recipe):
        monkeypatch.setattr(module, "STATE", tmp_path / "state")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "assets" / "weights").mkdir(parents=True)
    (tmp_path / "assets" / "weights" / "text-encoder-lite").symlink_to((ASSETS / "text-encoder-lite").resolve())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe", "--data", ".", "--backbone", "backbone", "--steps", "2", *arguments])
    recipe.main()


def test_the_recipe_trains_the_heads_on_cached_features_and_measures_all_held_out_pictures(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch)
    assert "untrained: heldout-pair_picture_to_text_r1" in capsys.readouterr().out
    folder = workplace / "assets" / "weights" / "picture-text-lite"
    made = load_picture_text(folder)
    assert (folder / "SHA256SUMS").exists() and made.config == PictureTextConfig()
    caches = sorted(path.name for path in (workplace / "state" / "cache").glob("features-*"))
    assert len(caches) == 6 and len(list((workplace / "state" / "cache").glob("phrases-*"))) == 1

    pictures = load_pictures(workplace)
    key = caches[0].split("-")[1]
    held_out = {split: recipe.see(made, pictures, split, 1, key) for split in recipe.HELD_OUT}
    concepts = sorted({picture.concept for picture in pictures.items})
    metrics = recipe.evaluate(made.heads, held_out, recipe.Phrases(concepts), concepts)
    assert len(metrics) == 14
    shares = {name: float(value) for name, value in metrics.items() if name != "modality_gap"}
    assert all(0 <= value <= 1 for value in shares.values()) and 0 <= float(metrics["modality_gap"]) < 2
    assert metrics["heldout-pair_text_to_picture_r10"] == 1  # there are only two such pictures

    # The same run again looks at no picture: views differ, and the cache is what is trained on.
    plain, view = (torch.load(workplace / "state" / "cache" / f"features-{key}-train-9-view{n}.pt") for n in (0, 1))
    assert plain.shape == view.shape == (9, 1280) and not torch.equal(plain, view)
    monkeypatch.setattr(PictureText, "features", refuse)
    run(monkeypatch, "--steps", "3")


def refuse(*_: object) -> None:
    raise AssertionError("a picture was looked at again")


def test_a_missing_backbone_is_said_in_one_sentence(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "backbone" / "model.safetensors").unlink()
    with pytest.raises(SystemExit, match=r"is missing: pass --backbone FOLDER"):
        run(monkeypatch)


def test_a_cached_tensor_is_made_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "x.pt"

    def broken() -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recipe.cached(path, broken)
    assert not path.exists()
    made: list[Callable[[], Tensor]] = [lambda: torch.ones(2), broken]
    assert all(torch.equal(recipe.cached(path, make), torch.ones(2)) for make in made)
