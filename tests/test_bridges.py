"""Bridges between spaces: known answers, seeds, batches, files, bad input, measures, and two steps of each recipe."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from models.bridges import TIMES, Bridge, DiffusionBridge, MeanShift, RegressionBridge, load_bridge, slerp
from models.errors import UserError
from training.bridges import diffusion_loss, frechet_distance, regression_loss

WIDTH = 16
AXES = torch.eye(WIDTH)
SEEDS = range(64)


def near(centres: Tensor, seed: int = 0) -> Tensor:
    """Unit vectors (B, D) scattered around ``centres`` (B, D)."""
    return F.normalize(
        centres + 0.05 * torch.randn(centres.shape, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def two_clusters(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """What lies around axis 0 belongs to axis 2, what lies around axis 1 to axis 3: sources, targets, and which."""
    which = torch.arange(count) % 2
    return near(AXES[which], seed), near(AXES[2 + which], seed + 1), which


def diffusion(one_space: bool = False) -> DiffusionBridge:
    torch.manual_seed(0)
    return DiffusionBridge(WIDTH, heads=1, layers=1, one_space=one_space)


def taught(bridge: Bridge, sources: Tensor, targets: Tensor, steps: int) -> Bridge:
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in bridge.parameters() if p.requires_grad], lr=4e-3)
    for _ in range(steps):
        rows = torch.randint(len(sources), (128,))
        batch = sources[rows], targets[rows]
        if isinstance(bridge, DiffusionBridge):
            loss = diffusion_loss(bridge, *batch)[0]
        else:
            assert isinstance(bridge, RegressionBridge)
            loss = regression_loss(bridge, *batch)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return bridge.eval()


@pytest.fixture(scope="module")
def trained() -> dict[str, Bridge]:
    """Each kind, having learnt the two clusters."""
    sources, targets, _ = two_clusters(512, 0)
    torch.manual_seed(0)
    return {
        "diffusion": taught(diffusion(), sources, targets, 80),
        "regression": taught(RegressionBridge(WIDTH, 64), sources, targets, 40),
        "mean shift": MeanShift.between(sources, targets).eval(),
    }


KINDS = ("diffusion", "regression", "mean shift")


# --------------------------------------------------------------------------------------------- problems with an answer


@pytest.mark.parametrize("kind", KINDS)
def test_a_bridge_lands_nearer_than_no_bridge(trained: dict[str, Bridge], kind: str) -> None:
    sources, targets, _ = two_clusters(64, 100)
    made = trained[kind](sources, SEEDS)
    assert made.shape == sources.shape and made.dtype == torch.float32
    torch.testing.assert_close(made.norm(dim=1), torch.ones(64))
    assert (made * targets).sum(1).mean() > (sources * targets).sum(1).mean() + 0.3
    assert frechet_distance(made, targets) < 0.6 * frechet_distance(sources, targets)


@pytest.mark.parametrize("kind", ("diffusion", "regression"))
def test_a_trained_bridge_tells_the_clusters_apart(trained: dict[str, Bridge], kind: str) -> None:
    sources, _, which = two_clusters(64, 100)
    made = trained[kind](sources, SEEDS)
    assert ((made @ AXES[2:4].T).argmax(1) == which).float().mean() > 0.95


def test_seeds_reach_every_right_answer_and_the_regression_lies_between() -> None:
    """One source, two answers: V2A-Mapper's reason for a generative mapper."""
    sources = near(AXES[0].expand(512, -1))
    targets = near(AXES[2 + torch.arange(512) % 2], 1)
    made = taught(diffusion(), sources, targets, 150)(sources[:64], SEEDS)
    cosines = made @ AXES[2:4].T
    assert cosines.amax(1).mean() > 0.85
    assert 0.2 < (cosines.argmax(1) == 0).float().mean() < 0.8
    between = taught(RegressionBridge(WIDTH, 64), sources, targets, 40)(sources[:64], SEEDS) @ AXES[2:4].T
    assert (between - math.sqrt(0.5)).abs().mean() < 0.1


def test_the_mean_of_one_cloud_moves_to_the_mean_of_the_other() -> None:
    bridge = MeanShift.between(AXES[[0, 1]], AXES[[2, 3]])
    made = bridge(AXES[[0]], [0])
    torch.testing.assert_close(made[0], (AXES[0] - AXES[1] + AXES[2] + AXES[3]) / 2)


