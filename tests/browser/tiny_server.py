"""Serves the page over the tiny pipelines of ``tests/tiny.py``, slowed down so that a person could follow."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from safetensors.torch import save_file

from app.settings import load_settings
from app.studio import Studio
from app.ui import launch
from models.errors import UserError
from models.manager import ModelManager
from models.sources import Folder
from models.spec import ModelSpec, bytes_in_memory
from pipelines.base import Event, Params, Pipeline, Produced, Progress, Registry, Route, Runtime, provenance
from pipelines.media import Artifact, Audio
from tests.tiny import Blend, Hum, Paint, Painter, load_painter, write_sums


class SlowPaint(Paint):
    examples = (("a red apple",), ("a blue bird",))

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        for event in super().run_batch(inputs, params, runtime):
            if isinstance(event, Progress):
                time.sleep(0.1)
            yield event


class Listen(Pipeline):
    """A picture's sound. It fails as long as there is a file ``deaf`` in its folder, so that one may try again."""

    name = "tiny-listen"
    title = "Tiny listening"
    summary = "Hears a picture."
    routes = (Route(("image",), "audio"),)
    params_type = Params
    models = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        for item in inputs:
            for step in range(3):
                runtime.raise_if_cancelled()
                time.sleep(0.1)
                yield Progress(step + 1, 3, "Listening")
            if (self.folder / "deaf").exists():
                raise UserError("Nothing could be heard.", "Listen again.")
            samples = np.sin(np.arange(4000, dtype=np.float32) / 8)[None] / 2
            yield Produced(Audio(samples, 8000, provenance=provenance(self, item, params, runtime.models)))


def painter_spec(folder: Path) -> ModelSpec:
    torch.manual_seed(0)
    save_file(Painter().state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    write_sums(folder)
    return ModelSpec("painter", "lite", Folder(folder), load_painter, "Apache-2.0", bytes_in_memory(folder))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--output-folder", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as weights:
        specs = {"painter": painter_spec(Path(weights))}
        manager = ModelManager(specs, torch.device("cpu"), budget_bytes=10_000_000)
        settings = load_settings(port=arguments.port, output_folder=arguments.output_folder)
        launch(Studio(settings, Registry([SlowPaint(), Blend(), Hum(), Listen(arguments.output_folder)]), manager))


if __name__ == "__main__":
    main()
