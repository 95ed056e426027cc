"""What each precision costs and saves, for every lite model, and for those of a picture together.

    python -m benchmarks.quantization [--quick]

Every model is measured in a run of a pipeline that uses it (``quantization_cases.py``), with only that model changed:
the seconds spent inside its layers with one input and with a batch of eight, and how far what is made is from what
float32 makes of equal inputs and seeds. The precisions of a model take turns, so that whatever else the machine does
hits all alike. Writes ``benchmarks/results/quantization.json`` and prints its tables; ``--quick`` only shows that it
runs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from benchmarks.quantization_cases import (
    CAPTIONS,
    CASES,
    CPU,
    READER,
    Case,
    differences,
    inputs_of,
    leased,
    read,
    requests,
    run,
)
from benchmarks.report import save, table
from models.catalog import catalog
from models.modules import bytes_of, modules_of
from models.precision import PRECISIONS, Precision
from models.quantize import apply_precision, choose_precision, save_prepared
from models.spec import ModelSpec
from models.speeds import measured_speeds
from pipelines.media import Artifact, Text

# Whole sets to compare: one precision for all, and CrossFlow alone in int8.
PICTURE = ("text-encoder", "crossflow", "autoencoder")
POLICIES: dict[str, tuple[Precision, Precision, Precision]] = {name: (name,) * 3 for name in PRECISIONS} | {
    "float16, crossflow int8": ("float16", "int8", "float16")
}
N = TypeVar("N", bound=str)
Run = Callable[[Mapping[str, Any], slice], list[Artifact]]  # of the models, and which of the inputs: what is made
SAME = {"language-model"}  # another key of the model that is measured as request-reader


def folder_of(spec: ModelSpec) -> Path:
    return spec.source.resolve(lambda fraction, message: None).folder


def load(spec: ModelSpec, wanted: Precision) -> Any:
    model = spec.load(folder_of(spec))
    for module in modules_of(model):
        module.eval().requires_grad_(False)
    apply_precision(model, wanted, CPU)
    return model


@contextmanager
def clocked(model: object) -> Iterator[list[float]]:
    """A list whose one number is the seconds that are spent inside the model's layers meanwhile."""
    seconds, depth, started = [0.0], 0, 0.0

    def enter(module: object, inputs: object) -> None:
        nonlocal depth, started
        if depth == 0:
            started = time.perf_counter()
        depth += 1

    def leave(module: object, inputs: object, output: object) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            seconds[0] += time.perf_counter() - started

    parts = [part for module in modules_of(model) for part in module.modules()]
    hooks = [hook for p in parts for hook in (p.register_forward_pre_hook(enter), p.register_forward_hook(leave))]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def in_turns(names: Sequence[N], once: Callable[[N], float], repeats: int) -> dict[N, float]:
    """Median of what ``once`` gives for each; they take turns, after one turn that warms up."""
    seconds: dict[N, list[float]] = {name: [] for name in names}
    for _ in range(1 + repeats):
        for name in names:
            seconds[name].append(once(name))
    return {name: median(values[1:]) for name, values in seconds.items()}


def timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def bytes_on_disk(model: Any, wanted: Precision) -> int:
    """Of a prepared copy."""
    with tempfile.TemporaryDirectory() as folder:
        save_prepared(model, Path(folder) / "copy", wanted)
        return sum(path.stat().st_size for path in (Path(folder) / "copy").iterdir())


