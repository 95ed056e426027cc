"""A new subject on the page: scans and what was seen in, an adapter of the brain decoder and its learning curve out.

The page decodes with it from then on, until the app ends.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from app.adapters import DECODER, SEEING, Fitted, fit_subject
from app.studio import InternalError, Studio, reporting
from app.ui.ask_markup import complaint
from app.ui.learning_curve import learning_curve
from app.ui.markup import underway
from app.ui.notices import LIGHT
from app.ui.studio_tab import COMPUTE_LANE, PipelinePanel
from models.errors import Cancelled, UserError
from models.sources import Folder
from models.spec import bytes_in_memory
from pipelines.base import EXAMPLES, Progress, Runtime
from pipelines.fmri.picture_archives import unpack
from pipelines.media import BrainScan, suffixes_of

EXAMPLE = EXAMPLES / "new-subject"
SUBJECT = "S8"
UNSEEN = EXAMPLE / f"{SUBJECT}-cherries.npz"
TITLE = "A new subject"
Updates = dict[Any, Any]
INTRODUCTION = (
    "Teach the decoder a brain that it does not know, from at least 50 scans and the pictures that were seen: betas "
    "(and their mask), and a zip archive of pictures, each called by its number in the scans’ image_id, or in their "
    "order. "
    "All of it stays on this machine."
)


class NewSubject:
    """A folded part below ``panel``, made where it is constructed in a Blocks."""

    def __init__(self, studio: Studio, panel: PipelinePanel) -> None:
        self._studio, self._panel = studio, panel
        self._stopped = gr.State()  # the latest fit's event
        with gr.Accordion(TITLE, open=False, elem_classes=["more", "new-subject"]):
            gr.HTML(f'<p class="summary">{INTRODUCTION}</p>', apply_default_css=False)
            with gr.Row():
                self._scans = gr.File(
                    label="Scans of the new subject",
                    file_count="multiple",
                    file_types=list(suffixes_of(BrainScan.medium)),
                    interactive=True,
                    min_width=300,
                )
                self._pictures = gr.File(
                    label="Pictures that were seen", file_types=[".zip"], interactive=True, min_width=300
                )
            self._name = gr.Textbox(label="Name of the new subject", max_length=40, interactive=True)
            with gr.Row(elem_classes=["examples"]):
                pairs = gr.Button(f"{SUBJECT}: 150 simulated pairs", size="sm", min_width=0, scale=0)
                unseen = gr.Button(f"{SUBJECT}: a scan to decode then", size="sm", min_width=0, scale=0)
            with gr.Row(elem_classes=["go"]):
                self._fit = gr.Button("Fit", variant="primary", scale=3)
                self._stop = gr.Button("Stop the fit", variant="stop", visible=False, scale=1, min_width=90)
            self._outcome = gr.HTML("", apply_default_css=False)
        given = [self._scans, self._pictures, self._name]
        pairs.click(_example, None, given, **LIGHT)
        unseen.click(lambda: panel.filled([BrainScan.load(UNSEEN)], {"seed": 0}), None, panel.fillable(), **LIGHT)
        self._fit.click(
            self._run,
            given,
            [self._outcome, self._stopped, self._fit, self._stop],
            trigger_mode="once",
            concurrency_id=COMPUTE_LANE,
            concurrency_limit=1,
            show_progress="hidden",
            api_visibility="private",
        )
        self._stop.click(lambda stopped: stopped and stopped.set(), [self._stopped], None, **LIGHT)

    def _run(self, scans: list[str] | None, pictures: str | None, name: str) -> Iterator[Updates]:
        stopped = threading.Event()
        yield {
            self._outcome: underway(Progress(0, 1, "Reading the scans")),
            self._stopped: stopped,
            self._fit: gr.Button("Fitting…", interactive=False),
            self._stop: gr.Button(visible=True),
        }
        try:
            with reporting():
                fitted = yield from self._fitted(scans or [], pictures, name.strip(), stopped)
            said = learning_curve(fitted)
        except Cancelled:
            said = '<p class="said" role="status">Stopped; nothing has changed.</p>'
        except (UserError, InternalError) as error:
            said = complaint(error)
        yield {
            self._outcome: said,
            self._fit: gr.Button("Fit", interactive=True),
            self._stop: gr.Button(visible=False),
        }

    def _fitted(
        self, scans: list[str], pictures: str | None, name: str, stopped: threading.Event
    ) -> Generator[Updates, None, Fitted]:
        """Yields progress and returns the outcome, by which the page decodes from now on."""
        if not scans or not pictures or not name:
            missing = "The scans are" if not scans else "The pictures are" if not pictures else "The name is"
            raise UserError(f"{missing} missing.", "A fit needs scans, what was seen, and whose they are.")
        manager, target = self._studio.manager, self._studio.settings.output_folder / DECODER
        runtime, fitted = Runtime(manager, stopped), list[Fitted]()

        def fit(tell: object) -> None:
            with tempfile.TemporaryDirectory(prefix="synesthete-") as seen:
                files, shown = [Path(scan) for scan in scans], unpack(Path(pictures), Path(seen))
                fitted.append(fit_subject(manager, runtime, files, shown, name, target))

        with closing(self._studio.in_lane(TITLE, SEEING, fit, runtime)) as events:
            for event in events:
                if isinstance(event, Progress):
                    yield {self._outcome: underway(event)}
        [done] = fitted
        self._take_up(done.folder)
        return done

    def _take_up(self, folder: Path) -> None:
        """Have the page's decoder come from ``folder``; what is loaded goes when nobody uses it any more."""
        specs = self._studio.manager.specs
        specs[DECODER] = replace(specs[DECODER], source=Folder(folder), bytes=bytes_in_memory(folder), note="")


def _example() -> tuple[list[str], str, str]:
    return [str(EXAMPLE / f"{SUBJECT}.npz")], str(EXAMPLE / f"{SUBJECT}-pictures.zip"), SUBJECT
