"""The brain decoder: subjects, files, the fit of an adapter, the recipe."""

from __future__ import annotations

import io
import json
import math
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from models.errors import UserError
from models.nets import brain_fitting
from models.nets.brain_decoder import BrainDecoder, BrainDecoderConfig, Decoded, load_brain_decoder
from models.nets.brain_fitting import Pairs, by_picture, contrastive_loss, fit_adapter, mix, soft_shares, solve_linear
from models.nets.brain_measures import Means, chance, measure
from tests.tiny_brains import TEST, VALIDATION, tiny_world
from training import brain_decoder, brain_simulator, bridges, loop, picture_text
from training.brain_decoder import (
    Part,
    Recording,
    World,
    compare,
    decoding,
    few_trials,
    load_world,
    record,
    score,
    train_decoder,
)

V = 300
TRIALS = 400


def random_pairs(count: int, voxels: int = 40) -> Pairs:
    """Scans that are a linear function of what was seen, and noise."""
    generator = torch.Generator().manual_seed(0)
    semantic = F.normalize(torch.randn(count, 256, generator=generator) / (1 + torch.arange(256)) + 0.1, dim=-1)
    low_level = torch.randn(count, 8, 8, 8, generator=generator)
    seen = torch.cat([10 * semantic, low_level.flatten(1)[:, :20]], 1)
    values = seen @ torch.randn(276, voxels, generator=generator) / 5
    return Pairs(values + torch.randn(count, voxels, generator=generator), semantic, low_level)


def add(decoder: BrainDecoder, subject: str, voxels: int) -> None:
    decoder.add_subject(subject, f"mask of {subject}", torch.full((voxels,), 0.5), torch.full((voxels,), 2.0))


@pytest.fixture
def decoder() -> BrainDecoder:
    torch.manual_seed(0)
    made = BrainDecoder(BrainDecoderConfig(width=64, blocks=2))
    pairs = random_pairs(200)
    made.learn_components(pairs.semantic, pairs.low_level)
    for subject, voxels in (("S1", 40), ("S2", 30)):
        add(made, subject, voxels)
    return made.eval()


# ------------------------------------------------------------------------------------------------------------ decoding