# ---------------------------------------------------------------------------------------------- seeds, batches, steps


def test_a_seed_gives_one_answer_and_another_seed_another(trained: dict[str, Bridge]) -> None:
    sources = two_clusters(4, 7)[0]
    for kind, bridge in trained.items():
        first, again, other = (
            bridge(sources, [1, 2, 3, 4]),
            bridge(sources, [1, 2, 3, 4]),
            bridge(sources, [5, 6, 7, 8]),
        )
        assert torch.equal(first, again)
        assert torch.equal(first, other) == (kind != "diffusion")
    same_source = diffusion().eval()(sources[[0, 0]], [1, 2])
    assert not torch.allclose(same_source[0], same_source[1], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_four_is_four_batches_of_one(trained: dict[str, Bridge], kind: str) -> None:
    sources = two_clusters(4, 7)[0]
    alone = [trained[kind](sources[[row]], [10 + row]) for row in range(4)]
    torch.testing.assert_close(trained[kind](sources, range(10, 14)), torch.cat(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", (1, 8, 10, 40))
def test_sampling_is_diffusers_ddim(trained: dict[str, Bridge], steps: int) -> None:
    bridge = trained["diffusion"]
    assert isinstance(bridge, DiffusionBridge)
    sources = two_clusters(2, 7)[0]
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    noisy = torch.cat([torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)])
    with torch.no_grad():
        for time in scheduler.timesteps:
            guess = bridge.predict(noisy, time.expand(2), sources, torch.zeros(2, dtype=torch.bool))
            noisy = scheduler.step(guess, time, noisy).prev_sample
    torch.testing.assert_close(bridge(sources, [3, 4], steps=steps), F.normalize(noisy, dim=1), atol=1e-4, rtol=0)


def test_guidance_goes_from_the_null_to_the_condition_and_beyond(trained: dict[str, Bridge]) -> None:
    bridge, sources = trained["diffusion"], two_clusters(2, 7)[0]
    without = bridge(sources, [5, 5], guidance=0.0)
    torch.testing.assert_close(without[0], without[1], atol=1e-5, rtol=0)
    told, guided = bridge(sources, [5, 5]), bridge(sources, [5, 5], guidance=2.0)
    assert not torch.allclose(told, guided, atol=1e-3) and torch.isfinite(guided).all()


def test_the_best_of_several_is_the_nearest_to_its_vector() -> None:
    bridge, sources = diffusion(one_space=True).eval(), two_clusters(32, 7)[0]
    one, four = bridge(sources, range(32)), bridge(sources, range(32), best_of=4)
    cosines = [(made * sources).sum(1) for made in (one, four)]
    assert (cosines[1] >= cosines[0] - 1e-5).all() and cosines[1].mean() > cosines[0].mean() + 0.01
    torch.testing.assert_close(bridge(sources[[9]], [9], best_of=4)[0], four[9], atol=1e-5, rtol=0)


@given(st.integers(0, TIMES - 1))
def test_noise_keeps_targets_at_unit_deviation(time: int) -> None:
    bridge = diffusion()
    targets = F.normalize(torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)
    noise = torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(2))
    assert bridge.add_noise(targets, torch.full((500,), time), noise).std().item() == pytest.approx(1, abs=0.05)


# ------------------------------------------------------------------------------------------------ files and bad input


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_a_bridge_back(trained: dict[str, Bridge], kind: str, tmp_path: Path) -> None:
    trained[kind].save_pretrained(tmp_path / "bridge")
    loaded = load_bridge(tmp_path / "bridge")
    assert type(loaded) is type(trained[kind]) and loaded.config == trained[kind].config and not loaded.training
    sources = two_clusters(4, 7)[0]
    torch.testing.assert_close(loaded(sources, range(4)), trained[kind](sources, range(4)), atol=1e-2, rtol=0)


def test_other_weights_are_no_bridge(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "IstftVocoder"}))
    with pytest.raises(UserError, match="no bridge between spaces"):
        load_bridge(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ((WIDTH,), (1, WIDTH + 1), (0, WIDTH), (1, 1, WIDTH)))
