"""The benchmark of XBind: measures with a known answer, and a whole run on tiny models."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import report, xbind, xbind_speed
from benchmarks.xbind import Jury, Query, Row, distance, is_one_piece, measure, outline_overlap
from models.manager import ModelManager
from pipelines.media import Mesh
from pipelines.xbind import optimisation, pipeline
from pipelines.xbind.surface import surface
from tests.box_shapes import boxes
from tests.test_shape_generator_recipe import NAMES, write_chairs
from tests.test_view_diffusion import TINY, tiny, vectors
from tests.test_xbind_presets import refining_manager
from tests.tiny_shapes import shape_manager
from tests.tiny_sounds import tone
from training import shapes
from training.render_judge import RenderJudge
from training.shapes import split_of
from training.sounds import Sound, Sounds, Split

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def block(half: float, middle: float = 0.0, color: tuple[float, float, float] = RED, size: int = 32) -> Tensor:
    return boxes(size, ((middle, 0, 0), (half, half, half), color))


def made(grid: Tensor) -> Mesh:
    return surface(grid, 5000, 1.0)


def test_an_outline_agrees_with_itself_and_not_with_a_smaller_one() -> None:
    large, small = block(0.6), block(0.3)
    assert outline_overlap(large, large) == 1
    assert outline_overlap(small, large) == pytest.approx(0.25, abs=0.08)


def test_surfaces_are_as_far_apart_as_they_are() -> None:
    one, flat = made(block(0.5)), made(boxes(32, ((0, 0, 0), (0.5, 0.25, 0.5), RED)))
    assert distance(one, one) == pytest.approx(0, abs=1e-6)
    assert 0.1 < distance(one, flat) < 0.6


def test_two_pieces_are_not_one() -> None:
    apart = boxes(32, ((-0.5, 0, 0), (0.3, 0.3, 0.3), RED), ((0.5, 0, 0), (0.3, 0.3, 0.3), RED))
    assert is_one_piece(made(block(0.5))) and not is_one_piece(made(apart))


class Colours(nn.Module):
    """Sees how much darker than white a picture is in each colour: red things are, in the others."""

    def embed_objects(self, views: Tensor) -> Tensor:
        return F.normalize((1 - views).mean((1, 3, 4)), dim=1)


def jury(rivals: tuple[bool, bool] = (True, True)) -> Jury:
    expected = F.normalize(torch.tensor([[1.0, 1.0, 0.2], [0.2, 1.0, 1.0]]), dim=1)
    return Jury(Colours(), ["blue", "red"], expected, torch.tensor(rivals))  # type: ignore[arg-type]


def test_a_row_is_judged_by_what_its_objects_look_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xbind, "SIDE", 32)
    grids = {"red": block(0.5), "blue": block(0.5, color=BLUE)}
    asked = [Query(name, torch.zeros(3), grids[name]) for name in ("red", "blue", "red")]
    right = measure(Row("right", lambda query, _: query.truth), asked, jury())
    wrong = measure(Row("wrong", lambda query, _: grids["red"]), asked, jury())
    nothing = measure(Row("nothing", lambda query, _: query.truth.abs()), asked, jury())
    assert right["r_precision"] == 1 and wrong["r_precision"] == pytest.approx(2 / 3) and not nothing["r_precision"]
    assert right["outline_iou"] == 1 and right["chamfer"] == pytest.approx(0, abs=1e-6) and right["one_piece"] == 1
    assert nothing["outline_iou"] is None and nothing["one_piece"] == 0 and nothing["objects"] == 3
    assert nothing["consistency"] is None and nothing["split_r_precision"] == 0


def test_names_of_the_other_split_do_not_count_among_those_of_the_split() -> None:
    assert jury().ranks(block(0.5), "blue") == (1, 1)
    assert jury(rivals=(True, False)).ranks(block(0.5), "blue") == (1, 0)


def test_an_object_of_two_colours_looks_less_alike_from_its_sides() -> None:
    plain = jury().consistency(block(0.5))
    halves = boxes(32, ((-0.3, 0, 0), (0.3, 0.5, 0.5), RED), ((0.3, 0, 0), (0.3, 0.5, 0.5), BLUE))
    assert plain == pytest.approx(1, abs=0.002) and jury().consistency(halves) < 0.99


def test_the_loop_takes_the_same_step() -> None:
    [row] = xbind_speed.speed(tiny(), block(0.5), vectors(1)[0])
    assert row["gradients_cosine"] > 0.97 and row["seconds"] > 0 and row["side"] == TINY.side


def squeaks_of(name: str) -> Sounds:
    """Two clips: one is held out."""
    clips = [tone(hertz).samples[0] * 32_767 for hertz in (500, 900)]
    splits: list[Split] = ["heldout-file", "train"]
    items = [Sound(row, name, name, (), "", False, True, split) for row, split in enumerate(splits)]
    return Sounds([clip.astype(np.int16) for clip in clips], items)


@pytest.mark.parametrize("refines", [True, False])
def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refines: bool) -> None:
    write_chairs(tmp_path)
    shutil.copy(tmp_path / shapes.TABLE, tmp_path / shapes.SHARE_ALIKE_TABLE)
    (tmp_path / "models").mkdir()
    manager: ModelManager = (refining_manager if refines else shape_manager)(tmp_path / "models")
    monkeypatch.setattr(shapes, "STATE", tmp_path / "state")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(pipeline.REFINING, "fine", (1, 1, 1))
    monkeypatch.setattr(xbind_speed, "RUNS", 1)
    for constant, small in {"JUDGED_SIDE": 16, "SHOWN_SIDE": 16, "FROZEN": 4}.items():
        monkeypatch.setattr(optimisation, constant, small)
    torch.manual_seed(0)
    judge = RenderJudge().eval()
    replaced: dict[str, object] = {
        "build_manager": lambda settings: manager,
        "load_render_judge": lambda: judge,
        "sentence_table": lambda names: torch.randn(len(names), 384),
        "load_sounds": lambda folder: squeaks_of(next(name for name in NAMES if split_of(name) == "train").lower()),
        "POINTS": 256,
        "SIDE": 32,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(xbind, name, value)
    monkeypatch.setattr(sys, "argv", ["xbind", "--data", str(tmp_path), "--count", "1"])
    xbind.main()
    results = json.loads((tmp_path / "results" / "xbind.json").read_text())
    rows = {"true shape", "nearest training shape", "preview"}
    if refines:
        rows |= {"refined", "refined, no similarity", "refined, no planar", "refined, no stereoscopic"}
        rows |= {"refined from a ball"}
    for by, splits in {"words, fine": 2, "icons, fine": 2, "sounds, fine": 1}.items():
        assert {row["row"] for row in results[by]} == rows and len(results[by]) == splits * len(rows)
        assert {row["split"] for row in results[by]} <= {"train", "heldout-name"}
        assert all(0 <= row["r_precision"] <= row["split_r_precision"] <= 1 for row in results[by])
        true = [row for row in results[by] if row["row"] == "true shape"]
        assert all(row["outline_iou"] == 1 and row["chamfer"] < 1e-6 for row in true)
    assert ("speed" in results) == refines and results["memory, fine"][0]["peak_mb"] > 100
