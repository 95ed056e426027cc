"""The fMRI pipeline: the shipped CrossFlow behind a small decoder of a brain that answers in straight lines to concepts
and coarse pictures."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.catalog import catalog
from models.errors import Cancelled, UserError
from models.manager import ModelManager
from models.nets.brain_decoder import BrainDecoder, BrainDecoderConfig, load_brain_decoder
from models.nets.brain_fitting import Pairs, solve_linear
from pipelines.base import Produced, Runtime
from pipelines.fmri.pipeline import (
    FMRI,
    GUIDED,
    OF_ADAPTED_SUBJECT,
    OF_MEASUREMENT,
    OF_SIMULATED_SUBJECT,
    OF_SIMULATION,
)
from pipelines.formats.scans.files import PERCENT, RAW, SIMULATED, Z_SCORED
from pipelines.media import Artifact, BrainScan, Image, Text
from tests.tiny_models import CPU, spec_of

PIPELINE = FMRI()
VOXELS, ADAPTED, SEEN = 400, 380, 300


class Brain(NamedTuple):
    manager: ModelManager
    decoder: BrainDecoder
    pairs: Pairs  # z-scored scans and what was seen

    def scan(self, row: int, **others: Any) -> BrainScan:
        said = {"space": "voxels", "subject": "S1", "units": Z_SCORED, **others}
        return BrainScan(self.pairs.values[row].numpy(), **said)


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Brain:
    torch.manual_seed(0)
    shipped = load_brain_decoder(Path("assets/weights/brain-decoder-lite"))
    chosen = torch.randperm(len(shipped.sentences))[:SEEN]
    semantic = F.normalize(shipped.concepts[chosen], dim=1)
    low_level = F.interpolate(torch.randn(SEEN, 8, 2, 2), (8, 8), mode="bilinear")
    answers = torch.cat([semantic * 16, low_level.flatten(1)], 1) @ torch.randn(768, VOXELS) / 24
    values = (answers - answers.mean(0)) / answers.std(0)
    decoder = BrainDecoder(BrainDecoderConfig(blocks=1))
    decoder.learn_components(semantic, low_level)
    decoder.add_subject("S1", "0" * 64, torch.full((VOXELS,), 0.5), torch.full((VOXELS,), 2.0))
    pairs = Pairs(values, semantic, low_level)
    solve_linear(decoder, "S1", pairs)
    decoder.add_subject("Ann", "", torch.ones(ADAPTED), torch.ones(ADAPTED))
    solve_linear(decoder, "Ann", pairs._replace(values=values[:, :ADAPTED]))
    decoder.name_concepts(shipped.sentences, shipped.concepts)
    spec = spec_of("brain-decoder", tmp_path_factory.mktemp("decoder"), load=lambda _: decoder.eval())
    specs = {key: spec for key, spec in catalog("lite").items() if key in FMRI.models}
    return Brain(ModelManager({**specs, "brain-decoder": spec}, CPU, 2 * 10**9), decoder, pairs)


def made(brain: Brain, *scans: Artifact, **params: Any) -> list[Artifact]:
    values = PIPELINE.parse_params({"num_inference_steps": 3, **params})
    run = PIPELINE.run_batch([[scan] for scan in scans], values, Runtime(brain.manager))
    return [event.artifact for event in run if isinstance(event, Produced)]


def picture_and_words(brain: Brain, scan: BrainScan, **params: Any) -> tuple[np.ndarray, list[str]]:
    picture, words = made(brain, scan, **params)
    assert isinstance(picture, Image) and isinstance(words, Text)
    return picture.pixels.astype(float), words.text.splitlines()


def percentile(lines: list[str]) -> int:
    found = re.search(r"nearer to a concept than (\d+) % of 1,000", lines[2])
    assert found is not None
    return int(found[1])


def test_what_was_seen_is_named_and_its_control_is_not(brain: Brain) -> None:
    named = by_chance = 0
    for row in range(0, 60, 5):
        seen = brain.decoder.nearest(brain.pairs.semantic[row][None], 1)[0][0].name
        for shuffled in (False, True):
            _, lines = picture_and_words(brain, brain.scan(row), shuffled=shuffled, num_inference_steps=1)
            found = f" {seen} " in lines[1]
            named, by_chance = named + (found and not shuffled), by_chance + (found and shuffled)
            assert any("what comes of nothing" in line for line in lines) == shuffled
    assert named >= 8 and by_chance <= 1


def test_a_true_scan_is_nearer_to_a_concept_than_its_shuffled_voxels(brain: Brain) -> None:
    true = [percentile(picture_and_words(brain, brain.scan(row), num_inference_steps=1)[1]) for row in (3, 40, 77)]
    assert np.mean(true) > 90


def test_the_decoded_look_is_where_the_picture_starts(brain: Brain) -> None:
    def coarse(pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(8, 16, 8, 16, 3).mean((1, 3)).ravel()

    scan = brain.scan(10)
    with brain.manager.lease("autoencoder") as autoencoder, torch.no_grad():
        look = brain.decoder.decode("S1", brain.pairs.values[10:11]).low_level
        seen = autoencoder.decode(F.interpolate(look, scale_factor=2, mode="bilinear"))
    target = coarse(((seen[0] + 1) * 127.5).clamp(0, 255).permute(1, 2, 0).numpy())
    likeness = [
        np.corrcoef(coarse(picture_and_words(brain, scan, strength=strength)[0]), target)[0, 1]
        for strength in (0.0, 1.0)
    ]
    assert likeness[1] > likeness[0] + 0.1 and likeness[1] > 0.5


def test_a_seed_gives_the_same_and_each_picture_has_its_own(brain: Brain) -> None:
    pictures = [one for one in made(brain, brain.scan(5), num_images=2, seed=4) if isinstance(one, Image)]
    again, _ = picture_and_words(brain, brain.scan(5), seed=5)
    assert not np.array_equal(pictures[0].pixels, pictures[1].pixels)
    assert np.abs(pictures[1].pixels.astype(float) - again).mean() < 1
    assert [one.provenance.index for one in pictures if one.provenance] == [0, 1]


@pytest.mark.parametrize(("units", "factor"), [(PERCENT, 1), (RAW, 300)])
def test_percent_signal_change_is_standardised_by_the_subjects_statistics(
    brain: Brain, units: str, factor: int
) -> None:
    changed = replace(brain.scan(8), values=(brain.pairs.values[8].numpy() * 2 + 0.5) * factor, units=units)
    assert picture_and_words(brain, changed)[1][:2] == picture_and_words(brain, brain.scan(8))[1][:2]


def test_repeats_are_averaged_and_one_trial_can_be_chosen(brain: Brain) -> None:
    noise = torch.randn(VOXELS)
    both = BrainScan((brain.pairs.values[6] + torch.stack([noise, -noise])).numpy(), "voxels", "S1", Z_SCORED)
    lines = picture_and_words(brain, both)[1]
    assert lines[:2] == picture_and_words(brain, brain.scan(6))[1][:2] and "S1, mean of 2 trials" in lines[2]
    first = picture_and_words(brain, both, trial=1)[1]
    alone = BrainScan((brain.pairs.values[6] + noise).numpy(), "voxels", "S1", Z_SCORED)
    assert first[:2] == picture_and_words(brain, alone)[1][:2] and "S1, trial 1" in first[2]


def test_every_answer_says_what_kind_of_data_it_is_of(brain: Brain) -> None:
    ann = BrainScan(brain.pairs.values[2, :ADAPTED].numpy(), "voxels", "Ann", Z_SCORED)
    for scan, badge in (
        (brain.scan(2, origin=SIMULATED), OF_SIMULATION),
        (brain.scan(2, origin="uploaded"), OF_SIMULATED_SUBJECT),
        (ann, OF_ADAPTED_SUBJECT),
        (BrainScan.load(MEASURED_EXAMPLES[0]), OF_MEASUREMENT),
    ):
        picture, words = made(brain, scan, num_inference_steps=1)
        assert isinstance(words, Text) and words.text.splitlines()[-2:] == [badge, GUIDED]
        assert picture.provenance is not None and picture.provenance.badge == f"{badge} {GUIDED}"
    [picture, _] = made(brain, brain.scan(2), num_inference_steps=1, shuffled=True)
    assert picture.provenance is not None and "what comes of nothing" in picture.provenance.badge


MEASURED_EXAMPLES = sorted(Path("assets/examples/scans").glob("measured-*.npz"))


def test_of_measured_scans_the_kind_is_told_and_of_shuffled_ones_it_is_not(brain: Brain) -> None:
    kinds = {"scrambledpix": "a scrambled picture"}
    right = by_chance = 0
    for path in MEASURED_EXAMPLES:
        scan = BrainScan.load(path)
        kind = path.stem.removeprefix("measured-")
        for shuffled in (False, True):
            _, lines = picture_and_words(brain, scan, shuffled=shuffled, num_inference_steps=1)
            found = lines[0].removeprefix("a ") == kinds.get(kind, kind).removeprefix("a ")
            right, by_chance = right + (found and not shuffled), by_chance + (found and shuffled)
            assert lines[-2:] == [OF_MEASUREMENT, GUIDED] and "is right for 82 %" in lines[3]
    assert len(MEASURED_EXAMPLES) == 8 and right >= 5 and by_chance <= 3


def test_only_the_models_of_its_brain_are_named(brain: Brain) -> None:
    params = PIPELINE.parse_params({})
    for scan, unused in ((brain.scan(0), "category-decoder"), (BrainScan.load(MEASURED_EXAMPLES[0]), "brain-decoder")):
        assert set(PIPELINE.models_for([scan], params)) == set(FMRI.models) - {unused}


def test_a_measured_brain_of_other_voxels_is_refused(brain: Brain) -> None:
    for scan in (brain.scan(0, subject="Haxby2001-S1"), replace(BrainScan.load(MEASURED_EXAMPLES[0]), units=RAW)):
        with pytest.raises(UserError, match="530 voxels, z-scored"):
            made(brain, scan)


def test_a_batch_keeps_its_order_and_stops_when_told(brain: Brain) -> None:
    scans = [brain.scan(row) for row in (1, 2)]
    texts = [one.text.splitlines()[1] for one in made(brain, *scans) if isinstance(one, Text)]
    assert texts == [picture_and_words(brain, scan)[1][1] for scan in scans]
    runtime = Runtime(brain.manager, threading.Event())
    runtime.cancelled.set()
    with pytest.raises(Cancelled):
        list(PIPELINE.run_batch([[scans[0]]], PIPELINE.parse_params({}), runtime))
    assert all(row.leases == 0 for row in brain.manager.status())


@pytest.mark.parametrize(
    ("given", "params", "problem"),
    [
        (Text("a scan"), {}, "A brain scan is needed here, not text"),
        (BrainScan(np.zeros((3, 4, 5), np.float32), "MNI152", "S1"), {}, "3 axes"),
        (
            BrainScan(np.zeros(VOXELS + 1, np.float32), "voxels", "unknown", Z_SCORED),
            {},
            "do not match any known subject",
        ),
        (BrainScan(np.zeros(VOXELS, np.float32), "voxels", "S1"), {}, "does not say whether"),
        (BrainScan(np.zeros(VOXELS, np.float32), "voxels", "S1", Z_SCORED), {"trial": 2}, "has no trial 2, only 1"),
        (BrainScan(np.zeros(VOXELS, np.float32), "voxels", "S1", Z_SCORED), {"subject": "S9"}, "'S9' is no known"),
    ],
)
def test_what_cannot_be_decoded_is_said_plainly(
    brain: Brain, given: Artifact, params: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem) as refused:
        made(brain, given, **params)
    assert refused.value.hint


def test_a_decoder_of_other_latents_than_the_painters_is_refused(brain: Brain, monkeypatch: pytest.MonkeyPatch) -> None:
    def finer(*given: Any, **named: Any) -> torch.Tensor:
        return torch.zeros(1, 8, 32, 32)

    monkeypatch.setattr("pipelines.fmri.pipeline.F.interpolate", finer)
    with pytest.raises(UserError, match="do not mean the same by latents"):
        made(brain, brain.scan(0))
    assert all(row.leases == 0 for row in brain.manager.status())


def test_units_that_a_scan_lacks_can_be_said(brain: Brain) -> None:
    silent = replace(brain.scan(9), units="unknown")
    assert picture_and_words(brain, silent, units=Z_SCORED)[1][:2] == picture_and_words(brain, brain.scan(9))[1][:2]
