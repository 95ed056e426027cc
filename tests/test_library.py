"""The gallery: what it keeps, what it finds, and what happens when its folder or files are tampered with."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.library import Entry, Library
from app.library_index import INDEX_NAME
from models.errors import UserError
from pipelines.artifact import sidecar_path
from pipelines.media import Artifact, Audio, Text, Video
from tests.library_examples import assert_sound, made, picture
from tests.media_examples import assert_plain, unprivileged


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    library = Library(tmp_path / "outputs")
    yield library
    library.close()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nobody may write in ``folder``; not even root, who becomes nobody meanwhile."""
    everything = [folder, *folder.rglob("*")]
    modes = [path.stat().st_mode for path in everything]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with unprivileged():
            yield
    finally:
        for path, mode in zip(everything, modes, strict=True):
            if path.exists():
                path.chmod(mode)


@contextmanager
def reachable(folder: Path) -> Iterator[None]:
    """Lets nobody pass through pytest's private folders."""
    modes = {parent: parent.stat().st_mode for parent in folder.parents if "pytest-" in str(parent)}
    for parent, mode in modes.items():
        parent.chmod(mode | 0o055)
    try:
        yield
    finally:
        for parent, mode in modes.items():
            parent.chmod(mode)


def refusal(error: UserError) -> str:
    assert_plain(error)
    return error.sentence


# What it keeps.


@pytest.mark.parametrize(
    "artifact",
    [
        Text("a poem\n", provenance=made()),
        picture(),
        Audio(np.zeros((1, 80), np.float32), 8000, provenance=made()),
        Video(np.random.default_rng(0).integers(0, 256, (3, 9, 8, 3), np.uint8), 12.0, provenance=made()),
    ],
    ids=lambda artifact: artifact.medium,
)
def test_what_is_added_is_there_after_a_restart(artifact: Artifact, tmp_path: Path) -> None:
    library = Library(tmp_path)
    added = library.add(artifact, "  A red\n apple ")
    library.close()
    again = Library(tmp_path)
    [entry] = again.entries()
    assert entry == added == again.get(added.id)
    assert entry.title == "A red apple"
    assert entry.medium == artifact.medium
    assert (entry.content_hash == artifact.content_hash()) == (entry.medium != "video")
    assert entry.provenance == artifact.provenance
    assert not entry.missing and entry.path.is_relative_to(tmp_path / "files")
    assert abs(entry.created - datetime.now(UTC)) < timedelta(minutes=5)
    loaded = again.load(entry.id)
    assert type(loaded) is type(artifact) and loaded.provenance == artifact.provenance
    assert again.load_by_hash(entry.content_hash).content_hash() == loaded.content_hash() == entry.content_hash
    again.close()


def test_an_artifact_needs_its_provenance(library: Library) -> None:
    with pytest.raises(ValueError, match="provenance"):
        library.add(picture().with_provenance(None), "x")
    assert library.count() == 0


def test_equal_artifacts_share_a_file_until_the_last_is_removed(library: Library) -> None:
    first, second = library.add(picture(), "one"), library.add(picture(), "two")
    other = library.add(picture().with_provenance(made("another prompt")), "three")
    assert first.id != second.id and first.path == second.path != other.path
    library.remove(first.id)
    assert library.load(second.id).content_hash() == picture().content_hash()
    library.remove(second.id)
    assert not second.path.exists() and not sidecar_path(second.path).exists()
    assert [entry.id for entry in assert_sound(library.folder)] == [other.id]


def test_unknown_entries(library: Library) -> None:
    for call in (library.get, library.load, library.remove, library.load_by_hash):
        with pytest.raises(UserError) as caught:
            call("nonsense")
        refusal(caught.value)
    with pytest.raises(UserError):
        library.entries(before="nonsense")


def test_titles_of_any_characters(library: Library) -> None:
    for title in ("", "a\0b", "\ud800", "🍎" * 500, "אבג", "'; DROP TABLE entries; --"):
        entry = library.add(picture(), title)
        assert library.get(entry.id) == entry
        assert len(entry.title) <= 200 and "\0" not in entry.title
    assert library.count() == 6


# What it finds.

titles = st.sampled_from(["a red apple", "A RED pear", "100% blue", "blue_apple", "Äpfel", "ΑΠΠΛΕ apple"])


