"""One artifact of every medium, and what the tests of media share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from models.errors import UserError
from pipelines.media import Artifact, Audio, BrainScan, Image, Mesh, ModelRecord, Provenance, Text, Video, load_artifact

few = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def meshes(vertices: np.ndarray, with_colors: bool) -> Mesh:
    count = len(vertices)
    faces = np.stack([np.arange(count), np.roll(np.arange(count), 1), np.zeros(count)], axis=1).astype(np.int32)
    colors = (np.abs(vertices) % 256).astype(np.uint8) if with_colors else None
    return Mesh(vertices, faces, colors)


def made(**changes: Any) -> Provenance:
    recipe: dict[str, Any] = {
        "pipeline": "crossflow",
        "inputs": ({"medium": "text", "text": "a red apple, «пожалуйста» 🍎"},),
        "params": {"guidance_scale": 7.5, "style": None},
        "seed": 7,
        "parents": (),
        "models": (ModelRecord("crossflow", "0" * 64, "float32"),),
        "version": "0.1.0",
    }
    return Provenance(**(recipe | changes))


def examples() -> list[Artifact]:
    rng = np.random.default_rng(0)
    tone = np.sin(np.arange(4000, dtype=np.float32) / 9)[None] * np.float32(0.5)
    frames = np.repeat(np.linspace(0, 250, 6).astype(np.uint8), 16 * 20 * 3).reshape(6, 16, 20, 3)
    return [
        Text("a red apple\r\nand a pear"),
        Image(rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)),
        Audio(np.concatenate([tone, -tone]), 16_000),
        Video(frames, 12.0, Audio(tone, 8000)),
        meshes(rng.normal(size=(6, 3)).astype(np.float32), True),
        BrainScan(rng.normal(size=(3, 4, 5)).astype(np.float32), "MNI152", "subj01"),
    ]


def every_file(*without: str) -> list[Any]:
    """Pytest parameters: each example with each of its suffixes, but for those in ``without``."""
    pairs = [(example, suffix) for example in examples() for suffix in example.suffixes if suffix not in without]
    return [pytest.param(*pair, id=pair[1][1:]) for pair in pairs]


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may write everywhere; for a while, be nobody."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def assert_plain(error: UserError) -> None:
    assert error.sentence.endswith(".") and "\n" not in error.sentence and error.hint


def read(path: Path, kind: type[Artifact], medium: str | None = None) -> Any:
    loaded = load_artifact(path, medium)
    assert type(loaded) is kind
    return loaded


def refuse(path: Path, medium: str | None = None) -> UserError:
    with pytest.raises(UserError) as caught:
        load_artifact(path, medium)
    assert_plain(caught.value)
    return caught.value
