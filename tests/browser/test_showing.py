"""An object in the page: turned around in a clip, which is downloaded as a GIF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from pipelines.media import Video, load_artifact
from tests.browser.servers import Server
from tests.browser.test_page import assert_fits, generate, stage, tab
from tests.test_objects import two_boxes


def test_an_object_is_turned_around_and_kept_as_a_gif(
    page: Page, start: Callable[[str], Server], tmp_path: Path
) -> None:
    two_boxes().save(tmp_path / "boxes.glb")
    page.goto(start("real").url)
    tab(page, "Studio")
    tab(page, "Edit")
    tab(page, "Object")
    tab(page, "Turn an object around")
    page.locator(".inputs:visible input[type=file]").set_input_files(tmp_path / "boxes.glb")
    expect(page.locator(".inputs:visible canvas")).to_be_visible()
    generate(page)
    expect(stage(page).locator("video")).to_be_visible()
    assert_fits(page, 1440)
    with page.expect_download() as caught:
        stage(page).get_by_role("link", name="Download as GIF").click()
    caught.value.save_as(tmp_path / "boxes.gif")
    made = load_artifact(tmp_path / "boxes.gif")
    assert isinstance(made, Video) and made.frames.shape == (60, 384, 384, 3)
    page.screenshot(path=tmp_path / "page.png")
