"""What somebody else's package makes, in the page of the real app."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.servers import Server
from tests.browser.test_ask import open_ask, say, turn
from tests.browser.test_page import generate, stage, tab
from tests.installed_packages import install


def test_an_unheard_of_medium_is_asked_for_and_downloaded(
    page: Page, start: Callable[[str], Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(install("synesthete-scent", tmp_path / "site")))
    server = start("real")
    open_ask(page, server)
    say(page, "make a scent of pine forest")
    expect(turn(page, 1)).to_contain_text("Here is the scent")
    with page.expect_download() as caught:
        turn(page, 1).get_by_role("link", name="Download").click()
    assert caught.value.suggested_filename.endswith(".scent")
    caught.value.save_as(tmp_path / "pine.scent")
    assert len(json.loads((tmp_path / "pine.scent").read_bytes())["notes"]) == 3

    tab(page, "Studio")
    tab(page, "Perfumer")
    page.get_by_label("Prompt", exact=True).filter(visible=True).fill("old books")
    generate(page)
    expect(stage(page).get_by_role("link", name="Download")).to_be_visible()
