"""Serves the page over the tiny pipelines of ``tests/tiny.py``, slowed down so that a person could follow."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from safetensors.torch import save_file

from app.settings import load_settings
from app.studio import Studio
from app.ui import launch
from models.catalog import ModelSpec, bytes_in_memory
from models.manager import ModelManager
from models.sources import Folder
from pipelines.base import Event, Params, Progress, Registry, Runtime
from pipelines.media import Artifact
from tests.tiny import Blend, Hum, Paint, Painter, load_painter, write_sums


class SlowPaint(Paint):
    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        for event in super().run_batch(inputs, params, runtime):
            if isinstance(event, Progress):
                time.sleep(0.1)
            yield event


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
        launch(Studio(settings, Registry([SlowPaint(), Blend(), Hum()]), manager))


if __name__ == "__main__":
    main()