def test_each_subject_has_an_adapter_of_its_own(decoder: BrainDecoder) -> None:
    scans = torch.randn(5, 40)
    decoded = decoder.decode("S1", scans)
    assert decoded.semantic.shape == (5, 256) and decoded.low_level.shape == (5, 8, 8, 8)
    torch.testing.assert_close(decoded.semantic.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(decoder.decode("S1", scans[2:3]).semantic, decoded.semantic[2:3])
    add(decoder, "S3", 40)
    assert not torch.allclose(decoder.decode("S3", scans).semantic, decoded.semantic, atol=1e-3)
    torch.testing.assert_close(decoder.decode("S1", scans), decoded)
    betas = 0.5 + 2 * scans
    torch.testing.assert_close(decoder.standardised("S1", betas), scans)


def test_scans_that_cannot_be_decoded_are_refused(decoder: BrainDecoder) -> None:
    with pytest.raises(UserError, match=r"35 voxels do not match any known subject \(40 = S1, 30 = S2\)\. Pick 'new"):
        decoder.decode("S1", torch.zeros(1, 35))
    with pytest.raises(UserError, match=r"30 voxels do not match S1, who has 40\. They may be those of S2"):
        decoder.decode("S1", torch.zeros(1, 30))
    with pytest.raises(UserError, match="'S9' is no known subject"):
        decoder.decode("S9", torch.zeros(1, 40))
    with pytest.raises(UserError, match="no numbers"):
        decoder.decode("S1", torch.full((1, 40), torch.nan))
    with pytest.raises(ValueError, match=r"expected \(B, V\)"):
        decoder.decode("S1", torch.zeros(40))


def test_a_subject_is_recognised_by_its_voxels_and_mask(decoder: BrainDecoder) -> None:
    assert decoder.recognise(30) == "S2" == decoder.recognise(30, "mask of S2")
    with pytest.raises(UserError, match="31 voxels do not match any known subject"):
        decoder.recognise(31)
    with pytest.raises(UserError, match="Same number of voxels as S2, but another mask"):
        decoder.recognise(30, "another")
    add(decoder, "S3", 30)
    assert decoder.recognise(30, "mask of S3") == "S3"
    with pytest.raises(UserError, match=r"fit several subjects \(S2, S3\)"):
        decoder.recognise(30)


@pytest.mark.parametrize("name", ["", "a.b", "x" * 41, "../S1"])
def test_subjects_have_plain_names(decoder: BrainDecoder, name: str) -> None:
    with pytest.raises(UserError, match="cannot be called"):
        add(decoder, name, 30)


def test_voxels_that_never_change_are_refused(decoder: BrainDecoder) -> None:
    with pytest.raises(UserError, match="never change"):
        decoder.add_subject("S3", "", torch.zeros(3), torch.tensor([1.0, 0.0, 1.0]))


def test_a_saved_decoder_decodes_the_same(decoder: BrainDecoder, tmp_path: Path) -> None:
    fit_adapter(decoder, "S1", random_pairs(60), torch.arange(60))
    decoder.save_pretrained(tmp_path)
    loaded = load_brain_decoder(tmp_path)
    assert loaded.subjects == ("S1", "S2") and loaded.adapter("S2").mask_hash == "mask of S2"
    saved = {name: value.half().float() for name, value in decoder.state_dict().items()}
    assert saved.keys() == loaded.state_dict().keys()
    assert all(torch.equal(saved[name], value) for name, value in loaded.state_dict().items())
    scans = torch.randn(20, 40)
    before, after = decoder.decode("S1", scans), loaded.decode("S1", scans)
    assert F.cosine_similarity(before.semantic, after.semantic).min() > 0.9999
    torch.testing.assert_close(before.low_level, after.low_level, atol=0.02, rtol=0.01)


def test_what_is_decoded_is_called_by_the_pictures_it_is_nearest_to(decoder: BrainDecoder, tmp_path: Path) -> None:
    seen = random_pairs(3).semantic
    with pytest.raises(UserError, match="no names"):
        decoder.nearest(seen, 1)
    with pytest.raises(ValueError, match="do not fit together"):
        decoder.name_concepts(["a bell"], seen)
    decoder.name_concepts(["a bell", "rain", "an owl"], seen)
    decoder.save_pretrained(tmp_path)
    loaded = load_brain_decoder(tmp_path)
    for model in (decoder, loaded):
        named = model.nearest(seen, 5)
        assert [near[0].name for near in named] == ["bell", "rain", "owl"] and [len(near) for near in named] == [3] * 3
        for near in named:
            assert near[0].cosine == pytest.approx(1, abs=1e-2) and near[0].cosine > near[1].cosine > near[2].cosine
    # As seen from the mean picture, which the lengths of vectors have no say in.
    farther = decoder.center + 7 * (seen[1:2] - decoder.center)
    [[nearest]] = decoder.nearest(farther, 1)
    assert nearest.sentence == "rain" and nearest.cosine == pytest.approx(1, abs=1e-4)


def test_other_folders_are_no_decoders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no brain decoder"):
        load_brain_decoder(tmp_path)
    own = '"_class_name": "BrainDecoder"'
    configs = [
        '"_class_name": "MeanShift", "width": 8',
        own,
        f'{own}, "subjects": {{"S1": {{}}}}',
        f'{own}, "subjects": [1]',
    ]
    for config in (*configs, f'{own}, "subjects": {{}}, "depth": 3'):
        (tmp_path / "config.json").write_text(f"{{{config}}}")
        with pytest.raises(UserError, match="no brain decoder"):
            load_brain_decoder(tmp_path)


# ------------------------------------------------------------------------------------------------------------- fitting


def test_components_put_together_are_what_was_seen(decoder: BrainDecoder) -> None:
    """The heads begin as the inverse of the scores, as far as the components go."""
    pairs = random_pairs(200)
    scores = decoder.scores(pairs.semantic, pairs.low_level) / decoder.deviations
    torch.testing.assert_close(scores.std(0), torch.ones(32), atol=0.02, rtol=0)
    made = decoder.read(F.gelu(torch.cat([scores, -scores], 1)))
    assert F.cosine_similarity(made.semantic, pairs.semantic).mean() > 0.98
    variance = (pairs.low_level - pairs.low_level.mean(0)).square().mean()
    assert (made.low_level - pairs.low_level).square().mean() < variance


def test_the_first_layer_is_solved_and_gives_left_out_scans(decoder: BrainDecoder) -> None:
    pairs = random_pairs(50)
    solved = solve_linear(decoder, "S1", pairs)
    inside = decoder.adapter("S1").linear(pairs.values)
    true = decoder.scores(pairs.semantic, pairs.low_level) / decoder.deviations
    assert solved.values.shape == (50, 64) and torch.equal(solved.semantic, pairs.semantic)
    torch.testing.assert_close(solved.values[:, :32], -solved.values[:, 32:])
    assert F.mse_loss(inside[:, :32], true) < F.mse_loss(solved.values[:, :32], true)

    # The same by brute force, for the penalty that was taken.
    def ridge(values: Tensor, scores: Tensor, scan: Tensor, penalty: float) -> Tensor:
        x, mean, bias = (values - values.mean(0)).double(), values.mean(0), scores.mean(0)
        square = x.T @ x + penalty * x.shape[1] * torch.eye(x.shape[1], dtype=torch.float64)
        return ((scan - mean).double() @ torch.linalg.solve(square, x.T @ (scores - bias).double())).float() + bias

    others = torch.arange(50) != 7
    for half in (slice(None, 16), slice(16, 32)):
        answers = [
            ridge(pairs.values[others], true[others], pairs.values[7], penalty)[half]
            for penalty in (0.1, 0.3, 1.0, 3.0, 10.0)
        ]
        assert min((answer - solved.values[7, half]).abs().max() for answer in answers) < 1e-4


def test_scans_of_one_picture_count_as_one() -> None:
    pairs = random_pairs(3)
    found = by_picture(pairs.rows(torch.tensor([2, 0, 2, 1])), torch.tensor([7, 5, 7, 6]))
    for part, expected in zip(found, pairs, strict=True):
        torch.testing.assert_close(part, expected)
    mixed = by_picture(pairs, torch.tensor([4, 4, 9]))
    torch.testing.assert_close(mixed.values, torch.stack([pairs.values[:2].mean(0), pairs.values[2]]))


def test_only_the_adapter_learns(decoder: BrainDecoder) -> None:
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    pairs, images = random_pairs(100), torch.arange(100)
    state = torch.get_rng_state()
    fit = fit_adapter(decoder, "S1", pairs, images)
    assert torch.equal(torch.get_rng_state(), state) and not decoder.training
    after = decoder.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("adapters.S1.") for name in changed)
    assert (fit.learnt_from, fit.held_back) == (80, 20)
    steps, _, held_back = zip(*fit.curve, strict=True)
    assert steps[0] == 0 and held_back[steps.index(fit.best_step)] == min(held_back)
    assert all(parameter.grad is None for parameter in decoder.parameters())
    again = fit_adapter(decoder, "S1", pairs, images)
    assert again == fit and all(torch.equal(value, after[name]) for name, value in decoder.state_dict().items())
    fit_adapter(decoder, "S1", pairs, images, core_frozen=False)
    assert not torch.equal(decoder.semantic.weight, before["semantic.weight"])