@settings(max_examples=8)
@given(
    added=st.lists(st.tuples(titles, st.booleans()), max_size=6),
    search=st.sampled_from([None, "", " ", "apple", "RED", "äPFEL", "%", "_", "red a", "αππλε", "'"]),
    medium=st.sampled_from([None, "text", "image"]),
    limit=st.integers(1, 4),
)
def test_pages_of_a_search_are_the_matching_entries_newest_first(
    tmp_path_factory: pytest.TempPathFactory,
    added: list[tuple[str, bool]],
    search: str | None,
    medium: str | None,
    limit: int,
) -> None:
    library = Library(tmp_path_factory.mktemp("library"))
    expected: list[Entry] = []
    for number, (title, is_text) in enumerate(added):
        artifact = Text("words", provenance=made("", number)) if is_text else picture("", number)
        entry = library.add(artifact, title)
        words = (search or "").casefold().split()
        if all(word in title.casefold() for word in words) and medium in (None, artifact.medium):
            expected.insert(0, entry)
    found: list[Entry] = []
    while page := library.entries(limit, found[-1].id if found else None, search, medium):
        assert len(page) <= limit
        found += page
    assert found == expected
    assert library.count() == len(added)
    library.close()


def test_a_search_looks_into_the_prompt(library: Library) -> None:
    entry = library.add(picture("a Green hill"), "Untitled")
    assert library.entries(search="green untitled") == [entry]
    assert library.entries(search="purple") == []


# What a run made.


def test_a_run_is_found_by_what_it_was_made_from(library: Library) -> None:
    def add(seed: int, index: int) -> Entry:
        return library.add(picture(seed=seed).with_provenance(made("a red apple", seed, index)), "x")

    first, second, other = add(1, 0), add(1, 1), add(2, 0)
    assert library.made_by(made(seed=1)) == [], "a run that did not come to its end is none"
    library.note_run([first, second])
    library.note_run([other])
    library.note_run([])
    assert library.made_by(made(seed=1)) == library.made_by(made(seed=1, index=7)) == [first, second]
    assert library.made_by(made(seed=2)) == [other]
    assert library.made_by(made(seed=3)) == library.made_by(made("a pear", 1)) == []
    newer = [add(1, 0), add(1, 1)]
    library.note_run(newer)
    assert library.made_by(made(seed=1)) == newer
    library.remove(newer[1].id)
    assert library.made_by(made(seed=1)) == [first, second], "the older run is whole"
    library.remove(first.id)
    assert library.made_by(made(seed=1)) == []


def test_a_run_whose_models_changed_half_way_is_like_no_other(library: Library) -> None:
    entries = [library.add(picture(seed=seed), "x") for seed in (1, 2)]
    library.note_run(entries)
    assert library.made_by(made(seed=1)) == library.made_by(made(seed=2)) == []


@pytest.mark.parametrize("harm", ["missing", "cut", "other", "sidecar"])
def test_a_run_whose_files_were_changed_by_hand_is_not_found_until_it_is_made_again(
    library: Library, harm: str
) -> None:
    entry = library.add(picture(), "x")
    library.note_run([entry])
    written = entry.path.read_bytes()
    if harm == "missing":
        entry.path.unlink()
    elif harm == "sidecar":
        sidecar_path(entry.path).write_text("[]")
    else:
        entry.path.write_bytes(written[:40] if harm == "cut" else picture(seed=9).encode(".png"))
    assert library.made_by(made()) == []
    again = library.add(picture(), "x")
    assert again.path.read_bytes() == entry.path.read_bytes() == written
    assert library.made_by(made()) == [entry]


def test_the_newest_of_equal_content_is_found(library: Library) -> None:
    assert library.by_content(picture().content_hash()) is None
    library.add(picture(), "one")
    newest = library.add(picture(), "two")
    library.add(picture(seed=1), "other")
    assert library.by_content(picture().content_hash()) == newest


def test_a_gallery_of_the_first_version_opens_and_is_brought_up_to_date(tmp_path: Path) -> None:
    library = Library(tmp_path)
    entry = library.add(picture(), "old")
    for table in ("runs", "inputs"):
        library._connection.execute(f"DROP TABLE {table}")
    library._connection.execute("PRAGMA user_version = 1")
    library.close()
    for _ in range(2):
        library = Library(tmp_path)
        assert library.entries() == [entry] and library.made_by(made()) == []
        library.close()
    library = Library(tmp_path)
    library.note_run([entry])
    library.close()
    assert Library(tmp_path).made_by(made()) == [entry]


