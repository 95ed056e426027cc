"""The benchmark of precisions: its measures on cases whose answer is known, and that it leaves no model out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.quantization import SAME, clocked
from benchmarks.quantization_cases import CASES, READER, Case, differences, leased, surface_distance
from models.catalog import catalog
from pipelines.base import EXAMPLES
from pipelines.media import Artifact, Audio, Image, Mesh, Text, load_artifact

CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
SIDES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)


def sample(case: Case) -> Artifact:
    match case.inputs:
        case "pictures":
            return Image(np.zeros((8, 8, 3), np.uint8))
        case "sounds":
            return Audio(np.sin(np.arange(8000, dtype=np.float32))[None], 8000)
        case "simulated scans":
            return load_artifact(next((EXAMPLES / "scans").glob("S1-*.npz")))
        case "measured scans":
            return load_artifact(next((EXAMPLES / "scans").glob("measured-*.npz")))
        case _:
            return Text("a bell")


def test_every_lite_model_is_measured_in_some_case() -> None:
    used = {key for case in CASES for key in leased(case, sample(case))}
    assert used | set(READER) | SAME == set(catalog("lite"))


def test_pictures_and_sounds_are_compared_in_decibels() -> None:
    grey = Image(np.full((4, 4, 3), 100, np.uint8))
    lighter = Image(np.full((4, 4, 3), 110, np.uint8))
    assert differences([grey], [grey]) == {"signal_db": 100, "signal_db_least": 100}
    both = differences([lighter, grey], [grey, grey])
    least = 20 * np.log10(255 / 10)
    assert both == pytest.approx({"signal_db": (least + 100) / 2, "signal_db_least": least})
    loud, off = Audio(np.full((1, 50), 0.5, np.float32), 8000), Audio(np.full((1, 50), 0.45, np.float32), 8000)
    assert differences([off], [loud])["signal_db"] == pytest.approx(20, abs=0.01)


def test_objects_and_texts_are_compared_by_surface_and_equality() -> None:
    shape, moved = Mesh(CORNERS, SIDES), Mesh(CORNERS + np.array([0, 0, 0.1], np.float32), SIDES)
    assert surface_distance(shape, shape) == 0 and surface_distance(moved, shape) == pytest.approx(0.1)
    words = differences([Text("a dog"), Text("a cat")], [Text("a dog"), Text("a cow")])
    assert words == {"equal_texts": 0.5}
    with pytest.raises(TypeError, match="text and mesh"):
        differences([Text("a dog")], [shape])


def test_time_inside_a_model_is_that_of_its_outermost_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("benchmarks.quantization.time.perf_counter", lambda: now[0])

    class Slow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            now[0] += 3
            return x

    model = nn.Sequential(nn.Sequential(Slow()), Slow())
    with clocked(model) as seconds:
        model(torch.zeros(1))
        now[0] += 100  # outside of its layers
        model[1](torch.zeros(1))
        assert seconds == [9]
    model(torch.zeros(1))
    assert seconds == [9]  # the hooks are gone
