"""Plain edits in the page: one tab for all of them, and remixes that find their way back into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from playwright.sync_api import Page, expect

from tests.browser.servers import Server
from tests.browser.test_page import assert_fits, assert_readable, download, generate, picture, stage, tab


@pytest.mark.parametrize("width", [1440, 390])
def test_a_picture_is_edited_and_the_edit_remixed(
    open_tab: Callable[..., Page], start: Callable[[str], Server], tmp_path: Path, width: int
) -> None:
    PillowImage.fromarray(np.full((8, 8, 3), (200, 40, 40), np.uint8)).save(tmp_path / "red.png")
    page = open_tab(viewport={"width": width, "height": 900})
    page.goto(start("real").url)
    tab(page, "Studio")
    tab(page, "Edit")
    tab(page, "Picture")
    tab(page, "Invert a picture")
    expect(page.get_by_label("Seed", exact=True).filter(visible=True)).to_have_count(0)
    assert_fits(page, width)
    assert_readable(page)
    filled = page.locator(".inputs:visible img")
    page.locator(".inputs:visible input[type=file]").set_input_files(tmp_path / "red.png")
    expect(filled).to_have_count(1)
    generate(page)
    expect(picture(page)).to_be_visible()
    first = download(page, tmp_path / "first.png")
    with PillowImage.open(tmp_path / "first.png") as image:
        assert image.getpixel((0, 0)) == (55, 215, 215)

    page.reload()
    tab(page, "Gallery")
    page.get_by_role("button", name="Invert a picture, picture").click()
    stage(page).get_by_role("button", name="Remix").click()
    expect(filled).to_have_count(1)
    generate(page)
    expect(picture(page)).to_be_visible()
    assert download(page, tmp_path / "second.png") == first
