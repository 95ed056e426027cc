"""From the page to the shipped weights and back: a picture is heard, a silent clip gets a sound, a scan is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from playwright.sync_api import Page, expect

from pipelines.fmri.pipeline import GUIDED, OF_MEASUREMENT
from pipelines.media import Artifact, Audio, Video, load_artifact
from pipelines.sounds import LOUDNESS, loudness
from tests.browser.servers import Server
from tests.browser.test_ask import attach, open_ask, say, turn
from tests.browser.test_page import generate, stage, tab

PICTURES = Path("assets/examples/pictures")
Some = TypeVar("Some", bound=Artifact)


def kept(server: Server, medium: type[Some]) -> list[Some]:
    """What of this medium lies in the gallery's folder."""
    paths = [path for path in (server.folder / "files").rglob("*") if path.suffix in medium.suffixes]
    return [found for found in map(load_artifact, paths) if isinstance(found, medium)]


def test_a_picture_is_heard_and_a_silent_clip_gets_its_sound(
    page: Page, start: Callable[[str], Server], tmp_path: Path
) -> None:
    server = start("real")
    open_ask(page, server)
    attach(page, PICTURES / "dog.png")
    say(page, "make a sound of this picture")
    expect(turn(page, 1).locator("sound-player")).to_be_visible()
    [sound] = kept(server, Audio)
    assert sound.sample_rate == 16_000 and sound.samples.shape == (1, 64_000)
    assert np.abs(sound.samples).max() <= 0.89 and loudness(sound.samples[0], 16_000) <= LOUDNESS + 0.5
    assert sound.provenance is not None and sound.provenance.pipeline == "v2a"

    shade = np.linspace(40, 200, 24).astype(np.uint8)[:, None, None, None]
    Video(np.broadcast_to(shade, (24, 64, 64, 3)).copy(), 12.0).save(tmp_path / "silent.mp4")
    attach(page, tmp_path / "silent.mp4")
    say(page, "give this clip a sound")
    expect(turn(page, 2).locator("video")).to_be_visible()
    [clip] = [clip for clip in kept(server, Video) if clip.audio is not None]
    assert clip.audio is not None and np.abs(clip.audio.samples).max() > 0.01 and len(clip.frames) == 24
    assert abs(clip.audio.samples.shape[1] / clip.audio.sample_rate - 2.0) < 0.1


def test_an_example_scan_is_read_with_its_badge(page: Page, start: Callable[[str], Server], tmp_path: Path) -> None:
    page.goto(start("real").url)
    tab(page, "Studio")
    tab(page, "Picture from a brain scan")
    page.get_by_role("button", name="measured house").click()
    expect(page.get_by_text("measured-house").first).to_be_visible()
    generate(page)
    expect(page.locator(".stage.result:visible .frame img")).to_be_visible()
    tab(page, "Gallery")
    page.get_by_role("button", name=re.compile(", text$")).first.click()
    for words in ("a house", OF_MEASUREMENT, GUIDED):
        expect(stage(page)).to_contain_text(words)

    page.reload()
    tab(page, "Studio")
    tab(page, "Picture from a brain scan")
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8b" + b"no scan" * 9)
    page.locator(".inputs:visible input[type=file]").set_input_files(tmp_path / "broken.nii.gz")
    expect(page.get_by_text("broken").first).to_be_visible()
    generate(page)
    expect(page.get_by_text("is damaged, or not of a kind that is read")).to_be_visible()
