"""XBind by published models in small: all folders that it needs, tiny and random, and settings for a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.xbind import optimisation
from pipelines.xbind_published import pipeline, supervision
from tests.test_language_bind import PROJECTION, write_published
from tests.tiny_priors import unclip_folder, zero123_folder
from tests.tiny_published import clip_folder
from tests.tiny_shap_e import shap_e_pictures_folder


def xbind_folders(place: Path) -> dict[str, Path]:
    """By name, in ``place``."""
    clip_folder(place / "vit-h", seed=3)
    clip_folder(place / "vit-l", seed=4, width=PROJECTION)
    clip_folder(place / "other", seed=5)
    (place / "ears").mkdir()
    write_published(place / "ears")
    return {
        "vit-h": place / "vit-h",
        "vit-l": place / "vit-l",
        "other": place / "other",
        "ears": place / "ears",
        "unclip": unclip_folder(place / "unclip"),
        "zero123": zero123_folder(place / "zero123"),
        "shap-e": shap_e_pictures_folder(place / "shap-e"),
    }


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps and small pictures for the length of a test."""
    for module, values in (
        (optimisation, {"JUDGED_SIDE": 24, "SHOWN_SIDE": 24}),
        (supervision, {"SIDE": 16, "LOOKED_AT": 32, "AROUND": 4}),
        (pipeline, {"SHAPE_STEPS": 2, "DRAWS": 3, "GRID": 16}),
    ):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setitem(pipeline.REFINING, "draft", (3, 2, 2))