def test_too_little_to_fit_is_refused(decoder: BrainDecoder) -> None:
    pairs = random_pairs(60)
    with pytest.raises(UserError, match=r"29 pictures are too few.*at least 30"):
        fit_adapter(decoder, "S1", pairs, torch.arange(60) % 29)
    with pytest.raises(UserError, match="40 voxels do not match S2"):
        fit_adapter(decoder, "S2", pairs, torch.arange(60))


def test_mixtures_say_what_they_are_of() -> None:
    torch.manual_seed(1)
    pairs = random_pairs(64)
    mixed, shares = mix(pairs)
    torch.testing.assert_close(shares.sum(1), torch.ones(64))
    torch.testing.assert_close(mixed.values, shares @ pairs.values)
    torch.testing.assert_close(mixed.low_level.flatten(1), shares @ pairs.low_level.flatten(1))
    assert 16 < (shares.diagonal() < 0.999).sum() < 48


def test_the_contrast_is_least_where_scans_find_their_pictures() -> None:
    true = random_pairs(32).semantic
    center = true.mean(0)
    own = torch.eye(32)
    of_guesses = math.log(32)
    assert contrastive_loss(true, true, own, center) < 0.1 * of_guesses
    assert contrastive_loss(true.roll(1, 0), true, own, center) > of_guesses
    soft = soft_shares(true, center)
    torch.testing.assert_close(soft.sum(1), torch.ones(32))
    assert (soft.argmax(1) == torch.arange(32)).all()


