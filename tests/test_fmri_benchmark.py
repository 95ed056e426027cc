"""The fMRI benchmark on a small world: its rows, their controls, and measures whose answer is known."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks import fmri, report
from models.nets import brain_fitting
from models.nets.brain_decoder import BrainDecoder
from models.nets.map_decoder import MapDecoderConfig
from tests.tiny_brains import TEST, tiny_world
from training import brain_decoder, brain_simulator, loop, neuropictor
from training.brain_concepts import mapped, mean_vectors
from training.brain_decoder import World, record, train_decoder
from training.evaluator import Evaluator
from training.pictures import Picture, Pictures

V, TRIALS, KINDS = 300, 400, 30


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world(3 * TRIALS)


@pytest.fixture
def decoder(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BrainDecoder:
    """Of two subjects of 300 voxels; of thirty kinds of pictures it knows the mean vectors."""
    for name in ("S1", "S2", "S3"):
        monkeypatch.setitem(brain_simulator.VOXELS, name, V)
    monkeypatch.setattr(loop, "STATE", tmp_path / "state")
    monkeypatch.setattr(brain_fitting, "MOST_STEPS", 20)
    monkeypatch.setattr(brain_decoder, "TRAINING_IMAGES", TRIALS)
    for name, value in {"SUBJECTS": ("S1", "S2"), "NEW_SUBJECT": "S3", "FEW_TRIALS": (60,), "PAINTED": 2}.items():
        monkeypatch.setattr(fmri, name, value)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    made = train_decoder(world, [record(world, name) for name in ("S1", "S2")], 4)
    kinds = torch.from_numpy(kinds_of(world))
    sums = torch.zeros(KINDS, 256).index_add(0, kinds, world.semantic)
    made.name_concepts([f"a thing {kind}" for kind in range(KINDS)], F.normalize(sums, dim=1))
    return made


def kinds_of(world: World) -> np.ndarray:
    """By the direction among thirty in which a picture's vector is farthest from the mean."""
    directions = torch.randn(KINDS, 256, generator=torch.Generator().manual_seed(0))
    return ((world.semantic - world.means.semantic) @ directions.T).argmax(1).numpy()


def test_every_default_part_is_written_and_its_controls_are_at_chance(
    world: World, decoder: BrainDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    items = [Picture(row, f"thing {kind:02}", "flat", (), False, "train") for row, kind in enumerate(kinds_of(world))]
    everything = Pictures(np.zeros((len(items), 8, 8, 3), np.uint8), items)
    monkeypatch.setattr(fmri, "verify_checksums", lambda folder: None)
    monkeypatch.setattr(fmri, "load_pictures", lambda folder: everything)
    monkeypatch.setattr(fmri, "world_of", lambda pictures: world)
    monkeypatch.setattr(fmri, "load_brain_decoder", lambda folder: decoder)
    monkeypatch.setattr(fmri, "load_words", lambda concepts: torch.randn(len(concepts), 256))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["fmri", "--data", "."])
    fmri.main()
    found = json.loads((tmp_path / "fmri.json").read_text())
    assert set(found) == {"machine", "subjects", "noise ceilings", "new subject", "names"}
    rows = {(row["subject"], row["way"]): row for row in found["subjects"]}
    assert rows["S1", "decoder"]["two_way_of_3"] > 0.6 and abs(rows["S1", "shuffled"]["two_way_of_3"] - 0.5) < 0.06
    assert rows["mean", "ridge"]["top1_of_3"] == np.mean([rows[name, "ridge"]["top1_of_3"] for name in ("S1", "S2")])
    assert rows["all", "chance"]["top1_of_1"] == 1 / TEST
    assert {(row["way"], row["trials"]) for row in found["new subject"]} == {
        (way, 60) for way in ("adapter", "adapter, shuffled", "from scratch", "ridge")
    }
    assert all(0 < row["noise_ceiling_of_1"] < row["noise_ceiling_of_3"] < 1 for row in found["noise ceilings"])
    named = {(row["by"], row["of"]): row for row in found["names"]}
    assert named["pictures", "true vectors"]["top1"] > 0.3 > 2.5 / KINDS > named["words", "true vectors"]["top1"]
    assert named["pictures", "3 trials"]["top5"] > 1.3 * 5 / KINDS
    printed = capsys.readouterr().out
    assert all(part in printed for part in ("subjects\n|", "new subject\n|", "names\n|"))


def test_maps_are_measured_beside_adapters_and_ridge(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "STATE", tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(brain_decoder, "TRAINING_IMAGES", 200)
    for name, value in {"SUBJECTS": ("S1", "S2"), "NEW_SUBJECT": "S3"}.items():
        monkeypatch.setattr(fmri, name, value)
    adapters = brain_decoder.untrained([record(world, name) for name in ("S1", "S2")], world).eval()
    config = MapDecoderConfig(width=32, blocks=1, heads=2, dropout=0.0)
    found = fmri.maps(world, adapters, neuropictor.untrained(world, config).eval(), 2)
    rows = {(row["subject"], row["way"]): row for row in found}
    ways = {"maps", "maps, refined", "adapter", "maps, shuffled", "maps, ridge"}
    assert {way for name, way in rows if name == "S1"} == ways
    assert {way for name, way in rows if name == "S3"} == ways - {"adapter"}
    assert {way for name, way in rows if name == "mean"} == ways - {"maps, refined"}
    assert rows["mean", "maps, ridge"]["two_way_of_3"] > 0.65 and rows["all", "chance"]["two_way_of_3"] == 0.5
    assert rows["S1", "maps"] != rows["S1", "maps, refined"]


def test_likeness_of_known_pictures() -> None:
    torch.manual_seed(0)
    corners = torch.rand(12, 3, 4, 4) * 255
    true = F.interpolate(corners, (128, 128), mode="bilinear").permute(0, 2, 3, 1).byte().numpy()
    judge = Evaluator().eval()
    same, other = fmri.likeness(true, true, judge), fmri.likeness(np.roll(true, 1, 0), true, judge)
    assert same == pytest.approx(dict.fromkeys(same, 1.0))
    assert abs(other["pixel_r"]) < 0.5 and other["ssim"] < 0.8 and other["two_way"] < 0.8
    negative = fmri.likeness(255 - true, true, judge)
    assert negative["pixel_r"] == pytest.approx(-1)


# ------------------------------------------------------------------------------------------------------- names' recipe


def test_a_concept_lies_where_its_pictures_are_or_else_where_its_words_lead() -> None:
    generator = torch.Generator().manual_seed(0)
    words = F.normalize(torch.randn(50, 8, generator=generator), dim=1)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    centers = F.normalize(words @ turn + 0.3, dim=1)
    vectors = F.normalize(centers.repeat(2, 1) + 0.01 * torch.randn(100, 8, generator=generator), dim=1)
    concepts = [f"{number:02}" for number in range(50)]
    items = [Picture(row, concepts[row % 50], "flat", (), False, "train") for row in range(100) if row % 50 != 7]
    means = mean_vectors(concepts, items, vectors, words)
    torch.testing.assert_close(means[3], F.normalize(vectors[3] + vectors[53], dim=0))
    assert F.cosine_similarity(means[7] - means.mean(0), centers[7] - means.mean(0), dim=0) > 0.9


def test_the_map_is_the_best_straight_one() -> None:
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(400, 6, generator=generator)
    turn = torch.randn(6, 6, generator=generator)
    found = mapped(sources, sources, sources @ turn + 2)
    assert F.cosine_similarity(found - 2, sources @ turn).min() > 0.99
