"""A new subject: which scans go with which pictures, and an adapter that decodes what the others' core never met."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torch.nn import functional as F

from app.cli import main
from models.autoencoder import load_autoencoder
from models.errors import UserError
from models.nets import brain_fitting
from models.nets.brain_decoder import BrainDecoder, load_brain_decoder
from models.nets.brain_fitting import Pairs
from models.nets.brain_measures import Means, measure
from models.picture_text import load_picture_text
from pipelines.fmri.adapting import Recording, add_adapter, pairs_of, read_recording
from pipelines.fmri.picture_files import picture_files

WEIGHTS = Path("assets/weights").absolute()
SEEN, UNSEEN, VOXELS = 60, 20, 200


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth ones, 100.png, 101.png and on."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(SEEN + UNSEEN, 3, 4, 4, generator=generator) * 255
    for number, picture in enumerate(F.interpolate(corners, (128, 128), mode="bicubic").clamp(0, 255), 100):
        PillowImage.fromarray(picture.permute(1, 2, 0).byte().numpy()).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def answers(pictures: Path) -> Pairs:
    """Scans that are a linear function of what was seen, and a little noise; of all pictures, in percent."""
    files = tuple(path for _, path in picture_files(pictures))
    nothing = torch.zeros(0)
    recording = Recording(torch.zeros(len(files), 1), nothing, nothing, "", torch.arange(len(files)), files)
    space = load_picture_text(WEIGHTS / "picture-text-lite")
    pairs = pairs_of(recording, space, load_autoencoder(WEIGHTS / "autoencoder-lite"), print)
    torch.manual_seed(0)
    parts = [part - part.mean(0) for part in (pairs.semantic, pairs.low_level.flatten(1))]
    both = torch.cat([part / part.norm(dim=1).mean() for part in parts], 1)
    values = both @ torch.randn(both.shape[1], VOXELS)
    return pairs._replace(values=values / values.std(0) + 0.2 * torch.randn_like(values) + 0.5)


def write(path: Path, values: Tensor, **others: Any) -> Path:
    np.savez(path, betas=values.numpy(), **others)
    return path


def shown(row: int, count: int) -> np.ndarray:
    return np.arange(100 + row, 100 + row + count)


def test_a_new_subject_is_learnt_from_pairs_alone(
    pictures: Path,
    answers: Pairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(brain_fitting, "MOST_STEPS", 30)
    scans = write(tmp_path / "scans.npz", answers.values[:SEEN], image_id=shown(0, SEEN), mask=np.ones(VOXELS, bool))
    local = json.dumps({"brain-decoder": str(WEIGHTS / "brain-decoder-lite")})
    command = ["adapt-subject", str(scans), "--pictures", str(pictures), "-o", str(tmp_path / "mine")]
    assert main([*command, "--subject", "Ann", "--json", "--local-weights", local]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["held_back"] == 12 and list(told["rows"]) == ["48"]
    rows = told["rows"]["48"]
    assert rows["adapter"]["two_way"] > 0.8 > 0.7 > rows["shuffled"]["two_way"] and rows["ridge"]["two_way"] > 0.8

    decoder = load_brain_decoder(tmp_path / "mine")
    before = load_brain_decoder(WEIGHTS / "brain-decoder-lite")
    assert decoder.subjects == (*before.subjects, "Ann") and decoder.sentences == before.sentences
    new = answers.values[SEEN:]
    decoded = decoder.decode("Ann", decoder.standardised("Ann", new))
    means = Means(decoder.center, decoder.low_level_center.view(8, 8, 8))
    assert measure(decoded, answers.semantic[SEEN:], answers.low_level[SEEN:], means)["two_way"] > 0.8
    after = decoder.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.state_dict().items())

    assert main([*command, "--subject", "Ben"]) == 0
    assert "By chance 8%" in capsys.readouterr().out
    assert load_brain_decoder(tmp_path / "mine").subjects[-2:] == ("Ann", "Ben")
    assert main([*command, "--subject", "Ann"]) == 2
    assert "'Ann' is a subject already" in capsys.readouterr().err


def test_shipped_weights_are_not_written_over(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = WEIGHTS / "brain-decoder-lite"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert main(["adapt-subject", "x.npz", "--pictures", str(pictures), "--subject", "A", "-o", str(folder)]) == 2
    assert "as they were published" in capsys.readouterr().err
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------- which is which


def test_pictures_are_found_by_number_by_a_table_or_by_their_order(
    pictures: Path, answers: Pairs, tmp_path: Path
) -> None:
    order = np.random.default_rng(0).permutation(SEEN)
    values = answers.values[order]
    by_number = read_recording([write(tmp_path / "a.npz", values, image_id=100 + order)], pictures)
    table = tmp_path / "seen.csv"
    table.write_text("id,file\n" + "".join(f"{1000 + row},{pictures / str(100 + row)}.png\n" for row in range(SEEN)))
    by_table = read_recording([write(tmp_path / "b.npz", values, image_id=1000 + order)], table)
    table.write_text("".join(f"{row},{pictures / str(100 + row)}.png\n" for row in order))
    by_order = read_recording([write(tmp_path / "c.npz", values)], table)
    for found in (by_number, by_table, by_order):
        assert [found.pictures[row].name for row in found.image_ids] == [f"{100 + row}.png" for row in order]


def test_scans_are_z_scored_in_their_own_units(pictures: Path, answers: Pairs, tmp_path: Path) -> None:
    raw = (answers.values[:SEEN] * 300).round().short()
    said: dict[str, Any] = {"image_id": shown(0, SEEN), "simulator": "sim-v1"}  # whose integers are times 300
    found = read_recording([write(tmp_path / "raw.npz", raw, **said)], pictures)
    torch.testing.assert_close(found.values.mean(0), torch.zeros(VOXELS), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.mean, answers.values[:SEEN].mean(0), atol=1e-2, rtol=0)
    torch.testing.assert_close(found.std, answers.values[:SEEN].std(0), atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("count", "said", "problem"),
    [
        (49, {"image_id": shown(0, 49)}, "49 scans are too few"),
        (
            50,
            {"image_id": shown(40, 50)},
            "10 of the pictures that were seen are missing, the first of them number 180",
        ),
        (50, {}, "there are 80 pictures for 50"),
        (50, {"mask": np.ones(7, bool), "image_id": shown(0, 50)}, "the mask has 7"),
    ],
)
def test_what_does_not_go_together_is_said_plainly(
    count: int, said: dict[str, Any], problem: str, pictures: Path, answers: Pairs, tmp_path: Path
) -> None:
    scans = write(tmp_path / "scans.npz", answers.values[:count], **said)
    with pytest.raises(UserError, match=problem) as refused:
        read_recording([scans], pictures)
    assert refused.value.hint


def test_tables_and_folders_that_are_none_are_refused(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.csv").write_text("number,file\n1,a.png\ntwo,b.png\n")
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe")
    for name, problem in (
        ("none", "no folder or table"),
        ("empty", "No picture is in"),
        ("words.csv", "Row 2 of"),
        ("picture.csv", "is no table"),
    ):
        with pytest.raises(UserError, match=problem):
            picture_files(tmp_path / name)
    twice = tmp_path / "twice.csv"
    twice.write_text("".join(f"{row % 59},{pictures}/100.png\n" for row in range(60)))
    scans = write(tmp_path / "scans.npz", torch.randn(60, 9), image_id=np.arange(60) % 59)
    with pytest.raises(UserError, match="Two pictures have the number 0"):
        read_recording([scans], twice)


def test_few_pictures_seen_often_are_too_few(answers: Pairs) -> None:
    decoder = load_brain_decoder(WEIGHTS / "brain-decoder-lite")
    zero, one = torch.zeros(VOXELS), torch.ones(VOXELS)
    recording = Recording(answers.values[:60], zero, one, "", torch.arange(60) % 49, ())
    for name, problem in (("Ann", "49 pictures are too few"), ("S1", "'S1' is a subject already")):
        with pytest.raises(UserError, match=problem):
            add_adapter(decoder, name, recording, answers.rows(torch.arange(60)), print)
    assert "Ann" not in decoder.subjects


def test_an_adapter_of_z_scores_refuses_percents() -> None:
    decoder: BrainDecoder = load_brain_decoder(WEIGHTS / "brain-decoder-lite")
    decoder.add_subject("Ann", "", torch.zeros(9), torch.ones(9))
    assert decoder.decode("Ann", torch.randn(2, 9)).semantic.shape == (2, 256)
    with pytest.raises(UserError, match="z-scores only"):
        decoder.standardised("Ann", torch.randn(2, 9))
