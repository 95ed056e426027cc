"""Plans and the compiler: the shortest way over what is installed, and a reason for everything that cannot run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, JsonValue

from app.controller import plan as plan_module
from app.controller.compiler import Goal, NoRouteError, compile_plan, reachable, reachable_by_sight, schedule
from app.controller.plan import MAX_DEPTH, MAX_STEPS, Plan, PlanError, Step, check, read_plan
from pipelines.base import Event, Params, Pipeline, Registry, Route, Runtime
from pipelines.media import Artifact


class Strength(Params):
    strength: float = Field(1.0, ge=0, le=2, description="How much.")


class Declared(Pipeline):
    """Only its declaration matters here."""

    params_type = Strength

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        raise NotImplementedError


def declared(name: str, *routes: str, models: Sequence[str] = (), is_edit: bool = False) -> Pipeline:
    """``routes``: such as ``"text text>video"``."""
    pairs = [route.split(">") for route in routes]
    fields = {
        "name": name,
        "title": name.capitalize(),
        "summary": "",
        "routes": tuple(Route(tuple(inputs.split()), output) for inputs, output in pairs),
        "models": tuple(models),
        "is_edit": is_edit,
    }
    return type(name, (Declared,), fields)()


REGISTRY = Registry(
    [
        declared("paint", "text>image", models=["clip", "painter"]),
        declared("sound", "image>audio", "video>audio", models=["clip", "toner"]),
        declared("speak", "text>audio", models=["toner"]),
        declared("sculpt", "text>mesh", "image>mesh", "audio>mesh", models=["carver"]),
        declared("decode", "scan>image", models=["brain"]),
        declared("morph", "text text>video", "text text>image", models=["painter"]),
        declared("louder", "audio>audio", is_edit=True),
        declared("describe", "image>text", models=["clip"]),
    ]
)
HERE = {"upload:1": "image", "upload:2": "scan", "@1": "audio", "@2": "image"}
SECONDS = {"speak": 4.0, "sculpt": 9.0}
APPLE = "text:a red apple"


def seconds(pipeline: Pipeline) -> float:
    return SECONDS.get(pipeline.name, 1.0)


def compiled(*goals: Goal) -> Plan:
    return compile_plan(goals, REGISTRY, HERE, seconds)


def wiring(plan: Plan) -> list[tuple[str, tuple[str, ...]]]:
    return [(step.op, step.inputs) for step in plan.steps]


# The way.


def test_one_step_where_one_pipeline_does_it() -> None:
    plan = compiled(Goal("image", (APPLE,), params={"strength": 0.5}))
    assert plan.steps == (
        Step(id="s1", op="paint", inputs=(APPLE,), output="image", params={"seed": 0, "strength": 0.5}),
    )
    assert plan.outputs == ("$s1",)


def test_a_path_where_no_single_pipeline_does_it() -> None:
    plan = compiled(Goal("audio", ("upload:2",), params={"strength": 0.5}))
    assert wiring(plan) == [("decode", ("upload:2",)), ("sound", ("$s1",))]
    assert plan.outputs == ("$s2",)
    assert [step.params for step in plan.steps] == [{"seed": 0}, {"seed": 0, "strength": 0.5}]


def test_of_two_that_make_the_same_the_first_does_it_even_if_it_is_slower() -> None:
    pipelines = [declared(name, "text>audio", "text text>video") for name in ("better", "faster")]

    def seconds(pipeline: Pipeline) -> float:
        return 90.0 if pipeline.name == "better" else 1.0

    for goal in (Goal("audio", (APPLE,)), Goal("video", (APPLE, "text:a pear"))):
        assert compile_plan([goal], Registry(pipelines), HERE, seconds).steps[0].op == "better"


def test_what_is_made_of_an_object_is_made_of_what_is_seen_of_it() -> None:
    views = [declared("sheet", "mesh>image", is_edit=True), declared("spin", "mesh>video", is_edit=True)]
    tell = declared("tell", "image>text", "video>text")
    registry, here = Registry([*REGISTRY, *views, tell]), {"@1": "mesh"}
    assert {"text", "audio"} <= reachable_by_sight("mesh", registry) and "text" not in reachable("mesh", registry)
    for output, way in (("text", ["spin", "tell"]), ("audio", ["spin", "sound"]), ("image", ["sheet"])):
        plan = compile_plan([Goal(output, ("@1",))], registry, here, seconds)
        assert [step.op for step in plan.steps] == way
    assert "video" not in reachable("text", registry)  # nobody who asks for a clip means an object that turns around


def test_the_fewer_lossy_hops_win_unless_they_take_far_longer() -> None:
    goal = [Goal("audio", (APPLE,))]
    assert wiring(compile_plan(goal, REGISTRY, HERE, seconds)) == [("speak", (APPLE,))]
    slow = compile_plan(goal, REGISTRY, HERE, lambda pipeline: 100.0 if pipeline.name == "speak" else 1.0)
    assert wiring(slow) == [("paint", (APPLE,)), ("sound", ("$s1",))]


def test_a_way_that_is_named_is_kept_although_there_is_a_shorter_one() -> None:
    plan = compiled(Goal("image", (APPLE,)), Goal("audio", ("goal:1",)), Goal("mesh", ("goal:2",)))
    assert wiring(plan) == [("paint", (APPLE,)), ("sound", ("$s1",)), ("sculpt", ("$s2",))]
    assert plan.outputs == ("$s1", "$s2", "$s3")
    means = compiled(Goal("image", (APPLE,), kept=False), Goal("audio", ("goal:1",)))
    assert wiring(means) == [("paint", (APPLE,)), ("sound", ("$s1",))] and means.outputs == ("$s2",)


def test_equal_steps_are_made_once() -> None:
    picture = Goal("image", (APPLE,))
    plan = compiled(picture, Goal("image", (APPLE,), kept=False), Goal("audio", ("goal:2",)), picture)
    assert wiring(plan) == [("paint", (APPLE,)), ("sound", ("$s1",))]
    assert plan.outputs == ("$s1", "$s2")
    shared = compiled(Goal("audio", ("upload:2",)), Goal("mesh", ("upload:2",)))
    assert sorted(step.op for step in shared.steps) == ["decode", "sculpt", "sound"]
    different = compiled(picture, Goal("image", (APPLE,), params={"seed": 1}), Goal("image", ("text:a pear",)))
    assert len(different.steps) == 3


def test_several_inputs_go_to_the_pipeline_that_takes_them_together() -> None:
    assert wiring(compiled(Goal("video", ("text:a sun", "text:a moon")))) == [("morph", ("text:a sun", "text:a moon"))]
    with pytest.raises(NoRouteError, match="makes clips from text and a picture"):
        compiled(Goal("video", ("text:a sun", "upload:1")))


def test_an_edit_is_no_way_but_can_be_asked_for() -> None:
    with pytest.raises(NoRouteError):
        compile_plan([Goal("audio", ("@1",))], Registry([REGISTRY.get("louder")]), HERE, seconds)
    plan = compiled(Goal("audio", ("@1",), op="louder", params={"strength": 2}))
    assert wiring(plan) == [("louder", ("@1",))]


def test_what_cannot_be_made_is_left_out_with_what_hangs_on_it_and_said() -> None:
    plan = compiled(Goal("video", ("upload:1",), kept=False), Goal("audio", ("goal:1",)), Goal("mesh", (APPLE,)))
    assert wiring(plan) == [("sculpt", (APPLE,))]
    assert plan.outputs == ("$s1",) and len(plan.warnings) == 1 and "clips from a picture" in plan.warnings[0]


def test_nothing_is_made_for_a_goal_that_came_to_nothing() -> None:
    plan = compiled(Goal("image", (APPLE,), kept=False), Goal("video", ("goal:1",)), Goal("mesh", ("upload:1",)))
    assert wiring(plan) == [("sculpt", ("upload:1",))]
    with pytest.raises(NoRouteError, match="makes clips from a picture"):
        compiled(Goal("image", (APPLE,), kept=False), Goal("video", ("goal:1",)))


def test_a_refusal_says_what_can_be_made_instead() -> None:
    with pytest.raises(NoRouteError) as caught:
        compiled(Goal("hologram", ("@1",)))
    assert caught.value.wanted == "hologram" and caught.value.nearest == {"mesh"} == reachable("audio", REGISTRY)
    assert "3-D objects" in caught.value.hint
    assert reachable("scan", REGISTRY) == {"image", "audio", "mesh", "text"}


@pytest.mark.parametrize(
    ("goals", "reason"),
    [
        ([Goal("image", ())], "Nothing is given"),
        ([Goal("image", ("upload:9",))], "no 'upload:9'"),
        ([Goal("image", ("nonsense",))], "no 'nonsense'"),
        ([Goal("audio", ("goal:1",))], "does not come before"),
        ([Goal("audio", ("goal:0",))], "does not come before"),
        ([Goal("audio", ("goal:x",))], "does not come before"),
        ([Goal("audio", ("goal:" + "9" * 5000,))], "does not come before"),
        ([Goal("image", (APPLE,), op="nobody")], "no pipeline called 'nobody'"),
        ([Goal("audio", (APPLE,), op="louder")], "gives text to 'louder' and wants audio"),
        ([Goal("image", (APPLE,) * 5, op="paint")], "at most 4"),
        ([Goal("x" * 99, (APPLE,), op="paint")], "at most 40"),
        ([Goal("image", (APPLE,), params={"strength": 7})], "'strength' cannot be"),
        ([Goal("image", (APPLE,), params={"shell": "rm"})], "no setting called 'shell'"),
        ([Goal("image", (f"text:{n}",)) for n in range(MAX_STEPS + 1)], "more than 12 steps"),
        (
            [Goal("image", (APPLE,)), *(Goal(("text", "image")[n % 2], (f"goal:{n + 1}",)) for n in range(MAX_DEPTH))],
            "more than 6 steps deep",
        ),
    ],
)
def test_goals_that_cannot_be_met_are_refused_with_the_reason(goals: list[Goal], reason: str) -> None:
    with pytest.raises(PlanError, match=reason) as caught:
        compiled(*goals)
    assert len(caught.value.sentence) < 300 and caught.value.hint


# The order.


def cost(order: Sequence[Step], registry: Registry) -> tuple[int, float]:
    """Models brought in, and seconds summed over the results, if only the last step's models stay in memory."""
    loaded: set[str] = set()
    swaps, clock, waited = 0, 0.0, 0.0
    for step in order:
        pipeline = registry.get(step.op)
        swaps += len(set(pipeline.models) - loaded)
        loaded = set(pipeline.models) or loaded
        clock += float(pipeline.summary)
        waited += clock
    return swaps, waited


