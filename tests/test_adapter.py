"""The adapter and the head by which a language model reads requests."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.adapter import Adapter, load_adapter, new_adapter
from models.errors import UserError
from models.language_model import LanguageModel, load_language_model
from models.request_head import RequestHead, load_request_head
from tests.test_language_model import save_tokenizer, tiny_llama

OUTPUTS, ACTS = ("text", "image"), ("new", "chat", "ask")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    return tmp_path / "model"


def trained(model: nn.Module) -> Adapter:
    """An adapter of the upper of two blocks that does something."""
    torch.manual_seed(1)
    adapter = new_adapter(model, [1], rank=3, alpha=6.0)
    for matrix in adapter.up:
        nn.init.normal_(matrix, std=0.3)
    return adapter


@pytest.fixture
def reading(folder: Path, tmp_path: Path) -> Path:
    model = load_language_model(folder)
    trained(model.model).save(tmp_path / "reading")
    torch.manual_seed(2)
    RequestHead(model.model.config.hidden_size, OUTPUTS, ACTS).save(tmp_path / "reading")
    return tmp_path / "reading"


def test_it_adds_its_product_while_it_is_on_and_nothing_after(folder: Path) -> None:
    model = load_language_model(folder)
    adapter = trained(model.model)
    adapter.attach(model.model)
    assert {name.partition(".layers.")[2][0] for name in adapter.names} == {"1"} and len(adapter.names) == 7
    for index, name in enumerate(adapter.names):
        layer = model.model.get_submodule(name)
        x = torch.randn(5, layer.in_features)
        before = layer(x)
        with adapter.on():
            adapted = layer(x)
        expected = x @ (layer.weight + 2.0 * adapter.up[index] @ adapter.down[index]).T
        torch.testing.assert_close(adapted, expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(layer(x), before) and not torch.allclose(adapted, before)


def test_another_thread_is_not_adapted_meanwhile(folder: Path, reading: Path) -> None:
    model = load_language_model(folder, reading)
    plain = model.hidden_states(["hello"])
    found: list[torch.Tensor] = []
    assert model.adapter is not None
    with model.adapter.on():
        thread = threading.Thread(target=lambda: found.append(model.hidden_states(["hello"])))
        thread.start()
        thread.join()
        adapted = model.hidden_states(["hello"])
    assert torch.equal(found[0], plain) and not torch.allclose(adapted, plain)


def test_files_give_back_what_was_saved(folder: Path, reading: Path) -> None:
    adapter, again = trained(load_language_model(folder).model), load_adapter(reading)
    saved = dict(zip(adapter.names, zip(adapter.down, adapter.up, strict=True), strict=True))
    for name, down, up in zip(again.names, again.down, again.up, strict=True):
        torch.testing.assert_close(down, saved[name][0], atol=1e-3, rtol=1e-2)
        torch.testing.assert_close(up, saved[name][1], atol=1e-3, rtol=1e-2)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_reading_gives_probabilities_and_leaves_replies_alone(folder: Path, reading: Path) -> None:
    model, plain = load_language_model(folder, reading), load_language_model(folder)
    outputs, acts = model.read("Request: draw a cat")
    assert set(outputs) == set(OUTPUTS) and set(acts) == set(ACTS)
    assert sum(acts.values()) == pytest.approx(1, abs=1e-5) and all(0 < p < 1 for p in outputs.values())
    hello = [{"role": "user", "content": "hello"}]
    assert list(model.reply(hello, 8)) == list(plain.reply(hello, 8))


def test_a_model_that_was_not_taught_does_not_read(folder: Path) -> None:
    with pytest.raises(UserError, match="not taught to read"):
        load_language_model(folder).read("draw a cat")


@pytest.mark.parametrize("harm", ["gone", "rubbish"])
def test_a_damaged_adapter_is_refused_in_a_sentence(folder: Path, reading: Path, harm: str) -> None:
    path = reading / "adapter_model.safetensors"
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(b"x" * 99)
    with pytest.raises(UserError, match="'reading' holds for reading requests cannot be used"):
        load_language_model(folder, reading)


@pytest.mark.parametrize("other", ["another size", "more layers"])
def test_another_model_than_the_taught_one_only_talks(folder: Path, reading: Path, other: str) -> None:
    path = reading / "adapter_model.safetensors"
    tensors = load_file(path)
    if other == "another size":
        pads = {name: (0, 1) if "lora_A" in name else (0, 0, 0, 1) for name in tensors}
        wider = {name: nn.functional.pad(value, pads[name]) for name, value in tensors.items()}
        save_file(wider, path)
    else:
        save_file({name.replace("layers.1", "layers.7"): value for name, value in tensors.items()}, path)
    model = load_language_model(folder, reading)
    assert model.head is None and list(model.reply([{"role": "user", "content": "hello"}], 4))


def test_temperatures_make_overconfident_logits_honest(tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = RequestHead(4, OUTPUTS, ACTS)
    right = torch.randint(3, (4000,))
    said = torch.where(torch.rand(4000) < 0.7, right, torch.randint(3, (4000,)))  # right in 80 %
    wanted = (torch.rand(4000, 2) < 0.5).float()
    guess = torch.where(torch.rand(4000, 2) < 0.9, wanted, 1 - wanted)
    logits = torch.cat([20 * (guess - 0.5), 10 * nn.functional.one_hot(said, 3).float()], 1)
    head.calibrate(logits, wanted, right)
    outputs, acts = head.split(logits)
    assert outputs.sigmoid().sub(0.5).abs().add(0.5).mean() == pytest.approx(0.9, abs=0.02)
    assert acts.softmax(1).amax(1).mean() == pytest.approx(0.8, abs=0.02)
    head.save(tmp_path)
    again = load_request_head(tmp_path)
    assert again.outputs == OUTPUTS and torch.equal(again.temperature, head.temperature)


def test_the_model_keeps_its_adapter_when_it_moves(folder: Path, reading: Path) -> None:
    model = load_language_model(folder, reading).to(torch.float64)
    assert isinstance(model, LanguageModel) and model.adapter is not None
    assert {parameter.dtype for parameter in model.adapter.parameters()} == {torch.float64}
