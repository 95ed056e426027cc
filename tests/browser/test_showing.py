"""An object in the page: turned around in a clip, which is downloaded as a GIF, and looked at in the gallery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app.library import Library
from pipelines.media import Video, load_artifact
from tests.browser.servers import Server
from tests.browser.test_page import assert_fits, generate, stage, tab
from tests.media_examples import made
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
    turned = load_artifact(tmp_path / "boxes.gif")
    assert isinstance(turned, Video) and turned.frames.shape == (60, 384, 384, 3)
    page.screenshot(path=tmp_path / "page.png")


@pytest.mark.parametrize("width", [1440, 390])
def test_an_object_in_the_gallery_is_closed_in_its_corner(
    width: int, tiny_server: Server, open_tab: Callable[..., Page], tmp_path: Path
) -> None:
    library = Library(tiny_server.folder)
    library.add(two_boxes().with_provenance(made(pipeline="tiny-hum")), f"boxes {width} wide")
    library.close()
    page = open_tab(viewport={"width": width, "height": 900})
    page.goto(tiny_server.url)
    tab(page, "Gallery")
    page.get_by_role("button", name=f"boxes {width} wide, 3-D object").click()
    canvas, close = page.locator(".opened .object canvas"), page.get_by_role("button", name="Close")
    expect(canvas).to_be_visible()
    page.screenshot(path=tmp_path / "page.png")
    whole, corner = canvas.bounding_box(), close.bounding_box()
    assert whole is not None and corner is not None
    assert whole["y"] <= corner["y"] < whole["y"] + 24
    assert 0 <= whole["x"] + whole["width"] - corner["x"] - corner["width"] < 24
    for other in page.locator(".opened .object button").all():
        box = other.bounding_box()
        assert box is not None and box["x"] + box["width"] < corner["x"]
    close.click()
    expect(page.locator(".opened")).to_be_hidden()
