"""Shapes of the table as grids: axes, inside and outside, colours; the table and its split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.nets.shape_autoencoder import TRUNCATION
from tests.box_shapes import BLUE, GREEN, GREY, RED, box_row, row, write_table
from training import shapes
from training.data.surfaces import voxelize
from training.shapes import SHARE_ALIKE_TABLE, SIZE, Shape, grid_of, load_shapes, pack, split_of, unpack

HALF_A_VOXEL = 0.5 / TRUNCATION


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shapes, "STATE", tmp_path / "state")
    return tmp_path / "state"


def shape_of(occupied: np.ndarray, colors: np.ndarray | None = None) -> Shape:
    """``occupied``: (64, 64, 64) indexed by up, away and right."""
    return shapes._shape(0, row(occupied, np.zeros((*occupied.shape, 3), np.uint8) if colors is None else colors))


def hollow_box() -> np.ndarray:
    occupied = np.zeros((SIZE, SIZE, SIZE), bool)
    occupied[20:44, 20:44, 20:44] = True
    occupied[21:43, 21:43, 21:43] = False
    return occupied


# ---------------------------------------------------------------------------------------------------------- grids


def test_a_grid_has_the_axes_of_the_model() -> None:
    rng = np.random.default_rng(0)
    arms = [(rng.random((20_000, 3)) - 0.5) * 0.2 for _ in range(3)]  # models have y up and z towards the viewer
    for axis, length in enumerate((1.0, 0.8, 0.6)):
        arms[axis][:, axis] = rng.random(20_000) * length
    colors = np.insert(np.repeat(np.eye(3), 20_000, 0), 3, 1, 1)
    voxels = voxelize(np.concatenate(arms), colors)
    painted = np.zeros((SIZE**3, 3), np.uint8)
    painted[voxels.occupied] = (voxels.colors * 255).round()
    grid = grid_of(shape_of(voxels.occupied.reshape(SIZE, SIZE, SIZE), painted))
    for axis in range(3):
        pure = (grid[0] < 0) & (grid[1 + axis] > 0.9) & (grid[1:].sum(0) < 1.1)
        middle = pure.nonzero().float().mean(0) / SIZE * 2 - 1
        others = [middle[other] for other in range(3) if other != axis]
        assert middle[axis] > max(others) + 0.3, axis


def test_distances_are_negative_inside_and_half_a_voxel_at_the_surface() -> None:
    distances = grid_of(shape_of(hollow_box()))[0]
    assert torch.equal(distances < 0, torch.from_numpy(solid_box()))
    along = distances[:, 32, 32]
    expected = torch.tensor([1.0, *(HALF_A_VOXEL * k for k in (7, 5, 3, 1, -1, -3, -5, -7)), -1.0])
    torch.testing.assert_close(along[15:25], expected)
    assert distances[32, 32, 32] == -1 and distances[0, 0, 0] == 1


def solid_box() -> np.ndarray:
    inside = np.zeros((SIZE, SIZE, SIZE), bool)
    inside[20:44, 20:44, 20:44] = True
    return inside


def test_a_box_with_a_hole_is_hollow() -> None:
    occupied = hollow_box()
    occupied[43, 31:34, 31:34] = False  # in its lid
    distances = grid_of(shape_of(occupied))[0]
    assert distances[32, 32, 32] == 1
    assert int((distances < 0).sum()) == occupied.sum()


@pytest.mark.parametrize("holes", [[(43, 32, 32)], [(43, 32, 32), (43, 32, 33)], [(20, 30, 30), (31, 20, 40)]])
def test_pinholes_are_closed_in_the_colour_around_them(holes: list[tuple[int, int, int]]) -> None:
    occupied, colors = hollow_box(), np.full((SIZE, SIZE, SIZE, 3), GREEN, np.uint8)
    for hole in holes:
        occupied[hole] = False
    grid = grid_of(shape_of(occupied, colors))
    assert torch.equal(grid[0] < 0, torch.from_numpy(solid_box()))
    assert (grid[1:] == torch.tensor([0.0, 1, 0])[:, None, None, None]).all()


def test_gaps_between_boards_stay() -> None:
    occupied = np.zeros((SIZE, SIZE, SIZE), bool)
    occupied[20:44, 20:44, [28, 30]] = True  # one voxel apart
    distances = grid_of(shape_of(occupied))[0]
    assert int((distances < 0).sum()) == occupied.sum()


def test_a_surface_whose_voxels_touch_at_edges_only_is_closed() -> None:
    ticks = np.abs(np.arange(SIZE) - 32)
    steps = ticks[:, None, None] + ticks[None, :, None] + ticks[None, None]
    distances = grid_of(shape_of(steps == 15))[0]
    assert torch.equal(distances < 0, torch.from_numpy(steps <= 15)[:, :, SIZE - 1 - torch.arange(SIZE)])


def test_every_voxel_has_the_colour_of_the_nearest_surface() -> None:
    colors = np.zeros((SIZE, SIZE, SIZE, 3), np.uint8)
    colors[:, :, :32], colors[:, :, 32:] = RED, GREEN
    grid = grid_of(shape_of(hollow_box(), colors))
    assert (grid[1:, :32] == torch.tensor([1.0, 0, 0])[:, None, None, None]).all()
    assert (grid[1:, 32:] == torch.tensor([0.0, 1, 0])[:, None, None, None]).all()


@given(st.integers(0, 2**31))
def test_packing_keeps_signs_and_half_a_255th(seed: int) -> None:
    grids = torch.rand((2, 4, 3, 3, 3), generator=torch.Generator().manual_seed(seed))
    grids[:, 0] = grids[:, 0] * 2 - 1
    again = unpack(pack(grids))
    assert ((again - grids).abs() <= torch.tensor([1.0, 0.5, 0.5, 0.5]).view(4, 1, 1, 1) / 255 + 1e-6).all()
    assert torch.equal(again[:, 0] < 0, grids[:, 0] < 0)
    assert torch.equal(pack(again), pack(grids))


# ---------------------------------------------------------------------------------------------------------- the table


def test_the_table_is_read_without_its_flat_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        box_row((10, 20, 5), RED, name="Tall box", tags="Blend Swap, Crate"),
        box_row((20, 1, 20), GREY, name="Rug", flat=True),
        box_row((9, 9, 9), BLUE, name="Armchair", tags="Seat"),
    ]
    write_table(tmp_path, rows)
    loaded = load_shapes(tmp_path)
    assert "NOT the table of the shipped weights" in capsys.readouterr().out
    assert [(item.row, item.name) for item in loaded.items] == [(0, "tall box"), (1, "armchair")]
    tall = loaded.items[0]
    assert tall.names == ("tall box", "crate") and tall.creator == "Somebody" and tall.library == "Blocks"
    assert tall.size_m == (0.5, 0.8, 0.3) and tall.icon.shape == (128, 128, 3)
    grids = loaded.batch(loaded.items[::-1])
    assert grids.shape == (2, 4, SIZE, SIZE, SIZE) and grids.dtype == torch.float32
    torch.testing.assert_close(grids[1], grid_of(tall), atol=1.01 / 255, rtol=0)
    assert sides(grids[1]) == (20, 40, 10) and sides(grids[0]) == (18, 18, 18)


def sides(grid: Tensor) -> tuple[int, ...]:
    """How many voxels of a grid are inside along x, y and z."""
    inside = (grid[0] < 0).nonzero()
    return tuple((inside.amax(0) - inside.amin(0) + 1).tolist())


def test_grids_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path, [box_row((10, 20, 5), RED)])
    first = load_shapes(tmp_path)
    assert "making shapes-" in capsys.readouterr().out
    again = load_shapes(tmp_path)
    assert "making shapes-" not in capsys.readouterr().out
    assert torch.equal(first.grids, again.grids)
    write_table(tmp_path, [box_row((10, 20, 6), RED)])
    assert sides(load_shapes(tmp_path).batch(first.items)[0]) == (20, 40, 12)


def test_share_alike_shapes_come_after_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path, [box_row((10, 20, 5), RED, name="Tall box"), box_row((20, 1, 20), GREY, flat=True)])
    alone = load_shapes(tmp_path)
    more = [box_row((9, 8, 7), BLUE, name="roman temple", tags="temple", licence="CC-BY-SA-3.0")]
    write_table(tmp_path, [*more, box_row((10, 12, 5), GREEN, name="tall box")], SHARE_ALIKE_TABLE)
    assert [item.name for item in load_shapes(tmp_path).items] == ["tall box"]  # unless they are asked for
    capsys.readouterr()
    both = load_shapes(tmp_path, share_alike=True)
    said = capsys.readouterr().out
    assert said.count("NOT the table of the shipped weights") == 2
    assert said.count("making shapes-") == 1  # those of the first table are there already
    assert [(item.row, item.name) for item in both.items] == [(0, "tall box"), (1, "roman temple"), (2, "tall box")]
    assert both.items[1].names == ("roman temple", "temple") and both.items[1].licence == "CC-BY-SA-3.0"
    assert torch.equal(both.grids[:1], alone.grids)
    assert [sides(grid) for grid in both.batch(both.items)] == [(20, 40, 10), (18, 16, 14), (20, 24, 10)]
    assert all(item.split == split_of(item.name) for item in both.items)


def test_a_missing_share_alike_table_is_said(tmp_path: Path) -> None:
    write_table(tmp_path, [box_row((5, 5, 5), GREEN)])
    with pytest.raises(SystemExit, match=r"shapes64-sharealike\.parquet is missing.*--permissive-only"):
        load_shapes(tmp_path, share_alike=True)


def test_all_shapes_of_a_name_are_of_one_split(tmp_path: Path) -> None:
    names = ["Armchair", "armchair", "Chair", "CHAIR", "Desk", "Tall box"]
    write_table(tmp_path, [box_row((5, 5, 5), GREEN, name=name, tags="Desk, Stool") for name in names])
    loaded = load_shapes(tmp_path)
    assert [item.name for item in loaded.select("heldout-name")] == ["armchair", "armchair", "desk"]
    assert [item.name for item in loaded.select("train")] == ["chair", "chair", "tall box"]
    # A held-out name is no other word for what is trained on.
    assert loaded.items[0].names == ("armchair", "desk", "stool") and loaded.items[2].names == ("chair", "stool")


def test_a_tenth_of_the_names_is_held_out() -> None:
    held = [split_of(f"thing {i}") == "heldout-name" for i in range(4000)]
    assert 0.085 < np.mean(held) < 0.115


def test_a_missing_table_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"shapes64\.parquet is missing"):
        load_shapes(tmp_path)
