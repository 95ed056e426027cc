"""The diffusion model of views: what it listens to, sampling, files; its recipe's rules and two steps of it."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import UserError
from models.nets.view_diffusion import (
    CHANNELS,
    MASK,
    Given,
    ViewDiffusion,
    ViewDiffusionConfig,
    camera_numbers,
    clean_of,
    load_view_diffusion,
    mixed,
    noise_of,
    velocity_of,
)
from models.picture_text import PictureText, PictureTextConfig, load_picture_text
from pipelines.xbind.rendering import Cameras, Framing, render
from pipelines.xbind.supervision import REFERENCE
from tests.box_shapes import arms
from tests.test_picture_text import untrained_backbone
from tests.test_shape_generator_recipe import write_chairs
from tests.tiny_sounds import WIDTH
from training import bridges, loop, picture_text, shapes
from training import shape_generator as conditions_recipe
from training import view_diffusion as recipe
from training.publish import write_sums
from training.shape_generator import Examples
from training.shapes import load_shapes
from training.view_diffusion import SeenExamples, Views, cameras_of, diffusion_loss, in_mirror, overlap

TINY = ViewDiffusionConfig(side=16, condition_width=WIDTH, widths=(8, 16), heads=2)
SHAPE = (CHANNELS, 16, 16)


def tiny(config: ViewDiffusionConfig = TINY) -> ViewDiffusion:
    """One that listens to everything; as it begins, its velocity is zero."""
    torch.manual_seed(0)
    model = ViewDiffusion(config)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("second", "mix", "leave", "null_condition")):
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def random(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vectors(count: int, seed: int = 5) -> Tensor:
    return F.normalize(random(count, WIDTH, seed=seed), dim=1)


def angles(*values: float) -> Tensor:
    return torch.tensor(values)


def test_the_lite_network_is_small_enough_for_a_processor() -> None:
    with torch.device("meta"):
        model = ViewDiffusion(ViewDiffusionConfig())
    assert 4e6 < sum(parameter.numel() for parameter in model.parameters()) < 7e6
    assert model.view_shape == (7, 48, 48)


def test_it_begins_by_changing_nothing() -> None:
    model = ViewDiffusion(TINY)
    zero = angles(0, 0)
    assert not model(random(2, *SHAPE), torch.rand(2), model.free(zero, zero)).any()


@torch.no_grad()
def test_every_pixel_hears_of_every_other_and_of_all_that_is_given() -> None:
    model, time, zero = tiny(), torch.tensor([0.4]), angles(0.0)
    noisy = random(1, *SHAPE)
    free = model.free(zero, zero)
    plain = model(noisy, time, free)
    assert plain.shape == (1, *SHAPE) and plain.dtype == torch.float32
    asked = {
        "time": (time + 0.2, free),
        "condition": (time, model.planar(vectors(1), zero, zero)),
        "azimuth": (time, model.free(zero + 1, zero)),
        "elevation": (time, model.free(zero, zero + 0.3)),
        "reference": (time, model.stereoscopic(random(1, *SHAPE), (zero, zero), zero, zero)),
    }
    for name, (at, given) in asked.items():
        assert (model(noisy, at, given) - plain).abs().max() > 1e-3, name
    with torch.enable_grad():
        noisy.requires_grad_()
        [slope] = torch.autograd.grad(model(noisy, time, free)[0, 0, 0, 0], noisy)
    assert slope.ne(0).all()


def test_a_camera_is_told_from_the_front_or_from_the_reference() -> None:
    front = camera_numbers(angles(0.7, 0.7 + 2 * np.pi), angles(0.2, 0.2))
    torch.testing.assert_close(front[0], front[1], atol=1e-5, rtol=0)
    turned = camera_numbers(angles(1.0), angles(0.2), (angles(0.3), angles(-0.1)))
    torch.testing.assert_close(turned[0, :3], front[0, :3])  # 0.7 further round
    assert front[0, 3:].tolist() == [0, 0] and turned[0, 3] == pytest.approx(np.sin(-0.1)) and turned[0, 4] == 1


def test_velocity_noise_and_clean_views_belong_together() -> None:
    clean, noise, times = random(3, *SHAPE), random(3, *SHAPE, seed=4), torch.tensor([0.0, 0.4, 1.0])
    noisy, velocity = mixed(clean, noise, times), velocity_of(clean, noise, times)
    torch.testing.assert_close(noisy[0], clean[0])
    torch.testing.assert_close(noisy[2], noise[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(clean_of(noisy, velocity, times), clean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(noise_of(noisy, velocity, times), noise, atol=1e-5, rtol=1e-5)


class Knowing(ViewDiffusion):
    """Sure that a view is ``answer``, whatever it is given."""

    answer: Tensor

    def forward(self, noisy: Tensor, times: Tensor, given: Given) -> Tensor:
        angle = times[:, None, None, None] * torch.pi / 2
        return (angle.cos() * noisy - self.answer) / angle.sin()


@pytest.mark.parametrize(("steps", "level"), [(1, 1.0), (7, 1.0), (3, 0.5)])
def test_the_right_velocity_leads_to_the_answer(steps: int, level: float) -> None:
    model, zero = Knowing(TINY), angles(0.0)
    model.answer = random(1, *SHAPE).clamp(-1, 1)
    free = model.free(zero, zero)
    made = model.sample(free, free, steps, 3.0, [0], torch.zeros(1, *SHAPE), level)
    torch.testing.assert_close(made, model.answer, atol=1e-4, rtol=1e-4)


def test_a_view_depends_on_what_is_given_and_its_seed_alone() -> None:
    model, zero = tiny(), angles(0.0, 0.0)
    given, free = model.planar(vectors(2), zero, zero), model.free(zero, zero)
    both = model.sample(given, free, 3, 2.0, [1, 2])
    one = Given(given.conditions[1:], given.cameras[1:], given.references[1:])
    alone = model.sample(one, model.free(zero[:1], zero[:1]), 3, 2.0, [2])
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)
    assert (model.sample(one, one, 3, 1.0, [3]) - alone).abs().max() > 0.01


def test_what_is_larger_than_the_noise_stays() -> None:
    model, zero, start = tiny(), angles(0.0), random(1, *SHAPE).clamp(-1, 1)
    free = model.free(zero, zero)
    near, far = (model.sample(free, free, 2, 1.0, [0], start, level) for level in (0.1, 0.9))
    assert (near - start).square().mean() < 0.5 * (far - start).square().mean()


@pytest.mark.parametrize(("steps", "level", "guidance"), [(0, 1.0, 1.0), (5, 0.0, 1.0), (5, 1.1, 1.0), (5, 1.0, 1e999)])
def test_what_cannot_be_sampled_is_refused(steps: int, level: float, guidance: float) -> None:
    model, zero = tiny(), angles(0.0)
    with pytest.raises(ValueError, match="expected 1 to"):
        model.sample(model.free(zero, zero), model.free(zero, zero), steps, guidance, [0], None, level)


def test_files_give_the_model_back(tmp_path: Path) -> None:
    model, zero = tiny(), angles(0.0)
    model.save_pretrained(tmp_path)
    again = load_view_diffusion(tmp_path)
    assert again.config == TINY and not again.training
    given = model.planar(vectors(1), zero, zero)
    torch.testing.assert_close(
        again(random(1, *SHAPE), angles(0.5), given), model(random(1, *SHAPE), angles(0.5), given), atol=0.05, rtol=0.05
    )
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "Other"}))
    with pytest.raises(UserError, match="no view diffusion model"):
        load_view_diffusion(tmp_path)


# ------------------------------------------------------------------------------------------------------------- recipe


def test_a_view_in_a_mirror_is_the_view_of_what_is_in_the_mirror() -> None:
    grid = arms(32)
    framing = Framing.of(grid[0])
    plain = render(grid, Cameras.of((40.0, 20.0)), framing, 24)
    mirrored = render(grid.flip(1), Cameras.of((-40.0, 20.0)), framing, 24)
    assert (in_mirror(plain) - mirrored).abs().mean() < 2e-3
    assert (plain - mirrored).abs().mean() > 0.05


def test_cameras_begin_with_the_reference_and_go_all_around() -> None:
    seen = cameras_of(3)
    assert len(seen) == recipe.VIEWS and seen.azimuths[0] == REFERENCE.azimuths[0]
    gaps = seen.azimuths[1:].sort().values.diff()
    assert gaps.max() < 1.1 * 2 * np.pi / (recipe.VIEWS - 1)
    assert not torch.equal(seen.azimuths[1:], cameras_of(4).azimuths[1:])
    assert torch.equal(seen.azimuths, cameras_of(3).azimuths)


def examples(count: int = 3) -> SeenExamples:
    """Shapes whose views say their shape and number in their first two pixels, and whose conditions are axes."""
    packed = torch.full((count, recipe.VIEWS, *SHAPE), 128, dtype=torch.uint8)
    packed[:, :, 0, 0, 0] = torch.arange(count, dtype=torch.uint8)[:, None]
    packed[:, :, 1, 0, 0] = torch.arange(recipe.VIEWS, dtype=torch.uint8)
    azimuths = torch.arange(recipe.VIEWS)[None] * 0.1 + torch.arange(count)[:, None]
    views = Views(packed, azimuths, azimuths / 20)
    known = torch.eye(WIDTH)[:count]
    items = [replace_row(row) for row in range(count)]
    return SeenExamples(
        views,
        Examples(
            items,
            torch.empty(2, count, 0),
            known[None, :, None].expand(2, -1, 4, -1),
            [*known[:, None].expand(-1, 2, -1)],
        ),
    )


def replace_row(row: int) -> shapes.Shape:
    icon = np.zeros((8, 8, 3), np.uint8)
    return shapes.Shape(row, "chair", ("chair",), "", "", "", "", (1, 1, 1), icon, "train", b"", b"")


def number_of(view: Tensor, channel: int, mirrored: bool) -> int:
    return int(view[channel, 0, -1 if mirrored else 0].add(1).mul(127.5).round())


def test_what_is_given_belongs_to_the_view() -> None:
    model, part = tiny(), examples()
    rng = np.random.default_rng(0)
    kinds = []
    for _ in range(10):
        indices = rng.integers(6, size=32)
        views, given = part.draw(model, indices, rng)
        for index, view, vector, camera, reference in zip(
            indices, views, given.conditions, given.cameras, given.references, strict=True
        ):
            mirrored, row = divmod(int(index), 3)
            assert number_of(view, 0, bool(mirrored)) == row
            azimuth = row + 0.1 * number_of(view, 1, bool(mirrored))
            if camera[4]:
                assert number_of(reference, 0, bool(mirrored)) == row
                azimuth -= row + 0.1 * number_of(reference, 1, bool(mirrored))
            sign = -1 if mirrored else 1
            assert camera[0] == pytest.approx(sign * np.sin(azimuth), abs=1e-4)
            assert camera[1] == pytest.approx(np.cos(azimuth), abs=1e-4)
            planar = not torch.equal(vector, model.null_condition)
            assert not planar or (vector.argmax() == row and not reference.any() and not camera[4])
            kinds.append("planar" if planar else "stereoscopic" if camera[4] else "free")
    assert 0.35 < kinds.count("planar") / 320 < 0.55 and 0.35 < kinds.count("stereoscopic") / 320 < 0.55
    assert "free" in kinds


def test_the_model_learns_a_view() -> None:
    torch.manual_seed(0)
    model, part = ViewDiffusion(replace(TINY, widths=(32, 32))), examples()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(80):
        views, given = part.draw(model, np.arange(6), np.random.default_rng(step))
        loss, _ = diffusion_loss(model, views, given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.8 * losses[0]
    assert model.null_condition.grad is not None and model.null_condition.grad.any()


def test_outlines_agree_as_far_as_they_overlap() -> None:
    views = torch.full((2, *SHAPE), -1.0)
    views[:, MASK, :8] = 1
    other = views.clone()
    other[1, MASK, :8] = -1
    other[1, MASK, 4:12] = 1
    assert overlap(views, views) == 1 and overlap(views, other) == pytest.approx((1 + 1 / 3) / 2)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of five seats, a space of random weights, and a recipe that takes two steps with a tiny network."""
    encoder = Path("assets/weights/text-encoder-lite").resolve()
    write_chairs(tmp_path)
    weights = tmp_path / "assets" / "weights"
    weights.mkdir(parents=True)
    (weights / "text-encoder-lite").symlink_to(encoder)
    torch.manual_seed(0)
    space = PictureText(PictureTextConfig(width=WIDTH), untrained_backbone(), torch.randn(1000, 384))
    space.save_pretrained(weights / "picture-text-lite")
    write_sums(weights / "picture-text-lite")
    for module in (loop, bridges, picture_text, shapes, recipe, conditions_recipe):
        monkeypatch.setattr(module, "STATE", tmp_path / "state", raising=False)
    for name, value in {"CONFIG": TINY, "VIEWS": 4, "SAMPLING_STEPS": 2, "SHOWN": 1}.items():
        monkeypatch.setattr(recipe, name, value)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_recipe_writes_a_model_and_takes_views_from_its_cache(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["recipe", "--data", ".", "--permissive-only", "--batch", "4", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", argv)
    recipe.main()
    target = workplace / "assets" / "weights" / "view-diffusion-permissive-lite"
    assert load_view_diffusion(target).config == TINY and (target / "SHA256SUMS").exists()

    table = load_shapes(workplace)
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "render", None)  # nothing is drawn again
        parts = recipe.load_examples(table, load_picture_text(workplace / "assets/weights/picture-text-lite"))
    known, unknown = (parts[split].views for split in ("train", "heldout-name"))
    assert known.packed.shape == (len(table.select("train")), 4, *SHAPE) and len(unknown.packed) == 1
    [item] = table.select("heldout-name")
    [grid] = table.batch([item])
    expected = render(grid, cameras_of(item.row), Framing.of(grid[0]), 16)
    seen, azimuths, _ = unknown.of(torch.zeros(4, dtype=torch.long), torch.arange(4), torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(seen, expected.clamp(-1, 1), atol=1 / 127, rtol=0)
    torch.testing.assert_close(azimuths, cameras_of(item.row).azimuths)

    model = tiny()
    with torch.no_grad():
        metrics = recipe.Evaluation(model, parts, workplace)(2)
    assert float(metrics["train_copied_iou"]) > 0.3 and all(np.isfinite(float(value)) for value in metrics.values())
    assert (workplace / "heldout-name-step2.png").exists()


def test_the_recipe_goes_on_from_weights_that_are_given(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tiny()
    given.save_pretrained(workplace / "earlier")
    argv = ["recipe", "--data", ".", "--permissive-only", "--batch", "4", "--steps", "0"]
    argv += ["--continue-from", str(workplace / "earlier")]
    monkeypatch.setattr(sys, "argv", argv)
    recipe.main()
    made = load_view_diffusion(workplace / "assets" / "weights" / "view-diffusion-permissive-lite").state_dict()
    for name, value in load_view_diffusion(workplace / "earlier").state_dict().items():
        torch.testing.assert_close(made[name], value, atol=0.02 * float(value.abs().max()) + 1e-6, rtol=0)
