"""The judge of objects: what it sees, what it never sees, its measures, and two steps of its recipe."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.errors import UserError
from models.nets.shape_autoencoder import ShapeAutoencoder
from models.nets.view_diffusion import CHANNELS, MASK
from tests.box_shapes import BLUE, GREEN, RED, boxes
from tests.test_shape_generator_recipe import AUTOENCODER, shape, write_chairs
from tests.tiny_networks import begin_statistics
from training import loop, picture_text, shapes, view_diffusion
from training import render_judge as recipe
from training.publish import write_sums
from training.render_judge import (
    BAND,
    HELD_OUT_HUE,
    HELD_OUT_VIEWS,
    SIDE,
    Evaluation,
    RenderJudge,
    augment,
    draw,
    kept_from_it,
    load_render_judge,
    looked_at,
    ranks,
    reserved_rows,
    turned,
)
from training.shapes import load_shapes
from training.view_diffusion import VIEWS, load_views


def tiny_judge() -> RenderJudge:
    torch.manual_seed(0)
    return RenderJudge().eval()


def numbered(count: int) -> Tensor:
    """(2, N, V, 7, S, S) uint8: a disc on white, as light as the view's number says; the smoothed one has none."""
    views = torch.full((2, count, VIEWS, CHANNELS, SIDE, SIDE), 255, dtype=torch.uint8)
    views[:, :, :, 3:6] = 128
    views[:, :, :, MASK] = 0
    for number in range(VIEWS):
        views[0, :, number, :3, 12:36, 12:36] = 10 * number
        views[0, :, number, MASK, 12:36, 12:36] = 255
    return views


def of_colour(*color: float) -> Tensor:
    return boxes(32, ((0, 0, 0), (0.5, 0.5, 0.5), color))


# ------------------------------------------------------------------------------------------------------- what it sees


def test_it_takes_any_number_of_views_in_any_order() -> None:
    model, views = tiny_judge(), torch.rand(2, 4, 3, SIDE, SIDE) * 2 - 1
    with torch.no_grad():
        whole = model.embed_objects(views)
        torch.testing.assert_close(model.embed_objects(views[:, [2, 0, 3, 1]]), whole, atol=1e-4, rtol=0)
        assert model.embed_objects(views[:, :1]).shape == whole.shape == (2, 128)
        torch.testing.assert_close(whole.norm(dim=1), torch.ones(2))


def test_it_is_small() -> None:
    halves = 2 * sum(value.numel() for value in RenderJudge().state_dict().values())
    assert halves < 1.5e6


