"""What each precision costs and saves, for every lite model in this repository, and for those of a picture together.

    python -m benchmarks.quantization [--quick]

The precisions of a model take turns, so that whatever else the machine does hits all alike. Quality is the difference
from float32 on equal inputs: the cosine of sentence embeddings for the text encoder, and the peak signal-to-noise ratio
of pictures for the others: sampled by the pipeline with equal seeds and only this model changed (CrossFlow), or
reconstructed (autoencoder). 100 dB stands for equal pictures. Of the models of the other pipelines only bytes and load
seconds are measured. Writes ``benchmarks/results/quantization.json`` and prints its tables; ``--quick`` only shows that
it runs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import save, table
from models.catalog import shipped
from models.machine import compute_dtype
from models.modules import bytes_of, modules_of
from models.precision import PRECISIONS, Precision
from models.quantize import apply_precision, choose_precision, save_prepared
from models.records import ModelRecord
from models.spec import ModelSpec
from models.speeds import measured_speeds
from pipelines.base import Produced, Runtime, precision
from pipelines.crossflow.pipeline import CrossFlow
from pipelines.crossflow.sampling import MODELS
from pipelines.media import Image, Text

CPU = torch.device("cpu")
COLOURS = ("red", "green", "blue", "yellow", "purple")
THINGS = ("apple", "car", "fish", "house", "mushroom", "cat", "balloon", "book")
CAPTIONS = [f"a {colour} {thing}" for colour in COLOURS for thing in THINGS]
BATCHES = (1, 8)
EQUAL = 100.0  # dB
# Whole sets to compare: one precision for all, and CrossFlow alone in int8.
POLICIES: dict[str, tuple[Precision, Precision, Precision]] = {name: (name,) * 3 for name in PRECISIONS} | {
    "float16, crossflow int8": ("float16", "int8", "float16")
}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    captions: int
    pictures: int
    steps: int
    repeats: int


FULL, QUICK = Size(captions=40, pictures=16, steps=25, repeats=15), Size(captions=4, pictures=2, steps=2, repeats=1)


class Held:
    """Lends models that are held already."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self.models, self.device, self.dtype = models, CPU, compute_dtype(CPU)

    @contextmanager
    def lease(self, key: str, on_progress: Callable[[float, str], None] | None = None) -> Iterator[Any]:
        yield self.models[key]

    def record(self, key: str) -> ModelRecord:
        return ModelRecord(key, "", "")


def folder_of(spec: ModelSpec) -> Path:
    return spec.source.resolve(lambda fraction, message: None).folder


def load(spec: ModelSpec, wanted: Precision) -> Any:
    model = spec.load(folder_of(spec))
    for module in modules_of(model):
        module.eval().requires_grad_(False)
    apply_precision(model, wanted, CPU)
    return model


def turns(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each; they take turns, after one turn that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: median(values[1:]) for name, values in seconds.items()}


def signal_to_noise(pictures: np.ndarray, reference: np.ndarray) -> list[float]:
    """Of each picture, in dB; both (B, ...) with values from 0 to 255."""
    errors = ((pictures.astype(float) - reference) ** 2).reshape(len(pictures), -1).mean(1)
    return [float(min(EQUAL, 10 * np.log10(255**2 / max(error, 1e-9)))) for error in errors]


def paint(models: Mapping[str, Any], size: Size) -> np.ndarray:
    """The pipeline's pictures of the first captions, (B, H, W, 3)."""
    pipeline = CrossFlow()
    inputs = [[Text(caption)] for caption in CAPTIONS[: size.pictures]]
    params = pipeline.parse_params({"num_inference_steps": size.steps, "seed": 1})
    events = pipeline.run_batch(inputs, params, Runtime(Held(models)))
    artifacts = [event.artifact for event in events if isinstance(event, Produced)]
    return np.stack([artifact.pixels for artifact in artifacts if isinstance(artifact, Image)])


# ---------------------------------------------------------------------------------------- forwards and qualities


def forward(key: str, model: Any, batch: int, tokens: int) -> Callable[[], object]:
    """One use of a model: encode captions, one guided velocity, decode latents."""
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def run() -> object:
        with precision(Held({})):
            return use()

    if key == "text-encoder":
        use = lambda: model.encode(CAPTIONS[:batch], tokens)  # noqa: E731
    elif key == "crossflow":
        config = model.config
        z = torch.randn(2 * batch, config.latent_channels, config.latent_size, config.latent_size, generator=generator)
        time_and_null = torch.full((2 * batch,), 0.5), torch.arange(2 * batch) < batch
        use = lambda: model(z, *time_and_null)  # noqa: E731
    else:
        latents = torch.randn(batch, model.model.config.latent_channels, 16, 16, generator=generator)
        use = lambda: model.decode(latents)  # noqa: E731
    return run


