"""The controller's recipe: states below the adapted blocks, and what the trained part makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from app.controller.planner import KNOWN_MEDIA
from app.controller.request import ACTS
from models.adapter import new_adapter
from models.language_model import LanguageModel, load_language_model
from models.request_head import RequestHead
from tests.test_language_model import save_tokenizer, tiny_llama
from training import controller
from training.controller import LowerStates, Trainee, mean_with, predictions

TEXTS = ["Request: draw a fox\nWanted:", "Request: hi\nWanted:", "Request: what does an owl sound like?\nWanted:"]


@pytest.fixture
def model(tmp_path: Path) -> LanguageModel:
    tiny_llama().save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    return load_language_model(tmp_path)


@pytest.fixture
def whole(model: LanguageModel) -> torch.Tensor:
    """The last token's states (3, d) of the untouched model."""
    return model.hidden_states(TEXTS, "last")


@pytest.mark.parametrize("matrix_units", [False, True])
def test_the_blocks_in_two_parts_are_the_model_in_one(
    model: LanguageModel, whole: torch.Tensor, matrix_units: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in bfloat16, which recipes take on machines with matrix units for it."""
    bfloat16 = torch.autocast("cpu", torch.bfloat16, enabled=matrix_units)
    monkeypatch.setattr(controller, "autocast", lambda device: bfloat16)
    monkeypatch.setattr(controller, "UPPER_BLOCKS", 1)
    states = LowerStates(model, TEXTS, tmp_path / "states.pt")
    assert [len(row) for row in LowerStates(model, [], tmp_path / "states.pt").rows] == [
        len(model.tokenizer(text).input_ids) for text in TEXTS
    ]
    layers = model.model.base_model.layers
    adapter = new_adapter(model.model, [len(layers) - 1], rank=2, alpha=4.0)  # does nothing before it is trained
    adapter.attach(model.model)
    trainee = Trainee(adapter, RequestHead(model.model.config.hidden_size, KNOWN_MEDIA, ACTS))
    model.model.base_model.layers = layers[-1:]
    with bfloat16:
        logits = predictions(model, trainee, states, np.array([2, 0, 1]))
    assert logits.dtype == torch.float32
    tolerance = 0.1 if matrix_units else 0.01  # states are kept in float16
    torch.testing.assert_close(logits, trainee.head(whole)[[2, 0, 1]], atol=tolerance, rtol=0.05)


def test_the_mean_of_two_runs_is_taken_layer_by_layer_whatever_their_order(model: LanguageModel) -> None:
    torch.manual_seed(1)
    one, other = (
        Trainee(new_adapter(model.model, [0, 1], 2, 4.0), RequestHead(8, KNOWN_MEDIA, ACTS)) for _ in range(2)
    )
    for matrix in other.adapter.up:
        torch.nn.init.normal_(matrix)
    turned = Trainee(other.adapter, other.head)
    expected = {
        name: up / 2 for name, up in zip(other.adapter.names, other.adapter.up, strict=True)
    }  # those of ``one`` are still zero
    turned.adapter.names = turned.adapter.names[::-1]
    turned.adapter.up = torch.nn.ParameterList(list(turned.adapter.up)[::-1])
    turned.adapter.down = torch.nn.ParameterList(list(turned.adapter.down)[::-1])
    head = (one.head.linear.weight + other.head.linear.weight) / 2
    mean_with(one, turned)
    torch.testing.assert_close(one.head.linear.weight, head)
    for name, up in zip(one.adapter.names, one.adapter.up, strict=True):
        torch.testing.assert_close(up, expected[name])
