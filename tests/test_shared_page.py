"""A page that strangers share: what one of them could spoil for the others is not there, and cannot be called."""

from __future__ import annotations

import gradio as gr
import pytest

from app.settings import Settings, load_settings
from app.studio import Studio
from app.ui import build
from app.ui.machine_tab import MachineTab


def shared_studio(studio: Studio, shared: bool) -> Studio:
    settings: Settings = studio.settings.model_copy(update={"shared": shared})
    return Studio(settings, studio.registry, studio.manager)


@pytest.mark.parametrize("shared", [False, True])
def test_nothing_can_be_deleted_or_freed_on_a_shared_page(tiny_studio: Studio, shared: bool) -> None:
    page = build(shared_studio(tiny_studio, shared))
    listened = {event for dependency in page.fns.values() for _, event in dependency.targets}
    assert ("remove" in listened) is not shared
    assert ("/free" in page.get_api_info()["named_endpoints"]) is not shared
    assert {"open", "remix"} <= listened and "/machine" in page.get_api_info()["named_endpoints"]


@pytest.mark.parametrize("shared", [False, True])
def test_the_machine_is_shown_without_what_frees_it(tiny_studio: Studio, shared: bool) -> None:
    with tiny_studio.manager.lease("painter"):
        pass
    with gr.Blocks():
        table = MachineTab(shared_studio(tiny_studio, shared)).look().values()
    html = " ".join(str(part) for part in table)
    assert "painter" in html and ("Free painter" in html) is not shared


def test_a_space_is_shared_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert not load_settings().shared
    monkeypatch.setenv("SPACE_ID", "someone/synesthete")
    assert load_settings().shared and not load_settings(shared=False).shared