@settings(max_examples=60)
@given(st.data())
def test_the_order_has_the_fewest_swaps_of_all_orders(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 5))
    pipelines, steps = [], []
    for number in range(count):
        models = data.draw(st.sets(st.sampled_from("abc"), max_size=2))
        pipeline = declared(f"p{number}", "text>image", models=sorted(models))
        type(pipeline).summary = str(data.draw(st.integers(1, 9)))  # its seconds
        pipelines.append(pipeline)
        needs = data.draw(st.lists(st.integers(0, number - 1), max_size=2, unique=True)) if number else []
        inputs = tuple(f"$s{needed}" for needed in needs) or (APPLE,)
        steps.append(Step(id=f"s{number}", op=f"p{number}", inputs=inputs, output="image"))
    registry = Registry(pipelines)
    order = schedule(data.draw(st.permutations(steps)), registry, lambda pipeline: float(pipeline.summary))
    valid = [
        candidate
        for candidate in permutations(steps)
        if all(set(step.needs) <= {earlier.id for earlier in candidate[:at]} for at, step in enumerate(candidate))
    ]
    assert order in valid
    assert cost(order, registry) == min(cost(candidate, registry) for candidate in valid)


def test_steps_of_one_model_stand_together_and_an_edit_between_them_costs_nothing() -> None:
    plan = compiled(
        Goal("image", ("text:a",)),
        Goal("mesh", ("text:b",)),
        Goal("image", ("text:c",)),
        Goal("audio", ("@1",), op="louder"),
        Goal("mesh", ("text:d",)),
    )
    ops = [step.op for step in plan.steps if step.op != "louder"]
    assert ops == ["paint", "paint", "sculpt", "sculpt"]


