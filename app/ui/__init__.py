"""The page. It reaches models and files through :class:`~app.studio.Studio` only."""

from __future__ import annotations

import gradio as gr

from app.assistant import Assistant
from app.studio import Studio
from app.ui import markup
from app.ui.api import build_api
from app.ui.ask_tab import AskTab
from app.ui.downloads import download_route
from app.ui.gallery_tab import GalleryTab
from app.ui.machine_tab import MachineTab
from app.ui.metrics import metrics_route
from app.ui.notices import LIGHT, telling
from app.ui.objects import view_route
from app.ui.panels import Panels
from app.ui.theme import HERE, head, theme
from pipelines.base import EXAMPLES

DELETE_CACHE = (3600, 86_400)  # how often, and after how long, uploads and copies of results go: seconds


def build(studio: Studio) -> gr.Blocks:
    """The page over ``studio``, with its queue, ready to be launched."""
    with gr.Blocks(title="Synesthete", analytics_enabled=False, fill_width=True, delete_cache=DELETE_CACHE) as page:
        gr.HTML(markup.header(), apply_default_css=False)
        assistant = Assistant(studio)
        with gr.Tabs(elem_classes=["rooms"]) as rooms:
            with gr.Tab("Ask", id="ask") as ask_tab:
                ask = AskTab(studio, assistant)
            with gr.Tab("Studio", id="studio") as studio_tab:
                panels = Panels(studio, rooms)
            with gr.Tab("Gallery", id="gallery") as gallery_tab:
                gallery = GalleryTab(studio)
            with gr.Tab("Machine", id="machine") as machine_tab:
                machine = MachineTab(studio)
        gr.on([page.load, gallery_tab.select], telling(gallery.refresh), gallery.query, gallery.listing, **LIGHT)
        machine_tab.select(telling(machine.open), outputs=machine.opened, **LIGHT)
        gr.on([ask_tab.select, studio_tab.select, gallery_tab.select], machine.close, outputs=machine.timer, **LIGHT)
        ask.begin(page, ask_tab)
        panels.connect_remix(ask.log, varies=False)
        for stage in (ask.viewer.stage, gallery.viewer.stage):
            panels.connect_remix(stage)
        build_api(studio, assistant)
    page.queue(max_size=studio.settings.max_queue)
    return page


def launch(studio: Studio) -> None:
    """Serve the page until the process is told to end."""
    settings = studio.settings
    examples = {str(path.parent) for pipeline in studio.registry for path in pipeline.example_files} | {str(EXAMPLES)}
    build(studio).launch(
        server_name=settings.host,
        server_port=settings.port,
        theme=theme(),
        head=head(),
        favicon_path=HERE / "favicon.svg",
        allowed_paths=[str(studio.library.folder.absolute() / "files"), *sorted(examples)],
        footer_links=["api", "settings"],
        max_file_size=f"{settings.max_upload_mb}mb",
        ssr_mode=False,
        share=False,
        run_history=False,
        app_kwargs={"routes": [metrics_route(studio), download_route(studio), view_route(studio)]},
    )
