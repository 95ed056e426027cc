"""The benchmarks of sounds and of spaces: measures with a known answer, and whole runs on tiny models and tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import audio, report, spaces
from benchmarks.audio import (
    NOT_INDEPENDENT,
    SHUFFLED_ROW,
    Claim,
    Heard,
    mean_and_error,
    measures,
    missing,
    possible,
    seed_agreement,
    seed_cosines,
    show,
    waveform_of,
)
from benchmarks.audio_rows import Queries, Query, Row, load_queries, rows
from models.bridges import DiffusionBridge, MeanShift, RegressionBridge
from models.manager import ModelManager
from models.mel import LITE_MEL
from models.nets.efficientnet_lite import EfficientNetLite2
from models.picture_text import PictureText, PictureTextConfig
from models.sound_text import SoundText
from pipelines.base import Runtime
from pipelines.media import Audio
from tests.test_sound_judge import NAMES, tones, write_tables
from tests.tiny_models import CPU
from tests.tiny_sounds import picture, sound_manager
from training import bridges, picture_text
from training.pictures import load_pictures
from training.publish import write_sums
from training.sound_judge import SoundJudge, reserved_files
from training.sound_text import audio_config
from training.sounds import SAMPLES, Sound, load_sounds

STEPS = 2

# ----------------------------------------------------------------------------------------------------------- measures


def heard(answers: Tensor, seeds: int = 3, classes: int = 8) -> Heard:
    """The judge is sure that every sound is what was asked for."""
    logits = F.one_hot(answers, classes).float()[:, None].expand(-1, seeds, -1)
    features = torch.randn(len(answers), seeds, 6, generator=torch.Generator().manual_seed(0))
    vectors = F.normalize(features, dim=-1)
    return Heard(features, logits, answers, vectors, vectors[:, 0])


def test_errors_are_those_of_the_mean() -> None:
    assert mean_and_error(torch.tensor([1.0, 3.0])) == pytest.approx([2, 1])
    assert mean_and_error(torch.tensor([0.5])) == [0.5]
    assert mean_and_error(torch.ones(9)) == [1, 0]


def test_seeds_are_alike_or_not() -> None:
    same, apart = torch.ones(2, 3, 4), torch.eye(4)[:3].expand(2, 3, 4)
    assert seed_cosines(torch.cat([same, apart])).tolist() == pytest.approx([1, 1, 0, 0])
    assert seed_cosines(5 * same).tolist() == pytest.approx([1, 1])
    logits = F.one_hot(torch.tensor([[0, 0, 1], [2, 2, 2], [0, 1, 2]]), 4).float()
    assert seed_agreement(logits).tolist() == pytest.approx([1 / 3, 1, 0])


def test_right_sounds_are_right_and_shuffled_ones_are_not() -> None:
    made = heard(torch.arange(8).repeat_interleave(4))
    found = measures(made, made.features[:, 0])
    assert found["top1"] == [1, 0] and found["top5"] == [1, 0] and found["seeds_agree"] == [1, 0]
    by_chance = measures(made.shuffled(), None)
    assert by_chance["top1"] == [0, 0] and by_chance["frechet"] is None
    relevance, chance = found[NOT_INDEPENDENT], by_chance[NOT_INDEPENDENT]
    assert relevance and chance and relevance[0] > chance[0] + 0.2


def test_the_error_of_a_share_is_over_queries_not_over_sounds() -> None:
    """Ten seeds of two queries, all right of one and all wrong of the other, are two observations."""
    answers = torch.tensor([0, 1])
    logits = F.one_hot(torch.tensor([0, 0]), 8).float()[:, None].expand(-1, 10, -1)
    made = Heard(torch.rand(2, 10, 6), logits, answers)
    assert measures(made, None)["top1"] == pytest.approx([0.5, 0.5])


def test_distances_are_from_the_reference_seed_by_seed() -> None:
    made = heard(torch.zeros(400, dtype=torch.long), seeds=1)
    near, far = (measures(made, made.features[:, 0] + shift)["frechet"] for shift in (0, 2))
    assert near == [pytest.approx(0, abs=1e-5)] and far == [pytest.approx(6 * 4, rel=1e-4)]
    assert measures(made, None)["cosine_of_seeds"] is None
    one = Heard(made.features[:1], made.logits[:1], made.answers[:1])
    assert measures(one, made.features[:, 0])["frechet"] is None  # one sound has no distribution


def test_claims_hold_beyond_two_errors() -> None:
    claim = Claim("", "top1", "a", "b")
    held = [claim.judge({"a": {"top1": [more, 0.03]}, "b": {"top1": [0.4, 0.04]}}) for more in (0.51, 0.49)]
    assert [found and found["holds"] for found in held] == [True, False]
    assert held[0] and held[0]["error"] == pytest.approx(0.05)
    within = Claim("", "top1", "a", "b", margin=0.15, beyond_error=False)
    judged = [within.judge({"a": {"top1": [more, 0.1]}, "b": {"top1": [0.5]}}) for more in (0.36, 0.34)]
    assert [found and found["holds"] for found in judged] == [True, False]
    thrice = Claim("", "top1", "a", "b", factor=3)
    assert thrice.judge({"a": {"top1": [0.4, 0]}, "b": {"top1": [0.1, 0]}})
    assert claim.judge({"a": {"top1": [0.4, 0]}}) is None
    assert claim.judge({"a": {"top1": [0.4, 0]}, "b": {"top1": None}}) is None


def test_every_claim_is_about_rows_that_there_are() -> None:
    titles = {row.title for row in rows()} | {audio.SHUFFLED}
    assert len(titles) == len(rows()) + 1
    assert all({claim.more, claim.less} <= titles for claim in audio.CLAIMS) and SHUFFLED_ROW in titles


def test_the_judge_hears_sounds_of_one_length() -> None:
    short, long = (waveform_of(Audio(np.full((1, count), 0.5, np.float32), 16_000)) for count in (10, SAMPLES + 10))
    assert short.shape == long.shape == (SAMPLES,)
    assert short[:10].tolist() == [0.5] * 10 and not short[10:].any() and (long == 0.5).all()
    for channels, rate in ((2, 16_000), (1, 44_100)):
        with pytest.raises(ValueError, match="16 kHz mono"):
            waveform_of(Audio(np.zeros((channels, 10), np.float32), rate))


def test_a_probe_tells_clouds_apart_only_if_they_are() -> None:
    torch.manual_seed(0)
    cloud, same = F.normalize(torch.randn(2, 1200, 32), dim=-1)
    moved = F.normalize(same + torch.eye(32)[0], dim=-1)
    assert spaces.probe_accuracy(cloud, same) == pytest.approx(0.5, abs=0.06)
    assert spaces.probe_accuracy(cloud, moved) > 0.95
    assert spaces.mean_gap(cloud, same) < 0.1 < 0.5 < spaces.mean_gap(cloud, moved)
    assert spaces.gap_of(cloud, cloud)["cosine"] == pytest.approx(1)
    assert spaces.gap_of(cloud, cloud)["frechet_x100"] == pytest.approx(0, abs=1e-6)


def test_recall_is_counted_in_both_directions() -> None:
    texts = torch.eye(12)
    items = texts[[0, 0, 3, 5]]
    there, back = spaces.recall_rows("space", "picture", "split", items, torch.tensor([0, 0, 3, 4]), texts)
    assert (there["direction"], there["asked"], there["among"]) == ("picture to text", 4, 12)
    assert (back["direction"], back["asked"], back["among"]) == ("text to picture", 3, 4)
    assert there["r1"] == pytest.approx(3 / 4) and back["r1"] == pytest.approx(2 / 3)
    right, nearest = spaces.named_within(items, texts, torch.tensor([0, 0, 3, 4]), 1)
    assert right.tolist() == [True, True, True, False] and nearest[:, 0].tolist() == [0, 0, 3, 5]


# ------------------------------------------------------------------------------------------------------------ queries


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    write_tables(tmp_path)
    return tmp_path


def test_queries_are_unheard_and_their_pictures_unseen(tables: Path) -> None:
    loaded, pictures, reserved = load_sounds(tables), load_pictures(tables), reserved_files(tables)
    queries = load_queries(tables, loaded, 100)
    asked = {query.item.row for query in queries.pictures}
    assert asked and asked <= set(reserved) and queries.photographs
    assert len(queries.reference) + len(asked) <= len(reserved)
    unseen = {pictures.pixels[item.row].tobytes() for item in pictures.items if item.split != "train"}
    for query in (*queries.pictures, *queries.photographs):
        assert query.picture.pixels.tobytes() in unseen and query.words == query.item.name
        torch.testing.assert_close(query.waveform, loaded.waveforms([query.item])[0])
    photographs = {pictures.pixels[item.row].tobytes() for item in pictures.items if item.style == "photo"}
    assert all(query.picture.pixels.tobytes() in photographs for query in queries.photographs)
    assert len({query.number for query in queries.pictures}) == len(queries.pictures)
    few = load_queries(tables, loaded, 1)
    assert len(few.pictures) == 1 and len(few.photographs) == 1


def test_the_reference_shares_no_file_with_the_queries(tables: Path) -> None:
    loaded, reserved = load_sounds(tables), reserved_files(tables)
    queries = load_queries(tables, loaded, 100)
    of_queries = {reserved[query.item.row] for query in queries.pictures}
    other = [item for item in loaded.items if reserved.get(item.row) in of_queries]
    for waveform in loaded.waveforms(other):
        assert not (queries.reference == waveform).all(1).any()


# --------------------------------------------------------------------------------------------------------------- rows


def query(number: int = 0) -> Query:
    """Of a bell, or of a dog."""
    item = Sound(number, ("bell", "dog")[number], "it sounds", (), "", False, True, "heldout-class")
    return Query(number, item, tones(400 + 200 * number)[0], picture(number))


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> ModelManager:
    return sound_manager(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("row", rows(STEPS), ids=lambda row: row.title)
def test_a_row_makes_sounds_by_seed_from_the_models_that_it_names(manager: ModelManager, row: Row) -> None:
    specs = {key: manager.specs[key] for key in row.needs}
    runtime = Runtime(ModelManager(specs, CPU, manager.budget_bytes))
    first = row.make(runtime, query(), [5, 6])
    made = torch.stack([waveform_of(sound) for sound in first])
    assert len(made) == (2 if row.seeded else 1) and made.isfinite().all() and made.abs().amax(1).min() > 0.01
    if row.seeded:
        assert not torch.allclose(made[0], made[1], atol=1e-3)
        again = waveform_of(row.make(runtime, query(), [6])[0])
        torch.testing.assert_close(again, made[1], atol=1e-2, rtol=0)
    one, other = (waveform_of(row.make(runtime, query(number), [5])[0]) for number in (0, 1))
    assert not torch.equal(one, other)  # words hardly differ where weights are random


def test_missing_weights_are_named_in_one_line(manager: ModelManager, capsys: pytest.CaptureFixture[str]) -> None:
    specs = {key: spec for key, spec in manager.specs.items() if key not in ("clipsonic", "v2a-mapper")}
    lacking = ModelManager(specs, CPU, 0)
    assert missing(lacking, ("vocoder", "clipsonic")) == ["clipsonic"]
    left = {row.name for row in possible(lacking, rows())}
    assert left == {"real clips", "real clips, coded and voiced", "true sound vector", "AudioLDM", "no mapper"}
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.startswith("Missing weights: clipsonic, v2a-mapper. Left out: V2A")
    assert len(possible(manager, rows())) == len(rows()) and not capsys.readouterr().out
    assert [row.name for row in possible(ModelManager({}, CPU, 0), rows())] == ["real clips"]


def test_a_row_is_measured_with_its_costs_and_with_chance(manager: ModelManager) -> None:
    judge = SoundJudge(("bell", "dog")).eval()
    queries = Queries([query(0), query(1)], [], tones(300, 500, 700))
    row = next(row for row in rows(STEPS) if row.title == SHUFFLED_ROW)
    found = audio.measure_row(manager, judge, row, queries, torch.randn(5, 256), 2)
    assert list(found) == [SHUFFLED_ROW, audio.SHUFFLED]
    assert found[SHUFFLED_ROW]["queries"] == 2 and found[SHUFFLED_ROW]["seconds"] > 0
    assert found[SHUFFLED_ROW]["weights_mb"] > 0 and len(found[SHUFFLED_ROW]["frechet"]) == 2
    # Of two queries each is judged against the other's class, and the judge knows no third.
    assert found[audio.SHUFFLED]["top1"][0] == pytest.approx(1 - found[SHUFFLED_ROW]["top1"][0])
    photographs = next(row for row in rows(STEPS) if row.asked == "photographs")
    assert audio.measure_row(manager, judge, photographs, queries, torch.randn(5, 256), 2) == {}


# ---------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture
def workplace(tables: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (report, audio):
        monkeypatch.setattr(module, "RESULTS", tables / "results")
    for state in (bridges, picture_text):
        monkeypatch.setattr(state, "STATE", tables / "state")
    weights = tables / "assets" / "weights"
    weights.mkdir(parents=True)
    (weights / "text-encoder-lite").symlink_to(Path("assets/weights/text-encoder-lite").resolve())
    monkeypatch.chdir(tables)
    return tables


def run(monkeypatch: pytest.MonkeyPatch, main: Any, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--data", ".", *arguments])
    main()


def test_the_benchmark_keeps_what_was_measured_before(
    workplace: Path, manager: ModelManager, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="judge of sounds is missing"):
        run(monkeypatch, audio.main)
    torch.manual_seed(0)
    SoundJudge(sorted(NAMES)).save_pretrained(Path("assets/weights/sound-judge"))
    monkeypatch.setattr(audio, "build_manager", lambda settings: manager)
    small = ("--count", "2", "--seeds", "2", "--steps", "2")
    run(monkeypatch, audio.main, "--rows", "real clips", "CLIPSonic zero-shot", *small)
    run(monkeypatch, audio.main, "--rows", "CLIPSonic prior", *small)
    kept = json.loads((workplace / "results" / "audio.json").read_text())
    assert list(kept["rows"]) == ["real clips", "CLIPSonic zero-shot, words", "CLIPSonic prior, words"]
    assert [claim["claim"] for claim in kept["claims"]] == ["CLIPSonic: the prior beats zero-shot"]
    assert kept["rows"]["real clips"]["cosine_of_seeds"] is None
    assert show(kept["rows"]) in capsys.readouterr().out


def save_spaces(weights: Path) -> None:
    torch.manual_seed(0)
    models: dict[str, Any] = {
        "picture-text-lite": PictureText(PictureTextConfig(), EfficientNetLite2(), torch.randn(1000, 384)),
        "sound-text-lite": SoundText(audio_config(), LITE_MEL),
        "v2a-mapper-lite": DiffusionBridge(256, heads=1, layers=1, one_space=False),
        "v2a-regression-lite": RegressionBridge(256, 32),
        "clipsonic-prior-lite": DiffusionBridge(256, heads=1, layers=1, one_space=True),
        "clipsonic-mean-shift-lite": MeanShift.between(*F.normalize(torch.randn(2, 8, 256), dim=-1)),
    }
    for name, model in models.items():
        model.eval().save_pretrained(weights / name)
        write_sums(weights / name)


def test_spaces_are_measured_part_by_part(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spaces.possible(list(spaces.PARTS)) == []
    assert capsys.readouterr().out.startswith("Missing weights: clipsonic-mean-shift, clipsonic-prior, picture-text")
    save_spaces(Path("assets/weights"))
    run(monkeypatch, spaces.main)
    kept = json.loads((workplace / "results" / "spaces.json").read_text())
    assert set(spaces.PARTS) <= set(kept)
    directions = {row["direction"] for part in ("picture recall", "sound recall") for row in kept[part]}
    assert directions == {"picture to text", "text to picture", "sound to text", "text to sound"}
    assert [row["bridge"] for row in kept["gaps"][:3]] == ["no bridge", "v2a-mapper", "v2a-regression"]
    assert all(np.isfinite([row["mean_gap"], row["probe_accuracy"], row["frechet_x100"]]).all() for row in kept["gaps"])
    named = kept["photographs"]
    assert named["some"]["photographs"] == len(named["called"]) >= 2 and named["concepts"] == len(NAMES) + 1
    assert named["all"]["named"] == named["all"]["photographs"]  # five of five concepts are named
