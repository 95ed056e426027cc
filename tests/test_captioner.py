"""Captioners: the search, sentences and word pieces, concepts, weights on disk, and BLIP in its published layout."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from models.captioner import (
    BEAMS,
    END,
    END_PIECE,
    PREPROCESSOR,
    PUBLISHED_TOKENS,
    Captioner,
    CaptionerConfig,
    PublishedCaptioner,
    beam_search,
    load_captioner,
    sentence_of,
    tokenizer_of,
    words_of,
)
from models.errors import UserError

CPU = torch.device("cpu")
TINY = CaptionerConfig(width=8, hidden=16, layers=1, heads=2, prefix=2, tokens=4, dropout=0.0, sure=0.2)
PIECES = (END_PIECE, "a", "red", "app", "##le", "bell")
SENTENCES, NAMES = ("an apple", "a bell", "rain"), ("apple", "bell", "rain")  # of concepts


def units(count: int, width: int = 8, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def tiny(sentences: Sequence[str] = SENTENCES, concepts: Tensor | None = None, sure: float = TINY.sure) -> Captioner:
    """Says the same whatever the concepts, if these agree."""
    torch.manual_seed(0)
    concepts = units(len(sentences), seed=9) if concepts is None else concepts
    model = Captioner(replace(TINY, sure=sure), PIECES, sentences, concepts).eval()
    with torch.no_grad():
        model.decoder.get_input_embeddings().weight.mul_(20)  # untrained, every word would be as likely as any other
    return model


def searched(vector: Tensor) -> tuple[str, float]:
    """What the search of :func:`tiny` finds, whatever concepts are nearby, and its confidence."""
    model, vectors = tiny(), vector.repeat(BEAMS, 1)
    [(tokens, confidence)] = beam_search(
        lambda tokens: model(vectors, tokens)[:, -1].log_softmax(-1), 1, BEAMS, TINY.tokens, CPU
    )
    return sentence_of([PIECES[token] for token in tokens]), confidence


# ----------------------------------------------------------------------------------------------------------- search


def table_of(pieces: int, seed: int) -> Tensor:
    """Log-probabilities of the next token by the last two (0 where there are none yet)."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(pieces, pieces, pieces, generator=generator)).log_softmax(-1)


def next_by(table: Tensor, tokens: Tensor) -> Tensor:
    last = F.pad(tokens, (2, 0))[:, -2:]
    return table[last[:, 0], last[:, 1]]


def all_sentences(table: Tensor, most: int) -> dict[tuple[int, ...], float]:
    """Every sentence of 1 to ``most`` words and the geometric mean of its probabilities."""
    found = {}
    for length in range(1, most + 1):
        for words in itertools.product(range(1, len(table)), repeat=length):
            said = [*words, END] if length < most else [*words]
            steps = [next_by(table, torch.tensor([said[:i]]).long().view(1, -1))[0, said[i]] for i in range(len(said))]
            found[words] = math.exp(sum(map(float, steps)) / len(said))
    return found


@given(st.integers(2, 4), st.integers(1, 3), st.integers(0, 999))
@settings(max_examples=20)
def test_a_search_wide_enough_finds_the_best_sentence_of_all(pieces: int, most: int, seed: int) -> None:
    table = table_of(pieces, seed)
    sentences = all_sentences(table, most)
    [(tokens, confidence)] = beam_search(lambda tokens: next_by(table, tokens), 1, pieces**most, most, CPU)
    assert confidence == pytest.approx(max(sentences.values()), rel=1e-4)
    assert sentences[tuple(tokens)] == pytest.approx(confidence, rel=1e-4)


@given(st.integers(0, 999), st.integers(1, 4))
@settings(max_examples=20)
def test_every_search_tells_the_confidence_of_what_it_found(seed: int, width: int) -> None:
    table = table_of(4, seed)
    [(tokens, confidence)] = beam_search(lambda tokens: next_by(table, tokens), 1, width, 4, CPU)
    assert 1 <= len(tokens) <= 4 and END not in tokens
    assert all_sentences(table, 4)[tuple(tokens)] == pytest.approx(confidence, rel=1e-4)