# The checks.


def step(id: str = "a", op: str = "paint", *inputs: str, output: str = "image", **params: JsonValue) -> Step:
    return Step(id=id, op=op, inputs=inputs or (APPLE,), output=output, params=params)


CHAIN = [step("c0"), *(step(f"c{n}", "describe" if n % 2 else "paint", f"$c{n - 1}") for n in range(1, MAX_DEPTH + 1))]
CHAIN = [s.model_copy(update={"output": "text" if s.op == "describe" else "image"}) for s in CHAIN]


@pytest.mark.parametrize(
    ("steps", "outputs", "reason"),
    [
        ([step("a", "nobody")], (), "Step 'a': There is no pipeline called 'nobody'"),
        ([step("a", "sound", APPLE, output="audio")], (), "'a' gives text to 'sound' and wants audio"),
        ([step("a"), step("b", "paint", "$a")], (), "'b' gives image to 'paint'"),
        ([step("a", "paint", output="mesh")], (), "'a' gives text to 'paint' and wants mesh"),
        ([step("a", "morph", APPLE, output="video")], (), "'a' gives text to 'morph'"),
        ([step("a", "sound", "$b", output="audio"), step("b")], (), "result of 'b', which comes later"),
        ([step("a", "louder", "$a", output="audio")], (), "result of 'a', which comes later or depends on it"),
        (
            [step("a", "louder", "$b", output="audio"), step("b", "louder", "$a", output="audio")],
            (),
            "result of 'b', which comes later or depends on it",
        ),
        ([step("a", "sound", "$z", output="audio")], (), "'\\$z', which does not exist"),
        ([step("a", "sound", "upload:3", output="audio")], (), "'upload:3', which does not exist"),
        ([step("a", "sound", "@7", output="audio")], (), "'@7', which does not exist"),
        ([step("a", "sound", "/etc/passwd", output="audio")], (), "is no reference"),
        ([step("a", "paint", "text:")], (), "is no reference"),
        ([step("a", "sound", "upload:0", output="audio")], (), "is no reference"),
        ([step("a"), step("a")], (), "Two steps are called 'a'"),
        ([step(strength=3)], (), "Step 'a': 'strength' cannot be '3'"),
        ([step(strength=None)], (), "Step 'a': 'strength' cannot be"),
        ([step(seed=-1)], (), "Step 'a': 'seed' cannot be"),
        ([step(command="ls")], (), "Step 'a': Paint has no setting called 'command'"),
        (CHAIN, (), "more than 6 steps deep"),
        ([step()], ("$b",), "promises '\\$b', which no step makes"),
        ([step()], ("text:words",), "promises 'text:words', which no step makes"),
    ],
)
def test_a_plan_that_cannot_run_is_refused_with_the_reason(
    steps: list[Step], outputs: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(PlanError, match=reason) as caught:
        check(Plan(steps=tuple(steps), outputs=outputs), REGISTRY, HERE)
    assert len(caught.value.sentence) < 300 and caught.value.hint


def test_a_wrong_medium_is_told_with_what_was_expected() -> None:
    with pytest.raises(PlanError) as caught:
        check(Plan(steps=(step("a", "sound", APPLE, output="audio"),), outputs=()), REGISTRY, HERE)
    assert "image to audio or video to audio" in caught.value.hint


def test_the_deepest_and_longest_plans_that_are_allowed_pass() -> None:
    check(Plan(steps=tuple(CHAIN[:MAX_DEPTH]), outputs=("$c5", "upload:1")), REGISTRY, HERE)
    check(Plan(steps=tuple(step(f"a{n}") for n in range(MAX_STEPS)), outputs=()), REGISTRY, HERE)
    check(Plan(steps=(), outputs=()), REGISTRY, HERE)


# What is read and edited.


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "the plan"),
        ("draw a cat", "the plan"),
        ("[" * 100_000, "the plan"),
        ("\ud800", "the plan"),
        ("[]", "the plan"),
        ('{"steps": 1, "outputs": []}', "steps"),
        ('{"steps": [{"id": "A b"}], "outputs": []}', "steps.0.id"),
        ('{"steps": [], "outputs": [], "run": "ls"}', "run"),
        ('{"steps": [], "outputs": [], "' + "x" * 9999 + '": 1}', "xxx"),
        ('{"steps": [], "outputs": [], "version": 2}', "version"),
        (json.dumps({"steps": [step().model_dump()] * (MAX_STEPS + 1), "outputs": []}), "steps"),
    ],
)
def test_a_plan_that_cannot_be_read_says_where(text: str, place: str) -> None:
    with pytest.raises(PlanError) as caught:
        read_plan(text)
    assert f"The plan cannot be read: {place}" in caught.value.sentence
    assert len(caught.value.sentence) < 300 and caught.value.hint


