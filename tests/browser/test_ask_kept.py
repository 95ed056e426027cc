"""A conversation over a reload of the page and a restart of the app."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from playwright.sync_api import Page, expect

from tests.browser.servers import Server
from tests.browser.test_ask import attach, box, open_ask, picture, press, say, turn


def keep(page: Page, text: str) -> None:
    page.evaluate("text => sessionStorage.setItem('synesthete-talk', text)", text)


def test_a_reload_and_a_restart_keep_the_conversation(
    page: Page, start: Callable[[str], Server], tmp_path: Path
) -> None:
    PillowImage.fromarray(np.full((32, 32, 3), (200, 80, 40), np.uint8)).save(tmp_path / "photo.png")
    server = start("tiny")
    open_ask(page, server)
    attach(page, tmp_path / "photo.png")
    box(page).press("Enter")
    expect(turn(page, 1)).to_contain_text("What shall become of")
    say(page, "draw a red apple")
    expect(turn(page, 2)).to_contain_text("Here is the picture of a red apple (@2)")
    page.reload()
    expect(turn(page, 1).locator(".asked img")).to_be_visible()
    expect(turn(page, 2)).to_contain_text("Here is the picture of a red apple (@2)")
    expect(picture(page, 2)).to_have_js_property("complete", True)
    server.restart()
    page.goto(server.url)
    expect(picture(page, 2)).to_be_visible()
    press(page, "Make a sound of it")
    expect(turn(page, 3)).to_contain_text("photo.png (@1)")
    if turn(page, 3).get_by_role("button", name="Run").is_visible():
        press(page, "Run")
    expect(turn(page, 3).locator("sound-player")).to_be_visible()
    say(page, "draw a blue car")
    expect(picture(page, 4)).to_be_visible()

    for made in server.folder.glob("files/*/*.wav"):
        made.unlink()
    page.reload()
    expect(page.get_by_text("One thing of this conversation is not in the gallery any more")).to_be_visible()
    expect(picture(page, 4)).to_be_visible()
    expect(page.locator('.piece[data-number="3"]')).to_have_count(0)
    press(page, "New conversation")
    expect(page.get_by_role("article")).to_have_count(0)
    page.reload()
    expect(page.get_by_text("What shall it be?")).to_be_visible()


def test_two_tabs_of_a_browser_keep_two_conversations(page: Page, tiny_server: Server) -> None:
    open_ask(page, tiny_server)
    say(page, "draw a cat")
    expect(picture(page, 1)).to_be_visible()
    other = page.context.new_page()
    open_ask(other, tiny_server)
    expect(other.get_by_text("What shall it be?")).to_be_visible()
    say(other, "draw a dog")
    expect(picture(other, 1)).to_have_attribute("alt", "a dog")
    page.reload()
    expect(picture(page, 1)).to_have_attribute("alt", "a cat")


@pytest.mark.parametrize(
    "text", ["{not json", '{"version":1,"items":[],"focus":[],"turns":[{"prompt":"x"}]}', "9" * 99]
)
def test_what_is_no_conversation_does_no_harm(page: Page, tiny_server: Server, text: str) -> None:
    open_ask(page, tiny_server)
    keep(page, text)
    page.reload()
    expect(page.get_by_text("What shall it be?")).to_be_visible()
    say(page, "draw a cat")
    expect(picture(page, 1)).to_be_visible()
