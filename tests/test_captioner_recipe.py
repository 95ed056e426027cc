"""The captioners' recipe: what things are called, lessons, loss, measures, and two steps on tables of either kind."""

from __future__ import annotations

import io
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from transformers import AutoTokenizer

from models.captioner import END, END_PIECE, Captioner, CaptionerConfig, Concept, Description, load_captioner, words_of
from models.mel import LITE_MEL
from models.nets.efficientnet_lite import EfficientNetLite2
from models.picture_text import PictureText, PictureTextConfig
from models.sound_text import SoundText
from training import bridges, captioner, loop, picture_text
from training.captioner import (
    IGNORED,
    Corpus,
    Thing,
    best_f1,
    caption_loss,
    find_sure,
    heard,
    is_exact,
    load_picture_corpus,
    load_sound_corpus,
    make_lessons,
    measure,
    plain_sentence,
    token_f1,
    with_noise,
)
from training.publish import write_sums
from training.sound_text import audio_config

ENCODER = Path("assets/weights/text-encoder-lite").resolve()
TINY = CaptionerConfig(width=16, hidden=32, layers=2, heads=2, prefix=2, tokens=8, dropout=0.0)


def units(count: int, width: int = 16, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def corpus_of(sentences: list[str], said: list[str]) -> Corpus:
    """Training things called ``sentences``, the same held out, and the sentences ``said``; each is its own concept."""
    things = [Thing(sentence, sentence, (sentence,), split) for split in ("train", "late") for sentence in sentences]
    vectors = units(len(sentences))
    return Corpus(things, vectors.repeat(2, 1), said, units(len(said), seed=1), sentences, vectors)


# ------------------------------------------------------------------------------------------------------------- phrases


@pytest.mark.parametrize(
    ("concept", "sentence"),
    [
        ("red apple", "a red apple"),
        ("owl", "an owl"),
        ("cherries", "cherries"),
        ("slice of lemons", "a slice of lemons"),
        ("face with tears of joy", "a face with tears of joy"),
        ("bus", "a bus"),
        ("juggling", "juggling"),
        ("person juggling", "a person juggling"),
        ("ring", "a ring"),
        ("cloud with snow", "a cloud with snow"),
        ("snow", "snow"),
        ("dog bark", "a dog bark"),
        ("table tennis", "table tennis"),
        ("game over", "game over"),
    ],
)
def test_concepts_get_an_article_where_they_want_one(concept: str, sentence: str) -> None:
    assert plain_sentence(concept) == sentence


@pytest.mark.parametrize(
    ("caption", "name", "sentence"),
    [
        ("a cello playing the note F sharp", "cello", "a cello"),
        ("a cello playing a chord", "cello", "a cello playing a chord"),
        ('a voice saying "A frog."', "speech", "a voice speaking"),
        ("rain falling", "rain", "rain falling"),
    ],
)
def test_captions_say_what_can_be_heard(caption: str, name: str, sentence: str) -> None:
    assert heard(caption, name) == sentence


# ------------------------------------------------------------------------------------------------------------- lessons


def test_lessons_are_what_fits_and_the_vocabulary_is_what_occurs() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    corpus = corpus_of(["a red apple", "a didgeridoo", "a " * 20], ["a \U0001fae8", "a bell"])
    pieces, things, said = make_lessons(corpus, tokenizer, 8)
    assert pieces[END] == END_PIECE and tokenizer.unk_token not in pieces
    occur = {piece for sentence in ("a red apple", "a didgeridoo", "a bell") for piece in tokenizer.tokenize(sentence)}
    assert set(pieces[1:]) == occur
    assert torch.equal(things.vectors, corpus.vectors[:2]) and torch.equal(said.vectors, corpus.said[1:])
    for row, sentence in zip((*things.targets, *said.targets), ("a red apple", "a didgeridoo", "a bell"), strict=True):
        count = len(tokenizer.tokenize(sentence))
        assert [pieces[token] for token in row[:count]] == tokenizer.tokenize(sentence)
        assert row.tolist()[count:] == [END, *[IGNORED] * (8 - count)]


def test_noise_has_the_lengths_asked_for_and_vectors_stay_of_unit_length() -> None:
    torch.manual_seed(0)
    vectors = units(2000, 256)
    noisy = with_noise(vectors)
    torch.testing.assert_close(noisy.norm(dim=1), torch.ones(2000))
    # The noise is nearly at a right angle in so many dimensions, so its length is about the tangent of the angle.
    tangents = ((vectors * noisy).sum(1) ** -2 - 1).sqrt()
    assert 0.08 < tangents.min() < 0.12 and 0.28 < tangents.max() < 0.34
    assert abs(float(tangents.mean()) - 0.2) < 0.01


def tiny_model(pieces: tuple[str, ...], corpus: Corpus) -> Captioner:
    torch.manual_seed(0)
    return Captioner(TINY, pieces, corpus.concepts, corpus.known)


def test_the_loss_counts_every_token_to_the_end_and_none_behind_it() -> None:
    corpus = corpus_of(["a red apple", "a bell"], ["rain"])
    pieces, things, _ = make_lessons(corpus, AutoTokenizer.from_pretrained(ENCODER), 8)
    model = tiny_model(pieces, corpus).eval()
    loss, _ = caption_loss(model, things.vectors, things.targets)
    singly = []
    for vector, target in zip(things.vectors, things.targets, strict=True):
        tokens = target[target != IGNORED]
        scores = model(vector[None], tokens[None, :-1])[0].log_softmax(-1)
        singly += [-scores[i, token] for i, token in enumerate(tokens)]
    torch.testing.assert_close(loss, torch.stack(singly).mean())


LEARNED = ["a red apple", "a bell", "a didgeridoo", "rain"]


def trained(corpus: Corpus) -> Captioner:
    """Knows the training things by heart."""
    pieces, things, _ = make_lessons(corpus, AutoTokenizer.from_pretrained(ENCODER), 8)
    model = tiny_model(pieces, corpus)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(80):
        loss, metrics = caption_loss(model, things.vectors, things.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(metrics["token_top1"]) == 1
    return model.eval()


def test_a_captioner_learns_what_vectors_are_called() -> None:
    corpus = corpus_of(LEARNED, ["a dog"])
    found = captioner.evaluate(trained(corpus), corpus)
    assert found["late_exact"] == 1 and found["late_f1"] == 1 and float(found["late_confidence"]) > 0.5


# ------------------------------------------------------------------------------------------------------------ measures


def described(sentence: str, nearest: str, confidence: float = 0.5) -> Description:
    return Description(sentence, confidence, True, (Concept(nearest, 0.9),))


def test_words_in_common_are_counted_without_articles() -> None:
    assert token_f1("a red apple", "Red apple!") == 1
    assert token_f1("a red apple", "the green apple") == pytest.approx(0.5)
    assert token_f1("an apple", "red apple") == pytest.approx(2 / 3)
    assert token_f1("apple apple", "apple") == pytest.approx(2 / 3)
    assert token_f1("a dog", "cat") == 0 and token_f1("the", "a") == 0


@given(st.text("ab c", max_size=9), st.text("ab c", max_size=9))
def test_the_measure_is_even_and_whole_for_equals_alone(a: str, b: str) -> None:
    assert token_f1(a, b) == token_f1(b, a) and 0 <= token_f1(a, b) <= 1
    assert (token_f1(a, b) == 1) == (sorted(words_of(a)) == sorted(words_of(b)) != [])


def test_any_name_is_right_and_the_baseline_says_the_nearest() -> None:
    things = [
        Thing("a dog", "dog", ("dog", "puppy"), "late"),
        Thing("a red apple", "red apple", ("red apple", "fruit"), "late"),
    ]
    assert is_exact("a puppy", things[0]) and not is_exact("a puppy dog", things[0])
    assert best_f1("a puppy dog", things[0]) == pytest.approx(2 / 3)
    found = measure(things, [described("a puppy", "cat", 0.2), described("an apple", "red apple", 0.6)])
    expected = {"exact": 0.5, "f1": 5 / 6, "confidence": 0.4, "nearest_concept": 0.5}
    assert found == pytest.approx({**expected, "baseline_exact": 0.5, "baseline_f1": 0.5})


def test_sure_is_from_where_two_in_three_are_right() -> None:
    assert find_sure([0.1, 0.2, 0.3, 0.4], [False, False, True, True]) == 0.2
    assert find_sure([0.1, 0.2], [True, True]) == 0.1
    assert find_sure([0.1, 0.9], [False, False]) == 1
    assert find_sure([0.5, 0.5, 0.5], [True, False, False]) == 1  # equals are said alike


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=30))
def test_what_is_said_surely_is_mostly_right(rows: list[tuple[int, bool]]) -> None:
    sure = find_sure([tenths / 10 for tenths, _ in rows], [right for _, right in rows])
    said = [right for tenths, right in rows if tenths / 10 >= sure]
    assert not said or np.mean(said) >= 2 / 3 - 1e-9


