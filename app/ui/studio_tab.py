"""One panel per pipeline, drawn from its declaration: what goes in on the left, what comes out on the right."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from app.studio import InternalError, Saved, Studio
from app.ui import markup
from app.ui.controls import build_controls, shown, taken_from
from app.ui.inputs import artifact_of, component_for, labels_of, value_of, ways_in
from app.ui.notices import LIGHT, telling
from app.ui.scan_look import ScanLook
from app.ui.viewer import Viewer
from models.errors import Cancelled, UserError
from pipelines.base import MAX_SEED, Pipeline
from pipelines.media import Artifact, BrainScan

COMPUTE_LANE = "compute"
STOP_SECONDS = 1.0  # so long Stop waits for the run's last word; a model being loaded takes longer to heed it
KEEP_SECONDS = 20.0  # so long for a run that may keep what there is, which has to be finished first
Updates = dict[Any, Any]

# Shows at once that the press has been taken, while the request may still wait in the queue ...
BEGIN = """() => {
  const stage = [...document.querySelectorAll(".stage")].find((part) => part.checkVisibility());
  stage?.scrollIntoView({ block: "nearest", behavior: "smooth" });
  return [WAITING, { __type__: "update", visible: true }, { __type__: "update", value: "Working…" }];
}""".replace("WAITING", json.dumps(markup.WAITING))
# ... and, where the queue was full, that it has not.
TURNED_AWAY = """(stage) => [
  stage === WAITING ? BUSY : stage,
  { __type__: "update", visible: false },
  { __type__: "update", value: "Generate" },
]""".replace("WAITING", json.dumps(markup.WAITING)).replace("BUSY", json.dumps(markup.BUSY))


class _Run:
    """A press of Generate: told to stop by one event, and tells by the other that it has said its last word.

    ``made``: the entries that it made so far.
    """

    def __init__(self) -> None:
        self.cancelled, self.ended = threading.Event(), threading.Event()
        self.made: list[str] = []


class PipelinePanel:
    """The controls, the stage and the events of one pipeline, made where it is constructed in a Blocks."""

    def __init__(self, studio: Studio, pipeline: Pipeline) -> None:
        self._studio = studio
        self.pipeline = pipeline
        self._ways = ways_in(pipeline)
        self._running = gr.State()  # the latest _Run
        self._made = gr.State([])
        with gr.Row(elem_classes=["system"]):
            with gr.Column(min_width=0, elem_classes=["request"]):
                self._build_request()
            with gr.Column(min_width=0, elem_classes=["outcome"]):
                self.viewer = Viewer(studio, pipeline.title, markup.idle(pipeline.routes[0].output))
                self.strip = gr.HTML(visible=False, js_on_load=markup.FORWARD_PRESSES, apply_default_css=False)
            with gr.Column(min_width=0, elem_classes=["settings"]):
                self._build_settings()
        self._connect()

    def _build_request(self) -> None:
        pipeline = self.pipeline
        gr.HTML(f'<p class="summary">{escape(pipeline.summary)}</p>', apply_default_css=False)
        self._way = gr.Radio(
            [(" and ".join(f"a {name.lower()}" for name in labels_of(way)), i) for i, way in enumerate(self._ways)],
            value=0,
            label="Made from",
            interactive=True,
            visible=len(self._ways) > 1,
        )
        self._groups: list[gr.Column] = []
        self._looks: list[ScanLook] = []
        self._inputs: list[list[Component]] = []
        for index, way in enumerate(self._ways):
            with gr.Column(visible=index == 0, elem_classes=["inputs"]) as group:
                pairs = zip(way, labels_of(way), strict=True)
                self._inputs.append([component_for(medium, label) for medium, label in pairs])
                scans = [scan for scan, medium in zip(self._inputs[-1], way, strict=True) if medium == BrainScan.medium]
                self._looks += [ScanLook(scan) for scan in scans]
            self._groups.append(group)
        self._build_examples()
        with gr.Row(elem_classes=["go"]):
            self._generate = gr.Button("Generate", variant="primary", scale=3)
            self._stop = gr.Button("Stop", variant="stop", visible=False, scale=1, min_width=90)

    def _build_settings(self) -> None:
        self._controls = build_controls(self.pipeline.params_type)
        uses_chance = self.pipeline.uses_chance
        with gr.Row(elem_classes=["seed"], visible=uses_chance):
            self._seed = gr.Number(
                0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, interactive=True, min_width=120, scale=1
            )
            self._dice = gr.Button("Roll", size="sm", min_width=72, scale=0, elem_classes=["dice"])
        self._roll = gr.Checkbox(uses_chance, label="New seed each time", interactive=True, visible=uses_chance)

    def _build_examples(self) -> None:
        if not self.pipeline.examples and not self.pipeline.example_files:
            return
        with gr.Row(elem_classes=["examples"]):
            for path in self.pipeline.example_files:
                chip = gr.Button(path.stem.replace("-", " "), size="sm", min_width=0, scale=0)
                chip.click(lambda path=path: str(path), None, self._inputs[0][0], **LIGHT)
            for texts in self.pipeline.examples:
                chip = gr.Button(" → ".join(texts), size="sm", min_width=0, scale=0)
                values = json.dumps(texts if len(texts) > 1 else texts[0])
                chip.click(None, outputs=self._inputs[0], js=f"() => {values}", api_visibility="private")

    def _connect(self) -> None:
        texts = [component for group in self._inputs for component in group if isinstance(component, gr.Textbox)]
        triggers = [self._generate.click, *(text.submit for text in texts)]
        buttons = [self._stop, self._generate]
        outputs = [*self.viewer.outputs, self.strip, self._seed, self._running, self._made, *buttons]
        status = [self.viewer.stage, *buttons]
        gr.on(triggers, None, outputs=status, js=BEGIN, api_visibility="private")
        run = gr.on(
            triggers,
            self._run,
            inputs=[self._way, *self._all_inputs(), self._roll, self._seed, *self._controls.values()],
            outputs=outputs,
            trigger_mode="once",
            concurrency_id=COMPUTE_LANE,
            concurrency_limit=1,
            show_progress="hidden",
            api_visibility="private",
        )
        # Apart from the run, because Gradio sends a stream's last value twice, which Model3D (6.31) does not survive.
        run.success(telling(self._present), [self._made], [*self.viewer.outputs, self.strip], **LIGHT)
        run.failure(None, [self.viewer.stage], status, js=TURNED_AWAY, api_visibility="private")
        stopped = [*self.viewer.outputs, *buttons]
        stop = self._stop.click(self._on_stop, [self._running], stopped, **LIGHT)
        # Not at once: a run that is not asked for more can keep nothing. It is for one that waits or does not heed it.
        # The answer comes again, because what the run had sent before it was stopped may come after the first.
        stop.then(self._after_stop, [self._running], stopped, cancels=[run], **LIGHT)
        self._dice.click(lambda: (random.randint(0, MAX_SEED), False), outputs=[self._seed, self._roll], **LIGHT)
        self._way.change(self._on_way, [self._way], self._groups, **LIGHT)
        for look in self._looks:
            look.connect(self._controls)
        self.strip.open(telling(self._on_open), [self._made], [*self.viewer.outputs, self.strip], **LIGHT)

    def _all_inputs(self) -> list[Component]:
        return [component for group in self._inputs for component in group]

    def filled(self, inputs: list[Artifact], params: dict[str, Any]) -> Updates:
        """The updates that put a remix's inputs and params into this panel."""
        way = self._way_of(inputs)
        updates: Updates = {self._way: way, self._seed: params["seed"], self._roll: False}
        updates |= dict(zip(self._inputs[way], map(value_of, inputs), strict=True))
        fields = self.pipeline.params_type.model_fields
        return updates | {
            control: shown(fields[name], params[name]) for name, control in self._controls.items() if name in params
        }

    def fillable(self) -> list[Any]:
        """What :meth:`filled` may update."""
        return [self._way, *self._all_inputs(), self._seed, self._roll, *self._controls.values()]

    def _way_of(self, inputs: list[Artifact]) -> int:
        media = tuple(item.medium for item in inputs)
        if media in self._ways:
            return self._ways.index(media)
        raise UserError(f"'{self.pipeline.title}' takes no {' + '.join(media)} any more.", "Choose another to remix.")

    def _run(self, way: int, *values: Any) -> Iterator[Updates]:
        """The stream of updates of one generation."""
        run = _Run()
        texts_and_files, (roll, seed, *settings) = values[: len(self._all_inputs())], values[len(self._all_inputs()) :]
        seed = random.randint(0, MAX_SEED) if roll else seed
        yield {self._running: run, self._made: [], self._seed: seed, self.strip: gr.HTML(visible=False)}
        chosen = dict(zip(self._controls, settings, strict=True)) | {"seed": seed}
        made = run.made
        try:
            inputs = self._read(way, texts_and_files)
            params = taken_from(self.pipeline.params_type, chosen)
            started = time.monotonic()
            for event in self._studio.generate(self.pipeline.name, inputs, params, run.cancelled):
                if isinstance(event, Saved):
                    made.append(event.entry.id)
                else:
                    yield self.viewer.say(markup.progress(event, time.monotonic() - started))
            yield {self._made: made} | self._rest()
        except Cancelled:
            yield {self._made: made} | self._stopped()
        except (UserError, InternalError) as error:
            yield self.viewer.say(markup.explained(error)) | self._rest()
        finally:
            run.ended.set()

    def _read(self, way: int, values: tuple[Any, ...]) -> list[Artifact]:
        start = sum(len(group) for group in self._inputs[:way])
        media = self._ways[way]
        given = values[start : start + len(media)]
        return [artifact_of(*item) for item in zip(media, given, labels_of(media), strict=True)]

    def _show(self, made: list[str], current: int = 0) -> Updates:
        """The updates that show one of the entries ``made`` by a run, with a strip of all of them below it."""
        entries = [self._studio.library.get(entry_id) for entry_id in made]
        strip = markup.thumbnails(entries, "", made[current])
        return self.viewer.show(entries[current]) | {self.strip: gr.HTML(strip, visible=len(made) > 1)}

    def _present(self, made: list[str]) -> Any:
        return self._show(made) if made else gr.skip()

    def _rest(self) -> Updates:
        return {self._stop: gr.Button(visible=False), self._generate: gr.Button(value="Generate")}

    def _on_stop(self, run: _Run | None) -> Updates:
        if run is not None:
            run.cancelled.set()
            run.ended.wait(KEEP_SECONDS if self.pipeline.keeps_what_is_stopped else STOP_SECONDS)
        return self._after_stop(run)

    def _after_stop(self, run: _Run | None) -> Updates:
        """Of a run that made something before, or kept something, this is shown by the run itself."""
        return self._rest() if run is not None and run.made else self._stopped()

    def _stopped(self) -> Updates:
        return self.viewer.say(markup.STOPPED) | self._rest()

    def _on_way(self, chosen: int) -> list[gr.Column]:
        return [gr.Column(visible=index == chosen) for index in range(len(self._groups))]

    def _on_open(self, made: list[str], event: gr.EventData) -> Updates:
        return self._show(made, made.index(event.entry))
