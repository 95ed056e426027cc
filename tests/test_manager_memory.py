"""What dropped models leave behind, whose memory weights lie in, and what pinned memory really takes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.modules import bytes_of
from models.quantize import apply_precision
from models.resident import move, pinned_bytes_of
from tests.quantized_models import CPU, t5
from tests.tiny_models import Weights, manager_of, resident, spec_of, use

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("circular", [False, True])
def test_cycles_are_looked_for_only_when_a_dropped_model_is_in_one(tmp_path: Path, circular: bool) -> None:
    def load(_: Path) -> nn.Module:
        weights = Weights(1)
        if circular:
            weights.circle = [weights]  # type: ignore[assignment]
        return nn.Sequential(weights)

    manager = manager_of(1, spec_of("a", tmp_path, load=load), spec_of("b", tmp_path))
    use(manager, "a")
    collections: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        collections.append(phase)

    gc.collect()
    gc.disable()  # so that only those that are asked for happen
    gc.callbacks.append(note)
    try:
        use(manager, "b")
    finally:
        gc.callbacks.remove(note)
        gc.enable()
    assert resident(manager) == ["b"]
    assert bool(collections) == circular


# ---------------------------------------------------------------------------------------- weights in files


def save_checkpoint(tensors: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(tensors, path)


def load_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    stored: dict[str, torch.Tensor] = torch.load(path, mmap=True, weights_only=True)
    return stored


@pytest.mark.parametrize(
    ("name", "save", "read"),
    [("x.pth", save_checkpoint, load_checkpoint), ("x.safetensors", save_file, load_file)],
)
def test_a_loaded_model_does_not_change_with_its_file(
    tmp_path: Path,
    name: str,
    save: Callable[[dict[str, torch.Tensor], Path], None],
    read: Callable[[Path], dict[str, torch.Tensor]],
) -> None:
    weight = torch.randn(256, 256)

    def load(folder: Path) -> nn.Module:
        model = nn.Linear(256, 256, bias=False, device="meta")
        model.load_state_dict(read(folder / name), assign=True)
        return model

    spec = spec_of("a", tmp_path, 99, load=load)
    save({"weight": weight}, tmp_path / "a" / name)
    with manager_of(99, spec).lease("a") as model:
        size = (tmp_path / "a" / name).stat().st_size
        with (tmp_path / "a" / name).open("r+b") as file:
            file.write(b"\1" * size)
        assert torch.equal(model.weight, weight)


def test_weights_that_share_memory_in_their_file_share_it_afterwards(tmp_path: Path) -> None:
    def load(folder: Path) -> nn.Module:
        stored = load_checkpoint(folder / "x.pth")
        model = nn.Module()
        model.whole, model.rows = nn.Parameter(stored["whole"]), nn.Parameter(stored["rows"])
        return model

    spec = spec_of("a", tmp_path, 99, load=load)
    whole = torch.randn(100, 10)
    torch.save({"whole": whole, "rows": whole[50:].t()}, tmp_path / "a" / "x.pth")
    with manager_of(99, spec).lease("a") as model:
        assert bytes_of(model) == whole.nbytes
        assert torch.equal(model.rows, whole[50:].t()) and model.rows.stride() == (1, 10)
        model.whole.data[50, 0] = 7
        assert model.rows[0, 0] == 7


# ---------------------------------------------------------------------------------------- on an accelerator


@CUDA
@pytest.mark.parametrize("pinned", [False, True])
def test_layers_that_share_a_weight_still_do_on_an_accelerator_and_back(pinned: bool) -> None:
    model = t5()
    model.encoder.embed_tokens.weight = model.shared.weight
    apply_precision(model, "float16", CPU)
    size = bytes_of(model)
    for device in (torch.device("cuda"), CPU):
        move(model, device, pinned=pinned and device == CPU)
        assert model.shared.weight is model.encoder.embed_tokens.weight
        assert model.shared.weight.device.type == device.type and bytes_of(model) == size


def test_pinned_memory_counts_by_the_blocks_that_torch_hands_out() -> None:
    model = nn.Module()
    model.one, model.other = Weights(1), Weights(2)
    model.register_buffer("exact", torch.zeros(1024))
    model.register_buffer("empty", torch.zeros(0))
    model.register_buffer("single", torch.zeros(1, dtype=torch.int8))
    model.tied = model.one
    assert pinned_bytes_of(model) == 4096 + 8192 + 4096 + 1


@CUDA
def test_pinned_memory_is_what_torch_says_it_is() -> None:
    model = nn.ModuleList([Weights(1), Weights(300), Weights(2000)]).cuda()
    before = torch.cuda.host_memory_stats().get("active_bytes.current", 0)
    move(model, CPU, pinned=True)
    assert torch.cuda.host_memory_stats()["active_bytes.current"] - before == pinned_bytes_of(model)