def compare(key: str, spec: ModelSpec, use: Run, exact: Mapping[str, Any], quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of one model, a precision each; ``exact``: all models of the run in float32."""
    held = {name: load(spec, name) for name in PRECISIONS}
    names = list(held)
    made: dict[Precision, list[Artifact]] = {}

    def inside(which: slice, name: Precision) -> float:
        with clocked(held[name]) as seconds:
            made[name] = use({**exact, key: held[name]}, which)
        return seconds[0]

    repeats = 1 if quick else 5
    loads = in_turns(names, lambda name: timed(partial(load, spec, name)), repeats)
    one = in_turns(names, partial(inside, slice(1)), repeats)
    batch = {} if quick else {name: inside(slice(None), name) for name in names}
    for name, model in held.items():
        row = {
            "model": key,
            "precision": name,
            "disk_bytes": bytes_on_disk(model, name),
            "memory_bytes": bytes_of(model),
            "memory_ratio": bytes_of(model) / bytes_of(held["float32"]),
            "load_seconds": loads[name],
        }
        for count, seconds in (("one", one), ("batch", batch)):
            if seconds:
                row |= {f"seconds_{count}": seconds[name]}
                # Nothing is computed in some: the mean shift is a vector.
                row |= {f"time_ratio_{count}": seconds[name] / seconds["float32"] if seconds["float32"] else 1.0}
        yield row | differences(made[name], made["float32"])


def all_models(specs: Mapping[str, ModelSpec], quick: bool) -> Iterator[list[dict[str, Any]]]:
    """The rows of each model, measured in the first case that leases it. Raises LookupError if none uses a model."""
    exact: dict[str, Any] = {}

    def need(keys: Sequence[str]) -> dict[str, Any]:
        exact.update({key: load(specs[key], "float32") for key in keys if key not in exact})
        return {key: exact[key] for key in keys}

    given, rows = inputs_of(need), requests()
    runs: list[tuple[Sequence[str], Run]] = [
        (leased(case, given[case.inputs][0]), partial(_run_some, case, given[case.inputs])) for case in CASES
    ]
    runs.append((READER, lambda models, which: read(models, rows[which])))
    done = set(SAME)
    for keys, use in runs:
        for key in keys:
            if key not in done:
                done.add(key)
                yield list(compare(key, specs[key], use, need(keys), quick))
    if left := set(specs) - done:
        raise LookupError(f"no case uses {', '.join(sorted(left))}")


def _run_some(case: Case, given: Sequence[Artifact], models: Mapping[str, Any], which: slice) -> list[Artifact]:
    return run(case, models, given[which])


def policies(specs: Mapping[str, ModelSpec], quick: bool) -> list[dict[str, Any]]:
    """Rows of whole sets: memory, seconds of a picture with all its steps, and how far the pictures are off."""
    held = {name: {key: load(specs[key], name) for key in PICTURE} for name in PRECISIONS}
    sets = {
        name: {key: held[kind][key] for key, kind in zip(PICTURE, kinds, strict=True)}
        for name, kinds in POLICIES.items()
    }
    captions = list(map(Text, CAPTIONS))

    def paint_one(name: str) -> float:
        return timed(partial(run, CASES[0], sets[name], captions[:1]))

    one = in_turns(list(sets), paint_one, 1 if quick else 15)
    made = {name: run(CASES[0], models, captions) for name, models in sets.items()}
    memory = {name: sum(map(bytes_of, models.values())) for name, models in sets.items()}
    return [
        {
            "policy": name,
            "memory_bytes": memory[name],
            "memory_ratio": memory[name] / memory["float32"],
            "seconds_per_picture": one[name],
            "time_ratio": one[name] / one["float32"],
        }
        | differences(made[name], made["float32"])
        for name in sets
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure next to nothing, and keep nothing")
    quick = parser.parse_args().quick
    specs, speeds = catalog("lite"), measured_speeds(CPU)
    sets = policies(specs, quick)
    print(table(list(sets[0]), [list(row.values()) for row in sets]), "\n", flush=True)
    models = []
    for rows in all_models(specs, quick):
        print(table(list(rows[0]), [list(row.values()) for row in rows]), "\n", flush=True)
        models += rows
    if not quick:
        results = {
            "speeds": asdict(speeds),
            "auto": choose_precision(sum(spec.bytes for spec in specs.values()), 10**12, speeds),
            "policies": sets,
            "models": models,
        }
        save("quantization", results)


if __name__ == "__main__":
    main()
