"""A plan as controls: other words, another pipeline, other settings, fewer steps; and as JSON for those who know it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component
from pydantic import ValidationError

from app.controller.plan import STEP, TEXT, Plan, Step, medium_of, read_plan, unreadable
from app.studio import InternalError, reporting
from app.ui import ask_markup
from app.ui.controls import control_for, is_advanced, taken_from
from app.ui.host import Host
from app.ui.inputs import labels_of
from app.ui.notices import LIGHT
from app.ui.talk import Talk
from models.errors import UserError
from pipelines.base import MAX_SEED, Pipeline

Editing = dict[str, Any]  # "turn": whose plan it is; "plan": its JSON as it is now; "time": so that each is another

# As LIGHT, but through the queue: past it, Gradio (6.31) tells nobody that a state has changed.
QUICK: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}

# Where the editor comes into view, its first control has the focus.
COME_INTO_VIEW = """() => setTimeout(() => {
  const editor = document.querySelector(".editor");
  editor?.scrollIntoView({ block: "nearest" });
  if (editor?.contains(document.activeElement)) return;  // somebody was faster
  editor?.querySelector("input, textarea")?.focus({ preventScroll: true });
}, 200)"""


@dataclass(frozen=True)
class Slot:
    """What a control of the editor is for: ``kind`` "op", "words" (``key``: which input) or "param" (its name)."""

    step: int
    kind: str
    key: Any = None


class PlanEditor:
    """Drawn anew where it is constructed in a Blocks whenever :attr:`editing` changes; nothing while that is None.

    :attr:`order` changes when a plan of the talk is to be run.
    """

    def __init__(self, host: Host, talk: gr.State) -> None:
        self._host, self._talk = host, talk
        self.editing = gr.State(None)
        self.order = gr.State(0)
        gr.render(inputs=[self.editing, talk], triggers=[self.editing.change], show_progress="hidden")(self._draw)

    def open(self, talk: Talk, number: int) -> Editing:
        """The value of :attr:`editing` that shows the plan of a turn."""
        plan = talk.turn(number).plan
        if plan is None:
            raise UserError("There is no plan to change there.", "Ask for something first.")
        return editing_of(number, plan, None)

    def _draw(self, editing: Editing | None, talk: Talk) -> None:
        if editing is None:
            return
        plan = Plan.model_validate_json(editing["plan"])
        slots: list[tuple[Slot, Component]] = []
        drops: list[tuple[gr.Button, str]] = []
        with gr.Column(elem_classes=["editor"]):
            with gr.Row(elem_classes=["editor-head"]):
                gr.HTML("<h2>Change the plan</h2>", apply_default_css=False)
                close = gr.Button("Close", size="sm", min_width=0, scale=0)
            for index, step in enumerate(plan.steps):
                with gr.Column(elem_classes=["editor-step"]):
                    with gr.Row(elem_classes=["editor-head"]):
                        title = escape(self._host.studio.registry.get(step.op).title)
                        gr.HTML(f"<h3>{index + 1} {title}</h3>", apply_default_css=False)
                        if len(plan.steps) > 1:
                            drops.append((gr.Button("Drop this step", size="sm", min_width=0, scale=0), step.id))
                    slots += self._step_controls(index, step, plan, talk)
            with gr.Accordion("As JSON", open=False, elem_classes=["more"]) as folded:
                text = gr.Textbox(
                    plan.model_dump_json(indent=2), label="The plan", lines=12, max_lines=24, elem_classes=["code"]
                )
                take_over = gr.Button("Take this over", size="sm", min_width=0, scale=0)
            said = gr.HTML(apply_default_css=False)
            with gr.Row(elem_classes=["editor-go"]):
                run = gr.Button("Run", variant="primary", scale=0, min_width=140)
        for control in [text, *(control for _, control in slots)]:
            control.interactive = True  # Gradio does not see by itself what a render listens to
        self._connect(editing, plan, slots, drops, text, said, {"close": close, "take_over": take_over, "run": run})
        controls = [control for _, control in slots]
        folded.expand(self._as_json(plan, slots), controls, [text], **LIGHT)

    def _step_controls(self, index: int, step: Step, plan: Plan, talk: Talk) -> list[tuple[Slot, Component]]:
        registry = self._host.studio.registry
        media = talk.conversation.request("").available | {STEP + made.id: made.output for made in plan.steps}
        given = tuple(medium_of(source, media) or "" for source in step.inputs)
        fitting = [pipeline for pipeline in registry if pipeline.accepts(given, step.output)]
        slots: list[tuple[Slot, Component]] = []
        if len(fitting) > 1:
            choices: list[tuple[str, str | int | float]] = [(pipeline.title, pipeline.name) for pipeline in fitting]
            slots.append((Slot(index, "op"), gr.Dropdown(choices, value=step.op, label="Made by")))
        labels = labels_of(["text" for source in step.inputs if source.startswith(TEXT)])
        for place, source in enumerate(step.inputs):
            if source.startswith(TEXT):
                label = labels.pop(0).replace("Prompt", "Words").replace("prompt", "words")
                words = source.removeprefix(TEXT)
                slots.append((Slot(index, "words", place), gr.Textbox(words, label=label, lines=1, max_lines=6)))
        slots += [(Slot(index, "param", name), control) for name, control in _param_controls(registry, step).items()]
        return slots

    def _connect(
        self,
        editing: Editing,
        plan: Plan,
        slots: list[tuple[Slot, Component]],
        drops: list[tuple[gr.Button, str]],
        text: gr.Textbox,
        said: gr.HTML,
        buttons: dict[str, gr.Button],
    ) -> None:
        """What pressing and choosing does. What is wrong is said, and everything typed stays."""
        number = editing["turn"]
        controls = [control for _, control in slots]
        now = self._reader(plan, [slot for slot, _ in slots])
        outputs = [self.editing, said]

        def run(talk: Talk, order: int, *values: Any) -> dict[Any, Any]:
            self._host.change(talk, number, now(values))
            return {self.editing: None, self.order: order + 1}

        def take_over(talk: Talk, written: str) -> dict[Any, Any]:
            taken = read_plan(written)
            self._host.check(talk, taken)
            return {self.editing: editing_of(number, taken, editing)}

        def redraw(change: Callable[[Plan], Plan]) -> Callable[..., dict[Any, Any]]:
            return lambda *values: {self.editing: editing_of(number, change(now(values)), editing)}

        ordered = [*outputs, self.order]
        buttons["run"].click(_saying(run, said), [self._talk, self.order, *controls], ordered, **QUICK)
        buttons["take_over"].click(_saying(take_over, said), [self._talk, text], outputs, **QUICK)
        buttons["close"].click(lambda: None, outputs=[self.editing], **QUICK)
        for slot, control in slots:
            if slot.kind == "op" and isinstance(control, gr.Dropdown):
                control.input(_saying(redraw(lambda changed: changed), said), controls, outputs, **QUICK)
        for button, id in drops:
            dropping = redraw(lambda changed, id=id: changed.without(id))  # type: ignore[misc]
            button.click(_saying(dropping, said), controls, outputs, **QUICK)

    def _reader(self, plan: Plan, slots: list[Slot]) -> Callable[[tuple[Any, ...]], Plan]:
        return lambda values: changed_plan(plan, slots, values, self._host.studio.registry.get)

    def _as_json(self, plan: Plan, slots: list[tuple[Slot, Component]]) -> Callable[..., Any]:
        """The plan as the controls have it now, for the folded part when it is opened."""
        now = self._reader(plan, [slot for slot, _ in slots])

        def written(*values: Any) -> Any:
            try:
                return now(values).model_dump_json(indent=2)
            except UserError:
                return gr.skip()  # it is said when somebody presses Run

        return written


def editing_of(number: int, plan: Plan, before: Editing | None) -> Editing:
    return {"turn": number, "plan": plan.model_dump_json(), "time": before["time"] + 1 if before else 0}


def changed_plan(
    plan: Plan, slots: list[Slot], values: tuple[Any, ...], pipeline_of: Callable[[str], Pipeline]
) -> Plan:
    """``plan`` with what the controls of ``slots`` hold. Raises :class:`UserError` for what cannot be a plan."""
    drafts = [step.model_dump() for step in plan.steps]
    for slot, value in zip(slots, values, strict=True):
        draft = drafts[slot.step]
        if slot.kind == "op":
            draft["op"] = value
        elif slot.kind == "words":
            if not str(value or "").strip():
                raise UserError(f"Step {slot.step + 1} has no words.", "Write what it should be made from.")
            inputs = list(draft["inputs"])
            inputs[slot.key] = f"{TEXT}{value}"
            draft["inputs"] = inputs
        else:
            draft["params"] = draft["params"] | {slot.key: value}
    for draft, step in zip(drafts, plan.steps, strict=True):
        draft["params"] = _fitting(draft["params"], step, pipeline_of(draft["op"]))
    try:
        return Plan.model_validate(plan.model_dump() | {"steps": drafts})
    except ValidationError as error:
        raise unreadable(error) from None


def _fitting(params: dict[str, Any], step: Step, pipeline: Pipeline) -> dict[str, Any]:
    """The params that the pipeline has and that were given, or differ from their defaults."""
    fields = pipeline.params_type.model_fields
    known = taken_from(pipeline.params_type, {name: value for name, value in params.items() if name in fields})
    return {
        name: value
        for name, value in known.items()
        if name in step.params or value != fields[name].get_default(call_default_factory=True)
    }


def _param_controls(registry: Any, step: Step) -> dict[str, Component]:
    """Controls of the settings that are not for experts, and of the seed where chance plays a part."""
    pipeline = registry.get(step.op)
    made: dict[str, Component] = {}
    for name, declared in pipeline.params_type.model_fields.items():
        value = step.params.get(name, declared.get_default(call_default_factory=True))
        if name == "seed":
            if pipeline.uses_chance:
                made[name] = gr.Number(value, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
        elif not is_advanced(declared):
            field = copy.copy(declared)
            field.default, field.default_factory = value, None
            made[name] = control_for(name, field)
    return made


def _saying(callback: Callable[..., dict[Any, Any]], said: gr.HTML) -> Callable[..., dict[Any, Any]]:
    def told(*args: Any) -> dict[Any, Any]:
        try:
            with reporting():
                return callback(*args)
        except (UserError, InternalError) as error:
            return {said: ask_markup.complaint(error)}

    return told
