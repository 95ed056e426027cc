"""The measures behind the quoted numbers, on cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.crossflow import hue_is_right, spread_over_seeds
from benchmarks.report import table
from tests.test_training import disc
from training.bridges import frechet_distance
from training.evaluator import Evaluator, augment, is_reserved, retrieval
from training.pictures import Picture
from training.recolour import COLOURS, dominant_hue, recolour


def test_frechet_distance_of_equal_and_of_shifted_features() -> None:
    features = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features, features + 2) == pytest.approx(8 * 4, rel=1e-6)
    assert frechet_distance(features, 3 * features) == pytest.approx(
        float(torch.cov(features.T).trace()) * 4 + float((2 * features.mean(0)).square().sum()), rel=1e-4
    )


def test_diversity_is_none_for_copies_and_one_for_orthogonal_pictures() -> None:
    one = torch.nn.functional.normalize(torch.randn(5, 16), dim=-1)
    assert spread_over_seeds(torch.stack([one, one, one])) == pytest.approx(0, abs=1e-6)
    basis = torch.eye(3)[:, None].expand(3, 5, 3)
    assert spread_over_seeds(basis) == pytest.approx(1)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_hue_is_right_for_its_own_colour_and_wrong_for_a_far_one(colour: str) -> None:
    start = disc((220, 40, 40))
    hue = dominant_hue(start)
    assert hue is not None
    painted = recolour(start, hue, COLOURS[colour])
    assert hue_is_right(painted, colour)
    far = "blue" if colour not in {"blue", "purple"} else "yellow"
    assert not hue_is_right(painted, far)
    assert not hue_is_right(np.full((64, 64, 3), 255, np.uint8), colour)


def test_retrieval_counts_the_first_and_the_first_five() -> None:
    torch.manual_seed(0)
    model = Evaluator().eval()
    pictures = torch.rand(20, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        embedded = model.embed_pictures(pictures)
        concepts = torch.cat([embedded, torch.nn.functional.normalize(torch.randn(30, 256), dim=-1)])
        assert retrieval(model, pictures, concepts, torch.arange(20)) == (1.0, 1.0)
        assert retrieval(model, pictures, concepts[20:], torch.zeros(20, dtype=torch.long))[0] < 0.5


def test_augmented_pictures_stay_in_range_and_near() -> None:
    pictures = torch.full((8, 3, 128, 128), 1.0)
    pictures[:, :, 40:90, 40:90] = -0.5
    moved = augment(pictures)
    assert moved.shape == pictures.shape and moved.abs().max() <= 1
    assert 0 < (moved - pictures).abs().mean() < 0.4


def test_a_tenth_of_the_pictures_is_reserved() -> None:
    items = [Picture(i, f"concept {i}", "flat", (), False, "train") for i in range(5000)]
    assert 0.085 < np.mean([is_reserved(item) for item in items]) < 0.115


def test_tables_are_markdown() -> None:
    assert table(["a", "b"], [[1, 0.5]]) == "| a | b |\n| --- | --- |\n| 1 | 0.500 |"
