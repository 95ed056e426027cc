"""The bridge by way of words: what exact and mixed vectors become, seeds, the limit of many draws, files, bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.bridges import WordsBridge, load_bridge


def units(count: int, width: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


SEEN, HEARD = torch.eye(8, 16), units(8, 12, seed=1)
BETWEEN = F.normalize(SEEN[2] + SEEN[5], dim=0).expand(40, -1)  # as much the one as the other


@pytest.mark.parametrize("draws", [0, 1, 3])
def test_what_is_seen_exactly_as_a_name_is_heard_exactly_as_this_name(draws: int) -> None:
    bridge = WordsBridge.between(SEEN, HEARD, draws)
    torch.testing.assert_close(bridge(SEEN, range(8)), HEARD, atol=1e-5, rtol=0)


def test_a_seed_draws_among_the_names_that_fit() -> None:
    bridge = WordsBridge.between(SEEN, HEARD, 3)
    answers = bridge(BETWEEN, range(40))
    torch.testing.assert_close(answers.norm(dim=1), torch.ones(40))
    mixtures = F.normalize(torch.stack([share * HEARD[2] + (3 - share) * HEARD[5] for share in range(4)]), dim=1)
    nearest = (answers @ mixtures.T).max(1)
    assert nearest.values.min() > 1 - 1e-5 and set(nearest.indices.tolist()) == {0, 1, 2, 3}
    alone = torch.cat([bridge(BETWEEN[:1], [seed]) for seed in range(40)])
    assert torch.equal(bridge(BETWEEN, range(40)), answers)
    torch.testing.assert_close(alone, answers)


def test_without_draws_it_is_the_limit_of_many() -> None:
    vectors = F.normalize(SEEN[1:6] + 0.99 * SEEN[2:7], dim=1)
    mean = WordsBridge.between(SEEN, HEARD, 0)(vectors, range(5))
    shares = (100 * vectors @ SEEN.T).softmax(1)
    second = shares.topk(2).values[:, 1]
    assert second.min() > 0.1 and second.max() < 0.4  # neither one name alone nor as much of either
    torch.testing.assert_close(mean, F.normalize(shares @ HEARD, dim=1))
    many, few = (WordsBridge.between(SEEN, HEARD, draws)(vectors, range(5)) for draws in (40_000, 1))
    torch.testing.assert_close(many, mean, atol=0.02, rtol=0)
    assert (few - mean).abs().max() > 0.1


def test_a_bridge_of_words_is_kept_like_the_others(tmp_path: Path) -> None:
    WordsBridge.between(SEEN, HEARD, 3).save_pretrained(tmp_path)
    again = load_bridge(tmp_path)
    torch.testing.assert_close(again(SEEN, range(8)), HEARD, atol=1e-3, rtol=0)
    assert len(again(BETWEEN, range(40)).round(decimals=3).unique(dim=0)) == 4


@pytest.mark.parametrize(
    ("vectors", "seeds", "problem"),
    [
        (torch.eye(2, 12), [0, 1], r"expected \(B, 16\)"),
        (torch.eye(2, 16), [0], "expected 2 seeds"),
        (2 * torch.eye(2, 16), [0, 1], "expected unit vectors"),
    ],
)
def test_what_a_bridge_cannot_take_is_refused(vectors: Tensor, seeds: list[int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        WordsBridge.between(SEEN, HEARD, 3)(vectors, seeds)