def test_one_beam_takes_the_likeliest_next_word_and_more_can_do_better() -> None:
    # "1" is the likelier beginning, but only "2" has a sure continuation.
    table = torch.full((4, 4, 4), 1e-9)
    table[0, 0, 1:3] = torch.tensor([0.55, 0.45])
    table[0, 1] = torch.tensor([0.28, 0.24, 0.24, 0.24])
    table[0, 2, END] = 1.0
    log_table = table.log()
    found = [beam_search(lambda tokens: next_by(log_table, tokens), 1, width, 2, CPU)[0] for width in (1, 2)]
    assert found[0] == ([1], pytest.approx(math.sqrt(0.55 * 0.28), rel=1e-4))
    assert found[1] == ([2], pytest.approx(math.sqrt(0.45), rel=1e-4))


def test_sentences_of_a_batch_do_not_meet() -> None:
    model, vectors = tiny(), units(5)
    together = model.describe(list(vectors))
    for vector, described in zip(vectors, together, strict=True):
        [alone] = model.describe([vector])
        assert alone.sentence == described.sentence
        assert alone.confidence == pytest.approx(described.confidence, rel=1e-4)
    assert len({described.sentence for described in together}) > 1


# --------------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("pieces", "sentence"),
    [
        (["a", "red", "app", "##le"], "a red apple"),
        (["a", "t", "-", "shirt"], "a t-shirt"),
        (["a", "cat", "'", "s", "eye"], "a cat's eye"),
        (["wait", ",", "what", "?"], "wait, what?"),
        (["a", "key", "(", "old", ")"], "a key (old)"),
        (["##le"], "le"),
        ([], ""),
    ],
)
def test_word_pieces_become_a_sentence(pieces: list[str], sentence: str) -> None:
    assert sentence_of(pieces) == sentence


def test_what_the_text_encoder_cuts_is_put_together_again() -> None:
    tokenizer = AutoTokenizer.from_pretrained("assets/weights/text-encoder-lite")
    for sentence in ("a didgeridoo", "an african buffalo's horn", "a merry-go-round", "the letter q, in green"):
        assert sentence_of(tokenizer.tokenize(sentence)) == sentence


STARTS, ENDS, MARKS = ("a", "b", "c", "ab", "cab"), ("##a", "##b", "##c", "##ab", "##bca"), tuple("-'’/,.:;!?()")


@cache
def speller() -> Captioner:
    """Has a word piece for every letter, so that it can say whatever is made of its pieces."""
    return Captioner(replace(TINY, tokens=64), (END_PIECE, *STARTS, *ENDS, *MARKS), ("a cab",), units(1))


words = st.tuples(st.sampled_from(STARTS).map(lambda start: [start]), st.lists(st.sampled_from(ENDS), max_size=2))
marks = st.sampled_from(MARKS).map(lambda mark: [mark])


@given(st.lists(words.map(lambda parts: [*parts[0], *parts[1]]) | marks, max_size=6))
def test_a_sentence_made_of_pieces_is_cut_into_tokens_that_say_it(parts: list[list[str]]) -> None:
    sentence = sentence_of([piece for part in parts for piece in part])
    tokens = speller().tokens_of(sentence)
    assert tokens is not None and END not in tokens
    assert sentence_of([speller().pieces[token] for token in tokens]) == sentence


def test_the_longest_known_piece_comes_first() -> None:
    pieces = ("cab", "##ab", "'", "b", "##bca")
    assert speller().tokens_of("Cabab' BBCA") == [speller().pieces.index(piece) for piece in pieces]


