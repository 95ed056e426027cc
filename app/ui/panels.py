"""The Studio tab: a tab for each pipeline, and one for all edits. A panel is made when its tab is first looked at.

With every panel in it from the start, the page would take twice as long to open.
"""

from __future__ import annotations

import json
import random
import time
from typing import Any

import gradio as gr

from app.adapters import DECODER
from app.studio import Studio
from app.ui.inputs import WORDS
from app.ui.new_subject import NewSubject
from app.ui.notices import LIGHT, telling
from app.ui.studio_tab import PipelinePanel
from models.errors import UserError
from pipelines.base import MAX_SEED, Pipeline
from pipelines.fmri.pipeline import FMRI

EDIT = "edit"
Selection = dict[gr.Tabs, str]  # which tab is open in each row of tabs

# Gradio mounts what is in a tab when the tab is first looked at, and never takes it out again.
SAY_THAT_IT_IS_SEEN = 'trigger("select")'
TO_TOP = """() => { window.scrollTo({ top: 0, behavior: "smooth" }); }"""


class Panels:
    """The tabs, made where it is constructed in a Blocks, and the way from a result back into its panel.

    ``places``: what to select to see a pipeline's panel, by the pipeline's name; ``rooms``: the page's outermost tabs,
    of which this stands in the one called "studio".
    """

    def __init__(self, studio: Studio, rooms: gr.Tabs) -> None:
        self._studio = studio
        self.places: dict[str, Selection] = {}
        # Unseen, one in each tab. It says when the tab is looked at, and holds what to remix there with which changes.
        self._heralds: dict[str, gr.HTML] = {}
        edits = [pipeline for pipeline in studio.registry if pipeline.is_edit]
        with _pills() as systems:
            above = {rooms: "studio"}
            for pipeline in studio.registry:
                if not pipeline.is_edit:
                    self._tab(pipeline, systems, above)
            if edits:
                with gr.Tab("Edit", id=EDIT), _pills() as media:
                    for medium in dict.fromkeys(edit.routes[0].inputs[0] for edit in edits):
                        with gr.Tab(WORDS.get(medium, medium.capitalize()), id=medium), _pills() as tabs:
                            for edit in edits:
                                if edit.routes[0].inputs[0] == medium:
                                    self._tab(edit, tabs, above | {systems: EDIT, media: medium})

    def connect_remix(self, stage: gr.HTML, varies: bool = True) -> None:
        """Have the stage's Remix open the panel of what it shows, filled as it was when that was made.

        Its Variation, unless that is another's to heed, does the same with a new seed, and its Refine with the settings
        that refine it.
        """
        tabs = dict.fromkeys(tabs for place in self.places.values() for tabs in place)
        presses = [(stage.remix, self._remix), (stage.refine, self._refine)]
        presses += [(stage.vary, self._vary)] if varies else []
        for press, wish in presses:
            opened = press(telling(wish), outputs=[*tabs, *self._heralds.values()], **LIGHT)
            opened.then(None, js=TO_TOP, api_visibility="private")

    def _tab(self, pipeline: Pipeline, tabs: gr.Tabs, above: Selection) -> None:
        self.places[pipeline.name] = above | {tabs: pipeline.name}
        with gr.Tab(pipeline.title, id=pipeline.name):
            herald = gr.HTML("", js_on_load=SAY_THAT_IT_IS_SEEN, apply_default_css=False, elem_classes=["herald"])
            self._heralds[pipeline.name] = herald
            drawn = gr.render(triggers=[herald.select], queue=False, show_progress="hidden")
            drawn(lambda: self._draw(pipeline, herald))

    def _draw(self, pipeline: Pipeline, herald: gr.HTML) -> None:
        panel = PipelinePanel(self._studio, pipeline)
        # With no triggers given: now, and whenever the herald changes.
        gr.on(None, telling(lambda wish: self._filled(panel, wish)), [herald], panel.fillable(), **LIGHT)
        self.connect_remix(panel.viewer.stage)
        shared = self._studio.settings.shared
        if pipeline.name == FMRI.name and DECODER in self._studio.manager.specs and not shared:
            NewSubject(self._studio, panel)

    def _filled(self, panel: PipelinePanel, wish: str) -> Any:
        """The updates that put into ``panel`` what the entry was made from that its herald names, if it does."""
        if not wish:
            return gr.skip()
        wished = json.loads(wish)
        _, inputs, params = self._studio.remix(wished["entry"])
        return panel.filled(inputs, params | wished["changed"])

    def _remix(self, event: gr.EventData) -> dict[Any, Any]:
        return self._wished(event.entry, {})

    def _vary(self, event: gr.EventData) -> dict[Any, Any]:
        return self._wished(event.entry, {"seed": random.randint(0, MAX_SEED)})

    def _refine(self, event: gr.EventData) -> dict[Any, Any]:
        maker = self._studio.registry.get(self._studio.library.get(event.entry).provenance.pipeline)
        return self._wished(event.entry, dict(maker.refined_by))

    def _wished(self, entry_id: str, changed: dict[str, Any]) -> dict[Any, Any]:
        """The updates that open the panel of what made the entry, and wish there for its inputs and settings, but for
        those that are to be ``changed``."""
        name, _, _ = self._studio.remix(entry_id)
        if name not in self.places:
            raise UserError(f"This was made by '{name}', which is not installed.", "Install it to remix this.")
        shown = {tabs: gr.Tabs(selected=chosen) for tabs, chosen in self.places[name].items()}
        # The time makes the same wish a new one, without which nothing would change.
        wish = {"entry": entry_id, "changed": changed, "time": time.monotonic_ns()}
        return shown | {self._heralds[name]: json.dumps(wish)}


def _pills() -> gr.Tabs:
    return gr.Tabs(elem_classes=["systems"], overflow_behavior="wrap")