def test_measures_of_known_answers() -> None:
    pairs = random_pairs(100)
    means = Means(pairs.semantic.mean(0), pairs.low_level.mean(0))
    perfect = measure(Decoded(pairs.semantic, pairs.low_level), pairs.semantic, pairs.low_level, means)
    assert perfect == pytest.approx(dict.fromkeys(perfect, 1.0))
    noise = random_pairs(200)
    guess = measure(Decoded(noise.semantic[100:], noise.low_level[100:]), pairs.semantic, pairs.low_level, means)
    for key, value in chance(100).items():
        assert guess[key] == pytest.approx(value, abs=0.06), key


# -------------------------------------------------------------------------------------------------------------- recipe


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world(3 * TRIALS)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three subjects of 300 voxels and 400 training trials, of whom the third is the new one."""
    for name in ("S1", "S2", "S3"):
        monkeypatch.setitem(brain_simulator.VOXELS, name, V)
    for module in (brain_decoder, bridges, loop, picture_text):
        monkeypatch.setattr(module, "STATE", tmp_path / "state")
    monkeypatch.setattr(brain_fitting, "MOST_STEPS", 100)
    monkeypatch.setattr(brain_decoder, "TRAINING_IMAGES", TRIALS)
    monkeypatch.setattr(brain_decoder, "SUBJECTS", ("S1", "S2"))
    monkeypatch.setattr(brain_decoder, "NEW_SUBJECT", "S3")
    monkeypatch.setattr(brain_decoder, "FEW_TRIALS", (50,))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return tmp_path


def test_the_world_is_made_of_the_picture_tables(workplace: Path) -> None:
    def picture(shade: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (128, 128), (shade, 90, 255 - shade)).save(file, "PNG")
        return file.getvalue()

    emoji: list[dict[str, Any]] = [
        {
            "image": picture(20 * number + style),
            "caption": name,
            "style": ("noto", "twemoji")[style],
            "keywords": [],
            "more_keywords": [],
            "is_flag": False,
        }
        for number, name in enumerate(("whistle", "hum", "bell", "agogo"))
        for style in range(2)
    ]
    stamp = {"image": picture(200), "caption": "A flute.", "name": "flute", "style": "photo"}
    shape = {"icon": picture(250), "name": "Chair"}
    for name, rows in {"emoji128": emoji, "stamps128": [stamp], "shapes64": [shape]}.items():
        pq.write_table(pa.Table.from_pylist(rows), workplace / f"{name}.parquet")
    world = load_world(workplace)
    assert world.semantic.shape == (10, 256) and world.low_level.shape == (10, 8, 8, 8)
    assert world.features.semantic.shape == (10, 64) and world.features.grid.shape == (10, 448)
    assert not set(world.training) & {*world.held_out["validation"], *world.held_out["test"]}
    concepts = [emoji[row]["caption"] for row in world.held_out["validation"] if row < 8]
    assert {"agogo", "bell"} <= set(concepts) and len(set(concepts)) == len(concepts)


def test_recordings_share_no_training_picture(world: World, workplace: Path) -> None:
    one, two = record(world, "S1"), record(world, "S2")
    assert len(one.image_ids) == TRIALS and one.values.shape == (TRIALS, V)
    assert not set(one.image_ids) & set(two.image_ids)
    counts: dict[Part, int] = {"validation": VALIDATION, "test": TEST}
    for part, count in counts.items():
        assert not set(one.image_ids) & set(world.held_out[part])
        shapes = {repeats: tuple(values.shape) for repeats, values in one.held_out[part].items()}
        assert shapes == {1: (count, V), 3: (count, V)}
    assert sorted(one.shuffled().image_ids) == sorted(one.image_ids)


def mean_top1(world: World, recordings: list[Recording], decoder: BrainDecoder) -> float:
    return float(np.mean([score(world, r, decoding(decoder, r))["top1_of_3"] for r in recordings]))


def test_the_recipe_beats_chance_and_its_controls_do_not(
    world: World, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings = [record(world, name) for name in ("S1", "S2")]
    decoder = train_decoder(world, recordings, 200)
    assert mean_top1(world, recordings, decoder) > 5 / TEST
    for rows in compare(world, recordings, decoder).values():
        assert rows["decoder"]["low_level_r_of_3"] > rows["decoder"]["low_level_r_of_1"] > 0.1
        assert rows["shuffled"]["top1_of_3"] < 3 / TEST and abs(rows["shuffled"]["low_level_r_of_3"]) < 0.05
        assert rows["ridge"]["two_way_of_3"] > 0.7
        assert rows["voxels"]["ceiling_of_1"] < rows["voxels"]["ceiling_of_3"] < 0.5
    few = few_trials(world, record(world, "S3"), decoder, [200])
    assert few["adapter, 200"]["two_way_of_3"] > 0.7 > few["adapter, shuffled, 200"]["two_way_of_3"]
    assert decoder.subjects == ("S1", "S2")

    monkeypatch.setattr(loop, "STATE", workplace / "shuffled")
    shuffled = train_decoder(world, [recording.shuffled() for recording in recordings], 200)
    assert mean_top1(world, recordings, shuffled) < 3 / TEST


def test_training_is_the_same_every_time(world: World, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = [record(world, name) for name in ("S1", "S2")]
    runs = []
    for name in ("one", "two"):
        monkeypatch.setattr(loop, "STATE", workplace / name)
        runs.append(train_decoder(world, recordings, 6).state_dict())
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def test_the_recipe_writes_weights_and_what_they_came_to(
    world: World, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brain_decoder, "load_world", lambda _: world)
    monkeypatch.setattr(brain_decoder, "WEIGHTS", workplace / "weights")
    monkeypatch.setattr(sys, "argv", ["recipe", "--data", ".", "--steps", "2"])
    brain_decoder.main()
    folder = workplace / "weights" / "brain-decoder-lite"
    assert load_brain_decoder(folder).subjects == ("S1", "S2") and (folder / "SHA256SUMS").exists()
    rows = json.loads((workplace / "state" / "brain-decoder" / "comparison.json").read_text())
    assert set(rows) == {"S1", "S2", "chance"} and set(rows["S1"]) == {"decoder", "ridge", "shuffled", "voxels"}
    few = json.loads((workplace / "state" / "brain-decoder" / "few-trials.json").read_text())
    assert set(few) == {f"{way}, 50" for way in ("adapter", "adapter, shuffled", "from scratch", "ridge")}
