"""A browser, and servers to open in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.servers import Server

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",  # WebGL without a GPU, for 3-D objects
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 60_000


def no_browser(reason: str) -> None:
    """Skip, except where a skipped check would pass for a passed one."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        installed = next(filter(None, map(shutil.which, NAMES)), playwright.chromium.executable_path)
        if not Path(installed).exists():
            no_browser("no Chromium here: install Debian's package 'chromium', or run 'playwright install chromium'")
        launched = playwright.chromium.launch(executable_path=installed, args=ARGUMENTS)
        expect.set_options(timeout=PATIENCE_MS)
        yield launched
        launched.close()


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens an empty tab with the options of a new context. No script in it may fail uncaught."""
    errors: list[str] = []
    contexts = []

    def open_one(**options: object) -> Page:
        contexts.append(browser.new_context(accept_downloads=True, **options))  # type: ignore[arg-type]
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def page(open_tab: Callable[..., Page]) -> Page:
    return open_tab(viewport={"width": 1440, "height": 900})


@pytest.fixture(scope="session")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server("tiny", tmp_path_factory.mktemp("tiny") / "outputs")
    yield server
    server.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Server]]:
    """Starts a server of a kind, which is stopped when the test ends."""
    started: list[Server] = []

    def start_one(kind: str) -> Server:
        started.append(Server(kind, tmp_path / "outputs"))
        return started[-1]

    yield start_one
    for server in started:
        server.stop()
