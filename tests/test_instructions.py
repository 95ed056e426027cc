"""The instruction set of the controller: its grammar, its forms, its noise, its quotas and its split."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.instructions import noise
from training.instructions.fill import CLOSE, KINDS, OPEN, Filling
from training.instructions.forms import form, plural, read_noun, with_an
from training.instructions.grammar import GrammarError, Template, parse, read_labels, read_templates
from training.instructions.language import LANGUAGES, Split, load, split_of
from training.instructions.rows import MEDIA, SLICES, Row, make_row, rows, wanted_words

ACTS = {"new", "edit", "regenerate", "select", "undo", "chat", "ask"}
INPUTS = {"image", "audio", "video", "mesh", "scan", "text"}
FIELDS = ["id", "slice", "language", "prompt", "inputs", "history", "act", "outputs", "refers", "split"]
TEMPLATES = [template for code in LANGUAGES for template in load(code).templates]


@cache
def drawn() -> list[Row]:
    return rows(6000, 31)


def by_split(split: Split) -> list[Row]:
    return [row for row in drawn() if row["split"] == split]


# ---- the grammar ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a (b", "a ]b", "a [b", "a {b", "{no slot!}", "<a", "a > b", "a } b"])
def test_what_cannot_be_parsed_is_refused(text: str) -> None:
    with pytest.raises(GrammarError):
        parse(text)


def filled(text: str, seed: int = 0, split: Split = "train") -> str:
    return Filling(load("en"), split, random.Random(seed)).fill(parse(text))


def test_alternatives_options_and_arrows() -> None:
    assert {filled("(a|b(c|d))[ x] -> y", seed) for seed in range(60)} == {
        f"{letters}{end} -> y" for letters in ("a", "bc", "bd") for end in ("", " x")
    }


def test_a_numbered_noun_comes_back_and_others_differ() -> None:
    for seed in range(20):
        words = filled("{n1:alive}/{n1:alive}/{n:alive}", seed).translate({2: None, 3: None}).split("/")
        assert words[0] == words[1] != words[2]


def test_only_what_is_wanted_is_marked() -> None:
    text = filled("draw {n:food}, not {-n:food}, in <red>")
    assert text.count(OPEN) == text.count(CLOSE) == 2
    assert wanted_words(text, load("en"))[-1] == "red"


def test_labels_are_read() -> None:
    labels = read_labels("follow-up new mesh+image text>image,image>mesh inputs=image history=text?,image/mesh! exact")
    assert labels.edges == ("text>image", "image>mesh")
    assert [(entry.media, entry.target, entry.optional) for entry in labels.history] == [
        (("text",), False, True),
        (("image", "mesh"), True, False),
    ]
    assert labels.exact and not labels.literal and labels.makes


@pytest.mark.parametrize("header", ["single new image", "single new image - hstory=image", ""])
def test_wrong_labels_are_refused(header: str) -> None:
    with pytest.raises(GrammarError):
        read_labels(header)


def test_a_template_needs_labels_above(tmp_path: Path) -> None:
    (tmp_path / "templates.txt").write_text("draw {a:seen}\n")
    with pytest.raises(GrammarError, match="labels"):
        read_templates(tmp_path / "templates.txt", "en")


# ---- forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "written", "name", "said"),
    [
        ("en", "~rain", "a", "rain"),
        ("en", "mouse/mice", "s", "mice"),
        ("de", "der Löwe/Löwen", "acc", "einen Löwen"),
        ("de", "der Löwe/Löwen", "a", "ein Löwe"),
        ("de", "die Katze", "dat", "einer Katze"),
        ("de", "~der Regen", "dat", "Regen"),
        ("de", "das Haus", "thedat", "dem Haus"),
        ("nl", "het paard", "a", "een paard"),
        ("nl", "het paard", "the", "het paard"),
        ("fr", "un oiseau", "the", "l'oiseau"),
        ("fr", "un hibou", "ofthe", "du hibou"),
        ("fr", "une horloge", "ofthe", "de l'horloge"),
        ("fr", "un chien", "of", "d'un chien"),
        ("fr", "~la pluie", "of", "de la pluie"),
        ("fr", "+les rires", "of", "des rires"),
        ("es", "un perro", "ofthe", "del perro"),
        ("es", "una vaca", "of", "de una vaca"),
        ("it", "uno squalo", "the", "lo squalo"),
        ("it", "un'aquila", "ofthe", "dell'aquila"),
        ("it", "un'aquila", "of", "di un'aquila"),
        ("it", "+gli applausi", "of", "degli applausi"),
        ("pt", "um cão", "ofthe", "do cão"),
        ("pt", "~a chuva", "of", "da chuva"),
    ],
)
def test_forms(language: str, written: str, name: str, said: str) -> None:
    assert form(read_noun(language, written, frozenset()), name) == said


@pytest.mark.parametrize(
    ("one", "many"), [("dog", "dogs"), ("fox", "foxes"), ("bench", "benches"), ("fairy", "fairies"), ("toy", "toys")]
)
def test_english_plurals(one: str, many: str) -> None:
    assert plural(one) == many


def test_an_before_vowels_only() -> None:
    said = with_an(f"a owl, a {OPEN}igloo{CLOSE}, a unicorn, a umbrella, a hourglass, a one-eyed cat, a ukulele")
    assert said == f"an owl, an {OPEN}igloo{CLOSE}, a unicorn, an umbrella, an hourglass, a one-eyed cat, a ukulele"


def test_a_foreign_noun_without_article_is_refused() -> None:
    with pytest.raises(ValueError, match="article"):
        read_noun("de", "Hund", frozenset())


# ---- noise ------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.text(st.characters(codec="utf-8", exclude_characters=OPEN + CLOSE), max_size=60), st.integers(0, 999))
def test_noise_keeps_the_marks_of_what_is_wanted(text: str, seed: int) -> None:
    rough = noise.roughened(f"draw {OPEN}{text}{CLOSE} now", load("en"), random.Random(seed))
    assert (rough.count(OPEN), rough.count(CLOSE)) == (1, 1)
    assert rough.index(OPEN) < rough.index(CLOSE)


def test_a_typing_error_changes_one_word_a_little() -> None:
    for seed in range(50):
        wrong = noise.mistyped("a noisy tractor", random.Random(seed)).split()
        assert wrong[0] == "a" and len(wrong) == 3
        assert (wrong[1] == "noisy") or (wrong[2] == "tractor")
        assert all(
            abs(len(typed) - len(word)) <= 1 for typed, word in zip(wrong[1:], ("noisy", "tractor"), strict=True)
        )


def test_short_forms_spare_what_is_wanted() -> None:
    assert noise.shortened(f"please draw {OPEN}you and me{CLOSE}", {"please": "pls", "you": "u"}) == (
        f"pls draw {OPEN}you and me{CLOSE}"
    )


# ---- the templates ----------------------------------------------------------------------------


def test_there_is_enough_of_everything() -> None:
    english = load("en")
    assert len({noun.word for noun in english.nouns}) >= 700
    assert sum(english.scene_split(scene) is not None for scene in english.scenes) >= 250
    assert len({template.text for template in english.templates}) >= 350
    for code in LANGUAGES[1:]:
        language = load(code)
        assert len({noun.word for noun in language.nouns}) >= 60
        assert len({template.text for template in language.templates}) >= 40
        assert {template.labels.slice for template in language.templates} == set(SLICES)


def check(row: Row) -> None:
    """By the labelling guide."""
    assert [field for field in row if field not in ("text", "spans", "edges")] == FIELDS
    assert row["slice"] in SLICES and row["language"] in LANGUAGES and row["act"] in ACTS
    assert row["split"] in ("train", "validation")
    assert set(row["inputs"]) <= INPUTS and set(row["outputs"]) <= set(MEDIA)
    assert all(entry["medium"] in INPUTS and entry["title"] for entry in row["history"])
    assert all(1 <= number <= len(row["history"]) for number in row["refers"])
    referred = {row["history"][number - 1]["medium"] for number in row["refers"]}
    match row["act"]:
        case "ask" | "select" | "undo":
            assert row["outputs"] == []
        case "chat":
            assert row["outputs"] == ["text"]
        case "edit" | "regenerate":
            assert set(row["outputs"]) == (referred or set(row["inputs"])) and len(row["outputs"]) == 1
        case _:
            assert row["outputs"]
    if row["act"] == "select":
        assert len(row["refers"]) == 1 < len(row["history"])
    sources = {"text", *row["inputs"], *referred}
    for edge in row.get("edges", ()):
        source, output = edge.split(">")
        assert output in row["outputs"]
        assert source in sources | set(row["outputs"])
    if row["act"] == "new":
        made = {edge.split(">")[1] for edge in row.get("edges", ())}
        assert "edges" not in row or made | {"text"} >= set(row["outputs"])
    else:
        assert "edges" not in row
    said = " ".join([row["prompt"], *(entry["title"] for entry in row["history"])]).lower()
    assert all(word in said and word == word.lower() for word in row.get("text", ()))
    assert row.get("text") != []
    spoken = " ".join(row["prompt"][begin:end] for begin, end, _ in row.get("spans", ())).lower()
    titles = " ".join(entry["title"] for entry in row["history"]).lower()
    assert all(word in spoken or word in titles for word in row.get("text", ()))
    assert all(set(kinds) <= set(KINDS) for _, _, kinds in row.get("spans", ()))
    assert not set(OPEN + CLOSE) & set(json.dumps(row))


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_template_makes_a_valid_row_in_its_split(code: str) -> None:
    rng = random.Random(4)
    for template in load(code).templates:
        check(make_row(template, split_of(template.text), load(code), rng))


@settings(max_examples=400)
@given(st.sampled_from(TEMPLATES), st.integers(0, 10**6))
def test_filling_leaves_no_grammar_behind(template: Template, seed: int) -> None:
    row = make_row(template, split_of(template.text), load(template.language), random.Random(seed))
    if not template.labels.literal:
        assert not set("{}[]()|<>") & set(row["prompt"].replace("->", ""))
        assert "  " not in row["prompt"] and " ," not in row["prompt"]


def test_a_template_always_means_the_same_in_the_same_conversation() -> None:
    meanings: dict[tuple, set] = {}
    for template in TEMPLATES:
        labels = template.labels
        key = (template.language, template.text, labels.inputs, labels.history, labels.slice == "media-in")
        meanings.setdefault(key, set()).add((labels.act, labels.outputs))
    assert [key for key, labels in meanings.items() if len(labels) > 1] == []


# ---- the rows ---------------------------------------------------------------------------------


def test_rows_are_valid_and_have_ids() -> None:
    for row in drawn():
        check(row)
    assert len({row["id"] for row in drawn()}) == len(drawn()) == 6000


def test_slices_and_languages_have_their_share() -> None:
    slices = Counter(row["slice"] for row in drawn())
    assert all(abs(slices[name] / 6000 - share) < 0.002 for name, share in SLICES.items())
    languages = Counter(row["language"] for row in drawn())
    assert 0.18 < 1 - languages["en"] / 6000 < 0.22
    assert min(languages[code] for code in LANGUAGES) > 0.03 * 6000
    assert {(row["slice"], row["language"]) for row in drawn()} == {
        (name, code) for name in SLICES for code in LANGUAGES
    }


def test_a_third_makes_nothing_but_text() -> None:
    share = sum(row["outputs"] in ([], ["text"]) for row in drawn()) / 6000
    assert 0.3 < share < 0.4


def test_media_are_made_equally_often() -> None:
    made = Counter(medium for row in drawn() for medium in row["outputs"] if medium != "text")
    mean = sum(made.values()) / 4
    assert all(abs(count - mean) < 0.1 * mean for count in made.values())


def test_every_label_of_the_guide_occurs_in_both_splits() -> None:
    for split in ("train", "validation"):
        some = by_split(split)
        assert {row["act"] for row in some} == ACTS
        assert {medium for row in some for medium in row["outputs"]} == set(MEDIA)
        assert {medium for row in some for medium in row["inputs"]} == INPUTS
        assert {entry["medium"] for row in some for entry in row["history"]} == INPUTS
        assert {row["slice"] for row in some} == set(SLICES)
    assert 0.07 < len(by_split("validation")) / 6000 < 0.12


def test_hardly_a_prompt_comes_twice() -> None:
    asked = {json.dumps([row["prompt"], row["inputs"], row["history"]]) for row in drawn()}
    assert len(asked) > 0.97 * 6000


def test_templates_are_in_one_split_only() -> None:
    texts = {template.text for template in TEMPLATES if template.labels.literal}
    used = {split: {row["prompt"] for row in by_split(split)} & texts for split in ("train", "validation")}
    assert used["train"] and used["validation"] and not used["train"] & used["validation"]


@pytest.mark.parametrize("code", LANGUAGES)
def test_nouns_are_in_one_split_only(code: str) -> None:
    language = load(code)
    used: dict[str, set[str]] = {}
    for split in ("train", "validation"):
        rng = random.Random(9)
        fillings = [Filling(language, split, rng) for _ in range(300)]
        used[split] = {noun.key for one in fillings for noun in [one.choose(("seen",)), one.choose(("sound",))]}
    assert used["train"] and used["validation"] and not used["train"] & used["validation"]


def test_scenes_mention_only_nouns_of_their_split() -> None:
    english = load("en")
    validation = {noun.key for noun in english.nouns if split_of(noun.key) == "validation"}
    for scene in english.pool("train", ("seen",), scenes=True):
        assert not validation & set(scene.word.split()), scene.word
    assert english.pool("validation", ("seen",), scenes=True)


def test_compounds_go_with_their_head() -> None:
    grand, plain = (read_noun("en", word, frozenset()) for word in ("grand piano", "piano"))
    assert grand.key == plain.key


def test_same_seed_same_file_whatever_the_hash_seed(tmp_path: Path) -> None:
    written = []
    for hash_seed in ("1", "2"):
        out = tmp_path / f"{hash_seed}.jsonl"
        command = [sys.executable, "-m", "training.instructions", "--out", str(out), "--count", "300", "--seed", "5"]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": hash_seed}, timeout=60)
        written.append(out.read_text("utf-8"))
    assert written[0] == written[1]
    assert [json.loads(line)["id"] for line in written[0].splitlines()] != []
    assert rows(300, 5) != rows(300, 6)
