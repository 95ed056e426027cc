"""What the machine is doing: models in memory, memory over time, and what the manager decided."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from app.studio import InternalError, Studio, reporting
from app.ui import machine_markup, markup
from app.ui.notices import LIGHT, telling
from models.accounts import Freed
from models.errors import UserError

SECONDS_BETWEEN_LOOKS = 2.0
Updates = dict[Any, Any]

# A button that is pressed from the keyboard goes away with its model; the next one takes its place.
KEEP_PLACE = """() => {
  if (document.activeElement === document.body) document.querySelector(".machine button:not(:disabled)")?.focus();
}"""


class MachineTab:
    """Made where it is constructed in a Blocks; it looks at the machine only while it is open."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._history = machine_markup.MemoryHistory()
        self.timer = gr.Timer(SECONDS_BETWEEN_LOOKS, active=False)
        with gr.Column(elem_classes=["machine"]):
            self._line = gr.HTML(apply_default_css=False)
            with gr.Row(elem_classes=["now"]):
                with gr.Column(scale=7, min_width=320):
                    gr.HTML("<h2>In memory</h2>", apply_default_css=False)
                    self._models = gr.HTML(js_on_load=markup.FORWARD_PRESSES, apply_default_css=False)
                    with gr.Row(elem_classes=["relief"], visible=not studio.settings.shared):
                        self._free_idle = gr.Button("Free idle", size="sm", min_width=0, scale=0)
                        self._free_all = gr.Button("Free all", size="sm", min_width=0, scale=0)
                    self._said = gr.HTML(machine_markup.said(""), apply_default_css=False)
                with gr.Column(scale=5, min_width=320):
                    gr.HTML("<h2>Over time</h2>", apply_default_css=False)
                    self._plot = gr.HTML(apply_default_css=False)
            gr.HTML("<h2>What was decided</h2>", apply_default_css=False)
            self._decisions = gr.HTML(apply_default_css=False)
        self._connect()

    @property
    def shown(self) -> list[gr.blocks.Block]:
        """What :meth:`look` updates."""
        return [self._line, self._models, self._plot, self._decisions]

    def open(self) -> Updates:
        """The updates that begin to look, and go on every two seconds."""
        return {self.timer: gr.Timer(active=True), self._said: machine_markup.said("")} | self.look()

    @property
    def opened(self) -> list[gr.blocks.Block]:
        """What :meth:`open` updates."""
        return [self.timer, self._said, *self.shown]

    def close(self) -> Updates:
        return {self.timer: gr.Timer(active=False)}

    def look(self) -> Updates:
        state, now = self._studio.machine(), time.monotonic()
        self._history.add(state, now)
        return {
            self._line: machine_markup.machine_line(state),
            self._models: machine_markup.models_table(state, may_free=not self._studio.settings.shared),
            self._plot: machine_markup.memory_plot(self._history.recent(now), now),
            self._decisions: machine_markup.decisions(state.decisions),
        }

    def _connect(self) -> None:
        self.timer.tick(telling(self.look), outputs=self.shown, **LIGHT)
        if self._studio.settings.shared:
            return
        answer = [self._said, *self.shown]
        one = self._models.remove(self._on_free, outputs=answer, **LIGHT)
        one.then(None, js=KEEP_PLACE, api_visibility="private")
        self._free_idle.click(
            lambda: self._relieve(lambda: self._studio.free(keep_expected=True)), outputs=answer, **LIGHT
        )
        self._free_all.click(lambda: self._relieve(self._studio.free), outputs=answer, **LIGHT)

    def _on_free(self, event: gr.EventData) -> Updates:
        return self._relieve(lambda: self._studio.free(event.entry))

    def _relieve(self, free: Callable[[], Freed]) -> Updates:
        try:
            with reporting():
                said = machine_markup.freed(free())
        except (UserError, InternalError) as error:
            said = machine_markup.said(str(error))
        return {self._said: said} | self.look()