def quality(key: str, model: Any, exact: Mapping[str, Any], reference: np.ndarray, size: Size) -> dict[str, float]:
    """How far ``model`` is from ``exact[key]``; ``reference``: the pictures that the exact models paint."""
    if key == "text-encoder":
        captions = CAPTIONS[: size.captions]
        cosines = (model.sentence_embeddings(captions) * exact[key].sentence_embeddings(captions)).sum(1)
        return {"cosine_mean": float(cosines.mean()), "cosine_least": float(cosines.min())}
    if key == "crossflow":
        ratios = signal_to_noise(paint({**exact, key: model}, size), reference)
    else:
        pixels = torch.from_numpy(reference).permute(0, 3, 1, 2).float() / 127.5 - 1
        ratios = signal_to_noise(reconstruct(model, pixels), reconstruct(exact[key], pixels))
    return {"psnr_mean": float(np.mean(ratios)), "psnr_least": min(ratios)}


def reconstruct(autoencoder: Any, pixels: Tensor) -> np.ndarray:
    pictures: Tensor = autoencoder.decode(autoencoder.encode(pixels))
    return pictures.add(1).mul(127.5).numpy()


# ---------------------------------------------------------------------------------------- the tables


def bytes_on_disk(model: Any, wanted: Precision) -> int:
    """Of a prepared copy."""
    with tempfile.TemporaryDirectory() as folder:
        save_prepared(model, Path(folder) / "copy", wanted)
        return sum(path.stat().st_size for path in (Path(folder) / "copy").iterdir())


def weighed(key: str, wanted: Precision, model: Any, exact_bytes: int) -> dict[str, Any]:
    return {
        "model": key,
        "precision": wanted,
        "disk_bytes": bytes_on_disk(model, wanted),
        "memory_bytes": bytes_of(model),
        "memory_ratio": bytes_of(model) / exact_bytes,
    }


def weigh(key: str, spec: ModelSpec, size: Size) -> Iterator[dict[str, Any]]:
    """Rows of a model whose forwards are not measured, a precision each."""
    loads = turns({name: partial(load, spec, name) for name in PRECISIONS}, min(size.repeats, 5))
    exact = bytes_of(load(spec, "float32"))
    for name in PRECISIONS:
        yield weighed(key, name, load(spec, name), exact) | {"load_seconds": loads[name]}


def compare(key: str, held: Mapping[Precision, dict[str, Any]], specs: Mapping[str, ModelSpec], size: Size) -> Any:
    """Rows of one model, a precision each."""
    models = {name: by_key[key] for name, by_key in held.items()}
    exact, tokens = held["float32"], held["float32"]["crossflow"].config.tokens
    reference = paint(exact, size)
    loads = turns({name: partial(load, specs[key], name) for name in models}, min(size.repeats, 5))
    forwards = {
        batch: turns({name: forward(key, model, batch, tokens) for name, model in models.items()}, size.repeats)
        for batch in BATCHES
    }
    for name, model in models.items():
        row = weighed(key, name, model, bytes_of(exact[key])) | {"load_seconds": loads[name]}
        for batch, seconds in forwards.items():
            row[f"seconds_{batch}"] = seconds[name]
            row[f"time_ratio_{batch}"] = seconds[name] / seconds["float32"]
        yield row | quality(key, model, exact, reference, size)


def compare_policies(held: Mapping[Precision, dict[str, Any]], size: Size) -> list[dict[str, Any]]:
    """Rows of whole sets: memory, seconds of a picture with all its steps, and how far the pictures are off."""
    sets = {
        name: {key: held[kind][key] for key, kind in zip(MODELS, kinds, strict=True)}
        for name, kinds in POLICIES.items()
        if all(kind in held for kind in kinds)
    }
    one = Size(captions=1, pictures=1, steps=size.steps, repeats=1)
    seconds = turns({name: partial(paint, models, one) for name, models in sets.items()}, size.repeats)
    reference = paint(held["float32"], size)
    rows = []
    for name, models in sets.items():
        ratios = signal_to_noise(paint(models, size), reference)
        memory = sum(map(bytes_of, models.values()))
        rows.append(
            {
                "policy": name,
                "memory_bytes": memory,
                "memory_ratio": memory / sum(map(bytes_of, sets["float32"].values())),
                "seconds_per_picture": seconds[name],
                "time_ratio": seconds[name] / seconds["float32"],
                "psnr_mean": float(np.mean(ratios)),
                "psnr_least": min(ratios),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure next to nothing, and keep nothing")
    size = QUICK if parser.parse_args().quick else FULL
    specs, speeds = shipped(), measured_speeds(CPU)
    held = {name: {key: load(specs[key], name) for key in MODELS} for name in PRECISIONS}
    on_disk = {key: sum(file.stat().st_size for file in folder_of(spec).iterdir()) for key, spec in specs.items()}
    results: dict[str, Any] = {
        "size": asdict(size),
        "speeds": asdict(speeds),
        "auto": choose_precision(sum(spec.bytes for spec in specs.values()), 10**12, speeds),
        "shipped_bytes": on_disk,
        "models": [row for key in MODELS for row in compare(key, held, specs, size)],
        "policies": compare_policies(held, size),
        "others": [row for key, spec in specs.items() if key not in MODELS for row in weigh(key, spec, size)],
    }
    of_models = [[row for row in results["models"] if row["model"] == key] for key in MODELS]
    for rows in (*of_models, results["policies"], results["others"]):
        print(table(list(rows[0]), [list(row.values()) for row in rows]), "\n")
    if size is FULL:
        save("quantization", results)


if __name__ == "__main__":
    main()
