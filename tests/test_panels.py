"""The Studio tab's panels: made when looked at, filled by a remix."""

from __future__ import annotations

import json

import gradio as gr
import pytest

from app.settings import Settings
from app.studio import Saved, Studio
from app.ui import build
from app.ui.markup import result
from app.ui.panels import Panels
from app.ui.studio_tab import PipelinePanel
from models.errors import UserError
from pipelines.base import Registry
from pipelines.edits import EDITS
from pipelines.media import Text
from tests.tiny import Hum, Paint


@pytest.fixture
def panels(tiny_studio: Studio) -> Panels:
    with gr.Blocks(), gr.Tabs() as rooms, gr.Tab("Studio", id="studio"):
        return Panels(tiny_studio, rooms)


def apple(studio: Studio) -> str:
    [made] = [e for e in studio.generate("tiny-paint", [Text("a red apple")], {"seed": 7}) if isinstance(e, Saved)]
    return made.entry.id


def pressed(entry: str) -> gr.EventData:
    return gr.EventData(None, {"entry": entry})


def test_a_pipeline_more_costs_the_first_view_of_the_page_next_to_nothing(
    tiny_settings: Settings, tiny_registry: Registry, tiny_studio: Studio
) -> None:
    def parts(registry: Registry) -> int:
        page = build(Studio(tiny_settings, registry, tiny_studio.manager)).get_config_file()
        endpoints = [part for part in page["components"] if part["type"] == "api"]
        return len(page["components"]) - len(endpoints)

    edits = [edit() for edit in EDITS]
    media = {edit.routes[0].output for edit in edits}
    rows_of_tabs = 2 + 2 * len(media)
    assert parts(Registry([*tiny_registry, *edits])) - parts(tiny_registry) == 3 * len(edits) + rows_of_tabs


def test_a_remix_opens_the_panel_and_every_press_is_a_wish_of_its_own(panels: Panels, tiny_studio: Studio) -> None:
    entry = apple(tiny_studio)
    first, second = panels._remix(pressed(entry)), panels._remix(pressed(entry))
    herald = panels._heralds["tiny-paint"]
    assert [update.selected for part, update in first.items() if isinstance(part, gr.Tabs)] == ["studio", "tiny-paint"]
    wishes = [json.loads(wished[herald]) for wished in (first, second)]
    assert [wish["entry"] for wish in wishes] == [entry, entry] and first[herald] != second[herald]
    with gr.Blocks():
        panel = PipelinePanel(tiny_studio, Paint())
    filled = panels._filled(panel, first[herald])
    assert filled[panel._inputs[0][0]] == "a red apple" and filled[panel._seed] == 7
    assert set(filled) <= set(panel.fillable())


def test_refining_is_the_same_with_the_settings_that_refine(
    panels: Panels, tiny_studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, herald = apple(tiny_studio), panels._heralds["tiny-paint"]
    made = tiny_studio.library.get(entry)
    assert "Refine" not in result(made, pipelines=tiny_studio.registry)
    monkeypatch.setattr(Paint, "refined_by", {"strength": made.provenance.params["strength"]})
    assert "Refine" not in result(made, pipelines=tiny_studio.registry)
    monkeypatch.setattr(Paint, "refined_by", {"strength": 1.75})
    assert "Refine" in result(made, pipelines=tiny_studio.registry)
    with gr.Blocks():
        panel = PipelinePanel(tiny_studio, Paint())
    filled = panels._filled(panel, panels._refine(pressed(entry))[herald])
    assert filled[panel._inputs[0][0]] == "a red apple" and filled[panel._seed] == 7
    assert filled[panel._controls["strength"]] == 1.75


def test_without_a_wish_a_panel_stays_as_it_is(panels: Panels, tiny_studio: Studio) -> None:
    with gr.Blocks():
        panel = PipelinePanel(tiny_studio, Paint())
    assert panels._filled(panel, "") == gr.skip()


def test_what_cannot_be_remixed_is_said(tiny_studio: Studio, panels: Panels) -> None:
    entry = apple(tiny_studio)
    with pytest.raises(UserError, match="not in the gallery"):
        panels._remix(pressed("nothing"))
    with gr.Blocks(), gr.Tabs() as rooms, gr.Tab("Studio", id="studio"):
        fewer = Panels(Studio(tiny_studio.settings, Registry([Hum()]), tiny_studio.manager), rooms)
    with pytest.raises(UserError, match="'tiny-paint', which is not installed"):
        fewer._remix(pressed(entry))
