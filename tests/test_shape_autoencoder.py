"""The tri-plane autoencoder of shapes: shapes, axes, scale, files; its recipe's rules and two steps of it."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from models.errors import UserError
from models.nets import shape_autoencoder as net
from models.nets.shape_autoencoder import ShapeAutoencoder, ShapeAutoencoderConfig, load_shape_autoencoder
from models.packing import PACKED_FROM_ELEMENTS
from tests.box_shapes import BLUE, GREEN, RED, arms, box_row, boxes, write_table
from training import loop, shapes
from training import shape_autoencoder as recipe
from training.shape_autoencoder import agreement, augment, autoencoder_loss, draw_points, optimizers_of, values_at

TINY = ShapeAutoencoderConfig(size=16, channels=4, plane=4, width=32, layers=1, heads=2, features=8, hidden=16)


def tiny(**changes: int) -> ShapeAutoencoder:
    torch.manual_seed(0)
    return ShapeAutoencoder(replace(TINY, **changes)).eval()


def noise(count: int, size: int = 16) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(count, 4, size, size, size)


def middles(size: int) -> Tensor:
    """(size^3, 3): the middles of voxels, z first to change."""
    ticks = (2 * torch.arange(size) + 1) / size - 1
    return torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), -1).flatten(0, 2)


# ------------------------------------------------------------------------------------------------------- the network


@settings(max_examples=10)
@given(st.integers(1, 3), st.sampled_from([(8, 8), (16, 4), (16, 8), (32, 4)]), st.integers(3, 20))
def test_a_grid_becomes_three_small_pictures_and_a_grid_of_any_size(
    count: int, sizes: tuple[int, int], resolution: int
) -> None:
    model = tiny(size=sizes[0], plane=sizes[1])
    with torch.no_grad():
        latents = model.encode(noise(count, sizes[0]))
        planes = model.planes(latents)
    assert latents.shape == (count, 3, 4, sizes[1], sizes[1])
    assert planes.shape == (count, 3, 8, sizes[0], sizes[0])
    grid = model.grid(latents, resolution)
    assert grid.shape == (count, 4, resolution, resolution, resolution)
    assert grid[:, 0].abs().max() <= 1 and grid[:, 1:].min() >= 0 and grid[:, 1:].max() <= 1


@pytest.mark.parametrize("resolution", [16, 12, 21])
@pytest.mark.parametrize("at_once", [1, 3000, 10**6])
def test_a_grid_is_what_queries_say_of_its_middles(
    resolution: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(net, "POINTS_AT_ONCE", at_once)
    model, latents = tiny(), torch.randn(2, 3, 4, 4, 4)
    with torch.no_grad():
        asked = model.query(model.planes(latents), middles(resolution).expand(2, -1, -1))
    expected = asked.transpose(1, 2).unflatten(2, (resolution,) * 3)
    torch.testing.assert_close(model.grid(latents, resolution), expected, atol=1e-5, rtol=1e-4)
    assert expected.flatten(2).std(2).min() > 1e-3


@pytest.mark.parametrize(("plane", "across"), [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
def test_a_cell_of_a_plane_is_read_along_one_axis(plane: int, across: tuple[int, int]) -> None:
    model = tiny()
    flat = torch.zeros(1, 3, 8, 16, 16)
    marked = flat.clone()
    marked[:, plane, :, 3, 12] = 5
    with torch.no_grad():
        points = middles(16)[None]
        changed = (model.query(marked, points) - model.query(flat, points)).abs().amax(-1).view(16, 16, 16) > 1e-6
    expected = torch.zeros(16, 16, 16, dtype=torch.bool)
    place: list[slice | int] = [slice(None)] * 3
    place[across[0]], place[across[1]] = 3, 12
    expected[tuple(place)] = True
    assert torch.equal(changed, expected)


def test_a_voxel_is_seen_on_each_plane_where_it_lies() -> None:
    model = tiny(layers=0)  # without layers no cell knows of another
    grids = torch.ones(1, 4, 16, 16, 16)
    marked = grids.clone()
    marked[:, :, 1, 6, 15] = -1
    with torch.no_grad():
        changed = (model.encode(marked) - model.encode(grids)).abs().amax(2)[0] > 1e-6
    assert changed.nonzero().tolist() == [[0, 1, 3], [1, 0, 3], [2, 0, 1]]


def test_latents_lie_below_what_they_describe() -> None:
    model = tiny(layers=0, size=32, plane=4)
    latents = torch.zeros(1, 3, 4, 4, 4)
    marked = latents.clone()
    marked[:, 2, :, 0, 3] = 3  # across z: x is lowest, y is highest
    changed = (model.grid(marked, 32) - model.grid(latents, 32))[0].abs().amax(0)
    assert changed[:8, 24:].min() > 0
    assert changed[20:].max() < 1e-6 and changed[:, :12].max() < 1e-6


def test_a_shape_of_a_batch_is_coded_as_it_is_alone() -> None:
    model, grids = tiny(), noise(3)
    with torch.no_grad():
        together = model.encode(grids)
        alone = torch.cat([model.encode(grid[None]) for grid in grids])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
        assert torch.equal(model.encode(grids), together)
    torch.testing.assert_close(model.grid(together, 8)[1:2], model.grid(together[1:2], 8), atol=1e-5, rtol=1e-4)


def test_decoding_undoes_the_scale_of_encoding() -> None:
    model, grids = tiny(), noise(2)
    with torch.no_grad():
        raw = model.encode(grids)
        planes = model.planes(raw)
        model.shift.copy_(torch.tensor([0.5, -1.0, 2.0, 0.0]))
        model.scale.copy_(torch.tensor([2.0, 0.25, 1.0, 4.0]))
        latents = model.encode(grids)
        expected = (raw - model.shift.view(1, 1, 4, 1, 1)) * model.scale.view(1, 1, 4, 1, 1)
        torch.testing.assert_close(latents, expected)
        torch.testing.assert_close(model.planes(latents), planes, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 4, 16, 16, 15), (4, 16, 16, 16), (1, 3, 16, 16, 16), (1, 4, 32, 32, 32)])
def test_other_grids_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        tiny().encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 3, 4, 4, 5), (3, 4, 4, 4), (1, 3, 5, 4, 4), (1, 2, 4, 4, 4)])
def test_other_latents_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        tiny().grid(torch.zeros(shape), 8)


def test_files_give_the_network_back(tmp_path: Path) -> None:
    model = tiny()
    model.shift.fill_(0.5)
    model.scale.fill_(2)
    model.save_pretrained(tmp_path)
    loaded = load_shape_autoencoder(tmp_path)
    assert loaded.config == TINY and not loaded.training
    assert all(value.dtype == torch.float32 for value in loaded.state_dict().values())
    for name, value in model.state_dict().items():
        rounding = value.abs().max() / 127 if value.numel() >= PACKED_FROM_ELEMENTS else 1e-3
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=float(rounding), rtol=0)
    with torch.no_grad():
        latents = loaded.encode(noise(2))
        torch.testing.assert_close(latents, model.encode(noise(2)), atol=2e-2, rtol=0)
    torch.testing.assert_close(loaded.grid(latents, 8), model.grid(latents, 8), atol=1e-2, rtol=0)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shape autoencoder"):
        load_shape_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    with pytest.raises(UserError, match="no shape autoencoder"):
        load_shape_autoencoder(tmp_path)


def test_the_shipped_size() -> None:
    with torch.device("meta"):
        model = ShapeAutoencoder(ShapeAutoencoderConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(7.0e6, rel=0.01)


# --------------------------------------------------------------------------------------------------- the recipe's rules


def test_augmentation_turns_mirrors_and_recolours_exactly() -> None:
    torch.manual_seed(0)
    plain = arms(16)
    changed = augment(plain.expand(200, -1, -1, -1, -1))
    seen = {tuple((grid[0] < 0).flatten().tolist()) for grid in changed}
    assert len(seen) == 8  # four turns, mirrored or not
    colors = {tuple(grid[1:].mean((1, 2, 3)).mul(1000).round().int().tolist()) for grid in changed}
    assert len(colors) == 6
    for grid in changed:
        # What is up stays up, and every voxel keeps its colours' sum.
        torch.testing.assert_close(grid[0].sum((0, 2)), plain[0].sum((0, 2)))
        torch.testing.assert_close(grid[1:].sum(0).flatten().sort()[0], plain[1:].sum(0).flatten().sort()[0])


def test_augmentation_keeps_distances_and_colours_together() -> None:
    torch.manual_seed(0)
    half_red = boxes(12, ((0.5, 0, 0), (0.4, 0.4, 0.4), (1, 0, 0)), ((-0.5, 0, 0), (0.4, 0.2, 0.4), (0, 0, 0)))
    for grid in augment(half_red.expand(20, -1, -1, -1, -1)):
        assert int(((grid[0] < 0) & (grid[1:].sum(0) > 0.5)).sum()) == int(
            ((half_red[0] < 0) & (half_red[1] > 0.5)).sum()
        )


def test_half_the_points_are_at_the_surface() -> None:
    torch.manual_seed(0)
    grids = torch.stack([arms(24), boxes(24, ((0, 0, 0), (0.3, 0.6, 0.2), (1, 1, 1)))])
    points = draw_points(grids, 400)
    assert points.shape == (2, 400, 3) and points.abs().max() <= 1
    voxels = ((points + 1) / 2 * 24).long()
    for grid, places in zip(grids, voxels, strict=True):
        distances = grid[0][tuple(places.T)].abs()
        assert (distances[:200] < recipe.NEAR).all() and (distances[200:] >= recipe.NEAR).float().mean() > 0.5
    anywhere = points[:, 200:].flatten(0, 1)
    assert anywhere.amin() < -0.95 and anywhere.amax() > 0.95 and (anywhere.mean(0).abs() < 0.1).all()


def test_a_grid_without_a_surface_is_refused() -> None:
    with pytest.raises(ValueError, match="no surface"):
        draw_points(torch.ones(2, 4, 8, 8, 8), 10)


def test_values_at_the_middles_of_voxels_are_the_voxels() -> None:
    grids = torch.stack([arms(10), arms(10).flip(2)])
    values = values_at(grids, middles(10).expand(2, -1, -1))
    torch.testing.assert_close(values, grids.flatten(2).transpose(1, 2))


def test_agreement_counts_insides_sides_and_colours() -> None:
    left, right = (boxes(64, ((x, 0, 0), (0.25, 0.5, 0.5), (1, 0, 0))) for x in (-0.5, 0.5))
    assert agreement(left, left).tolist() == [1, 1, 0]
    assert agreement(right, left)[0] == 0
    both = boxes(64, ((-0.5, 0, 0), (0.25, 0.5, 0.5), (0.4, 0, 0)), ((0.5, 0, 0), (0.25, 0.5, 0.5), (0.4, 0, 0)))
    overlap, sign, color = agreement(both, left).tolist()
    assert overlap == pytest.approx(0.5) and sign == 1 and color == pytest.approx(0.2)


def test_the_autoencoder_learns_a_few_shapes() -> None:
    torch.manual_seed(0)
    model = ShapeAutoencoder(replace(TINY, size=32, plane=8))
    tall, wide = ((0, 0, 0), (0.3, 0.8, 0.3), (1, 0, 0)), ((0, -0.4, 0), (0.8, 0.3, 0.5), (0, 0, 1))
    grids = torch.stack([arms(32), boxes(32, tall), boxes(32, wide)])
    optimizers = optimizers_of(model)
    for _ in range(220):
        loss, _ = autoencoder_loss(model, grids)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    decoded = model.eval().grid(model.encode(grids), 32)
    measured = torch.stack([agreement(made, true) for made, true in zip(decoded, grids, strict=True)])
    overlap, sign, color = measured.T
    assert overlap.min() > 0.7 and sign.min() > 0.8 and color.mean() < 0.12, measured


# ------------------------------------------------------------------------------------------------------- whole recipe


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a table of boxes, where state and weights go as well; the recipe takes two steps of three."""
    colors = (RED, GREEN, BLUE)
    names = ["Armchair", "Desk", "Chair", "Table", "Sofa", "Lamp"]  # the first two are held out
    rows = [box_row((8 + i, 20 - i, 10), colors[i % 3], name=name) for i, name in enumerate(names)]
    write_table(tmp_path, rows)
    for module in (loop, shapes, recipe):
        monkeypatch.setattr(module, "STATE", tmp_path / "state")
    monkeypatch.setattr(recipe, "BATCH", 3)
    monkeypatch.setattr(recipe, "POINTS", 256)
    monkeypatch.setattr(recipe, "CONFIG", replace(TINY, size=64, plane=8))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["recipe", "--data", ".", "--steps", "2", "--permissive-only"])
    return tmp_path