def test_sure_is_found_among_the_sentences_that_a_concept_nearby_agrees_with() -> None:
    corpus = corpus_of(LEARNED, ["a dog"])
    dog, zebra = units(1, seed=7), F.normalize(corpus.vectors[1:2] + 0.1 * units(1, seed=8), dim=1)
    corpus = replace(
        corpus,
        things=[*corpus.things, Thing("a dog", "dog", ("dog",), "late"), Thing("a zebra", "zebra", ("zebra",), "late")],
        vectors=torch.cat([corpus.vectors, dog, zebra]),
        concepts=[*corpus.concepts, *["a dog"] * 3, *["a zebra"] * 3],
        known=torch.cat([corpus.known, dog.repeat(3, 1), zebra.repeat(3, 1)]),
    )
    model = trained(corpus)
    results = captioner.measure_held_out(model, corpus)
    descriptions = model.describe(list(corpus.vectors[corpus.rows("late")]))
    # "a dog" was never learned, and for a zebra, which is much like a bell, there is no word piece.
    assert [one.sentence for one in descriptions] == [*LEARNED, "a dog", "a bell"]
    assert [one.sure for one in descriptions] == [True, True, True, True, False, False]
    least = min(one.confidence for one in descriptions[:4])
    assert descriptions[4].confidence < least < descriptions[5].confidence  # neither counts, and neither is said surely
    assert results["all"]["sure"] == model.config.sure == least
    assert results["all"]["said_surely"] == pytest.approx(4 / 6)
    assert results["late"]["exact"] == results["all"]["right"] == pytest.approx(5 / 6)


