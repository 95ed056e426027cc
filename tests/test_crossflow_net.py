"""CrossFlow's networks: released names and shapes, recorded outputs, and the mathematics of training and sampling."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.nets import flow_matching as fm
from models.nets.crossflow import (
    CrossFlow,
    CrossFlowConfig,
    StageConfig,
    load_crossflow,
    load_published,
    published_config,
)

GOLDEN = Path(__file__).parent / "golden" / "crossflow_256_small.npz"
SMALL_256 = CrossFlowConfig(
    latent_channels=4,
    latent_size=32,
    tokens=8,
    text_width=64,
    compressed_width=None,
    encoder_layers=3,
    encoder_hidden=48,
    encoder_heads=4,
    encoder_head="linear",
    stages=(StageConfig("transformer", 16, 64, 128, 5, heads=4), StageConfig("convnext", 32, 32, 64, 3)),
)
TINY = CrossFlowConfig(
    latent_channels=2,
    latent_size=8,
    tokens=4,
    text_width=32,
    compressed_width=None,
    encoder_layers=1,
    encoder_hidden=16,
    encoder_heads=2,
    encoder_head="linear",
    stages=(StageConfig("transformer", 4, 16, 32, 3, heads=2), StageConfig("convnext", 8, 8, 16, 3)),
)


def draw(name: str, shape: tuple[int, ...]) -> Tensor:
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    return torch.from_numpy(np.asarray(values))


def named_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weight that tests/golden/README.md prescribes for a parameter name."""
    leaf, n = name.rsplit(".", 1)[-1], draw(name, shape)
    normal = leaf == "weight" and ("ln_" in name or ("norm" in name and len(shape) == 1))
    if leaf in {"param0", "param1", "g"} or normal:
        return (0.0 if ".bias.param" in name else 1.0) + 0.1 * n
    if leaf in {"nodecay_weight", "nodecay_bias"}:
        return 0.3 * n
    if leaf in {"bias", "b"}:
        return 0.02 * n
    if leaf in {"tensor_true", "tensor_false"}:
        return (-1.0 if leaf == "tensor_true" else 1.0) + 0.1 * n
    if "embed" in name:
        return 0.02 * n
    return n / float(np.sqrt(np.prod(shape[1:])))


@pytest.fixture(scope="module")
def golden_model() -> CrossFlow:
    model = CrossFlow(SMALL_256)
    model.load_state_dict({name: named_weight(name, tuple(value.shape)) for name, value in model.state_dict().items()})
    return model.eval()


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def golden_mask() -> Tensor:
    mask = torch.ones(3, 8)
    mask[0, 5:] = 0
    mask[2, 3:] = 0
    return mask