def test_words_are_cut_as_the_text_encoder_cuts_them() -> None:
    encoder = AutoTokenizer.from_pretrained("assets/weights/text-encoder-lite")
    pieces = encoder.convert_ids_to_tokens(list(range(len(encoder))))
    for sentence in ("a didgeridoo", "An African buffalo's horn", "a piñata (old)", "a 45° turn, i.e. half of 90°"):
        assert [pieces[token] for token in tokenizer_of(pieces).encode(sentence).ids] == encoder.tokenize(sentence)


def test_words_are_without_articles_and_marks() -> None:
    assert words_of("A red-hot apple, the 2nd") == ["red", "hot", "apple", "2nd"]


# --------------------------------------------------------------------------------------------------------- captioner


def test_a_token_depends_on_the_vector_and_on_earlier_tokens_alone() -> None:
    model, vectors = tiny(), units(2)
    logits = model(vectors[:1], torch.tensor([[1, 2, 3]]))
    assert logits.shape == (1, 4, len(PIECES))
    other = model(vectors[:1], torch.tensor([[1, 2, 5]]))
    torch.testing.assert_close(logits[:, :3], other[:, :3])
    assert not torch.allclose(logits[:, 3], other[:, 3])
    assert not torch.allclose(logits[:, 0], model(vectors[1:], torch.tensor([[1, 2, 3]]))[:, 0])


def test_nearest_concepts_come_in_order_with_their_cosines() -> None:
    model, vector = tiny(), units(1)[0]
    [described] = model.describe([vector], nearest=2)
    cosines = sorted(((float(units(3, seed=9)[i] @ vector), name) for i, name in enumerate(NAMES)), reverse=True)
    assert [concept.name for concept in described.nearest] == [name for _, name in cosines[:2]]
    for concept, (cosine, _) in zip(described.nearest, cosines, strict=False):
        assert concept.cosine == pytest.approx(cosine, abs=2e-3)
    assert model.describe([vector], nearest=0)[0].nearest == ()
    assert len(model.describe([vector], nearest=50)[0].nearest) == 3


def test_a_confidence_below_the_threshold_is_not_sure() -> None:
    vectors = [vector for vector in units(20) if words_of(searched(vector)[0])]
    sentences, confidences = zip(*map(searched, vectors), strict=True)
    threshold = median(confidences) + 1e-4
    descriptions = tiny((" ".join(sentences),), sure=threshold).describe(vectors)  # one concept, which always agrees
    assert {described.sure for described in descriptions} == {True, False}
    for described in descriptions:
        assert described.sure == (described.confidence >= threshold)


def test_a_captioner_comes_back_from_disk(tmp_path: Path) -> None:
    model, vectors = tiny(), list(units(6))
    model.save_pretrained(tmp_path)
    loaded = load_captioner(tmp_path)
    assert isinstance(loaded, Captioner) and loaded.config == TINY and not loaded.training
    assert loaded.pieces == PIECES and loaded.sentences == SENTENCES and loaded.concepts.dtype == torch.float16
    for before, after in zip(model.describe(vectors), loaded.describe(vectors), strict=True):
        assert before.sentence == after.sentence and before.nearest == after.nearest
        assert before.confidence == pytest.approx(after.confidence, rel=1e-2)
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    for path in again.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


@pytest.mark.parametrize("broken", [torch.zeros(8), units(1)[0] * 2, torch.full((8,), math.nan), units(1, 7)[0]])
def test_other_vectors_are_refused(broken: Tensor) -> None:
    with pytest.raises(ValueError, match="expected"):
        tiny().describe([broken])


@pytest.mark.parametrize(
    ("pieces", "count", "width"), [((), 3, 8), (("a", END_PIECE), 3, 8), (PIECES, 2, 8), (PIECES, 3, 7), (PIECES, 0, 8)]
)
def test_parts_that_do_not_fit_are_refused(pieces: tuple[str, ...], count: int, width: int) -> None:
    with pytest.raises(ValueError, match="do not fit together"):
        Captioner(TINY, pieces, SENTENCES[:count], units(min(count, 1) * 3, width))


