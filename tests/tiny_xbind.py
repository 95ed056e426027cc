"""All folders that XBind by published models needs, tiny and random, in the published layouts."""

from __future__ import annotations

from pathlib import Path

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