@torch.no_grad()
def test_encoder_reproduces_recorded_tensors(golden_model: CrossFlow, golden: dict[str, Tensor]) -> None:
    mean, log_variance = golden_model.context_encoder(draw("ctx", (3, 8, 64)), golden_mask())
    torch.testing.assert_close(mean, golden["256_mu"], atol=1e-4, rtol=0)
    torch.testing.assert_close(log_variance, golden["256_logvar"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_backbone_reproduces_recorded_tensors(golden_model: CrossFlow, golden: dict[str, Tensor]) -> None:
    t, null = torch.tensor([0.1, 0.5, 0.93]), torch.tensor([False, True, False])
    coarse, fine = golden_model(draw("x", (3, 4, 32, 32)), t, null)
    torch.testing.assert_close(coarse, golden["256_out0"], atol=1e-4, rtol=0)
    torch.testing.assert_close(fine, golden["256_out1"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_sampler_reproduces_recorded_tensors(golden_model: CrossFlow, golden: dict[str, Tensor]) -> None:
    source = (0.5 * golden["256_mu"]).view(-1, 4, 32, 32)
    sampled = fm.euler_sample(golden_model, source, steps=6, guidance_scale=7)
    torch.testing.assert_close(
        sampled.view_as(golden["256_sample6_cfg7"]), golden["256_sample6_cfg7"], atol=1e-4, rtol=0
    )


def time_dependent(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{leaf}": (width,) for leaf in ("param0", "param1", "nodecay_weight", "nodecay_bias")}


def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def released_stage(index: int, kernel: int, grid: int, blocks: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of section 3 of the fact sheet, written out from it and not from our classes."""
    c, stage = 1024 >> index, f"stages.{index}"
    shapes: dict[str, tuple[int, ...]] = {
        f"{stage}.input_layer.1.weight": (c, 4, kernel, kernel),
        f"{stage}.input_layer.1.bias": (c,),
        f"{stage}.input_layer.3.position_embeddings.weight": (grid**2, c),
        f"{stage}.output_layer.2.weight": (4, c, 3, 3),
        f"{stage}.output_layer.2.bias": (4,),
    }
    for leaf in ("weight", "bias"):
        shapes |= time_dependent(f"{stage}.output_layer.0.{leaf}", c)
    if index == 0:
        shapes |= {f"{stage}.tensor_true": (1,), f"{stage}.tensor_false": (1,)}
    else:
        exported = {1: 67584, 2: 17408}[index]
        for leaf in ("weight", "bias"):
            shapes |= time_dependent(f"{stage}.upsample.0.{leaf}", exported)
            shapes |= time_dependent(f"{stage}.upsample.2.{leaf}", c)
        shapes |= linear(f"{stage}.upsample.1.kernel", 4 * c, exported)
    for j in range(blocks // 2):
        shapes |= linear(f"{stage}.skip_denses.{j}", c, 2 * c)
    for i in range(blocks):
        block = f"{stage}.blocks.{i}"
        if index == 0:
            shapes |= time_dependent(f"{block}.block1.norm.scale", c)
            shapes |= {f"{block}.block1.query_key_value.weight": (3 * c, c)} | linear(f"{block}.block1.dense", c, c)
        else:
            shapes |= {f"{block}.block1.1.weight": (c, 1, 7, 7), f"{block}.block1.1.bias": (c,)}
        shapes |= time_dependent(f"{block}.block2.norm.scale", c)
        shapes |= linear(f"{block}.block2.w0", 2 * c, c) | linear(f"{block}.block2.w1", 2 * c, c)
        shapes |= linear(f"{block}.block2.w2", c, 2 * c)
    return shapes


def released_encoder(pixels: int, text: str) -> dict[str, tuple[int, ...]]:
    d, root = (768 if text == "clip" else 1024), "context_encoder"
    shapes: dict[str, tuple[int, ...]] = {}
    if text == "t5":
        shapes |= linear(f"{root}.compressor.fc1", 1024, 4096) | linear(f"{root}.compressor.fc2", 1024, 1024)
        shapes |= {f"{root}.compressor.ln_fc1.weight": (1024,), f"{root}.compressor.ln_fc1.bias": (1024,)}
    layers = [(f"{root}.layers.{i}", d) for i in range(11)]
    reductions = [(f"{root}.reduction_layers.{i}", d >> i) for i in range(3)]
    for name, width in layers + reductions:
        for matrix in ("W_Q", "W_K", "W_V", "W_O"):
            shapes |= linear(f"{name}.attn.{matrix}", width, width)
        shapes |= linear(f"{name}.feed_forward.ffn_1", 1024, width) | linear(f"{name}.feed_forward.ffn_2", width, 1024)
        shapes |= {f"{name}.{norm}.{leaf}": (width,) for norm in ("norm1", "norm2") for leaf in "gb"}
    for name, width in reductions:
        shapes |= linear(f"{name}.reduction", width // 2, width)
    features = 77 * (d >> 3)
    if pixels == 256:
        return shapes | linear(f"{root}.linear", 8192, features)
    head = f"{root}.adaptor"
    shapes |= linear(f"{head}.fc1", 4096, features) | linear(f"{head}.fc2", 4096, 4096)
    for name, shape in {
        "ln_fc1": (4096,), "ln_fc2": (4096,), "ln_conv1": (32, 64, 64), "ln_conv2": (64, 64, 64),
    }.items():  # fmt: skip
        shapes |= {f"{head}.{name}.weight": shape, f"{head}.{name}.bias": shape}
    for name, shape in {"conv1": (32, 1, 3, 3), "conv2": (64, 32, 3, 3), "conv3": (8, 64, 3, 3)}.items():
        shapes |= {f"{head}.{name}.weight": shape, f"{head}.{name}.bias": shape[:1]}
    return shapes


# Fact sheet 2.5: total tensors of the file, of the image tower's part, elements of the encoder and of each stage.
RELEASED = [
    (256, "clip", 2188, 1_397_879_531, 110_156_512, [749_972_486, 200_806_404], 20_987_904),
    (512, "clip", 2675, 1_420_681_467, 97_482_344, [750_021_638, 200_812_548, 34_605_060], 21_803_652),
    (256, "t5", 2194, 1_452_920_459, 165_197_440, [749_972_486, 200_806_404], 20_987_904),
    (512, "t5", 2681, 1_465_629_851, 142_430_728, [750_021_638, 200_812_548, 34_605_060], 21_803_652),
]
TOWER_TENSORS, TOWER_ELEMENTS = 307, 315_956_225
PROJECTION_TENSORS = {256: 6, 512: 18}


@pytest.mark.parametrize(("pixels", "text", "tensors", "elements", "encoder", "stages", "projection"), RELEASED)
def test_names_shapes_and_counts_of_released_checkpoints(
    pixels: int, text: str, tensors: int, elements: int, encoder: int, stages: list[int], projection: int
) -> None:
    with torch.device("meta"):
        model = CrossFlow(published_config(pixels, text))  # type: ignore[arg-type]
    found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    expected = released_encoder(pixels, text)
    for index in range(len(stages)):
        kernel = (2, 1)[index] if pixels == 256 else (4, 2, 1)[index]
        expected |= released_stage(index, kernel, 16 << index, 65 if index == 0 else 33)
    assert found == expected
    assert len(found) + TOWER_TENSORS + PROJECTION_TENSORS[pixels] == tensors
    assert [sum(p.numel() for p in stage.parameters()) for stage in model.stages] == stages
    assert sum(p.numel() for p in model.context_encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.parameters()) + TOWER_ELEMENTS + projection == elements


def test_published_file_loads_strictly_without_the_image_tower(tmp_path: Path) -> None:
    model = CrossFlow(TINY)
    stored = {f"module.{name}": value for name, value in model.state_dict().items()}
    path = tmp_path / "t2i.pth"
    torch.save(stored | {"open_clip.logit_scale": torch.zeros(()), "open_clip_output.fc1.bias": torch.zeros(4)}, path)
    loaded = load_published(path, TINY).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
    torch.save(dict(list(model.state_dict().items())[1:]), path)
    with pytest.raises(RuntimeError, match="Missing key"):
        load_published(path, TINY)


def test_saved_folder_loads_to_nearly_equal_outputs_and_once_more_to_equal_ones(tmp_path: Path) -> None:
    model = CrossFlow(TINY).eval()
    model.save_pretrained(tmp_path / "once")
    loaded = load_crossflow(tmp_path / "once")
    z, t, null = torch.randn(2, 2, 8, 8), torch.tensor([0.2, 0.8]), torch.tensor([False, True])
    torch.testing.assert_close(loaded(z, t, null)[-1], model(z, t, null)[-1], atol=2e-3, rtol=2e-2)
    loaded.save_pretrained(tmp_path / "twice")
    assert torch.equal(load_crossflow(tmp_path / "twice")(z, t, null)[-1], loaded(z, t, null)[-1])


def test_indicator_token_changes_the_velocity_in_every_pass() -> None:
    model = CrossFlow(TINY).eval()
    z, t = torch.randn(2, 2, 8, 8), torch.tensor([0.3, 0.3])
    conditional, null = (model(z, t, torch.tensor([flag, flag]))[-1] for flag in (False, True))
    assert (conditional - null).abs().max() > 1e-5


@pytest.mark.parametrize("steps", [1, 2, 6, 50])
def test_time_grid_includes_both_ends(steps: int) -> None:
    grid = fm.time_grid(steps)
    assert len(grid) == steps and grid[0] == 0
    if steps > 1:
        assert grid[-1] == pytest.approx(1 - 1e-5, abs=1e-7)
        assert torch.allclose(grid.diff(), torch.full((steps - 1,), (1 - 1e-5) / (steps - 1)), atol=1e-6)


@given(st.integers(1, 20), st.integers(0, 2**31))
@settings(max_examples=30)
def test_sampler_follows_a_constant_velocity_exactly(steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source, target = torch.randn(2, 3, 1, 2, 2, generator=generator)
    sampled = fm.euler_sample(lambda z, t, null: [(target - source).repeat(len(z) // 3, 1, 1, 1)], source, steps, 3.0)
    torch.testing.assert_close(sampled, target, atol=1e-4, rtol=1e-4)


@given(st.lists(st.booleans(), min_size=2, max_size=12))
def test_exchange_moves_only_null_targets_and_loses_none(flags: list[bool]) -> None:
    null = torch.tensor(flags)
    target = torch.arange(len(flags)).float().view(-1, 1, 1, 1)
    exchanged = fm.exchange_null_targets(target, null)
    assert torch.equal(exchanged[~null], target[~null])
    assert sorted(exchanged.flatten().tolist()) == sorted(target.flatten().tolist())
    if null.sum() > 1:
        assert (exchanged[null] != target[null]).all()


def test_path_ends_and_velocity_agree() -> None:
    source, target = torch.randn(2, 4, 2, 4, 4)
    start, end = (fm.interpolate(source, target, torch.full((4,), t)) for t in (0.0, 1.0))
    assert torch.equal(start, source)
    torch.testing.assert_close(end, target + fm.SIGMA_MIN * source)
    torch.testing.assert_close(end - start, fm.velocity_target(source, target))


def test_flow_matching_loss_is_zero_at_the_pooled_targets_only() -> None:
    velocity = torch.randn(3, 2, 8, 8)
    pooled = torch.nn.functional.avg_pool2d(velocity, 2) * 2
    assert torch.all(fm.flow_matching_loss([pooled, velocity], velocity) == 0)
    off = fm.flow_matching_loss([pooled + 1, velocity], velocity)
    torch.testing.assert_close(off, torch.full((3,), 0.25))


def test_kl_is_least_at_unit_gaussian() -> None:
    zero = torch.zeros(1, 1, 2, 2)
    assert fm.kl_loss(zero, zero).item() == 0
    for mean, log_variance in ((2.0, 0.0), (0.0, 0.5), (0.0, -0.5)):
        assert fm.kl_loss(zero + mean, zero + log_variance).item() > 0
    assert fm.kl_loss(zero + 1, zero).item() == pytest.approx(4 * 0.5 * 0.3**6, rel=1e-3)


def test_contrastive_loss_ignores_equal_captions() -> None:
    embeddings = torch.eye(4)[[0, 1, 2, 2]]
    same = torch.eye(4, dtype=torch.bool)
    with_twins = fm.contrastive_loss(embeddings, embeddings, torch.tensor(50.0), same)
    same[2, 3] = same[3, 2] = True
    without = fm.contrastive_loss(embeddings, embeddings, torch.tensor(50.0), same)
    assert with_twins.item() > 0.3 and without.item() < 1e-6


def test_arithmetic_is_standardised_and_removing_undoes_adding() -> None:
    base, other = torch.randn(2, 3, 2, 4, 4)
    result = fm.latent_arithmetic(base, other, other, 1.5)
    flat = result.flatten(1)
    torch.testing.assert_close(flat.std(1), torch.ones(3))
    torch.testing.assert_close(result, fm.latent_arithmetic(base, None, None, 1.0), atol=1e-5, rtol=1e-5)