@pytest.mark.parametrize("values", [{"model_type": "bert"}, {"_class_name": "MeanShift", "width": 8}, {}])
def test_other_weights_are_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="no captioner"):
        load_captioner(tmp_path)


# --------------------------------------------------------------------------------------------------------- published

WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[DEC]",
    "[ENC]",
    "a",
    "cat",
    "dog",
    "on",
    "grass",
    "red",
    "ball",
)


def blip_folder(folder: Path, weights: str) -> BlipForConditionalGeneration:
    """Random weights in the layout of ``Salesforce/blip-image-captioning-base``: safetensors, or a ``.bin`` file."""
    torch.manual_seed(3)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 5, "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 2}
    text = {**size, **special, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "initializer_range": 0.6}
    vision = {**size, "image_size": 32, "patch_size": 8, "initializer_range": 0.6}
    blip = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():
        blip.text_decoder.cls.predictions.bias[:7] -= 3  # or it would say nothing but what is no word
    blip.save_pretrained(folder)
    if weights == "bin":
        (folder / "model.safetensors").unlink()
        # The published file also holds what newer versions make themselves, and both names of tied weights.
        positions = {"text_decoder.bert.embeddings.position_ids": torch.arange(512)[None]}
        torch.save({**blip.state_dict(), **positions}, folder / "pytorch_model.bin")
    reading = {
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "BlipImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "size": {"height": 32, "width": 32},
    }
    (folder / PREPROCESSOR).write_text(json.dumps(reading))
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    named = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "bos_token": "[DEC]",
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    return blip


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_blip_says_what_the_library_says(tmp_path: Path, weights: str) -> None:
    blip = blip_folder(tmp_path, weights)
    captioner = load_captioner(tmp_path)
    assert isinstance(captioner, PublishedCaptioner) and captioner.reads == "pictures" and captioner.side == 32
    pictures = torch.rand(3, 1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, deviation = (torch.tensor(value)[:, None, None] for value in (captioner.mean, captioner.deviation))
    said = set()
    for beams in (1, 3):
        for picture, described in zip(pictures, captioner.describe(list(pictures), beams=beams), strict=True):
            pixels = ((picture + 1) / 2 - mean) / deviation
            expected = blip.generate(pixels, max_new_tokens=PUBLISHED_TOKENS, num_beams=beams, do_sample=False)
            words = [WORDS[token] for token in expected[0].tolist() if token > 6]
            assert described.sentence == " ".join(words)
            assert 0 < described.confidence <= 1 and described.sure and described.nearest == ()
            said.add(described.sentence)
    assert any(said)


def test_the_confidence_of_blip_is_the_mean_of_what_it_chose(tmp_path: Path) -> None:
    blip_folder(tmp_path, "safetensors")
    captioner = load_captioner(tmp_path)
    assert isinstance(captioner, PublishedCaptioner)
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    mean, deviation = (torch.tensor(value)[:, None, None] for value in (captioner.mean, captioner.deviation))
    written = captioner.blip.generate(
        ((picture + 1) / 2 - mean) / deviation,
        max_new_tokens=PUBLISHED_TOKENS,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    steps = [float(score[0].log_softmax(-1).max()) for score in written.scores]
    [described] = captioner.describe([picture], beams=1)
    assert described.confidence == pytest.approx(math.exp(sum(steps) / len(steps)), rel=1e-3)


def test_frames_of_a_clip_are_read_together(tmp_path: Path) -> None:
    blip_folder(tmp_path, "safetensors")
    captioner = load_captioner(tmp_path)
    frames = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(4)) * 2 - 1
    [clip] = captioner.describe([frames])
    [still] = captioner.describe([frames[:1].repeat(4, 1, 1, 1)])
    [picture] = captioner.describe([frames[:1]])
    assert still.sentence == picture.sentence and still.confidence == pytest.approx(picture.confidence, rel=1e-3)
    assert clip.confidence != pytest.approx(picture.confidence, rel=1e-3)
    with pytest.raises(ValueError, match="expected"):
        captioner.describe([frames[..., :16]])
