"""The Machine tab in a real browser, and what a running app tells of its models to others."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Locator, Page, expect

from app.cli import main
from app.ui.machine_tab import SECONDS_BETWEEN_LOOKS
from models.accounts import readable_bytes
from tests.browser.servers import Server
from tests.browser.test_page import assert_fits, assert_readable, generate, open_page, picture, tab

PAINT = "/generate_tiny_paint"
SILENCE_MS = 1.5 * 1000 * SECONDS_BETWEEN_LOOKS


def resident(page: Page) -> Locator:
    return page.get_by_role("row", name=re.compile("painter"))


@pytest.fixture
def client(tiny_server: Server) -> Client:
    return Client(tiny_server.url, verbose=False)


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_model_is_seen_in_memory_and_freed(
    open_tab: Callable[..., Page], tiny_server: Server, client: Client, width: int, scheme: str
) -> None:
    page = open_tab(viewport={"width": width, "height": 900}, color_scheme=scheme)
    open_page(page, tiny_server)
    generate(page, "something to load a model for")
    expect(picture(page)).to_be_visible()
    tab(page, "Machine")
    [held] = client.predict(api_name="/machine")["models"]
    expect(resident(page)).to_contain_text(readable_bytes(held["bytes"]))
    expect(resident(page)).to_contain_text(held["precision"])
    expect(page.locator(".decisions")).to_contain_text("Loaded painter")
    expect(page.locator(".plot")).to_have_attribute("aria-label", re.compile(r"this program [\d.]+ [GM]B"))
    assert_fits(page, width)
    assert_readable(page)

    page.get_by_role("button", name="Free painter").click()
    expect(resident(page)).to_have_count(0)
    expect(page.get_by_role("status").filter(has_text="Freed")).to_contain_text(readable_bytes(held["bytes"]))
    expect(page.locator(".decisions li").first).to_contain_text("Freed painter")
    assert client.predict(api_name="/machine")["models"] == []
    assert_fits(page, width)
    assert_readable(page)


def test_the_keyboard_frees_and_the_focus_stays_near(page: Page, tiny_server: Server, client: Client) -> None:
    client.predict(prompt="anything", api_name=PAINT)
    open_page(page, tiny_server)
    tab(page, "Machine")
    expect(resident(page)).to_be_visible()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.entry") == "painter":
            break
    idle = resident(page).get_by_role("cell").nth(3)
    before = idle.inner_text()
    expect(idle).not_to_have_text(before)  # it was drawn again ...
    assert page.evaluate("document.activeElement.dataset.entry") == "painter"  # ... and kept the focus
    page.keyboard.press("Enter")
    expect(resident(page)).to_have_count(0)
    expect(page.get_by_role("button", name="Free idle")).to_be_focused()


def test_the_page_looks_only_while_the_tab_is_open(page: Page, tiny_server: Server) -> None:
    open_page(page, tiny_server)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
    page.wait_for_timeout(SILENCE_MS)  # what opening the page asks for
    asked.clear()
    page.wait_for_timeout(SILENCE_MS)
    assert asked == []
    tab(page, "Machine")
    for _ in range(3):
        page.wait_for_event("request", lambda request: request.method == "POST")
    tab(page, "Gallery")
    page.wait_for_timeout(1_000)  # what leaving it asks for
    asked.clear()
    page.wait_for_timeout(SILENCE_MS)
    assert asked == []


def test_both_buttons_free_what_is_idle(page: Page, tiny_server: Server, client: Client) -> None:
    open_page(page, tiny_server)
    tab(page, "Machine")
    for button in ("Free idle", "Free all"):
        client.predict(prompt="anything", api_name=PAINT)
        expect(resident(page)).to_be_visible()
        page.get_by_role("button", name=button).click()
        expect(resident(page)).to_have_count(0)


def test_a_script_sees_and_frees_models(client: Client) -> None:
    client.predict(prompt="anything", api_name=PAINT)
    machine = client.predict(api_name="/machine")
    assert machine["models"][0]["keys"] == ["painter"] and machine["budget_bytes"] == 10_000_000
    with pytest.raises(AppError, match="no model called 'nobody'"):
        client.predict(key="nobody", api_name="/free")
    assert client.predict(key="painter", api_name="/free")["bytes"] == machine["used_bytes"] > 0
    assert client.predict(api_name="/free")["bytes"] == 0


def test_metrics_are_served_beside_the_page(tiny_server: Server, client: Client) -> None:
    client.predict(prompt="anything", api_name=PAINT)
    with urllib.request.urlopen(f"{tiny_server.url}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = answer.read().decode()
    assert "\nsynesthete_models_loaded 1\n" in text and "# TYPE synesthete_loads_total counter" in text


def test_the_command_line_frees_models_of_a_running_app(
    tiny_server: Server, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([], ["painter"], ["--all"]):
        client.predict(prompt="anything", api_name=PAINT)
        [held] = client.predict(api_name="/machine")["models"]
        assert main(["models", "free", *arguments, "--url", tiny_server.url, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["bytes"] == held["bytes"]
        assert client.predict(api_name="/machine")["models"] == []
    assert main(["models", "free", "--url", tiny_server.url]) == 0
    assert capsys.readouterr().out == "Freed 0 bytes.\n"
    assert main(["models", "free", "nobody", "--url", tiny_server.url]) == 2
    assert "no model called 'nobody'" in capsys.readouterr().err
