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
from torch import Tensor
from torch.nn import functional as F

from models.catalog import catalog
from models.errors import Cancelled, UserError
from models.manager import ModelManager
from models.nets.brain_decoder import BrainDecoder, BrainDecoderConfig, load_brain_decoder
from models.nets.brain_fitting import Pairs, solve_linear
from models.nets.brain_subjects import Decoded
from models.nets.crossflow import FAINT
from pipelines.base import Produced, Progress, Runtime
from pipelines.fmri.cortex import draw_scan
from pipelines.fmri.flat_map import known_places
from pipelines.fmri.known_pictures import NEAREST, known_pictures
from pipelines.fmri.pipeline import (
    DRAWN,
    FMRI,
    GUIDED,
    LOOKED_UP,
    OF_ADAPTED_SUBJECT,
    OF_MEASUREMENT,
    OF_SIMULATED_SUBJECT,
    OF_SIMULATION,
    OF_UPLOAD,
    FMRIParams,
    read,
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
    of_s7: (
        Tensor  # the same seen by the simulator's S7: early voxels answer to the look alone, the others to the meaning
    )

    def scan(self, row: int, **others: Any) -> BrainScan:
        said = {"space": "voxels", "subject": "S1", "units": Z_SCORED, **others}
        return BrainScan(self.pairs.values[row].numpy(), **said)

    def scan_of_s7(self, row: int) -> BrainScan:
        return BrainScan(self.of_s7[row].numpy(), "voxels", "S7", Z_SCORED, SIMULATED)


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
    places = known_places()["S7"]
    early = torch.from_numpy(places.within("early"))
    weights = torch.randn(768, len(early))
    weights[:256, early], weights[256:, ~early] = 0.0, 0.0
    of_s7 = torch.cat([semantic * 16, low_level.flatten(1)], 1) @ weights
    of_s7 = (of_s7 - of_s7.mean(0)) / of_s7.std(0)
    decoder.add_subject("S7", places.mask_hash, torch.zeros(len(early)), torch.ones(len(early)))
    solve_linear(decoder, "S7", pairs._replace(values=of_s7))
    decoder.name_concepts(shipped.sentences, shipped.concepts)
    spec = spec_of("brain-decoder", tmp_path_factory.mktemp("decoder"), load=lambda _: decoder.eval())
    specs = {key: spec for key, spec in catalog("lite").items() if key in FMRI.models}
    return Brain(ModelManager({**specs, "brain-decoder": spec}, CPU, 2 * 10**9), decoder, pairs, of_s7)


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


def test_a_painter_whose_sources_are_like_no_picture_paints_the_words_alone(
    brain: Brain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the published CrossFlow is."""
    scan = brain.scan(10)
    words_alone = picture_and_words(brain, scan, strength=0.0)[0]
    assert not np.array_equal(picture_and_words(brain, scan, strength=1.0)[0], words_alone)
    with brain.manager.lease("crossflow") as flow:
        assert flow.config.faint == FAINT
        monkeypatch.setattr(flow, "config", replace(flow.config, faint=None))
        assert np.array_equal(picture_and_words(brain, scan, strength=1.0)[0], words_alone)


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
    def of_more_channels(subject: str, values: torch.Tensor) -> Decoded:
        return Decoded(F.normalize(torch.ones(len(values), 256), dim=1), torch.zeros(len(values), 9, 8, 8))

    monkeypatch.setattr(brain.decoder, "decode", of_more_channels)
    with pytest.raises(UserError, match="do not mean the same by latents"):
        made(brain, brain.scan(0))
    assert all(row.leases == 0 for row in brain.manager.status())


def test_units_that_a_scan_lacks_can_be_said(brain: Brain) -> None:
    silent = replace(brain.scan(9), units="unknown")
    assert picture_and_words(brain, silent, units=Z_SCORED)[1][:2] == picture_and_words(brain, brain.scan(9))[1][:2]


def events(brain: Brain, scan: BrainScan, **params: Any) -> list[Progress | Produced]:
    values = PIPELINE.parse_params({"num_inference_steps": 7, **params})
    return list(PIPELINE.run_batch([[scan]], values, Runtime(brain.manager)))


def test_the_activity_is_seen_until_there_is_something_of_the_picture(brain: Brain) -> None:
    scan = brain.scan_of_s7(4)
    previews = [event.preview for event in events(brain, scan, without="early") if isinstance(event, Progress)]
    activity = draw_scan(scan, without="early").pixels
    seen = [preview is not None and np.array_equal(preview.pixels, activity) for preview in previews]
    assert seen[0] and seen == sorted(seen, reverse=True) and not seen[-1]
    begun = previews[seen.index(False)]
    assert begun is not None and begun.pixels.shape == (128, 128, 3)


def test_the_activity_is_seen_while_models_load(brain: Brain) -> None:
    brain.manager.free()
    said: list[Progress] = []
    runtime = Runtime(brain.manager, report=said.append)
    params = PIPELINE.parse_params({"show": "nearest pictures"})
    list(PIPELINE.run([brain.scan_of_s7(4)], params, runtime))
    activity = draw_scan(brain.scan_of_s7(4)).pixels
    assert said
    for progress in said:
        assert progress.preview is not None and np.array_equal(progress.preview.pixels, activity)


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_activity_alone_takes_no_model(brain: Brain, shuffled: bool) -> None:
    scan = brain.scan_of_s7(4)
    params = PIPELINE.parse_params({"show": "activity", "shuffled": shuffled})
    assert PIPELINE.models_for([scan], params) == () and PIPELINE.effort([scan], params) == 0
    picture, words = made(brain, scan, show="activity", shuffled=shuffled)
    assert isinstance(picture, Image) and isinstance(words, Text) and "S7, trial 1" in words.text
    assert np.array_equal(picture.pixels, draw_scan(scan).pixels) != shuffled
    assert picture.provenance is not None and picture.provenance.models == ()
    assert picture.provenance.badge.endswith(f"{OF_SIMULATION} {DRAWN}")


def test_a_drawing_says_what_kind_of_data_it_is_of(brain: Brain) -> None:
    unknown = BrainScan(np.ones((4, 5, 6), np.float32), "unknown", "unknown")
    for scan, badge in (
        (replace(brain.scan_of_s7(0), origin="uploaded"), OF_SIMULATED_SUBJECT),
        (BrainScan.load(MEASURED_EXAMPLES[0]), OF_MEASUREMENT),
        (unknown, OF_UPLOAD),
    ):
        picture, _ = made(brain, scan, show="activity")
        assert picture.provenance is not None and picture.provenance.badge == f"{badge} {DRAWN}"
    picture, _ = made(brain, brain.scan_of_s7(0), show="activity", without="ventral")
    assert picture.provenance is not None
    assert picture.provenance.badge.startswith("Left out: ventral (ventral, parahippocampal).")


def test_without_a_region_is_lost_what_it_tells(brain: Brain) -> None:
    """Here early voxels tell the look alone, and all others what it is."""
    low_level = brain.pairs.low_level
    named: dict[str, int] = {}
    likeness: dict[str, float] = {}
    for without in ("none", "early", "higher"):
        params = PIPELINE.parse_params({"without": without})
        assert isinstance(params, FMRIParams)
        readings = [read(brain.scan_of_s7(row), params, Runtime(brain.manager)) for row in range(0, 60, 5)]
        seen = [brain.decoder.nearest(brain.pairs.semantic[row][None], 1)[0][0].sentence for row in range(0, 60, 5)]
        named[without] = sum(reading.sentence == sentence for reading, sentence in zip(readings, seen, strict=True))
        looks = torch.cat([reading.look for reading in readings if reading.look is not None])
        both = torch.stack([looks.flatten(), low_level[0:60:5].flatten()])
        likeness[without] = float(torch.corrcoef(both)[0, 1])
    assert named["none"] >= 8 and named["early"] >= 8 and named["higher"] <= 1
    # The others know some looks by heart: these are the pictures that the adapter was solved on.
    assert likeness["none"] > 0.95 and likeness["higher"] > 0.95 and likeness["early"] < 0.6


def test_what_was_left_out_is_said_with_every_result(brain: Brain) -> None:
    picture, words = made(brain, brain.scan_of_s7(3), num_inference_steps=1, without="dorsal")
    gone = int(known_places()["S7"].within("dorsal").sum())
    told = f"Left out: dorsal (dorsal), {gone} of 976 voxels set to their means."
    assert isinstance(words, Text) and told in words.text.splitlines()
    assert picture.provenance is not None and picture.provenance.badge == f"{told} {OF_SIMULATION} {GUIDED}"


@pytest.mark.parametrize("show", ["picture", "activity", "nearest pictures"])
def test_of_unknown_regions_none_is_left_out(brain: Brain, show: str) -> None:
    ann = BrainScan(brain.pairs.values[2, :ADAPTED].numpy(), "voxels", "Ann", Z_SCORED)
    for scan in (ann, BrainScan.load(MEASURED_EXAMPLES[0])):
        with pytest.raises(UserError, match="lie in which region is not known"):
            made(brain, scan, show=show, without="early")


def test_regions_are_those_of_the_voxels_that_the_decoder_reads(brain: Brain) -> None:
    adapter = brain.decoder.adapter("S7")
    known, adapter.mask_hash = adapter.mask_hash, "0" * 64  # as many voxels, but others
    try:
        with pytest.raises(UserError, match="the brain of S7 lie in which region is not known"):
            made(brain, brain.scan_of_s7(0), without="early")
    finally:
        adapter.mask_hash = known


def test_the_nearest_of_the_known_pictures_are_found_and_those_of_nothing_are_not(brain: Brain) -> None:
    known = known_pictures()
    assert len(known.names) == len(set(known.names)) == len(known.pixels) == len(known.vectors) > 200
    assert torch.allclose(known.vectors.norm(dim=1), torch.ones(len(known.names)), atol=0.01)
    found, nothing = [], []
    for row in range(0, 40, 5):
        vector = F.normalize(brain.pairs.semantic[row] - brain.decoder.center, dim=0)
        nearest = (F.normalize(known.vectors - brain.decoder.center, dim=1) @ vector).argmax()
        picture, words = made(brain, brain.scan_of_s7(row), show="nearest pictures")
        _, shuffled = made(brain, brain.scan_of_s7(row), show="nearest pictures", shuffled=True)
        assert isinstance(words, Text) and isinstance(shuffled, Text) and isinstance(picture, Image)
        lines = words.text.splitlines()
        assert lines[0] == f"Nearest of {len(known.names)} known pictures, which is not a reconstruction:"
        assert lines[-2:] == [OF_SIMULATION, LOOKED_UP] and len(lines) == NEAREST + 4
        cosines = [float(re.findall(r" (-?\d\.\d\d),", line)[0]) for line in lines[1 : NEAREST + 1]]
        assert cosines == sorted(cosines, reverse=True)
        found.append(any(f". {known.names[nearest]} " in line for line in lines[1 : NEAREST + 1]))
        nothing.append(int(re.findall(r"than (\d+) % of 1,000", shuffled.text)[0]))
        assert int(re.findall(r"than (\d+) % of 1,000", lines[1])[0]) > 60
        assert picture.provenance is not None and [one.key for one in picture.provenance.models] == ["brain-decoder"]
    assert np.mean(found) > 0.7 and 20 < np.mean(nothing) < 80


def test_no_known_picture_is_near_to_a_kind_of_thing(brain: Brain) -> None:
    with pytest.raises(UserError, match="only the kind of thing is decoded"):
        made(brain, BrainScan.load(MEASURED_EXAMPLES[0]), show="nearest pictures")


@pytest.mark.parametrize(("space", "count"), [("fsaverage5 left", 10_242), ("fs_LR 32k", 64_984)])
def test_numbers_on_a_surface_are_drawn_and_not_decoded(brain: Brain, space: str, count: int) -> None:
    scan = BrainScan(np.linspace(-1, 1, count, dtype=np.float32), space, "unknown", Z_SCORED)
    picture, words = made(brain, scan, show="activity")
    assert isinstance(picture, Image) and isinstance(words, Text) and f"from {space}" in words.text
    for show in ("picture", "nearest pictures"):
        with pytest.raises(UserError, match=rf"\({space}\) cannot be decoded.*Set 'show' to 'activity' to see them"):
            made(brain, scan, show=show)
