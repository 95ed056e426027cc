"""Licences that restrict use: asked for once, kept where the user's other choices are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from models.catalog import catalog
from models.errors import UserError
from models.licences import accept_licence, is_accepted, licences_file, require_licence
from models.sources import Folder, Hub
from models.spec import ModelSpec


@pytest.fixture(autouse=True)
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder for what users chose."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


def spec(repo: str = "someone/painter", licence: str = "non-commercial", restricted: bool = True) -> ModelSpec:
    return ModelSpec(
        "painter", "full", Hub(repo, "main", ("w.safetensors",)), lambda path: path, licence, 1, restricted
    )


def test_a_restricted_licence_is_asked_for_once() -> None:
    with pytest.raises(UserError) as refused:
        require_licence(spec())
    for words in ("painter", "someone/painter", "non-commercial"):
        assert words in refused.value.sentence
    assert "models fetch painter --profile full --accept-licence" in refused.value.hint
    accept_licence(spec())
    require_licence(spec())
    assert is_accepted(spec())


def test_another_text_or_another_repository_is_asked_for_anew() -> None:
    accept_licence(spec())
    for other in (spec(licence="research only"), spec(repo="someone/else")):
        with pytest.raises(UserError):
            require_licence(other)
        accept_licence(other)
        require_licence(other)
    require_licence(spec())
    assert json.loads(licences_file().read_text()) == {
        "someone/painter": ["non-commercial", "research only"],
        "someone/else": ["non-commercial"],
    }


def test_free_licences_and_own_folders_are_never_asked_for(config: Path, tmp_path: Path) -> None:
    for free in (spec(restricted=False), replace(spec(), source=Folder(tmp_path))):
        require_licence(free)
        accept_licence(free)
    assert not config.exists()


def test_the_published_backbone_clap_and_imagebind_restrict_use(tmp_path: Path) -> None:
    full = catalog("full")
    of_sounds = ["sound-text", "v2a-mapper", "v2a-regression", "sound-generator", "audio-autoencoder", "vocoder"]
    restricted = [key for key, item in full.items() if item.restricted]
    assert restricted == ["crossflow", *of_sounds, "imagebind", "neuropictor"]
    assert not any(item.restricted for item in catalog("lite").values())
    with pytest.raises(UserError, match="research"):
        require_licence(full["crossflow"])
    require_licence(catalog("full", {"crossflow": tmp_path})["crossflow"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"someone/painter": "x"}', "\0", "[" * 100_000])
def test_a_damaged_file_is_named_and_never_overwritten(text: str) -> None:
    licences_file().parent.mkdir(parents=True)
    licences_file().write_text(text)
    for ask in (require_licence, accept_licence):
        with pytest.raises(UserError) as refused:
            ask(spec())
        assert str(licences_file()) in refused.value.sentence and "Delete" in refused.value.hint
    assert licences_file().read_text() == text


def test_a_folder_that_cannot_be_written_is_one_sentence(config: Path) -> None:
    config.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"licences\.json"):
        accept_licence(spec())


def test_an_acceptance_that_fails_in_the_middle_leaves_the_file_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    accept_licence(spec())
    before = licences_file().read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        accept_licence(spec(repo="someone/else"))
    assert licences_file().read_bytes() == before
    assert list(licences_file().parent.iterdir()) == [licences_file()]


def test_without_a_config_folder_of_ones_own_it_is_the_usual_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert licences_file() == tmp_path / ".config" / "synesthete" / "licences.json"
