"""Shows one gallery entry, whatever its medium."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np

from app.library import Entry
from app.studio import Studio
from app.ui import markup
from app.ui.sounds import waveform_of
from pipelines.media import Mesh, Text

FROM = (60, 72)  # degrees, around and from the top: from the front, a little from the side and from above
AWAY = 1.25  # of its diagonal, from its middle: all of it is seen


class Viewer:
    """A stage of our own HTML, and beside it the one thing a page cannot show by itself: a 3-D object.

    What holds a viewer is not seen where there is no stage (``style.css``). Gradio must not hide it: in 6.31 it then
    loses what is said to the object at the moment of showing it.
    """

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
        return {
            self.mesh: self._object(entry),
            self.stage: markup.result(
                entry, words, waveform_of(self._studio.library, entry), self._studio.registry, self._removable
            ),
        }

    def _object(self, entry: Entry) -> gr.Model3D:
        if entry.medium != Mesh.medium or entry.missing:
            return gr.Model3D(value=None, visible="hidden")
        shape = self._studio.library.load(entry.id)
        assert isinstance(shape, Mesh)
        diagonal = float(np.linalg.norm(np.ptp(shape.vertices, axis=0)))
        return gr.Model3D(value=str(entry.path), camera_position=(*FROM, AWAY * diagonal), visible=True)

    def say(self, content: str) -> dict[Any, Any]:
        """The updates that show ``content``, our own HTML, instead of an entry."""
        return {self.mesh: gr.Model3D(value=None, visible="hidden"), self.stage: content}
