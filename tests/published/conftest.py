"""Fixtures of the published spaces: tiny random checkpoints, and what loads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.published_spaces import PublishedPictureText, PublishedSoundText, load_picture_space, load_sound_space
from tests.tiny_published import write_published


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def sights(folders: Path) -> PublishedPictureText:
    space = load_picture_space(folders / "clip")
    assert isinstance(space, PublishedPictureText)
    return space


@pytest.fixture(scope="module")
def sounds(folders: Path) -> PublishedSoundText:
    space = load_sound_space(folders / "clap")
    assert isinstance(space, PublishedSoundText)
    return space
