"""Shows one gallery entry, whatever its medium."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.library import Entry
from app.studio import Studio
from app.ui import markup
from app.ui.sounds import waveform_of
from pipelines.media import Text


class Viewer:
    """A stage of our own HTML, and beside it the one thing a page cannot show by itself: a 3-D object."""

    def __init__(self, studio: Studio, label: str, first: str = "", removable: bool = False) -> None:
        self._studio = studio
        self._removable = removable
        with gr.Column(elem_classes=["viewer"]):
            # Hidden, not absent: where a value comes together with the component, Gradio 6.31 shows nothing.
            self.mesh = gr.Model3D(
                label=label,
                show_label=False,
                visible="hidden",
                height=400,
                clear_color=(0, 0, 0, 0),
                elem_classes=["object"],
            )
            self.stage = gr.HTML(first, js_on_load=markup.FORWARD_PRESSES, apply_default_css=False)

    @property
    def outputs(self) -> list[gr.blocks.Block]:
        return [self.mesh, self.stage]

    def show(self, entry: Entry) -> dict[Any, Any]:
        """The updates that show ``entry``, also where its file was deleted."""
        words = ""
        if entry.medium == Text.medium and not entry.missing:
            artifact = self._studio.library.load(entry.id)
            words = artifact.text if isinstance(artifact, Text) else ""
        is_mesh = entry.medium == "mesh" and not entry.missing
        return {
            self.mesh: gr.Model3D(value=str(entry.path) if is_mesh else None, visible=True if is_mesh else "hidden"),
            self.stage: markup.result(
                entry, words, waveform_of(self._studio.library, entry), self._studio.registry, self._removable
            ),
        }

    def say(self, content: str) -> dict[Any, Any]:
        """The updates that show ``content``, our own HTML, instead of an entry."""
        return {self.mesh: gr.Model3D(value=None, visible="hidden"), self.stage: content}
