"""The shape generator: sampling, guidance, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from models.errors import UserError
from models.nets.shape_autoencoder import ShapeAutoencoder
from models.nets.shape_generator import ShapeGenerator, ShapeGeneratorConfig, load_shape_generator, shifted
from tests.tiny_shapes import AUTOENCODER, GENERATOR, tiny_generator
from tests.tiny_sounds import WIDTH

SHAPE = (3, 4, 4, 4)


def tiny() -> ShapeGenerator:
    torch.manual_seed(0)
    return tiny_generator()


def vectors(count: int, width: int = WIDTH) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(5)), dim=1)


def test_the_lite_network_has_the_sheets_size() -> None:
    with torch.device("meta"):
        model = ShapeGenerator(ShapeGeneratorConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(9.5e6, rel=0.05)
    assert model.latent_shape == (3, 12, 8, 8)


def test_every_cell_hears_of_every_other_of_the_time_and_of_the_condition() -> None:
    model = tiny()
    noisy, times, conditions = torch.randn(1, *SHAPE, requires_grad=True), torch.tensor([0.3]), vectors(2)
    velocity = model(noisy, times, conditions[:1])
    assert velocity.shape == (1, *SHAPE) and velocity.dtype == torch.float32
    [slope] = torch.autograd.grad(velocity[0, 2, 1, 3, 0], noisy)
    assert slope.ne(0).flatten(1).all()
    assert not torch.allclose(model(noisy, times + 0.1, conditions[:1]), velocity, atol=1e-3)
    assert not torch.allclose(model(noisy, times, conditions[1:]), velocity, atol=1e-3)


def test_cells_know_their_places() -> None:
    model = tiny()
    flat = model(torch.ones(1, *SHAPE), torch.tensor([0.5]), vectors(1))
    assert flat.std((1, 3, 4)).min() > 0.01


def test_it_begins_by_changing_nothing() -> None:
    assert not ShapeGenerator(GENERATOR)(torch.randn(2, *SHAPE), torch.rand(2), vectors(2)).any()


def test_a_shape_depends_on_its_condition_and_seed_alone() -> None:
    model, conditions = tiny(), vectors(4)
    together = model.sample(conditions, 5, 2.5, [3, 1, 4, 1])
    assert together.shape == (4, *SHAPE)
    alone = [model.sample(conditions[i : i + 1], 5, 2.5, [seed]) for i, seed in enumerate([3, 1, 4, 1])]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)
    assert torch.equal(model.sample(conditions, 5, 2.5, [3, 1, 4, 1]), together)
    assert not torch.allclose(model.sample(conditions[:1], 5, 2.5, [2]), alone[0], atol=1e-2)
    assert not torch.allclose(model.sample(conditions[2:3], 5, 2.5, [3]), alone[0], atol=1e-3)


def test_guidance_leads_from_the_null_condition_through_the_condition() -> None:
    model, condition = tiny(), vectors(1)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))[None]
    start = torch.zeros(1)
    with torch.no_grad():
        told, untold = model(noise, start, condition), model(noise, start, model.null_condition[None])
    for guidance in (0.0, 1.0, 3.0):
        expected = noise + untold + guidance * (told - untold)
        torch.testing.assert_close(model.sample(condition, 1, guidance, [7]), expected, atol=1e-5, rtol=1e-5)


def test_without_guidance_nothing_is_computed_for_the_null_condition() -> None:
    model = tiny()
    sizes: list[int] = []
    model.enter.register_forward_hook(lambda _, arguments, __: sizes.append(len(arguments[0])))
    model.sample(vectors(2), 3, 1, [0, 1])
    model.sample(vectors(2), 3, 2, [0, 1])
    assert sizes == [2, 2, 2, 4, 4, 4]
    with torch.no_grad():
        model.null_condition.fill_(torch.nan)
    assert model.sample(vectors(1), 3, 1, [0]).isfinite().all()


def test_every_step_gives_the_shape_so_far_and_nothing_is_computed_before_it_is_asked_for() -> None:
    model = tiny()
    final = model.sample(vectors(2), 5, 2, [0, 1])
    told = list(model.denoise(vectors(2), 5, 2, [0, 1]))
    assert len(told) == 5 and all(clean.shape == final.shape and clean.isfinite().all() for clean, _ in told)
    torch.testing.assert_close(told[-1][0], final)
    assert torch.equal(told[-1][1], final)
    calls: list[int] = []
    model.enter.register_forward_hook(lambda *_: calls.append(1))
    stages = model.denoise(vectors(2), 5, 2, [0, 1])
    next(stages)
    next(stages)
    assert len(calls) == 2


class Knowing(ShapeGenerator):
    """Has the velocity without an error, since it is told the clean latents ``answer``."""

    answer: Tensor

    def forward(self, noisy: Tensor, times: Tensor, conditions: Tensor) -> Tensor:
        return (self.answer - noisy) / (1 - times.view(-1, 1, 1, 1, 1))


@settings(max_examples=20)
@given(st.integers(1, 300))
def test_the_right_velocity_leads_to_the_answer_whatever_the_number_of_steps(steps: int) -> None:
    model = Knowing(GENERATOR)
    model.answer = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1))
    stages = list(model.denoise(vectors(1), steps, 1, [0]))
    for clean, _ in stages:
        torch.testing.assert_close(clean, model.answer, atol=1e-4, rtol=0)
    torch.testing.assert_close(stages[-1][1], model.answer, atol=1e-4, rtol=0)


def test_times_go_from_noise_to_shape_and_dwell_at_the_noise() -> None:
    times = shifted(torch.linspace(0, 1, 21))
    assert times[0] == 0 and times[-1] == 1 and (times.diff() > 0).all() and (times.diff().diff() > 0).all()
    assert (times < 0.1).sum() == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditions": 2 * vectors(1)}, "no unit vectors"),
        ({"conditions": torch.full((1, WIDTH), torch.nan)}, "no unit vectors"),
        ({"conditions": vectors(1, WIDTH - 1)}, r"\(1, 15\)"),
        ({"conditions": vectors(1)[0]}, r"\(16,\)"),
        ({"seeds": [1, 2]}, r"\(2 > 0, 16\)"),
        ({"conditions": vectors(1)[:0], "seeds": []}, r"\(0, 16\)"),
        ({"steps": 0}, "1 to 1000 steps"),
        ({"steps": 1001}, "1 to 1000 steps"),
        ({"guidance": float("nan")}, "finite guidance"),
    ],
)
def test_what_cannot_be_sampled_is_refused(changes: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"conditions": vectors(1), "steps": 2, "guidance": 2, "seeds": [0]}
    with pytest.raises(ValueError, match=message):
        tiny().sample(**{**values, **changes})  # type: ignore[arg-type]


def test_files_give_the_generator_back(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "first")
    loaded = load_shape_generator(tmp_path / "first")
    assert loaded.config == model.config and not loaded.training
    expected = model.sample(vectors(1), 4, 2, [0])
    torch.testing.assert_close(loaded.sample(vectors(1), 4, 2, [0]), expected, atol=0.02, rtol=0.02)
    loaded.save_pretrained(tmp_path / "second")
    for path in (tmp_path / "first").iterdir():
        assert (tmp_path / "second" / path.name).read_bytes() == path.read_bytes()


def test_other_weights_are_refused(tmp_path: Path) -> None:
    ShapeAutoencoder(AUTOENCODER).save_pretrained(tmp_path / "autoencoder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"width": 16}))
    for name in ("autoencoder", "empty", "other"):
        with pytest.raises(UserError, match="no shape generator") as refusal:
            load_shape_generator(tmp_path / name)
        assert "ShapeGenerator" in refusal.value.hint
