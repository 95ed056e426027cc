"""Precision policies: how far each model is off in each precision, which layers stay, and which precision is chosen."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from app import studio
from app.settings import Settings
from models import quantized_layers
from models.catalog import catalog, shipped
from models.modules import bytes_of
from models.nets.crossflow import CrossFlow
from models.precision import PRECISIONS, Precision
from models.quantize import apply_precision, bytes_at, choose_precision, storage
from models.quantized_layers import Int8Linear, Layer, Nf4Linear, RoundingInt8Linear
from models.speeds import Speeds, measured_speeds
from pipelines.xbind_published.pipeline import PublishedXBind
from tests.quantized_models import CPU, MODELS, REDUCED, WIDE, Pair, difference, made, t5, velocity

# Largest difference of the output from float32's, as a share of its norm.
ERRORS = {"float16": 0.004, "bfloat16": 0.015, "int8": 0.03, "nf4": 0.25}


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_still_runs_and_says_nearly_the_same(name: str, precision: Precision) -> None:
    model, run = made(name), MODELS[name][1]
    names, size, expected = set(model.state_dict()), bytes_of(model), run(model)
    apply_precision(model, precision, CPU)
    assert bytes_of(model) < 0.62 * size
    assert names <= set(model.state_dict())
    output = run(model)
    assert output.dtype == torch.float32
    assert 0 < difference(output, expected) < ERRORS[precision]


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("name", ["clip", "crossflow"])
def test_under_autocast_the_answer_has_the_type_it_had(name: str, precision: Precision) -> None:
    model, run = made(name), MODELS[name][1]
    exact = run(model)
    with torch.autocast("cpu", torch.bfloat16):
        expected = run(model)
        apply_precision(model, precision, CPU)
        output = run(model)
    assert output.dtype == expected.dtype
    assert difference(output.float(), exact) < ERRORS[precision] + 0.03


def test_float32_changes_nothing() -> None:
    model = made("crossflow")
    before = copy.deepcopy(model.state_dict())
    apply_precision(model, "float32", CPU)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("precision", REDUCED)
def test_norms_biases_and_lone_parameters_stay_in_float32(precision: Precision) -> None:
    for name in ("bert", "crossflow"):
        model = made(name)
        apply_precision(model, precision, CPU)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert {tensor.dtype for name, tensor in model.named_buffers() if name.endswith("bias")} <= {torch.float32}


def test_the_rule_keeps_the_first_the_last_the_narrow_and_the_embeddings_in_16_bits() -> None:
    wide = nn.Linear(512, 512)
    kept: dict[str, Layer] = {
        "text_model.embeddings.token_embedding": nn.Embedding(512, 512),
        "time_embedding.linear_1": wide,
        "proj_out": wide,
        "conv_in": nn.Conv2d(64, 128, 3),
        "blocks.0.narrow": nn.Linear(4096, 64),
    }
    for precision in ("int8", "nf4"):
        assert {storage(name, layer, precision) for name, layer in kept.items()} == {"float16"}
        assert storage("blocks.0.attention.dense", wide, precision) == precision
    assert storage("blocks.0.dense", nn.Linear(200, 512), "nf4") == "int8"  # rows that are not whole blocks
    assert storage("layer.1.DenseReluDense.wo", nn.Conv2d(64, 128, 3), "float16") == "bfloat16"


def test_small_layers_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(3, 8, 3), nn.Embedding(10, 10))
    before = bytes_of(model)
    apply_precision(model, "int8", CPU)
    assert bytes_of(model) == before and type(model[0]) is nn.Linear


def test_a_weight_out_of_float16s_range_is_held_in_bfloat16() -> None:
    layer = nn.Linear(256, 256, bias=False)
    layer.weight.data[0, 0] = 1e6
    model = nn.Sequential(layer)
    apply_precision(model, "float16", CPU)
    assert model(torch.ones(1, 256)).isfinite().all()


def test_layers_that_share_a_weight_still_do() -> None:
    model = t5()
    model.encoder.embed_tokens.weight = model.shared.weight
    apply_precision(model, "float16", CPU)
    assert model.shared.weight is model.encoder.embed_tokens.weight
    assert model.shared.weight.dtype == torch.float16


def test_language_models_round_weights_only() -> None:
    encoder, flow = made("bert"), made("crossflow")
    for model in (encoder, flow):
        apply_precision(model, "int8", CPU)
    assert {type(m) for m in encoder.modules() if isinstance(m, Int8Linear)} == {Int8Linear}
    assert {type(m) for m in flow.modules() if isinstance(m, Int8Linear)} == {RoundingInt8Linear}


def test_an_object_with_modules_is_a_model_too() -> None:
    pair = Pair()
    before = bytes_of(pair)
    apply_precision(pair, "int8", CPU)
    assert bytes_of(pair) < 0.3 * before


# ---------------------------------------------------------------------------------------- single layers


def quantized_linear(kind: type[Int8Linear] | type[Nf4Linear], bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    layer = nn.Linear(192, 160, bias=bias).requires_grad_(False)
    original = copy.deepcopy(layer)
    kind.hold(layer)
    return layer, original


@settings(max_examples=20)
@given(rows=st.integers(0, 9), seed=st.integers(0, 99), bias=st.booleans(), exponent=st.integers(-20, 20))
def test_int8_is_right_at_every_scale_and_length_of_the_activations(
    rows: int, seed: int, bias: bool, exponent: int
) -> None:
    x = torch.randn(2, rows, 192, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    for kind in (Int8Linear, RoundingInt8Linear):
        layer, original = quantized_linear(kind, bias)
        output = layer(x)
        assert output.shape == (2, rows, 160)
        if rows:
            assert difference(output, original(x)) < 0.02


def test_a_row_of_int8_does_not_depend_on_the_others() -> None:
    layer, _ = quantized_linear(RoundingInt8Linear)
    x = torch.randn(5, 192)
    x[1] *= 1000
    assert torch.equal(layer(x)[3:4], layer(x[3:4]))


def test_activations_that_are_no_numbers_show_in_their_own_row() -> None:
    for kind in (Int8Linear, RoundingInt8Linear, Nf4Linear):
        layer, _ = quantized_linear(kind)
        for bad in (torch.nan, torch.inf):
            x = torch.randn(3, 192)
            x[1, 7] = bad
            finite = layer(x).isfinite().all(1)
            assert finite.tolist() == [True, False, True]


def test_rows_of_zeros_give_the_bias() -> None:
    layer, original = quantized_linear(RoundingInt8Linear)
    assert torch.equal(layer(torch.zeros(1, 192))[0], original.bias)


def test_int8_gives_the_same_without_integer_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = quantized_linear(RoundingInt8Linear)
    x = torch.randn(7, 192)
    expected = layer(x)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert torch.equal(layer(x), expected)


def test_nf4_gives_the_same_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, original = quantized_linear(Nf4Linear)
    x = torch.randn(3, 192)
    expected = layer(x)
    monkeypatch.setattr(quantized_layers, "bitsandbytes_works", lambda device: False)
    torch.testing.assert_close(layer(x), expected)
    assert difference(expected, original(x)) < 0.15


def test_importing_bitsandbytes_fetches_no_code_and_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text(
        "def get_kernel(*names, **options):\n    print('fetched', names)\n"
    )
    program = "import models, bitsandbytes, importlib.util; print(importlib.util.find_spec('kernels'))"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "None\n" and "kernels" not in done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", REDUCED)
def test_every_precision_gives_the_same_on_a_gpu(precision: Precision) -> None:
    model = made("crossflow")
    assert isinstance(model, CrossFlow)
    apply_precision(model, precision, CPU)
    expected = velocity(model)
    model.to("cuda")
    states = torch.randn(2, WIDE.tokens, WIDE.text_width, generator=torch.Generator().manual_seed(1)).cuda()
    mean, _ = model.encode_text(states, torch.ones(2, WIDE.tokens).cuda())
    output = model(mean, torch.tensor([0.2, 0.7]).cuda(), torch.tensor([False, True]).cuda())[-1]
    assert difference(output.cpu(), expected) < 0.02


# ---------------------------------------------------------------------------------------- what is chosen

EQUAL = Speeds(float32=1.0, float16=1.0, bfloat16=1.0, int8=1.0)
GB = 1_000_000_000


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        (EQUAL, "float16"),
        (replace(EQUAL, float16=1.09, bfloat16=2.0), "float16"),
        (replace(EQUAL, float16=1.2, bfloat16=1.3), "float32"),
        (replace(EQUAL, float16=2.0, bfloat16=0.5), "bfloat16"),
        (replace(EQUAL, float16=2.0, bfloat16=1.5), "float32"),
    ],
)
def test_with_room_auto_halves_memory_only_where_that_costs_no_speed(speeds: Speeds, expected: Precision) -> None:
    assert choose_precision(GB, 4 * GB, speeds) == expected


def test_auto_steps_down_until_the_models_fit() -> None:
    slow = replace(EQUAL, float16=3.0, bfloat16=2.0)
    chosen = [choose_precision(GB, budget, slow) for budget in (GB, GB - 1, GB // 2, GB // 3, 0)]
    assert chosen == ["float32", "bfloat16", "int8", "nf4", "nf4"]


@given(size=st.integers(0, 10**12), budget=st.integers(0, 10**12), half=st.floats(0.1, 10), brain=st.floats(0.1, 10))
def test_auto_fits_the_budget_if_anything_does_and_loses_no_more_than_it_must(
    size: int, budget: int, half: float, brain: float
) -> None:
    speeds = Speeds(1.0, half, brain, 1.0)
    chosen = choose_precision(size, budget, speeds)
    assert bytes_at(size, chosen) <= budget or (chosen == "nf4" and bytes_at(size, "nf4") > budget)
    roomier = choose_precision(size, 2 * budget, speeds)
    assert PRECISIONS.index(roomier) <= PRECISIONS.index(chosen)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_estimate_holds_for_the_lite_models_together(precision: Precision) -> None:
    actual = estimated = 0
    for spec in {spec.source: spec for spec in shipped().values()}.values():  # one source is one model in memory
        model = spec.load(spec.source.resolve(lambda fraction, message: None).folder)
        apply_precision(model, precision, CPU)
        actual += bytes_of(model)
        estimated += bytes_at(spec.bytes, precision)
    assert actual <= 1.01 * estimated and estimated <= 1.15 * actual


@pytest.mark.parametrize(("int8", "expected"), [(1.05, "int8"), (1.4, "float16")])
def test_auto_goes_lower_than_half_only_where_that_costs_no_speed(
    int8: float, expected: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studio, "measured_speeds", lambda device: replace(EQUAL, int8=int8))
    settings = Settings(profile="lite", device="cpu", memory_budget_gb=4, output_folder=tmp_path)
    manager = studio.build_manager(settings)
    assert manager.specs["crossflow"].lossless == "int8" and manager.specs["autoencoder"].lossless == "float32"
    assert manager.precisions["crossflow"] == expected
    assert manager.precisions["autoencoder"] == "float16"
    tight = studio.build_manager(settings.model_copy(update={"memory_budget_gb": 0.001}))
    assert set(tight.precisions.values()) == {"nf4"}


def test_models_that_are_never_needed_at_one_time_do_not_cost_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studio, "measured_speeds", lambda device: EQUAL)
    gigabytes = catalog("full")["stable-unclip"].bytes + catalog("full")["zero123"].bytes
    settings = Settings(profile="full", device="cpu", memory_budget_gb=0.61 * gigabytes / 1e9, output_folder=tmp_path)
    assert set(studio.build_manager(settings).precisions.values()) == {"float16"}
    monkeypatch.setattr(PublishedXBind, "together", ())
    assert set(studio.build_manager(settings).precisions.values()) == {"nf4"}


# ---------------------------------------------------------------------------------------- this machine's speeds


def test_speeds_are_measured_once(tmp_path: Path) -> None:
    first = measured_speeds(CPU, tmp_path)
    assert min(asdict(first).values()) > 0
    assert measured_speeds(CPU, tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == ["speeds.json"]


def test_speeds_of_other_machines_stay(tmp_path: Path) -> None:
    measured_speeds(CPU, tmp_path)
    path = tmp_path / "speeds.json"
    other = json.dumps({"another machine": {"float32": 1.0, "float16": 2.0, "bfloat16": 3.0, "int8": 4.0}})
    path.write_text(other)
    measured_speeds(CPU, tmp_path)
    stored = json.loads(path.read_text())
    assert len(stored) == 2 and stored["another machine"] == json.loads(other)["another machine"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": {"float32": 1}}', '{"a": 3}', "[" * 5000, "\xff"])
def test_a_damaged_file_of_speeds_is_measured_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "speeds.json").write_bytes(damage.encode("latin-1"))
    speeds = measured_speeds(CPU, tmp_path)
    assert "damaged" in caplog.text
    caplog.clear()
    assert measured_speeds(CPU, tmp_path) == speeds and not caplog.text


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_impossible_speeds_are_measured_again(tmp_path: Path, value: float) -> None:
    good = measured_speeds(CPU, tmp_path)
    path = tmp_path / "speeds.json"
    stored = json.loads(path.read_text())
    for speeds in stored.values():
        speeds["float16"] = value
    path.write_text(json.dumps(stored))
    assert 0 < measured_speeds(CPU, tmp_path).float16 < 1000 * good.float16


def test_speeds_do_without_a_folder_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert measured_speeds(CPU, tmp_path / "file" / "synesthete").float32 > 0


def test_an_accelerator_is_not_measured(tmp_path: Path) -> None:
    speeds = measured_speeds(torch.device("cuda"), tmp_path)
    assert choose_precision(GB, 4 * GB, speeds) == "bfloat16" and not list(tmp_path.iterdir())
