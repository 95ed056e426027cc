"""Shared fixtures: a Studio over the tiny pipelines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

from app import commands, doctor
from app.cli import main
from app.settings import Settings
from app.studio import Studio
from models.manager import ModelManager
from models.sources import Folder
from models.spec import ModelSpec, bytes_in_memory
from pipelines.base import Registry
from tests.command_lines import Run
from tests.tiny import Blend, Hum, Paint, Painter, load_painter, write_sums

settings.register_profile("untimed", deadline=None)  # a timing is never a test
settings.load_profile("untimed")

# Test processes that run side by side share the cores.
torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))


@pytest.fixture(scope="session")
def painter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painter")
    torch.manual_seed(0)
    save_file(Painter().state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    write_sums(folder)
    return folder


@pytest.fixture
def tiny_specs(painter_folder: Path) -> dict[str, ModelSpec]:
    size = bytes_in_memory(painter_folder)
    return {"painter": ModelSpec("painter", "lite", Folder(painter_folder), load_painter, "Apache-2.0", size)}


@pytest.fixture
def tiny_registry() -> Registry:
    return Registry([Paint(), Blend(), Hum()])


@pytest.fixture
def tiny_settings(tmp_path: Path) -> Settings:
    return Settings(output_folder=tmp_path / "outputs", _env_file=None)


@pytest.fixture
def tiny_studio(tiny_settings: Settings, tiny_registry: Registry, tiny_specs: dict[str, ModelSpec]) -> Studio:
    manager = ModelManager(tiny_specs, torch.device("cpu"), budget_bytes=10_000_000)
    return Studio(tiny_settings, tiny_registry, manager)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_studio: Studio, tmp_path: Path
) -> Run:
    """Runs the command line over the tiny pipelines, in an empty folder; gives code, stdout and stderr."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(commands, "Studio", lambda settings, registry: tiny_studio)
    monkeypatch.setattr(commands, "installed_registry", lambda profile: tiny_studio.registry)
    monkeypatch.setattr(doctor, "installed_registry", lambda profile: tiny_studio.registry)

    def run_command(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run_command
