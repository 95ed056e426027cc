"""What an attached scan looks like, below it: seen before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from app.studio import InternalError, reporting
from app.ui.ask_markup import complaint
from app.ui.inputs import artifact_of
from app.ui.markup import data_uri
from app.ui.notices import LIGHT
from models.errors import UserError
from pipelines.fmri.cortex import draw_scan
from pipelines.media import BrainScan, Image

CHOICES = ("trial", "subject", "units", "without")  # settings that a drawing heeds, where a pipeline has them


class ScanLook:
    """Made where it is constructed in a Blocks, below ``scan``, the component that holds the file."""

    def __init__(self, scan: Component) -> None:
        self._scan = scan
        self._view = gr.HTML("", apply_default_css=False, elem_classes=["scan-look"])

    def connect(self, controls: Mapping[str, Component]) -> None:
        """Draw it whenever another file is attached, or one of the pipeline's ``controls`` that matter changes."""
        chosen = {name: controls[name] for name in CHOICES if name in controls}
        names = tuple(chosen)

        def drawn(path: str | None, *values: Any) -> str:
            return look_of(path, dict(zip(names, values, strict=True)))

        components: list[Any] = [self._scan, *chosen.values()]
        triggers = [component.change for component in components]
        gr.on(triggers, drawn, components, self._view, trigger_mode="always_last", **LIGHT)


def look_of(path: str | None, choices: Mapping[str, Any]) -> str:
    """The page's HTML for the file at ``path``, nothing for none; why it cannot be drawn, where it cannot."""
    if not path:
        return ""
    try:
        with reporting():
            scan = artifact_of(BrainScan.medium, path, "Brain scan")
            if not isinstance(scan, BrainScan):
                raise UserError(f"A brain scan is needed here, not {scan.medium}.", "Attach one.")
            # A number that was wiped out is as if nothing had been chosen.
            drawing = draw_scan(scan, **{name: value for name, value in choices.items() if value is not None})
    except (UserError, InternalError) as error:
        return complaint(error)
    return f'<img src="{data_uri(Image(drawing.pixels))}" alt="{escape(drawing.words)}">'
