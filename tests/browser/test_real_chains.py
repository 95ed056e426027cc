"""From the page to the shipped weights and back: sounds of pictures and words, an object of words, a scan read."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL.Image
import trimesh
from playwright.sync_api import Locator, Page, expect

from app.ui.objects import SIDE
from pipelines.fmri.pipeline import GUIDED, OF_MEASUREMENT
from pipelines.media import Artifact, Audio, Mesh, Video, load_artifact
from pipelines.sounds import LOUDNESS, loudness
from pipelines.xbind.pipeline import MOST_REFINE_STEPS, XBind
from tests.browser.conftest import PATIENCE_MS
from tests.browser.servers import Server
from tests.browser.test_ask import attach, open_ask, say, turn
from tests.browser.test_page import generate, prompt, stage, tab

PICTURES = Path("assets/examples/pictures")
Some = TypeVar("Some", bound=Artifact)


def kept(server: Server, medium: type[Some]) -> list[Some]:
    """What of this medium lies in the gallery's folder."""
    paths = [path for path in (server.folder / "files").rglob("*") if path.suffix in medium.suffixes]
    return [found for found in map(load_artifact, paths) if isinstance(found, medium)]


def await_made(page: Page, made: Locator) -> None:
    """Of the second turn; on a slow machine its plan is shown before it runs."""
    run = turn(page, 2).get_by_role("button", name="Run", exact=True)
    expect(made.or_(run).first).to_be_visible()
    if run.is_visible():
        run.click()
    expect(made).to_be_visible()


def await_contrast(page: Page, canvas: Locator) -> None:
    """Until something is drawn on it: it is fetched, and its shaders compiled, after it is there."""
    expect(canvas).to_be_visible()
    for _ in range(PATIENCE_MS // 500):
        if np.asarray(PIL.Image.open(io.BytesIO(canvas.screenshot())).convert("L")).std() > 10:
            return
        page.wait_for_timeout(500)
    raise AssertionError("nothing was drawn")


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
    await_made(page, turn(page, 2).locator("video"))
    [clip] = [clip for clip in kept(server, Video) if clip.audio is not None]
    assert clip.audio is not None and np.abs(clip.audio.samples).max() > 0.01 and len(clip.frames) == 24
    assert abs(clip.audio.samples.shape[1] / clip.audio.sample_rate - 2.0) < 0.1

    # With the panel's settings as they come, one of them left open.
    tab(page, "Studio")
    tab(page, "Sound from a picture or a clip")
    page.get_by_role("tabpanel").get_by_role("button", name="dog").first.click()
    generate(page)
    expect(stage(page).locator("sound-player")).to_be_visible()


def test_words_become_a_sound_and_an_object_to_turn_around(page: Page, start: Callable[[str], Server]) -> None:
    server = start("real")
    open_ask(page, server)
    say(page, "what does rain sound like?")
    expect(turn(page, 1).locator("sound-player")).to_be_visible()
    [sound] = kept(server, Audio)
    assert sound.provenance is not None and sound.provenance.pipeline == "audioldm"
    assert np.abs(sound.samples).max() > 0.01 and loudness(sound.samples[0], 16_000) <= LOUDNESS + 0.5

    say(page, "a 3-D model of a wooden chair")
    await_made(page, turn(page, 2).locator(".piece.mesh img"))
    drawn = turn(page, 2).locator(".piece.mesh img").evaluate("picture => [picture.complete, picture.naturalWidth]")
    assert drawn == [True, SIDE]
    turn(page, 2).get_by_role("button", name="Turn it around").click()
    await_contrast(page, page.locator(".object canvas:visible"))
    [chair] = kept(server, Mesh)
    shape = trimesh.Trimesh(chair.vertices, chair.faces)
    assert shape.is_watertight and 1000 < len(chair.faces) <= 20_000
    width, height, depth = np.ptp(chair.vertices, axis=0)
    assert height > max(width, depth), "a chair stands upright"
    assert chair.vertex_colors is not None and chair.vertex_colors.std(0).max() > 5


def test_an_object_is_refined_and_what_is_stopped_is_kept(page: Page, start: Callable[[str], Server]) -> None:
    server = start("real")
    page.goto(server.url)
    tab(page, "Studio")
    tab(page, XBind.title)
    words = prompt(page).filter(visible=True)
    words.fill("a wooden chair")
    generate(page)
    stage(page).get_by_role("button", name="Refine", exact=True).click()
    expect(page.get_by_role("radio", name="fine", exact=True)).to_be_checked()
    expect(words).to_have_value("a wooden chair")
    generate(page)
    expect(stage(page)).to_contain_text("Refining: coarse field.")
    expect(page.locator(".stage.running img.preview")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".stage.result.mesh:visible")).to_be_visible()
    await_contrast(page, page.locator(".object canvas:visible"))
    recipes = {made.provenance.params["preset"]: made for made in kept(server, Mesh) if made.provenance}
    assert recipes.keys() == {"preview", "fine"}
    stopped = recipes["fine"]
    assert stopped.provenance is not None
    assert 0 < int(str(stopped.provenance.params["refine_steps"])) < MOST_REFINE_STEPS
    assert trimesh.Trimesh(stopped.vertices, stopped.faces).is_watertight


def test_an_example_scan_is_read_with_its_badge(page: Page, start: Callable[[str], Server], tmp_path: Path) -> None:
    page.goto(start("real").url)
    tab(page, "Studio")
    tab(page, "Picture from a brain scan")
    page.get_by_role("button", name="measured house").click()
    expect(page.get_by_text("measured-house").first).to_be_visible()
    generate(page)
    expect(page.locator(".stage.result:visible .frame img")).to_be_visible()
    tab(page, "Gallery")
    page.get_by_role("button", name=re.compile(r", text\b")).first.click()
    for words in ("a house", OF_MEASUREMENT, GUIDED):
        expect(stage(page)).to_contain_text(words)

    page.reload()
    tab(page, "Studio")
    tab(page, "Picture from a brain scan")
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8b" + b"no scan" * 9)
    page.locator(".inputs:visible input[type=file]").set_input_files(tmp_path / "broken.nii.gz")
    expect(page.get_by_text("broken").first).to_be_visible()
    generate(page)
    expect(stage(page)).to_contain_text("is damaged, or not of a kind that is read")
