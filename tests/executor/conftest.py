"""A Studio over pipelines that can be watched."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from app.settings import Settings
from app.studio import Studio
from models.sources import Folder
from models.spec import ModelSpec
from pipelines.base import Registry
from tests.tiny import Blend, Hum, Paint
from tests.tiny_models import CPU, spec_of
from tests.watched_pipelines import (
    Attentive,
    Carve,
    Flicker,
    Liar,
    Tone,
)


@pytest.fixture
def tone() -> Tone:
    return Tone()


@pytest.fixture
def carve() -> Carve:
    return Carve()


@pytest.fixture
def flicker() -> Flicker:
    return Flicker()


@pytest.fixture
def specs(tiny_specs: dict[str, ModelSpec], tmp_path: Path) -> dict[str, ModelSpec]:
    """Models whose files a test may change."""
    folder = tmp_path / "weights"
    folder.mkdir()
    painter = tiny_specs["painter"]
    assert isinstance(painter.source, Folder)
    shutil.copytree(painter.source.path, folder / "painter")
    specs = [spec_of("toner", folder), spec_of("carver", folder)]
    return {spec.key: spec for spec in (replace(painter, source=Folder(folder / "painter")), *specs)}


@pytest.fixture
def manager(specs: dict[str, ModelSpec]) -> Attentive:
    return Attentive(specs, CPU, 10_000_000)


@pytest.fixture
def studio(tiny_settings: Settings, manager: Attentive, tone: Tone, carve: Carve, flicker: Flicker) -> Studio:
    return Studio(tiny_settings, Registry([Paint(), Blend(), Hum(), tone, carve, flicker, Liar()]), manager)
