"""The Studio's panels, each made when its tab is first looked at."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.browser.servers import Server
from tests.browser.test_page import generate, open_page, picture, prompt, setting, stage, tab


def test_a_panel_is_made_once_and_keeps_everything(page: Page, tiny_server: Server) -> None:
    open_page(page, tiny_server)
    setting(page, "Strength").fill("1.5")
    generate(page, "a first one")
    expect(picture(page)).to_have_attribute("alt", "a first one")
    prompt(page).fill("not sent yet")
    tab(page, "Tiny blend")
    expect(page.get_by_text("First picture")).to_be_visible()
    tab(page, "Ask")
    tab(page, "Studio")
    tab(page, "Tiny painting")
    expect(prompt(page)).to_have_value("not sent yet")
    expect(setting(page, "Strength")).to_have_value("1.5")
    expect(picture(page)).to_have_attribute("alt", "a first one")


def test_a_remix_fills_a_panel_that_is_there_and_one_that_is_not(page: Page, tiny_server: Server) -> None:
    open_page(page, tiny_server)
    generate(page, "a second one")
    expect(picture(page)).to_be_visible()
    for _ in range(2):
        prompt(page).fill("something else")
        stage(page).get_by_role("button", name="Remix").click()
        expect(prompt(page)).to_have_value("a second one")
    page.reload()
    tab(page, "Gallery")
    page.get_by_role("button", name="a second one, picture").first.click()
    stage(page).get_by_role("button", name="Remix").click()
    expect(prompt(page)).to_have_value("a second one")
