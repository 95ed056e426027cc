"""Sounds on the page: what their waveforms show, and what can be downloaded of them."""

from __future__ import annotations

import io
import re
from email.message import Message
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app.library import Entry
from app.studio import Saved, Studio
from app.ui import markup
from app.ui.downloads import download_route
from app.ui.sounds import COLUMNS, Waveform, peaks, player, waveform, waveform_of
from pipelines.describe.pipeline import Describe
from pipelines.edits.audio import AudioGain
from pipelines.media import Audio, Text
from tests.media_examples import made
from tests.tiny import Hum

HOSTILE = "<script>x</script> \"'& 🍎"
TOLERANCES = {"wav": 0.0, "flac": 0.0, "ogg": 0.05}


class Tags(HTMLParser):
    """Every start tag with its attributes, as a browser reads them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def tone(seconds: float = 0.5) -> Audio:
    time = np.arange(round(8000 * seconds)) / 8000
    left, right = 0.5 * np.sin(2 * np.pi * 220 * time), 0.25 * np.sin(2 * np.pi * 330 * time)
    return Audio(np.stack([left, right]).astype(np.float32), 8000)


@pytest.fixture
def entry(tiny_studio: Studio) -> Entry:
    sound = tone().with_provenance(made(pipeline=Hum.name))
    return tiny_studio.library.add(sound, HOSTILE)


@pytest.fixture
def client(tiny_studio: Studio) -> TestClient:
    return TestClient(Starlette(routes=[download_route(tiny_studio)]))


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 500)), elements=st.floats(-1, 1, width=32)),
    st.integers(1, 200),
)
@settings(max_examples=60)
def test_peaks_bound_every_sample_and_are_reached(samples: np.ndarray, columns: int) -> None:
    found = peaks(samples, columns)
    assert found.shape == (columns,) and found.max() == np.abs(samples).max()
    loudest = np.abs(samples).max(axis=0)
    assert set(found.tolist()) <= set(loudest.tolist())
    if samples.shape[1] >= columns:
        column_of = np.searchsorted(np.arange(columns) * len(loudest) // columns, np.arange(len(loudest)), "right") - 1
        assert (found[column_of] >= loudest).all()


def test_peaks_are_where_the_sound_is() -> None:
    samples = np.zeros((2, 1000), np.float32)
    samples[1, 730] = -0.75
    found = peaks(samples, 10)
    assert found.tolist() == [0, 0, 0, 0, 0, 0, 0, 0.75, 0, 0]
    assert peaks(np.array([[0.5]], np.float32), 4).tolist() == [0.5] * 4


def test_a_waveform_is_in_percent_of_the_whole_range() -> None:
    assert waveform(Audio(np.zeros((1, 8000), np.float32), 8000)) == Waveform((0,) * COLUMNS, 1.0)
    assert waveform(Audio(np.full((1, 4000), -1, np.float32), 8000)) == Waveform((100,) * COLUMNS, 0.5)
    assert max(waveform(tone()).peaks) == 50


def test_a_sound_in_the_gallery_is_drawn_once(
    tiny_studio: Studio, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = waveform_of(tiny_studio.library, entry)
    assert drawn == waveform(tone())
    monkeypatch.setattr(tiny_studio.library, "load", lambda id: pytest.fail("it was read again"))
    assert waveform_of(tiny_studio.library, entry) == drawn


def test_other_media_and_lost_or_damaged_sounds_have_no_waveform(tiny_studio: Studio, entry: Entry) -> None:
    words = tiny_studio.library.add(Text("words").with_provenance(made()), "words")
    assert waveform_of(tiny_studio.library, words) is None
    entry.path.write_bytes(b"RIFF and no more")
    assert waveform_of(tiny_studio.library, entry) is None
    [shown] = Tags(markup.result(entry)).all("sound-player")
    assert shown["peaks"] == ""
    entry.path.unlink()
    assert waveform_of(tiny_studio.library, entry) is None
    assert not Tags(markup.result(entry)).all("sound-player")


def test_the_player_holds_the_browser_s_own_and_takes_no_words_for_markup() -> None:
    tags = Tags(player("gradio_api/file=it.wav", HOSTILE, Waveform((0, 40, 100), 1.25)))
    assert [name for name, _ in tags.found] == ["sound-player", "audio"]
    [outer], [inner] = tags.all("sound-player"), tags.all("audio")
    assert (outer["peaks"], outer["seconds"], outer["aria-label"]) == ("0 40 100", "1.250", HOSTILE)
    assert inner["src"] == "gradio_api/file=it.wav" and "controls" in inner and inner["aria-label"] == HOSTILE


def test_a_sound_can_be_had_in_three_formats_and_a_picture_in_its_own(tiny_studio: Studio, entry: Entry) -> None:
    links = Tags(markup.result(entry)).all("a")
    assert [link["aria-label"] for link in links] == ["Download as WAV", "Download as FLAC", "Download as OGG"]
    assert [Path(link["download"] or "").suffix for link in links] == [".wav", ".flac", ".ogg"]
    assert [link["href"] for link in links] == [f"download/{entry.id}/{known_as}" for known_as in TOLERANCES]
    [painted] = [event for event in tiny_studio.generate("tiny-paint", [Text("a")], {}) if isinstance(event, Saved)]
    [link] = Tags(markup.result(painted.entry)).all("a")
    assert (link["download"], link["href"]) == ("a.png", f"download/{painted.entry.id}/png")


def test_only_what_chance_made_has_variations(tiny_studio: Studio, entry: Entry) -> None:
    louder = tiny_studio.library.add(tone().with_provenance(made(pipeline=AudioGain.name)), "louder")
    described = tiny_studio.library.add(Text("a bell").with_provenance(made(pipeline=Describe.name)), "a bell")
    installed = [*tiny_studio.registry, AudioGain(), Describe()]
    assert 'data-event="vary"' in markup.result(entry, pipelines=installed)
    for certain in (louder, described):
        assert 'data-event="vary"' not in markup.result(certain, pipelines=installed)
    assert 'data-event="vary"' not in markup.result(entry, pipelines=[AudioGain()]), "what made it is not installed"


@pytest.mark.parametrize("known_as", TOLERANCES)
def test_every_format_has_the_same_sound_and_its_provenance(client: TestClient, entry: Entry, known_as: str) -> None:
    answer = client.get(f"/download/{entry.id}/{known_as}")
    assert answer.status_code == 200
    loaded = Audio.decode(answer.content, f".{known_as}")
    assert loaded.sample_rate == 8000 and loaded.samples.shape == tone().samples.shape
    assert np.abs(loaded.samples - tone().samples).max() <= TOLERANCES[known_as]
    assert loaded.provenance == entry.provenance
    assert soundfile.info(io.BytesIO(answer.content)).format == known_as.upper()


def test_a_download_is_a_file_with_the_title_s_name_and_leaves_nothing_behind(
    client: TestClient, tiny_studio: Studio, entry: Entry
) -> None:
    titled = tiny_studio.library.add(tone().with_provenance(made()), "Шум моря!")
    before = sorted(tiny_studio.library.folder.rglob("*"))
    answer = client.get(f"/download/{titled.id}/flac")
    header = Message()
    header["Content-Disposition"] = answer.headers["Content-Disposition"]
    assert header.get_content_disposition() == "attachment"
    assert unquote(re.sub("^.*''", "", answer.headers["Content-Disposition"])) == "шум-моря.flac"
    assert sorted(tiny_studio.library.folder.rglob("*")) == before


def test_a_file_in_its_own_format_is_the_stored_one(client: TestClient, tiny_studio: Studio) -> None:
    [painted] = [event for event in tiny_studio.generate("tiny-paint", [Text("a")], {}) if isinstance(event, Saved)]
    answer = client.get(f"/download/{painted.entry.id}/png")
    assert answer.content == painted.entry.path.read_bytes()
    assert answer.headers["Content-Disposition"] == 'attachment; filename="a.png"'


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("0123456789abcdef/flac", 404, "This is not in the gallery any more."),
        ("..%2f..%2fetc/wav", 404, None),
        ("{id}/mp3", 400, "There is no format 'mp3' for audio. Choose one of wav, flac, ogg."),
        ("{id}/.wav", 400, "There is no format '.wav' for audio."),
        ("{id}/" + "x" * 500, 400, f"There is no format '{'x' * 20}' for audio."),
    ],
)
def test_what_cannot_be_had_gets_a_sentence(
    client: TestClient, entry: Entry, path: str, status: int, sentence: str | None
) -> None:
    answer = client.get("/download/" + path.replace("{id}", entry.id))
    assert answer.status_code == status
    if sentence:
        assert answer.text.startswith(sentence) and answer.headers["Content-Type"].startswith("text/plain")


def test_a_format_that_cannot_hold_the_sound_and_a_lost_file_are_told(
    client: TestClient, tiny_studio: Studio, entry: Entry
) -> None:
    fast = tiny_studio.library.add(Audio(tone().samples, 384_000, provenance=made()), "fast")
    answer = client.get(f"/download/{fast.id}/ogg")
    assert (answer.status_code, answer.text[:22]) == (400, "A sound of 384000 Hz d")
    assert client.get(f"/download/{fast.id}/flac").status_code == 200
    entry.path.unlink()
    answer = client.get(f"/download/{entry.id}/flac")
    assert answer.status_code == 404 and "was deleted" in answer.text
