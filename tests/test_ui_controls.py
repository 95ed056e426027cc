"""Controls follow from a pipeline's Params, and what they hold goes back into those Params unchanged."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import gradio as gr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, create_model

from app.ui.controls import MOST_CHIPS, build_controls, field_type, label_of, shown, slider_step, taken_from
from app.ui.scan_look import look_of
from pipelines.base import EXAMPLES, MAX_SEED, Params

Style = Literal["flat", "3d", "outline"]
Letter = Literal["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"]


class Everything(Params):
    style: Style | None = Field(None, description="How it is drawn.")
    letter: Letter | None = Field("p", description="Many choices.")
    medium: Style = Field("3d", description="No way round a choice.")
    remove: str | None = Field(None, max_length=300, description="A concept to leave out.")
    title: str = Field("", description="Words that may be empty.")
    tiled: bool = Field(True, description="Whether it repeats.")
    num_images: int = Field(2, ge=1, le=8, description="How many.")
    guidance_scale: float = Field(7.0, ge=1.0, le=20.0, description="How literally.")
    share: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="May be left open.")
    extent: int = Field(3, ge=1, description="No upper end.")
    pixels: int = Field(9, ge=0, le=1000, description="As many steps as a slider may have.")
    trial: int = Field(0, ge=0, le=1001, description="One more.")
    size: int = Field(64, ge=32, le=128, multiple_of=32, description="Of a side.", json_schema_extra={"advanced": True})


@pytest.fixture
def controls() -> dict[str, Any]:
    with gr.Blocks():
        return build_controls(Everything)


def test_every_field_but_the_seed_has_a_control_in_order(controls: dict[str, Any]) -> None:
    assert list(controls) == [name for name in Everything.model_fields if name != "seed"]


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("style", gr.Radio),
        ("letter", gr.Dropdown),
        ("medium", gr.Radio),
        ("remove", gr.Textbox),
        ("title", gr.Textbox),
        ("tiled", gr.Checkbox),
        ("num_images", gr.Slider),
        ("guidance_scale", gr.Slider),
        ("share", gr.Textbox),
        ("extent", gr.Number),
        ("pixels", gr.Slider),
        ("trial", gr.Number),
        ("size", gr.Slider),
    ],
)
def test_the_type_chooses_the_component(controls: dict[str, Any], name: str, component: type) -> None:
    assert type(controls[name]) is component


def test_bounds_steps_and_descriptions_are_the_fields(controls: dict[str, Any]) -> None:
    scale = controls["guidance_scale"]
    assert (scale.minimum, scale.maximum, scale.value, scale.step) == (1.0, 20.0, 7.0, 0.1)
    assert scale.info == "How literally."
    images = controls["num_images"]
    assert (images.minimum, images.maximum, images.step, images.precision) == (1, 8, 1, 0)
    assert controls["size"].step == 32
    assert (controls["extent"].minimum, controls["extent"].maximum) == (1, None)
    assert (controls["trial"].minimum, controls["trial"].maximum, controls["trial"].precision) == (0, 1001, 0)
    assert controls["remove"].max_length == 300


def test_a_choice_that_may_be_left_open_offers_any_and_only_such_a_choice(controls: dict[str, Any]) -> None:
    assert controls["style"].choices[0] == ("any", "") and controls["style"].value == ""
    assert len(controls["letter"].choices) == 17 > MOST_CHIPS and controls["letter"].value == "p"
    assert [value for _, value in controls["medium"].choices] == ["flat", "3d", "outline"]


def test_advanced_controls_are_folded(controls: dict[str, Any]) -> None:
    def folds(name: str) -> list[gr.Accordion]:
        found, block = [], controls[name].parent
        while block is not None:
            found += [block] if isinstance(block, gr.Accordion) else []
            block = block.parent
        return found

    [fold] = folds("size")
    assert fold.open is False
    assert folds("style") == []


def test_labels_are_words() -> None:
    fields = Everything.model_fields
    assert label_of("num_images", fields["num_images"]) == "Images"
    assert label_of("guidance_scale", fields["guidance_scale"]) == "Guidance scale"


def test_a_type_without_a_control_is_refused_when_the_page_is_built() -> None:
    odd = create_model("Odd", __base__=Params, pairs=(dict[str, int], Field({}, description="Not drawable.")))
    with gr.Blocks(), pytest.raises(TypeError, match="pairs"):
        build_controls(odd)


values = st.fixed_dictionaries(
    {
        "style": st.sampled_from(["flat", "3d", "outline", None]),
        "letter": st.sampled_from(["a", "p", None]),
        "medium": st.sampled_from(["flat", "3d"]),
        "remove": st.one_of(st.none(), st.text(min_size=1, max_size=300)),
        "title": st.text(max_size=30),
        "tiled": st.booleans(),
        "num_images": st.integers(1, 8),
        "guidance_scale": st.floats(1.0, 20.0),
        "share": st.one_of(st.none(), st.floats(0, 1)),
        "extent": st.integers(1, 10**6),
        "pixels": st.integers(0, 1000),
        "trial": st.integers(0, 1001),
        "size": st.sampled_from([32, 64, 96, 128]),
        "seed": st.integers(0, MAX_SEED),
    }
)


@given(values)
@settings(max_examples=60)
def test_settings_survive_the_way_through_the_controls(given_values: dict[str, Any]) -> None:
    params = Everything(**given_values)
    held = {name: shown(Everything.model_fields[name], value) for name, value in params.model_dump().items()}
    assert Everything(**taken_from(Everything, held)) == params


@given(values)
@settings(max_examples=20)
def test_components_pass_on_what_they_are_filled_with(given_values: dict[str, Any]) -> None:
    """As a remix does it: value to component to browser to component to value."""
    with gr.Blocks():
        controls = build_controls(Everything)
    for name, control in controls.items():
        filled = control.postprocess(shown(Everything.model_fields[name], given_values[name]))
        assert taken_from(Everything, {name: control.preprocess(filled)}) == {name: given_values[name]}


@pytest.mark.parametrize(("typed", "taken"), [("", None), (" ", None), (" 0.25 ", 0.25), ("a lot", "a lot")])
def test_a_number_that_may_be_left_open_is_typed(typed: str, taken: object) -> None:
    assert taken_from(Everything, {"share": typed}) == {"share": taken}


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_a_slider_has_between_100_and_1000_steps(minimum: float, span: float) -> None:
    maximum = minimum + span
    if maximum - minimum > 1e-4:
        assert 100 <= round((maximum - minimum) / slider_step(minimum, maximum), 6) <= 1000.001


def test_bounds_inside_an_optional_are_found() -> None:
    taken = field_type(Everything.model_fields["share"])
    assert taken.optional and taken.kind is float and (taken.minimum, taken.maximum) == (0, 1)


def test_a_scan_is_still_seen_when_the_number_of_its_trial_is_wiped_out() -> None:
    path = str(EXAMPLES / "scans" / "S6-placard.npz")
    assert look_of(path, {"trial": None, "without": "none"}) == look_of(path, {"trial": 0, "without": "none"})
    assert "<img" in look_of(path, {"trial": None})