# ------------------------------------------------------------------------------------------------------- whole recipes

NAMES = ("whistle", "bell", "hum", "agogo")  # bell and agogo are held out


def picture(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (128, 128), colour).save(file, "PNG")
    return file.getvalue()


def tone(hertz: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.5 * np.sin(2 * np.pi * hertz * np.arange(4_000) / 16_000), 16_000, format="WAV")
    return file.getvalue()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tables of ten pictures and 24 clips, and untrained spaces; recipes take two steps of four things."""
    emoji = [
        {
            "image": picture((60 * index, 90, 40 * style)),
            "caption": name,
            "style": ("noto", "twemoji")[style],
            "keywords": [f"loud {name}"],
            "more_keywords": ["bell"],
            "is_flag": False,
        }
        for index, name in enumerate(NAMES)
        for style in range(2)
    ]
    stamp = {"image": picture((1, 2, 3)), "caption": "A flute.", "name": "flute", "style": "photo"}
    clips: list[dict[str, Any]] = [
        {
            "class": NAMES[index % 4],
            "caption": f"a {NAMES[index % 4]} playing the note {'ABC'[index % 3]}",
            "emoji": [],
            "stamp": "",
            "loop": False,
            "source": "tones",
            "path": f"tone{index}.wav",
            "licence_family": "permissive" if index % 8 < 4 else "gpl",
            "audio": tone(200 + 30 * index),
        }
        for index in range(24)
    ]
    shapes = [{"icon": picture((9, 9, 9)), "name": "Chair"}]
    for name, rows in {"emoji128": emoji, "stamps128": [stamp], "shapes64": shapes, "sounds16k": clips}.items():
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    for module in (loop, bridges, picture_text, captioner):
        monkeypatch.setattr(module, "STATE", tmp_path / "state")
    monkeypatch.setattr(captioner, "BATCH", 4)
    monkeypatch.setattr(captioner, "CONFIG", TINY)
    (tmp_path / "classes.txt").write_text("tench\ngoldfish\n")
    monkeypatch.setattr(captioner, "CLASS_NAMES", tmp_path / "classes.txt")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    weights = tmp_path / "assets" / "weights"
    weights.mkdir(parents=True)
    (weights / "text-encoder-lite").symlink_to(ENCODER)
    torch.manual_seed(0)
    heard_with = SoundText(audio_config(), LITE_MEL)
    spaces: dict[str, PictureText | SoundText] = {
        "picture-text-lite": PictureText(PictureTextConfig(), EfficientNetLite2(), torch.randn(1000, 384)).eval(),
        "sound-text-lite": heard_with,
        "sound-text-permissive-lite": heard_with,
    }
    for name, model in spaces.items():
        model.save_pretrained(weights / name)
        write_sums(weights / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe", "--data", ".", "--steps", "2", *arguments])
    captioner.main()


@pytest.mark.parametrize("space", ["picture", "sound"])
def test_the_recipe_writes_a_captioner_and_measures_it(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    run(monkeypatch, "--space", space)
    folder = workplace / "assets" / "weights" / f"{space}-captioner-lite"
    made = load_captioner(folder)
    assert isinstance(made, Captioner) and made.config.width == 256 and (folder / "SHA256SUMS").exists()
    assert {"vocabulary.txt", "concepts.txt"} <= {
        line[66:] for line in (folder / "SHA256SUMS").read_text().splitlines()
    }
    assert {"a whistle", "a bell", "a hum", "an agogo"} <= set(made.sentences)
    assert "whistle" in made.pieces and "ago" not in made.pieces and "##go" not in made.pieces  # never learned from
    results = json.loads((workplace / "state" / f"{space}-captioner" / "held_out.json").read_text())
    held_out = "heldout-concept" if space == "picture" else "heldout-class"
    assert {"exact", "f1", "nearest_concept", "baseline_exact", "baseline_f1"} <= set(results[held_out])
    assert results["all"]["sure"] == made.config.sure
    [described_once] = made.describe([units(1, 256)[0]])
    assert described_once.sentence and len(described_once.nearest) == min(5, len(made.sentences))


def test_pictures_are_called_by_their_concept_and_sentences_by_no_held_out_word(workplace: Path) -> None:
    corpus = load_picture_corpus(workplace)
    assert {thing.sentence for thing in corpus.things} >= {"a whistle", "a hum", "a flute", "a chair", "a bell"}
    assert {"a whistle", "loud whistle", "a tench"} <= set(corpus.sentences)
    assert not {"bell", "a bell", "agogo", "an agogo"} & set(corpus.sentences)
    lengths = torch.cat([corpus.vectors, corpus.said, corpus.known]).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    assert len(corpus.vectors) == len(corpus.things) and len(corpus.said) == len(corpus.sentences)


def test_the_permissive_captioner_learns_from_permissive_clips_alone(workplace: Path) -> None:
    whole, permissive = load_sound_corpus(workplace, False), load_sound_corpus(workplace, True)
    assert 0 < len(permissive.rows("train")) < len(whole.rows("train"))
    assert len(permissive.rows("heldout-class")) == len(whole.rows("heldout-class")) == 12
    assert set(permissive.sentences) <= {"a whistle", "whistle", "a hum", "hum"}


def test_pictures_have_no_permissive_space(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "--space", "picture", "--permissive-only")