def test_the_recipe_writes_weights_with_latents_of_unit_deviation(workplace: Path) -> None:
    recipe.main()
    folder = workplace / "assets" / "weights" / "shape-autoencoder-permissive-lite"
    model = load_shape_autoencoder(folder)
    assert (folder / "SHA256SUMS").exists()
    loaded = shapes.load_shapes(workplace)
    with torch.no_grad():
        latents = model.encode(loaded.batch(loaded.select("train")))
    deviations, means = torch.std_mean(latents, (0, 1, 3, 4))
    torch.testing.assert_close(deviations, torch.ones(4), atol=0.03, rtol=0)
    assert means.abs().max() < 0.03
    with torch.no_grad():
        metrics = recipe.evaluate(model, loaded, workplace / "sheet.png")
    assert len(metrics) == 6 and all(0 <= float(value) <= 1 for value in metrics.values())
    sheet = np.asarray(Image.open(workplace / "sheet.png"))
    assert sheet.shape == (2 * 130, 2 * 130, 3)  # two held-out shapes, true above decoded


def test_the_recipe_goes_on_from_weights_that_are_given(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe.main()
    first = workplace / "assets" / "weights" / "shape-autoencoder-permissive-lite"
    given = load_shape_autoencoder(first)
    assert not torch.allclose(given.scale, torch.ones(4))
    begun = recipe.begun(first)
    assert torch.equal(begun.scale, torch.ones(4)) and torch.equal(begun.shift, torch.zeros(4))
    first.rename(workplace / "earlier")
    (workplace / "state/shape-autoencoder-permissive/state.pt").unlink()
    argv = ["recipe", "--data", ".", "--steps", "0", "--permissive-only", "--continue-from", "earlier"]
    monkeypatch.setattr(sys, "argv", argv)
    recipe.main()  # no step: the same weights, with latents of unit deviation measured anew
    made = load_shape_autoencoder(first)
    for name, value in given.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], value, atol=0.02 * float(value.abs().max()) + 1e-4, rtol=0)


