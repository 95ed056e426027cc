"""What must be said beside an artifact: it stays with the file and in the gallery, and stands on every page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from pydantic import ValidationError

from app.library import Entry, Library
from app.ui import markup
from app.ui.ask_markup import conversation
from app.ui.talk import Piece, Talk
from pipelines.artifact import BADGE_CHARACTERS
from pipelines.base import Lender, provenance
from pipelines.edits.image import ImageRotate
from pipelines.media import Artifact, load_artifact
from tests.library_examples import picture
from tests.media_examples import every_file, made

SAID = 'Simulated <b>brain</b> data & "more": computed, not measured.'
ESCAPED = "Simulated &lt;b&gt;brain&lt;/b&gt; data &amp; &quot;more&quot;: computed, not measured."


def in_ask(entry: Entry) -> str:
    talk = Talk()
    talk.add("decode this").shown = [Piece(1, entry.medium, entry.title, entry)]
    return conversation(talk, {}, [])


PAGES: dict[str, Callable[[Entry], str]] = {
    "result": markup.result,
    "gallery": lambda entry: markup.thumbnails([entry], ""),
    "ask": in_ask,
}


def added(folder: Path, badge: str) -> tuple[Library, Entry]:
    library, painted = Library(folder), picture()
    assert painted.provenance is not None
    recipe = painted.provenance.model_copy(update={"badge": badge})
    return library, library.add(painted.with_provenance(recipe), "a red apple")


@pytest.mark.parametrize("page", PAGES)
def test_a_badge_stands_beside_its_artifact_on_every_page(page: str, tmp_path: Path) -> None:
    _, entry = added(tmp_path / "with", SAID)
    _, plain = added(tmp_path / "without", "")
    html = PAGES[page](entry)
    assert f">{ESCAPED}</span>" in html and "<b>" not in html
    assert 'class="badge"' not in PAGES[page](plain)


def test_a_thumbnail_is_called_by_its_badge_too(tmp_path: Path) -> None:
    """A button's label replaces what is in it for those who cannot see."""
    _, entry = added(tmp_path, SAID)
    assert f'aria-label="a red apple, picture. {ESCAPED}"' in markup.thumbnails([entry], "")


@pytest.mark.parametrize(("artifact", "suffix"), every_file())
def test_a_badge_is_saved_with_the_file(artifact: Artifact, suffix: str, tmp_path: Path) -> None:
    artifact.with_provenance(made(badge=SAID)).save(tmp_path / f"it{suffix}")
    loaded = load_artifact(tmp_path / f"it{suffix}")
    assert loaded.provenance is not None and loaded.provenance.badge == SAID


def test_a_badge_is_kept_in_the_gallery_and_a_run_is_found_without_knowing_it(tmp_path: Path) -> None:
    library, entry = added(tmp_path, SAID)
    library.note_run([entry])
    library.close()
    library = Library(tmp_path)
    loaded = library.load(entry.id)
    assert loaded.provenance is not None and loaded.provenance.badge == SAID
    assert library.made_by(loaded.provenance.model_copy(update={"badge": ""})) == [entry]


def test_provenance_from_before_there_were_badges_is_read_and_none_is_a_book() -> None:
    old = made().model_dump(mode="json", exclude={"badge"})
    assert type(made()).model_validate(old) == made()
    with pytest.raises(ValidationError):
        made(badge="x" * 401)


def test_what_is_made_of_things_with_badges_has_all_of_them_once() -> None:
    rotate = ImageRotate()
    simulated, plain = picture().with_provenance(made(badge=SAID)), picture()
    long = picture().with_provenance(made(badge="x" * BADGE_CHARACTERS))

    def badge_of(*inputs: Artifact) -> str:  # an edit leases no model
        return provenance(rotate, inputs, rotate.parse_params({}), cast(Lender, object())).badge

    assert badge_of(plain) == badge_of() == ""
    assert badge_of(simulated) == badge_of(plain, simulated, simulated) == SAID
    assert badge_of(simulated, long) == f"{SAID} {'x' * BADGE_CHARACTERS}"[:BADGE_CHARACTERS]
