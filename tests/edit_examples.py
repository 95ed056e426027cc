"""Small things to edit, and edits of them in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trimesh
from hypothesis import strategies as st

from models.errors import UserError
from pipelines.base import Pipeline, Produced, Registry, Runtime
from pipelines.edits import EDITS
from pipelines.media import Artifact, Audio, Image, Mesh, Video
from tests.media_examples import assert_plain

REGISTRY = Registry([edit() for edit in EDITS])
RATE = 8000


class NoModels:
    """What an edit is lent: nothing. Any use of it fails."""


def edited(name: str, *inputs: Artifact, **params: Any) -> Any:
    pipeline = REGISTRY.get(name)
    events = pipeline.run(inputs, pipeline.parse_params(params), Runtime(NoModels()))  # type: ignore[arg-type]
    [made] = [event.artifact for event in events if isinstance(event, Produced)]
    return made


def refused(name: str, *inputs: Artifact, **params: Any) -> str:
    with pytest.raises(UserError) as caught:
        edited(name, *inputs, **params)
    assert_plain(caught.value)
    return caught.value.sentence


def noise(seed: int, seconds: float = 2.0, peak: float = 1.0, channels: int = 2) -> Audio:
    samples = np.random.default_rng(seed).normal(size=(channels, round(seconds * RATE)))
    return Audio((peak * samples / np.abs(samples).max()).astype(np.float32), RATE)


def tone(hertz: float, seconds: float = 2.0, peak: float = 0.5) -> Audio:
    time = np.arange(round(seconds * RATE)) / RATE
    return Audio((peak * np.sin(2 * np.pi * hertz * time)).astype(np.float32)[None], RATE)


def picture(seed: int, width: int, height: int) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def clip(seed: int = 0, frames: int = 12, rate: float = 6.0, sound: Audio | None = None) -> Video:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 6, 8, 3), dtype=np.uint8)
    return Video(pixels, rate, sound)


def sphere(subdivisions: int = 4) -> Mesh:
    """Red above, blue below."""
    shape = trimesh.creation.icosphere(subdivisions)
    colors = np.where(shape.vertices[:, 1:2] > 0, [255, 0, 0], [0, 0, 255]).astype(np.uint8)
    return Mesh(shape.vertices.astype(np.float32), shape.faces.astype(np.int32), colors)


def closed(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def inputs_of(pipeline: Pipeline) -> list[Artifact]:
    examples = {"image": picture(0, 14, 9), "audio": noise(0), "video": clip(sound=noise(1)), "mesh": sphere(2)}
    return [examples[medium] for medium in pipeline.routes[0].inputs]


def same(first: Artifact, second: Artifact) -> bool:
    return first.content_hash() == second.content_hash()


seeds = st.integers(0, 2**31)
