"""Measured fMRI: the shipped slice, its normalisation, and decoding it with each run left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.haxby import nearest_means, shuffled
from models.errors import UserError
from models.nets.category_decoder import CategoryDecoder, load_category_decoder
from training.haxby import (
    DATA,
    REST,
    SENTENCES,
    Blocks,
    best_penalty,
    fit_ridge,
    leave_one_run_out,
    load_blocks,
    load_volumes,
    normalised,
)

KINDS = len(SENTENCES)


@pytest.fixture(scope="module")
def blocks() -> Blocks:
    return load_blocks()


def test_the_slice_is_whole_and_normalised_run_by_run() -> None:
    values, shown, runs = load_volumes(DATA)
    assert values.shape == (1452, 530) and set(shown) == {REST, *SENTENCES} and sorted(set(runs)) == list(range(12))
    result = normalised(values + 100 * runs[:, None] + np.arange(1452)[:, None], shown, runs)
    np.testing.assert_allclose(
        result, normalised(values, shown, runs), atol=1e-6
    )  # neither levels nor slow drifts count
    rest = result[(runs == 3) & (shown == REST)]
    np.testing.assert_allclose(rest.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(rest.std(0), 1, atol=1e-6)


def test_what_was_looked_at_is_decoded_of_runs_that_were_left_out(blocks: Blocks) -> None:
    said = leave_one_run_out(*blocks, KINDS)
    assert len(said) == 96 and (said == blocks.labels).double().mean() >= 0.78
    assert (nearest_means(blocks) == blocks.labels).double().mean() > 0.4


def test_with_shuffled_labels_it_is_not(blocks: Blocks) -> None:
    other = shuffled(blocks, 0)
    assert sorted(other.labels.tolist()) == sorted(blocks.labels.tolist()) and (other.labels != blocks.labels).any()
    assert (leave_one_run_out(*other, KINDS) == other.labels).double().mean() < 0.25


def test_no_run_has_a_say_in_its_own_decoding(blocks: Blocks) -> None:
    spoilt = blocks.values.clone()
    spoilt[blocks.runs == 4] = 1000.0
    before, after = (leave_one_run_out(values, *blocks[1:], KINDS) for values in (blocks.values, spoilt))
    changed = blocks._replace(labels=torch.where(blocks.runs == 4, 0, blocks.labels))
    relabelled = leave_one_run_out(*changed, KINDS)
    assert torch.equal(relabelled[blocks.runs == 4], before[blocks.runs == 4])
    assert not torch.equal(before, after)


def test_ridge_is_the_minimum_that_it_claims_to_be() -> None:
    torch.manual_seed(0)
    values, labels = torch.randn(30, 50), torch.arange(30) % 3
    weight, bias = fit_ridge(values, labels, 3, 0.3)
    targets = torch.nn.functional.one_hot(labels, 3).float()
    centred = values - values.mean(0)
    strength = 0.3 * (centred @ centred.T).trace() / 30

    def loss(change: float) -> float:
        moved = weight + change * torch.ones_like(weight)
        return float((values @ moved.T + bias - targets).square().sum() + strength * moved.square().sum())

    assert loss(0) < min(loss(1e-3), loss(-1e-3))
    torch.testing.assert_close((values @ weight.T + bias).mean(0), targets.mean(0))


def test_the_penalty_is_chosen_by_what_it_is_good_for() -> None:
    torch.manual_seed(0)
    labels, runs = torch.arange(64) % 2, torch.arange(64) // 8
    values = torch.randn(64, 40) + 3 * labels[:, None] * torch.eye(40)[0]
    assert best_penalty(values, labels, runs, 2, (1e-6, 1.0)) == 1.0
    assert best_penalty(values, labels, runs, 2, (5.0,)) == 5.0


def test_a_decoder_comes_back_from_its_files_and_others_are_refused(tmp_path: Path) -> None:
    decoder = CategoryDecoder(("a cat", "a house"), 5, "S1", 0.8)
    decoder.save_pretrained(tmp_path / "one")
    loaded = load_category_decoder(tmp_path / "one")
    values = torch.randn(3, 5)
    assert torch.equal(loaded(values), decoder(values))
    assert (loaded.names, loaded.voxels, loaded.subject, loaded.accuracy) == (("a cat", "a house"), 5, "S1", 0.8)
    with pytest.raises(UserError, match="no category decoder"):
        load_category_decoder(tmp_path)
