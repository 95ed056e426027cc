"""Captioners whose sentence no concept nearby agrees with: what is said instead, how confidently, and never surely."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.captioner import AGREEING, END, words_of
from tests.test_captioner import searched, tiny, units


def spoken(without: str, seed: int = 0) -> Tensor:
    """A vector of which something is said that has words, but none of ``without``."""
    said = ((vector, words_of(searched(vector)[0])) for vector in units(40, seed=seed))
    return next(vector for vector, words in said if words and not set(words) & set(words_of(without)))


def around(vector: Tensor, count: int) -> Tensor:
    """Unit vectors (count, D): ``vector`` itself, then each a little farther from it than the one before."""
    other = units(1, seed=5)[0]
    away = F.normalize(other - (other @ vector) * vector, dim=0)
    return F.normalize(vector + 0.1 * torch.arange(count)[:, None] * away, dim=1)


def mean_probability(vector: Tensor, sentence: Sequence[int]) -> float:
    """Token by token, the end included."""
    model, said = tiny(), [*sentence, END]
    scores = [model(vector[None], torch.tensor([said[:i]]).long())[0, -1].detach() for i in range(len(said))]
    return math.prod(float(row.softmax(-1)[token]) for row, token in zip(scores, said, strict=True)) ** (1 / len(said))


@pytest.mark.parametrize("place", range(AGREEING + 2))
def test_a_sentence_stays_if_one_of_the_three_nearest_concepts_shares_a_word(place: int) -> None:
    vector = spoken(without="bell")
    said, confidence = searched(vector)
    sentences = ["a bell"] * (AGREEING + 2)
    sentences[place] = f"a {words_of(said)[-1]} thing"
    model = tiny(sentences, around(vector, len(sentences)), sure=0.0)
    for shown in (0, 1, 5):  # however many concepts are shown
        [described] = model.describe([vector], shown)
        assert len(described.nearest) == shown
        if place < AGREEING:
            assert (described.sentence, described.sure) == (said, True)
            assert described.confidence == pytest.approx(confidence, rel=1e-4)
        else:
            assert (described.sentence, described.sure) == ("a bell", False)
            assert described.confidence == pytest.approx(mean_probability(vector, [1, 5]), rel=1e-4)


def test_in_a_batch_each_sentence_that_nothing_nearby_agrees_with_gets_a_confidence_of_its_own() -> None:
    instead = {"bell": [5], "a red": [1, 2], "a apple bell": [1, 3, 4, 5]}
    vectors = [spoken(sentence, seed) for seed, sentence in enumerate(instead)]
    agreed = spoken("", seed=len(instead))
    said, confidence = searched(agreed)
    concepts = torch.cat([around(vector, AGREEING) for vector in (*vectors, agreed)])
    model = tiny([name for name in (*instead, f"{said} thing") for _ in range(AGREEING)], concepts, sure=0.0)
    descriptions = model.describe([vectors[0], agreed, *vectors[1:]])
    expected = [
        (sentence, mean_probability(vector, tokens), False)
        for vector, (sentence, tokens) in zip(vectors, instead.items(), strict=True)
    ]
    expected.insert(1, (said, confidence, True))
    for described, (sentence, mean, sure) in zip(descriptions, expected, strict=True):
        assert (described.sentence, described.sure) == (sentence, sure)
        assert described.confidence == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("concept", ["a zebra", "zebra bell", "a bell's", "a a a a bell"])
def test_a_sentence_stays_but_is_not_sure_if_that_of_the_nearest_concept_cannot_be_said(concept: str) -> None:
    vector = spoken(without="bell")
    said, confidence = searched(vector)
    [described] = tiny([concept], vector[None], sure=0.0).describe([vector])
    assert (described.sentence, described.sure) == (said, False)
    assert described.confidence == pytest.approx(confidence, rel=1e-4)
    assert [near.sentence for near in described.nearest] == [concept]
    [as_long_as_can_be] = tiny(["a a a bell"], vector[None], sure=0.0).describe([vector])
    assert as_long_as_can_be.sentence == "a a a bell" and not as_long_as_can_be.sure