def test_other_shapes_are_refused(trained: dict[str, Bridge], kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 16\)"):
        trained[kind](F.normalize(torch.ones(shape), dim=-1), [0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", (0.0, 16.0, float("nan"), float("inf")))
def test_what_is_no_unit_vector_is_refused(trained: dict[str, Bridge], kind: str, factor: float) -> None:
    vectors = AXES[:2].clone()
    vectors[1] = F.normalize(torch.ones(WIDTH), dim=0) * factor
    with pytest.raises(ValueError, match="expected unit vectors"):
        trained[kind](vectors, [0, 1])


def test_seeds_are_one_a_vector(trained: dict[str, Bridge]) -> None:
    for bridge in trained.values():
        with pytest.raises(ValueError, match="expected 2 seeds"):
            bridge(AXES[:2], [0])


@pytest.mark.parametrize(
    "wish", ({"steps": 0}, {"steps": TIMES + 1}, {"best_of": 0}, {"guidance": float("nan")}, {"best_of": 2})
)
def test_impossible_sampling_is_refused(trained: dict[str, Bridge], wish: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"cannot sample|one space"):
        trained["diffusion"](AXES[:1], [0], **wish)


def test_half_precision_vectors_are_taken(trained: dict[str, Bridge]) -> None:
    vectors = near(AXES[:2])
    for bridge in trained.values():
        made = bridge(vectors.half(), [0, 1])
        assert made.dtype == torch.float32
        torch.testing.assert_close(made, bridge(vectors, [0, 1]), atol=2e-2, rtol=0)


# --------------------------------------------------------------------------------------------------------------- slerp


def unit_vector(seed: int, width: int) -> Tensor:
    return F.normalize(torch.randn(width, generator=torch.Generator().manual_seed(seed)), dim=0)


@given(st.integers(0, 999), st.integers(2, 300), st.floats(0, 1))
def test_slerp_goes_along_the_arc(seed: int, width: int, t: float) -> None:
    a, b = unit_vector(seed, width), unit_vector(seed + 1, width)
    made = slerp(a, b, t)
    whole = torch.atan2((b - (a @ b) * a).norm(), a @ b)
    assert made.norm().item() == pytest.approx(1, abs=1e-5)
    assert (made @ a).item() == pytest.approx(math.cos(t * whole), abs=1e-4)
    assert (made @ b).item() == pytest.approx(math.cos((1 - t) * whole), abs=1e-4)


@given(st.integers(0, 999))
def test_slerp_ends_where_it_should_bit_for_bit(seed: int) -> None:
    a, b = unit_vector(seed, 256), unit_vector(seed + 1, 256)
    assert torch.equal(slerp(a, b, 0), a) and torch.equal(slerp(a, b, 1), b)
    assert torch.equal(slerp(a, -a, 0.0), a) and torch.equal(slerp(a, -a, 1.0), -a)


@given(st.integers(0, 999), st.floats(0, 1))
def test_slerp_between_equal_and_opposite_vectors(seed: int, t: float) -> None:
    a = unit_vector(seed, 256)
    torch.testing.assert_close(slerp(a, a.clone(), t), a, atol=1e-5, rtol=0)
    made = slerp(a, -a, t)
    assert made.norm().item() == pytest.approx(1, abs=1e-5)
    assert (made @ a).item() == pytest.approx(math.cos(t * math.pi), abs=1e-4)
    assert torch.equal(made, slerp(a, -a, t))


def test_slerp_takes_every_row_its_own_way() -> None:
    a, b = AXES[[0, 0, 0]], torch.stack([AXES[1], AXES[0], -AXES[0]])
    rows = torch.stack([slerp(first, second, 0.3) for first, second in zip(a, b, strict=True)])
    torch.testing.assert_close(slerp(a, b, 0.3), rows)


@pytest.mark.parametrize("t", (-0.1, 1.1, float("nan")))
def test_slerp_refuses_what_is_not_on_the_way(t: float) -> None:
    with pytest.raises(ValueError, match="of the way"):
        slerp(AXES[0], AXES[1], t)


def test_slerp_refuses_other_vectors() -> None:
    with pytest.raises(ValueError, match="of the way"):
        slerp(AXES[0], AXES[:2], 0.5)
    for broken in (2 * AXES[1], torch.full((WIDTH,), float("nan"))):
        with pytest.raises(ValueError, match="expected unit vectors"):
            slerp(AXES[0], broken, 0.5)