def test_dropping_a_step_drops_what_needs_it_and_nothing_else() -> None:
    plan = Plan(
        steps=(
            step("1"),
            step("2", "sound", "$1", output="audio"),
            step("3", "sculpt", "$2", output="mesh"),
            step("4", "sculpt", "@1", output="mesh"),
        ),
        outputs=("$1", "$3", "$4", "@1"),
    )
    assert [s.id for s in plan.without("2").steps] == ["1", "4"] and plan.without("2").outputs == ("$1", "$4", "@1")
    left = plan.without("1")
    assert [s.id for s in left.steps] == ["4"] and left.outputs == ("$4", "@1"), "'@1' is no step"
    check(left, REGISTRY, HERE)


def test_the_schema_in_the_repository_is_that_of_the_plans() -> None:
    path = Path(plan_module.__file__).with_name("plan_v1.schema.json")
    assert json.loads(path.read_text()) == Plan.model_json_schema(), "write it anew, and raise the version if it breaks"


# Any goals.

sources = st.sampled_from(
    [APPLE, "text:", "text:\0", "upload:1", "upload:2", "upload:9", "@1", "@2", "goal:1", "goal:2", "goal:x", "$s1", ""]
)
outputs = st.sampled_from(["image", "audio", "video", "mesh", "text", "scan", "smell", "", "x" * 99])
ops = st.none() | st.sampled_from(["paint", "sound", "louder", "morph", "sculpt", "nobody", ""])
params: st.SearchStrategy[Mapping[str, JsonValue]] = st.sampled_from(
    [{}, {"seed": 1}, {"seed": -1}, {"strength": 0}, {"strength": "much"}, {"x": [1]}]
)
goals = st.builds(Goal, outputs, st.lists(sources, max_size=5).map(tuple), op=ops, params=params, kept=st.booleans())


@settings(max_examples=300)
@given(st.lists(goals, max_size=8))
def test_any_goals_give_a_plan_that_can_run_or_a_reason(goals: list[Goal]) -> None:
    try:
        plan = compile_plan(goals, REGISTRY, HERE, seconds)
    except PlanError as error:
        assert error.sentence and len(error.sentence) < 400
        return
    check(plan, REGISTRY, HERE)
    assert read_plan(plan.model_dump_json()) == plan
    used = {reference for s in plan.steps for reference in s.inputs} | set(plan.outputs)
    assert all(f"${s.id}" in used for s in plan.steps)
