"""The pretrained sentence encoder: its packed table of word pieces, and what it knows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.packing import SCALE, unpack_int8
from models.text_encoder import WEIGHTS, TextEncoder, load_text_encoder
from training.text_encoder import COUNTED, PACKED, SETTINGS, agreement, pack

FOLDER = Path(__file__).parent.parent / "assets" / "weights" / "text-encoder-lite"
CAPTIONS = ["a red apple", "puppy", "a church bell in the distance", "zzyzx"]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return load_text_encoder(FOLDER)


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """The same encoder as transformers would save it."""
    for name in SETTINGS:
        shutil.copyfile(FOLDER / name, tmp_path / name)
    save_file(unpack_int8(load_file(FOLDER / WEIGHTS)), tmp_path / WEIGHTS)
    return tmp_path


def test_packed_rows_load_as_the_tensors_that_they_stand_for(encoder: TextEncoder, unpacked: Path) -> None:
    plain = load_text_encoder(unpacked)
    first, second = encoder.encode(CAPTIONS, 24), plain.encode(CAPTIONS, 24)
    assert torch.equal(first.states, second.states) and torch.equal(first.mask, second.mask)


def test_a_packed_file_that_lacks_a_tensor_is_refused(unpacked: Path) -> None:
    state = load_file(FOLDER / WEIGHTS)
    del state["encoder.layer.0.output.dense.bias"]
    save_file(state, unpacked / WEIGHTS)
    with pytest.raises(RuntimeError, match=r"encoder\.layer\.0\.output\.dense\.bias"):
        load_text_encoder(unpacked)


def test_packing_costs_next_to_nothing(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    torch.manual_seed(0)
    state = {name: value + 0.01 * torch.randn_like(value) for name, value in load_file(unpacked / WEIGHTS).items()}
    again = tmp_path_factory.mktemp("packed")
    for name in SETTINGS:
        shutil.copyfile(FOLDER / name, again / name)
    save_file(state, unpacked / WEIGHTS)
    save_file(pack({**state, COUNTED: torch.arange(512)}), again / WEIGHTS)
    assert PACKED + SCALE in load_file(again / WEIGHTS)
    error, mean, least = agreement(load_text_encoder(unpacked), load_text_encoder(again), CAPTIONS)
    assert 0 < error < 0.02 and 0.9995 < least <= mean


def test_like_means_near(encoder: TextEncoder) -> None:
    puppy, dog, bell = encoder.sentence_embeddings(["puppy", "small dog", "church bell"])
    assert puppy @ dog > 0.5 and puppy @ bell < 0.3
