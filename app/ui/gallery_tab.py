"""Everything that was ever made here, newest first."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.studio import Studio
from app.ui import markup
from app.ui.inputs import WORDS
from app.ui.notices import LIGHT, telling
from app.ui.viewer import Viewer

PAGE = 48
Updates = dict[Any, Any]


class GalleryTab:
    """Search, filter, thumbnails and a viewer, made where it is constructed in a Blocks."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        made = dict.fromkeys(route.output for pipeline in studio.registry for route in pipeline.routes)
        kinds = [kind for kind in dict.fromkeys([*WORDS, *made]) if kind in made]
        self._shown = gr.State(PAGE)
        with gr.Row(elem_classes=["filters"]):
            self._search = gr.Textbox("", label="Search", placeholder="Words of a prompt", scale=2, min_width=220)
            self._medium = gr.Radio(
                [("all", ""), *((WORDS.get(kind, kind).lower(), kind) for kind in kinds)],
                value="",
                label="Kind",
                scale=3,
                min_width=220,
            )
        with gr.Row(elem_classes=["shelf"]):
            with gr.Column(scale=4, min_width=320, elem_classes=["opened"]):
                self.viewer = Viewer(studio, "Object", removable=not studio.settings.shared)
            with gr.Column(scale=8, min_width=320):
                self._grid = gr.HTML(js_on_load=markup.FORWARD_PRESSES, apply_default_css=False)
                self._more = gr.Button("Show more", visible=False, elem_classes=["more-entries"])
        self._connect()

    @property
    def query(self) -> list[gr.components.Component]:
        return [self._search, self._medium, self._shown]

    @property
    def listing(self) -> list[gr.blocks.Block]:
        """What :meth:`refresh` updates."""
        return [self._grid, self._more, self._shown]

    def refresh(self, search: str, medium: str, shown: int) -> Updates:
        entries = self._studio.library.entries(limit=shown + 1, search=search or None, medium=medium or None)
        empty = "Nothing found." if search or medium else "Nothing here yet. What you make in the Studio is kept here."
        return {
            self._grid: markup.thumbnails(entries[:shown], empty),
            self._more: gr.Button(visible=len(entries) > shown),
            self._shown: shown,
        }

    def _search_anew(self, search: str, medium: str) -> Updates:
        return self.refresh(search, medium, PAGE)

    def _show_more(self, search: str, medium: str, shown: int) -> Updates:
        return self.refresh(search, medium, shown + PAGE)

    def _connect(self) -> None:
        search: dict[str, Any] = {"fn": telling(self._search_anew), "inputs": self.query[:2], "outputs": self.listing}
        changes = [self._search.change, self._search.submit, self._medium.change]
        # Once more after each answer, with what is asked by then: quick typing may have its answers out of order.
        gr.on(changes, **search, **LIGHT).then(**search, **LIGHT)
        self._more.click(telling(self._show_more), self.query, self.listing, **LIGHT)
        opened = self._grid.open(telling(self._on_open), outputs=self.viewer.outputs, **LIGHT)
        opened.then(None, js=FOCUS, api_visibility="private")
        self.viewer.stage.close(lambda: self._closed(), outputs=self.viewer.outputs, **LIGHT)
        if self._studio.settings.shared:
            return
        self.viewer.stage.remove(telling(self._on_remove), self.query, [*self.viewer.outputs, *self.listing], **LIGHT)

    def _on_open(self, event: gr.EventData) -> Updates:
        return self.viewer.show(self._studio.library.get(event.entry))

    def _closed(self) -> Updates:
        return self.viewer.say("")

    def _on_remove(self, search: str, medium: str, shown: int, event: gr.EventData) -> Updates:
        self._studio.library.remove(event.entry)
        return self._closed() | self.refresh(search, medium, shown)


FOCUS = """() => {
  const opened = document.querySelector(".opened .stage");
  if (opened) { opened.scrollIntoView({ block: "nearest" }); opened.focus({ preventScroll: true }); }
}"""
