"""What ``benchmarks/quantization.py`` runs: a pipeline for every lite model, and how far its results are apart.

Results are compared by medium, each with its sibling of equal inputs and seed: pictures and sounds by the ratio of the
signal to the error in dB, objects by the distance between their surfaces, texts by whether they are equal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree

from app.controller.planner import Controller
from app.controller.request import Request
from app.controller.routers import LanguageModelRouter, RuleRouter
from models.machine import compute_dtype
from models.records import ModelRecord
from pipelines.base import EXAMPLES, Pipeline, Produced, Runtime, installed_registry
from pipelines.media import Artifact, Audio, Image, Mesh, Text, load_artifact

CPU = torch.device("cpu")
EQUAL = 100.0  # dB
CAPTIONS = (
    "a red apple",
    "a green car",
    "a blue fish",
    "a yellow house",
    "a purple mushroom",
    "a black cat",
    "a green balloon",
    "a blue book",
)
SOUNDS = ("rain", "a barking dog", "a church bell", "a train", "waves", "a cat", "a drum", "a clock")
OBJECTS = ("a wooden chair", "a desk lamp", "a sofa", "a car", "a bathtub", "a palm tree", "a bottle", "a bed")
REQUESTS = Path(__file__).parent / "data" / "controller.jsonl"
READER = ("request-reader", "sentence-encoder", "slot-reader")


class Held:
    """Lends models that are held already."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self.models, self.device, self.dtype = models, CPU, compute_dtype(CPU)

    @contextmanager
    def lease(self, key: str, on_progress: Callable[[float, str], None] | None = None) -> Iterator[Any]:
        yield self.models[key]

    def record(self, key: str) -> ModelRecord:
        return ModelRecord(key, "", "")


@dataclass(frozen=True)
class Case:
    """A run of a pipeline. ``inputs``: a key of what :func:`inputs_of` gives."""

    pipeline: str
    inputs: str
    params: Mapping[str, Any] = field(default_factory=dict)


# A model is measured in the first of these that leases it.
CASES = (
    Case("crossflow", "captions", {"num_inference_steps": 25}),
    Case("v2a", "pictures"),
    Case("v2a", "pictures", {"mapper": "regression"}),
    Case("clipsonic", "sounds in words"),
    Case("clipsonic", "sounds in words", {"bridge": "mean_shift"}),
    Case("describe", "pictures"),
    Case("describe", "sounds"),
    Case("xbind", "objects in words"),
    Case("xbind", "sounds"),
    Case("xbind", "pictures", {"preset": "draft", "refine_steps": 12}),
    Case("fmri", "simulated scans"),
    Case("fmri", "measured scans"),
    Case("neuropictor", "simulated scans"),
)


def inputs_of(need: Callable[[Sequence[str]], Mapping[str, Any]]) -> dict[str, list[Artifact]]:
    """What the cases are given. ``need`` gives models by key: the pictures and sounds among it are made by them."""
    scans = EXAMPLES / "scans"
    given: dict[str, list[Artifact]] = {
        "captions": list(map(Text, CAPTIONS)),
        "sounds in words": list(map(Text, SOUNDS)),
        "objects in words": list(map(Text, OBJECTS)),
        "simulated scans": [load_artifact(path) for path in sorted(scans.glob("S*.npz"))],
        "measured scans": [load_artifact(path) for path in sorted(scans.glob("measured-*.npz"))],
    }
    for case, name in ((CASES[0], "pictures"), (CASES[1], "sounds")):
        items = given[case.inputs]
        given[name] = run(case, need(leased(case, items[0])), items)
    return given


def pipeline_of(case: Case) -> Pipeline:
    return installed_registry().get(case.pipeline)


def leased(case: Case, given: Artifact) -> tuple[str, ...]:
    """Keys of the models that the case uses."""
    pipeline = pipeline_of(case)
    return pipeline.models_for([given], pipeline.parse_params(dict(case.params)))


def run(case: Case, models: Mapping[str, Any], given: Sequence[Artifact]) -> list[Artifact]:
    """What the pipeline makes of each of ``given``."""
    pipeline = pipeline_of(case)
    params = pipeline.parse_params({**case.params, "seed": 1})
    events = pipeline.run_batch([[item] for item in given], params, Runtime(Held(models)))
    return [event.artifact for event in events if isinstance(event, Produced)]


def requests() -> list[dict[str, Any]]:
    """Every fifteenth of the hand-written requests."""
    return [json.loads(line) for line in REQUESTS.read_text().splitlines()][::15]


def read(models: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Artifact]:
    """The plans, or acts, that the models of :data:`READER` make of requests."""
    held = Held(models)

    def slots(prompt: str, wanted: Sequence[str]) -> dict[str, str]:
        words: dict[str, str] = models["slot-reader"].read(prompt, wanted, models["sentence-encoder"])
        return words

    router = LanguageModelRouter(lambda: held.lease("request-reader"), lambda: False, RuleRouter())
    controller = Controller(installed_registry(), router, lambda pipeline: 1.0, slots)
    answers = []
    for row in rows:
        history = [(item["medium"], item["title"]) for item in row["history"]]
        answer = controller.answer(Request.of(row["prompt"], row["inputs"], history))
        answers.append(Text(answer.plan.model_dump_json() if answer.plan else answer.act))
    return list(answers)


# ------------------------------------------------------------------------------------------------------- distances


def differences(made: Sequence[Artifact], exact: Sequence[Artifact]) -> dict[str, float]:
    """How far apart two runs' results are, by the name of a measure: the mean, or of decibels also the least.

    ``signal_db``: 20 log of the range over the root mean squared error, of pictures and of sounds; 100 if equal.
    ``surface``: mean distance from a corner to the nearest of the other object, in hundredths of its longest side.
    ``equal_texts``: share.
    """
    measures: dict[str, list[float]] = {}
    for one, other in zip(made, exact, strict=True):
        match one, other:
            case Image(), Image():
                measures.setdefault("signal_db", []).append(signal_db(one.pixels, other.pixels, 255))
            case Audio(), Audio():
                measures.setdefault("signal_db", []).append(
                    signal_db(one.samples, other.samples, float(np.abs(other.samples).max()))
                )
            case Mesh(), Mesh():
                measures.setdefault("surface", []).append(100 * surface_distance(one, other))
            case Text(), Text():
                measures.setdefault("equal_texts", []).append(float(one.text == other.text))
            case _:
                raise TypeError(f"{one.medium} and {other.medium} cannot be compared")
    means = {name: float(np.mean(values)) for name, values in measures.items()}
    return means | ({"signal_db_least": min(measures["signal_db"])} if "signal_db" in measures else {})


def signal_db(one: np.ndarray, other: np.ndarray, peak: float) -> float:
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return min(EQUAL, 10 * np.log10(peak**2 / error)) if error else EQUAL


def surface_distance(one: Mesh, other: Mesh) -> float:
    """Mean over both directions, as a share of the longest side of ``other``."""
    there, _ = cKDTree(other.vertices).query(one.vertices)
    back, _ = cKDTree(one.vertices).query(other.vertices)
    return float((there.mean() + back.mean()) / 2 / np.ptp(other.vertices, axis=0).max())