def test_without_permissive_only_the_recipe_learns_from_both_tables(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["recipe", "--data", ".", "--steps", "1", "--batch", "5"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match="--only shapes-sharealike"):
        recipe.main()
    write_table(workplace, [box_row((7, 7, 7), RED, name="wolf")], shapes.SHARE_ALIKE_TABLE)
    seen: list[Tensor] = []

    def look(model: ShapeAutoencoder, grids: Tensor) -> tuple[Tensor, loop.Metrics]:
        seen.append(grids)
        return autoencoder_loss(model, grids)

    monkeypatch.setattr(recipe, "autoencoder_loss", look)
    recipe.main()
    assert (workplace / "assets" / "weights" / "shape-autoencoder-lite" / "model.safetensors").is_file()
    assert 14 in {int((grid[0] < 0).any(0).any(1).sum()) for grid in seen[0]}  # voxels that the wolf is high


def test_the_recipe_is_deterministic_and_never_sees_held_out_names(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def look(model: ShapeAutoencoder, grids: Tensor) -> tuple[Tensor, loop.Metrics]:
        seen.append(grids)
        return autoencoder_loss(model, grids)

    monkeypatch.setattr(recipe, "autoencoder_loss", look)
    recipe.main()
    weights = workplace / "assets" / "weights" / "shape-autoencoder-permissive-lite" / "model.safetensors"
    first = weights.read_bytes()
    (workplace / "state" / "shape-autoencoder-permissive" / "state.pt").unlink()
    recipe.main()
    assert weights.read_bytes() == first
    heights = {int((grid[0] < 0).any(0).any(1).sum()) for grids in seen for grid in grids}
    assert len(heights) > 1 and heights <= {2 * (20 - i) for i in range(2, 6)}  # those of the trained names
