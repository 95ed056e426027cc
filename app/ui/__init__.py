"""The page. It reaches models and files through :class:`~app.studio.Studio` only."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.studio import Studio
from app.ui import markup
from app.ui.api import build_api
from app.ui.gallery_tab import GalleryTab
from app.ui.machine_tab import MachineTab
from app.ui.metrics import metrics_route
from app.ui.notices import LIGHT, telling
from app.ui.studio_tab import PipelinePanel
from app.ui.theme import HERE, head, theme
from app.ui.viewer import Viewer
from models.errors import UserError

TO_TOP = """() => { window.scrollTo({ top: 0, behavior: "smooth" }); }"""


def build(studio: Studio) -> gr.Blocks:
    """The page over ``studio``, with its queue, ready to be launched."""
    with gr.Blocks(title="Synesthete", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(markup.header(), apply_default_css=False)
        with gr.Tabs(elem_classes=["rooms"]) as rooms:
            with gr.Tab("Studio", id="studio") as studio_tab:
                panels = {}
                with gr.Tabs(elem_classes=["systems"], overflow_behavior="wrap") as systems:
                    for pipeline in studio.registry:
                        with gr.Tab(pipeline.title, id=pipeline.name):
                            panels[pipeline.name] = PipelinePanel(studio, pipeline)
            with gr.Tab("Gallery", id="gallery") as gallery_tab:
                gallery = GalleryTab(studio)
            with gr.Tab("Machine", id="machine") as machine_tab:
                machine = MachineTab(studio)
        gr.on([page.load, gallery_tab.select], telling(gallery.refresh), gallery.query, gallery.listing, **LIGHT)
        machine_tab.select(telling(machine.open), outputs=machine.opened, **LIGHT)
        gr.on([studio_tab.select, gallery_tab.select], machine.close, outputs=machine.timer, **LIGHT)
        for viewer in [gallery.viewer, *(panel.viewer for panel in panels.values())]:
            _connect_remix(studio, viewer, rooms, systems, panels)
        build_api(studio)
    page.queue(max_size=studio.settings.max_queue)
    return page


def _connect_remix(
    studio: Studio, viewer: Viewer, rooms: gr.Tabs, systems: gr.Tabs, panels: dict[str, PipelinePanel]
) -> None:
    def remix(event: gr.EventData) -> dict[Any, Any]:
        name, inputs, params = studio.remix(event.entry)
        if name not in panels:
            raise UserError(f"This was made by '{name}', which is not installed.", "Install it to remix this.")
        places = {rooms: gr.Tabs(selected="studio"), systems: gr.Tabs(selected=name)}
        return places | panels[name].filled(inputs, params)

    outputs = [rooms, systems, *(component for panel in panels.values() for component in panel.fillable())]
    filled = viewer.stage.remix(telling(remix), outputs=outputs, **LIGHT)
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