# What people do to it by hand.


def test_a_file_that_was_deleted_by_hand(library: Library) -> None:
    lost, kept = library.add(picture(seed=1), "lost"), library.add(picture(seed=2), "kept")
    lost.path.unlink()
    assert [(entry.id, entry.missing) for entry in library.entries()] == [(kept.id, False), (lost.id, True)]
    with pytest.raises(UserError) as caught:
        library.load(lost.id)
    assert "lost" in refusal(caught.value) and "deleted" in refusal(caught.value)
    assert library.load(kept.id).content_hash() == kept.content_hash
    library.remove(lost.id)
    assert library.count() == 1
    again = library.add(picture(seed=1), "made again")
    assert not again.missing


def test_a_file_that_was_damaged_by_hand(library: Library) -> None:
    entry = library.add(picture(), "harmed")
    entry.path.write_bytes(entry.path.read_bytes()[:40])
    with pytest.raises(UserError) as caught:
        library.load(entry.id)
    assert "damaged" in refusal(caught.value)
    library.remove(entry.id)
    assert library.entries() == []


@pytest.mark.parametrize("harm", ["garbage", "middle"])
def test_a_damaged_index_is_reported_and_nothing_is_deleted(harm: str, tmp_path: Path) -> None:
    library = Library(tmp_path)
    paths = [library.add(picture(f"a prompt {number} " * 99, number), str(number)).path for number in range(20)]
    library.close()
    index = tmp_path / INDEX_NAME
    data = index.read_bytes()
    harmed = b"not a database " * 2000 if harm == "garbage" else data[:4096] + b"\xa5" * (len(data) - 4096)
    index.write_bytes(harmed)
    with pytest.raises(UserError) as caught:
        Library(tmp_path).entries()
    assert "damaged" in refusal(caught.value) and "Move it" in caught.value.hint
    assert index.read_bytes() == harmed
    assert all(path.is_file() for path in paths)


def test_a_new_index_leaves_the_files_of_the_lost_one_alone(library: Library) -> None:
    entry = library.add(picture(), "orphan")
    library.close()
    (library.folder / INDEX_NAME).rename(library.folder / "elsewhere")
    fresh = Library(library.folder)
    fresh.sweep(older_than=0)
    assert fresh.count() == 0 and entry.path.is_file()
    fresh.close()


def test_an_index_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    library = Library(tmp_path)
    library._connection.execute("PRAGMA user_version = 99")
    library.close()
    with pytest.raises(UserError, match="newer version"):
        Library(tmp_path)


# Folders that cannot be used.


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("x")
    for folder in (tmp_path / "outputs", tmp_path / "outputs" / "deeper"):
        with pytest.raises(UserError) as caught:
            Library(folder)
        refusal(caught.value)


def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "outputs"
    folder.mkdir()
    with reachable(folder):
        with read_only(folder), pytest.raises(UserError) as caught:
            Library(folder)
        assert str(folder) in refusal(caught.value)
        with read_only(folder), pytest.raises(UserError) as caught:
            Library(folder / "deeper")
        refusal(caught.value)
        library = Library(folder)
        entry = library.add(picture(), "x")
        library.close()
        with read_only(folder), pytest.raises(UserError) as caught:
            Library(folder).add(picture(seed=1), "y")
        assert str(folder) in refusal(caught.value)
    assert [kept.id for kept in assert_sound(folder)] == [entry.id]


def test_a_full_disk_adds_nothing(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    library.add(picture(seed=1), "before")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError) as caught:
            library.add(picture(seed=2), "too much")
        assert "no space" in refusal(caught.value)
    assert [entry.title for entry in assert_sound(library.folder)] == ["before"]
    library.add(picture(seed=2), "after")
    assert [entry.title for entry in assert_sound(library.folder)] == ["after", "before"]


def test_a_full_index_adds_nothing(library: Library) -> None:
    library.add(picture(seed=1), "before")
    library._connection.execute("PRAGMA max_page_count = 1")  # SQLite takes the present size at least
    with pytest.raises(UserError) as caught:
        library.add(picture("a long prompt " * 5000, 2), "too much")
    assert "no space" in refusal(caught.value)
    library._connection.execute("PRAGMA max_page_count = 100000")
    assert [entry.title for entry in assert_sound(library.folder)] == ["before"]
