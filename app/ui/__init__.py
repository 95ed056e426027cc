"""The page. It reaches models and files through :class:`~app.studio.Studio` only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from app.assistant import Assistant
from app.studio import Studio
from app.ui import markup
from app.ui.api import build_api
from app.ui.ask_tab import AskTab
from app.ui.gallery_tab import GalleryTab
from app.ui.inputs import WORDS
from app.ui.machine_tab import MachineTab
from app.ui.metrics import metrics_route
from app.ui.notices import LIGHT, telling
from app.ui.studio_tab import PipelinePanel
from app.ui.theme import HERE, head, theme
from models.errors import UserError
from pipelines.base import Pipeline

EDIT = "edit"
Selection = dict[gr.Tabs, str]  # which tab is open in each row of tabs

TO_TOP = """() => { window.scrollTo({ top: 0, behavior: "smooth" }); }"""


def build(studio: Studio) -> gr.Blocks:
    """The page over ``studio``, with its queue, ready to be launched."""
    with gr.Blocks(title="Synesthete", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(markup.header(), apply_default_css=False)
        assistant = Assistant(studio)
        with gr.Tabs(elem_classes=["rooms"]) as rooms:
            with gr.Tab("Ask", id="ask") as ask_tab:
                ask = AskTab(studio, assistant)
            with gr.Tab("Studio", id="studio") as studio_tab:
                panels, places = build_panels(studio)
            with gr.Tab("Gallery", id="gallery") as gallery_tab:
                gallery = GalleryTab(studio)
            with gr.Tab("Machine", id="machine") as machine_tab:
                machine = MachineTab(studio)
        gr.on([page.load, gallery_tab.select], telling(gallery.refresh), gallery.query, gallery.listing, **LIGHT)
        machine_tab.select(telling(machine.open), outputs=machine.opened, **LIGHT)
        gr.on([ask_tab.select, studio_tab.select, gallery_tab.select], machine.close, outputs=machine.timer, **LIGHT)
        ask.name_the_box(page, ask_tab)
        stages = [ask.log, ask.viewer.stage, gallery.viewer.stage, *(panel.viewer.stage for panel in panels.values())]
        _connect_remix(studio, stages, rooms, panels, places)
        build_api(studio, assistant)
    page.queue(max_size=studio.settings.max_queue)
    return page


def build_panels(studio: Studio) -> tuple[dict[str, PipelinePanel], dict[str, Selection]]:
    """A tab for each pipeline, and one for all edits; gives the panels by name, and what to select to see each."""
    edits = [pipeline for pipeline in studio.registry if pipeline.is_edit]
    panels: dict[str, PipelinePanel] = {}
    places: dict[str, Selection] = {}
    with _pills() as systems:
        for pipeline in studio.registry:
            if not pipeline.is_edit:
                panels[pipeline.name], places[pipeline.name] = _panel(studio, pipeline, systems, {})
        if edits:
            with gr.Tab("Edit", id=EDIT), _pills() as media:
                for medium in dict.fromkeys(edit.routes[0].output for edit in edits):
                    above = {systems: EDIT, media: medium}
                    with gr.Tab(WORDS.get(medium, medium.capitalize()), id=medium), _pills() as tabs:
                        for edit in edits:
                            if edit.routes[0].output == medium:
                                panels[edit.name], places[edit.name] = _panel(studio, edit, tabs, above)
    return panels, places


def _pills() -> gr.Tabs:
    return gr.Tabs(elem_classes=["systems"], overflow_behavior="wrap")


def _panel(studio: Studio, pipeline: Pipeline, tabs: gr.Tabs, above: Selection) -> tuple[PipelinePanel, Selection]:
    with gr.Tab(pipeline.title, id=pipeline.name):
        return PipelinePanel(studio, pipeline), above | {tabs: pipeline.name}


def _connect_remix(
    studio: Studio,
    stages: Sequence[gr.HTML],
    rooms: gr.Tabs,
    panels: dict[str, PipelinePanel],
    places: dict[str, Selection],
) -> None:
    def remix(event: gr.EventData) -> dict[Any, Any]:
        name, inputs, params = studio.remix(event.entry)
        if name not in panels:
            raise UserError(f"This was made by '{name}', which is not installed.", "Install it to remix this.")
        selection = {rooms: "studio"} | places[name]
        shown = {tabs: gr.Tabs(selected=chosen) for tabs, chosen in selection.items()}
        return shown | panels[name].filled(inputs, params)

    tabs = dict.fromkeys(tabs for place in places.values() for tabs in place)
    outputs = [rooms, *tabs, *(component for panel in panels.values() for component in panel.fillable())]
    for stage in stages:
        filled = stage.remix(telling(remix), outputs=outputs, **LIGHT)
        filled.then(None, js=TO_TOP, api_visibility="private")


def launch(studio: Studio) -> None:
    """Serve the page until the process is told to end."""
    settings = studio.settings
    build(studio).launch(
        server_name=settings.host,
        server_port=settings.port,
        theme=theme(),
        head=head(),
        favicon_path=HERE / "favicon.svg",
        allowed_paths=[str(studio.library.folder.absolute() / "files")],
        footer_links=["api", "settings"],
        max_file_size=f"{settings.max_upload_mb}mb",
        ssr_mode=False,
        share=False,
        run_history=False,
        app_kwargs={"routes": [metrics_route(studio)]},
    )
