"""A pipeline's settings as controls: one Gradio component per field of its :class:`~pipelines.base.Params`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import gradio as gr
from gradio.components import Component
from pydantic.fields import FieldInfo

from pipelines.base import Params

MOST_CHIPS = 16
MOST_STEPS = 1000  # of a slider: with more a finger cannot find the one that is meant
ANY = ""


@dataclass(frozen=True)
class FieldType:
    """What a field takes: ``kind`` without ``None`` and constraints, and the constraints."""

    kind: Any
    optional: bool
    minimum: float | None
    maximum: float | None
    step: float | None
    max_length: int | None

    @property
    def bounded(self) -> bool:
        return self.minimum is not None and self.maximum is not None


def field_type(field: FieldInfo) -> FieldType:
    """Take a field's annotation apart; ``gt`` and ``lt`` count as reachable here, where the pipeline refuses them."""
    kind, optional, constraints = field.annotation, False, list(field.metadata)
    if get_origin(kind) in (Union, UnionType):
        members = [member for member in get_args(kind) if member is not NoneType]
        optional = len(members) < len(get_args(kind))
        kind = members[0] if len(members) == 1 else kind
    if get_origin(kind) is Annotated:
        kind, *inner = get_args(kind)
        constraints += [part for item in inner for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    return FieldType(
        kind,
        optional,
        minimum=_constraint(constraints, "ge", "gt"),
        maximum=_constraint(constraints, "le", "lt"),
        step=_constraint(constraints, "multiple_of"),
        max_length=_constraint(constraints, "max_length"),
    )


def _constraint(constraints: list[Any], *names: str) -> Any:
    for constraint in constraints:
        parts = constraint if isinstance(constraint, annotated_types.GroupedMetadata) else [constraint]
        for part in parts:
            for name in names:
                if (value := getattr(part, name, None)) is not None:
                    return value
    return None


def is_advanced(field: FieldInfo) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("advanced"))


def label_of(name: str, field: FieldInfo) -> str:
    """The field's title, or its name as words: ``num_inference_steps`` reads "Inference steps"."""
    return field.title or name.removeprefix("num_").replace("_", " ").capitalize()


def control_for(name: str, field: FieldInfo) -> Component:
    """The component for one field, showing its default. Raises TypeError for a type that has no control."""
    taken = field_type(field)
    default = field.get_default(call_default_factory=True)
    common: dict[str, Any] = {
        "value": shown(field, default),
        "label": label_of(name, field),
        "info": field.description,
        "interactive": True,  # Gradio does not see by itself what a render listens to
        "elem_classes": ["control"],
    }
    if get_origin(taken.kind) is Literal:
        return _choice(taken, common)
    if taken.kind is bool:
        return gr.Checkbox(**common)
    if taken.kind in (int, float):
        return _number(taken, common)
    if taken.kind is str:
        return gr.Textbox(**common, max_length=taken.max_length)
    raise TypeError(f"the setting {name!r} has the type {field.annotation!r}, for which there is no control")


def _choice(taken: FieldType, common: dict[str, Any]) -> Component:
    choices: list[tuple[str, str | int | float]] = [(str(choice), choice) for choice in get_args(taken.kind)]
    if taken.optional:
        choices.insert(0, ("any", ANY))
    return gr.Radio(choices, **common) if len(choices) <= MOST_CHIPS else gr.Dropdown(choices, **common)


def _number(taken: FieldType, common: dict[str, Any]) -> Component:
    if taken.optional:  # Gradio's Number (6.31) shows and sends 0 where there is none
        return gr.Textbox(**common, placeholder="empty: left open", max_lines=1)
    whole = taken.kind is int
    common["precision"] = 0 if whole else None
    if taken.bounded:
        assert taken.minimum is not None and taken.maximum is not None
        step = taken.step or (1 if whole else slider_step(taken.minimum, taken.maximum))
        if not whole or (taken.maximum - taken.minimum) / step <= MOST_STEPS:
            return gr.Slider(taken.minimum, taken.maximum, step=step, buttons=[], **common)
    return gr.Number(minimum=taken.minimum, maximum=taken.maximum, step=taken.step or 1, **common)


def slider_step(minimum: float, maximum: float) -> float:
    """The power of ten that cuts the range into 100 to 1000 steps."""
    return 10.0 ** math.floor(math.log10((maximum - minimum) / 100))


def build_controls(params_type: type[Params]) -> dict[str, Component]:
    """The components of all fields but the seed, made where one stands in a Blocks; advanced ones come folded.

    Keyed by field name, in the order of the declaration.
    """
    fields = {name: field for name, field in params_type.model_fields.items() if name != "seed"}
    made = {name: control_for(name, field) for name, field in fields.items() if not is_advanced(field)}
    if len(made) < len(fields):
        with gr.Accordion("More settings", open=False, elem_classes=["more"]):
            made |= {name: control_for(name, field) for name, field in fields.items() if is_advanced(field)}
    return {name: made[name] for name in fields}


def shown(field: FieldInfo, value: Any) -> Any:
    """A setting's value as its control shows it: what is left open is empty, and a number that may be is text."""
    taken = field_type(field)
    if value is None:
        return ANY
    return str(value) if taken.optional and taken.kind in (int, float) else value


def taken_from(params_type: type[Params], values: dict[str, Any]) -> dict[str, Any]:
    """The controls' values as settings: the inverse of :func:`shown`. Text that is no number stays as it is, and the
    pipeline refuses it."""
    types = {name: field_type(field) for name, field in params_type.model_fields.items()}
    return {name: _taken(types[name], value) for name, value in values.items()}


def _taken(taken: FieldType, value: Any) -> Any:
    if not taken.optional or taken.kind not in (int, float):
        return None if taken.optional and value == ANY else value
    try:
        return taken.kind(value) if str(value).strip() else None
    except ValueError:
        return value
