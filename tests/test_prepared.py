"""Prepared copies of quantized models: bit for bit what was saved, or reported and made anew."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.modules import bytes_of
from models.precision import Precision
from models.quantize import apply_precision, load_prepared, save_prepared
from tests.quantized_models import CPU, REDUCED, Pair, crossflow, made, t5, velocity


def tensors_of(model: Any) -> dict[str, Tensor]:
    modules = [model] if isinstance(model, nn.Module) else [model.first, model.second]
    return {
        f"{i}.{name}": tensor
        for i, module in enumerate(modules)
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("build", [crossflow, t5, Pair])
def test_a_prepared_copy_comes_back_bit_for_bit(
    tmp_path: Path, build: Callable[[], object], precision: Precision
) -> None:
    model = build()
    apply_precision(model, precision, CPU)
    save_prepared(model, tmp_path / "prepared", precision)
    with torch.device("meta"):
        skeleton = build()
    assert load_prepared(skeleton, tmp_path / "prepared", precision, CPU)
    expected, loaded = tensors_of(model), tensors_of(skeleton)
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name
    assert bytes_of(skeleton) == bytes_of(model)
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


def test_a_model_from_a_prepared_copy_says_the_same(tmp_path: Path) -> None:
    model = made("crossflow")
    apply_precision(model, "nf4", CPU)
    save_prepared(model, tmp_path / "prepared", "nf4")
    with torch.device("meta"):
        skeleton = crossflow()
    load_prepared(skeleton, tmp_path / "prepared", "nf4", CPU)
    assert torch.equal(velocity(skeleton.eval()), velocity(model))


def test_tied_weights_are_kept_once(tmp_path: Path) -> None:
    def tied() -> Any:
        model = t5()
        model.encoder.embed_tokens.weight = model.shared.weight
        return model

    model = tied()
    apply_precision(model, "int8", CPU)
    save_prepared(model, tmp_path / "prepared", "int8")
    with torch.device("meta"):
        skeleton = tied()
    assert load_prepared(skeleton, tmp_path / "prepared", "int8", CPU)
    assert skeleton.shared.weight is skeleton.encoder.embed_tokens.weight


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def one_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)


def no_description(folder: Path) -> None:
    (folder / "prepared.json").unlink()


def half_a_description(folder: Path) -> None:
    path = folder / "prepared.json"
    path.write_text(path.read_text()[:30])


def a_list(folder: Path) -> None:
    (folder / "prepared.json").write_text("[]")


def no_tensors(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def later_format(folder: Path) -> None:
    path = folder / "prepared.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


@pytest.mark.parametrize(
    "damage", [cut_short, one_bit, no_description, half_a_description, a_list, no_tensors, later_format]
)
def test_a_damaged_copy_is_reported_and_replaced(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder, model = tmp_path / "prepared", Pair()
    apply_precision(model, "int8", CPU)
    save_prepared(model, folder, "int8")
    damage(folder)
    with torch.device("meta"):
        skeletons = [Pair(), Pair()]
    assert not load_prepared(skeletons[0], folder, "int8", CPU)
    assert "made anew" in caplog.text
    save_prepared(model, folder, "int8")
    assert load_prepared(skeletons[1], folder, "int8", CPU)


@pytest.mark.parametrize(("build", "precision"), [(crossflow, "int8"), (Pair, "float16")])
def test_a_copy_of_another_model_or_precision_is_not_taken(
    tmp_path: Path, build: Callable[[], object], precision: Precision
) -> None:
    model = Pair()
    apply_precision(model, "int8", CPU)
    save_prepared(model, tmp_path / "prepared", "int8")
    with torch.device("meta"):
        skeleton = build()
    assert not load_prepared(skeleton, tmp_path / "prepared", precision, CPU)


def test_a_copy_that_cannot_be_written_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        save_prepared(Pair(), tmp_path / "file" / "prepared", "int8")
    assert "could not be kept" in caplog.text