def test_it_is_shown_an_object_lit_from_all_sides_on_white() -> None:
    halves = boxes(32, ((0, 0, 0.3), (0.5, 0.5, 0.3), (1, 0, 0)), ((0, 0, -0.3), (0.5, 0.5, 0.3), (0, 0, 1)))
    views = looked_at(halves)
    assert views.shape == (4, 3, SIDE, SIDE) and (views[:, :, 0, 0] > 0.98).all()
    front, _, back, _ = views[:, :, SIDE // 2, SIDE // 2]
    assert front[0] > front[2] + 0.4 and back[2] > back[0] + 0.4


def test_it_learns_to_tell_colours_and_its_file_gives_it_back(tmp_path: Path) -> None:
    model, answers = tiny_judge(), torch.arange(3)
    views = torch.stack([looked_at(of_colour(*np.array(color) / 255)) for color in (RED, GREEN, BLUE)])
    names = torch.eye(384)[:3]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(15):
        model.train()
        loss = F.cross_entropy(10 * model.embed_objects(views) @ model.embed_names(names).T, answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    begin_statistics(model)
    with torch.no_grad():
        model.embed_objects(views)
        model.eval()
        assert ranks(model, views, model.embed_names(names), answers).tolist() == [0, 0, 0]
        model.save_pretrained(tmp_path)
        loaded = load_render_judge(tmp_path)
        torch.testing.assert_close(loaded.embed_objects(views), model.embed_objects(views), atol=0.01, rtol=0)
    assert (tmp_path / "model.safetensors").stat().st_size < 1.5e6


def test_a_missing_judge_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="judge of objects is missing") as refusal:
        load_render_judge(tmp_path / "render-judge")
    assert "training.render_judge" in refusal.value.hint


def test_a_judge_of_another_design_is_refused(tmp_path: Path) -> None:
    RenderJudge().save_pretrained(tmp_path)
    assert load_render_judge(tmp_path).object.out_features == recipe.SPACE
    (tmp_path / "config.json").write_text(json.dumps({**recipe.DESIGN, "side": 64}))
    with pytest.raises(UserError, match="another design"):
        load_render_judge(tmp_path)


# ------------------------------------------------------------------------------------------------- what it never sees


def test_of_names_with_several_shapes_the_last_is_reserved() -> None:
    items = [shape(row, name) for row, name in enumerate(["a", "b", "b", "b", "c", "c", "b"])]
    assert reserved_rows(items) == {6}


def test_held_out_views_are_spread_around_and_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "augment", lambda pictures: pictures)
    monkeypatch.setattr(recipe, "lit", lambda views: views[:, :3])
    packed, rng = numbered(6), np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        drawn = draw(packed, torch.arange(6), rng)
        middles = drawn[:, :, 0, SIDE // 2, SIDE // 2].add(1).mul(12.75).round().int()
        smoothed = (middles > VIEWS).all(1)  # white all over, whatever the number
        assert all(len(set(row.tolist())) == 4 for row in middles[~smoothed])
        seen |= set(middles[~smoothed].flatten().tolist())
    assert seen == set(range(VIEWS)) - set(HELD_OUT_VIEWS)
    kept = kept_from_it(packed[0], torch.tensor([3]))[0, :, 0, SIDE // 2, SIDE // 2].add(1).mul(12.75).round()
    assert tuple(kept.int().tolist()) == HELD_OUT_VIEWS and np.diff(HELD_OUT_VIEWS).tolist() == [5, 5, 5]


def test_hues_near_the_held_out_one_are_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[float] = []

    def listen(views: Tensor, degrees: Tensor) -> Tensor:
        turns.extend((degrees % 360).tolist())
        return views

    monkeypatch.setattr(recipe, "turned", listen)
    packed, rng = numbered(8), np.random.default_rng(0)
    for _ in range(30):
        draw(packed, torch.arange(8), rng)
    away = np.abs((np.array(turns) - HELD_OUT_HUE + 180) % 360 - 180)
    assert away.min() > BAND - 0.1 and 0.3 < np.mean(np.array(turns) == 0) < 0.7 and np.ptp(turns) > 300


# ----------------------------------------------------------------------------------------------- colours, augmentation


def test_hues_turn_by_as_much_as_is_said_and_greys_stay() -> None:
    views = torch.zeros(2, 1, CHANNELS, 2, 2)
    views[:, :, :3] = torch.tensor([1.0, -1, -1]).view(3, 1, 1)  # red
    views[:, :, :3, 0, 0] = 0.3  # grey
    made = turned(views, torch.tensor([120.0, 0.0]))
    torch.testing.assert_close(made[1], views[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(made[0, 0, :3, 1, 1], torch.tensor([-1.0, 1, -1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(made[0, 0, :3, 0, 0], torch.full((3,), 0.3), atol=1e-5, rtol=0)
    assert torch.equal(made[:, :, 3:], views[:, :, 3:])


def test_augmented_views_stay_in_range_and_their_ground_white() -> None:
    torch.manual_seed(0)
    white = augment(torch.ones(6, 4, 3, SIDE, SIDE))
    assert white.shape == (6, 4, 3, SIDE, SIDE) and white.max() <= 1 and white.mean() > 0.95
    assert augment(torch.rand(6, 4, 3, SIDE, SIDE) * 2 - 1).abs().max() <= 1


def test_ranks_count_what_is_likelier() -> None:
    model, names = tiny_judge(), torch.eye(128)
    model.embed_objects = lambda views: torch.tensor([[3.0, 2, 1] + [0.0] * 125]).expand(len(views), -1)  # type: ignore[method-assign]
    assert ranks(model, torch.zeros(3, 1, 3, 8, 8), names, torch.tensor([0, 2, 9])).tolist() == [0, 2, 3]


# --------------------------------------------------------------------------------------------------------- the recipe


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of five seats, an autoencoder of random weights, and where states and weights go."""
    encoder = Path("assets/weights/text-encoder-lite").resolve()
    write_chairs(tmp_path)
    weights = tmp_path / "assets" / "weights"
    weights.mkdir(parents=True)
    (weights / "text-encoder-lite").symlink_to(encoder)
    torch.manual_seed(0)
    ShapeAutoencoder(AUTOENCODER).save_pretrained(weights / "shape-autoencoder-permissive-lite")
    write_sums(weights / "shape-autoencoder-permissive-lite")
    for module in (loop, picture_text, shapes, recipe, view_diffusion):
        monkeypatch.setattr(module, "STATE", tmp_path / "state", raising=False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_recipe_writes_a_judge_of_all_names(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe", "--data", ".", "--steps", "2", "--permissive-only"])
    recipe.main()
    target = workplace / "assets" / "weights" / "render-judge-permissive"
    model = load_render_judge(target)
    assert (target / "SHA256SUMS").exists()
    table = load_shapes(workplace)
    assert {item.split for item in table.items} == {"train", "heldout-name"}
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "smoothed_views", None)  # nothing is drawn again
        packed = recipe.all_views(table, Path("assets/weights/shape-autoencoder-permissive-lite"))
    assert packed.shape == (2, len(table.items), VIEWS, CHANNELS, SIDE, SIDE)
    assert torch.equal(packed[0], load_views(table).packed) and not torch.equal(packed[1], packed[0])
    answers, names = torch.arange(len(table.items)), torch.randn(len(table.items), 384)
    with torch.no_grad():
        metrics = Evaluation(model, packed, answers, {0}, names)(2)
    asked = ("views", "hues", "smoothed", "objects")
    assert set(metrics) == {f"{name}_top{first}" for name in asked for first in (1, 5)}
    assert metrics["views_top5"] == 1  # there are only five
