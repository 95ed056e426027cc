"""Pipelines that count their runs and let a test step in, and plans of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field, JsonValue

from app.controller.executor import Done, Running, StepEvent, execute
from app.controller.plan import Plan, Step
from app.studio import Studio
from models.manager import ModelManager
from pipelines.base import Event, Params, Pipeline, Produced, Progress, Route, Runtime, provenance
from pipelines.media import Artifact, Audio, Image, Mesh, Text, Video


class Count(Params):
    count: int = Field(1, ge=1, le=9, description="How many to make.")


class Watched(Pipeline):
    """Counts its runs and steps, and lets a test do something ``in_step`` or ``before_result``, such as raise."""

    summary = ""
    params_type = Count
    models: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.runs = self.steps = 0
        self.in_step: Callable[[], None] = lambda: None
        self.before_result: Callable[[], None] = lambda: None

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        assert isinstance(params, Count)
        self.runs += 1
        for key in self.models:
            with runtime.lease(key):
                for number in range(3):
                    runtime.raise_if_cancelled()
                    self.steps += 1
                    self.in_step()
                    yield Progress(number + 1, 3, "Working")
        for item in inputs:
            for index in range(params.count):
                self.before_result()
                made_by = provenance(self, item, params, runtime.models, index)
                yield Produced(self.result(item, params.seed + index).with_provenance(made_by))

    def result(self, inputs: Sequence[Artifact], seed: int) -> Artifact:
        raise NotImplementedError


class Tone(Watched):
    name = "tone"
    title = "Tone"
    routes = (Route(("image",), "audio"), Route(("video",), "audio"))
    models: ClassVar[tuple[str, ...]] = ("toner",)

    def result(self, inputs: Sequence[Artifact], seed: int) -> Artifact:
        [seen] = inputs
        pixels = seen.pixels if isinstance(seen, Image) else seen.frames if isinstance(seen, Video) else None
        assert pixels is not None
        return Audio((np.resize(pixels, (1, 800)) / np.float32(300 + seed)).astype(np.float32), 8000)


class Carve(Watched):
    name = "carve"
    title = "Carve"
    routes = (Route(("audio",), "mesh"), Route(("mesh",), "mesh"))
    models: ClassVar[tuple[str, ...]] = ("carver",)

    def result(self, inputs: Sequence[Artifact], seed: int) -> Artifact:
        [heard] = inputs
        assert isinstance(heard, Audio)  # the route from a mesh is only ever skipped
        return Mesh(heard.samples[0, :9].reshape(3, 3).copy() + np.float32(seed), np.array([[0, 1, 2]], np.int32))


class Flicker(Watched):
    """A clip, whose file holds less than the frames in memory."""

    name = "flicker"
    title = "Flicker"
    routes = (Route(("text",), "video"),)

    def result(self, inputs: Sequence[Artifact], seed: int) -> Artifact:
        noise = np.random.default_rng(seed).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
        return Video(noise, 12.0)


class Liar(Watched):
    """Says that it makes pictures."""

    name = "liar"
    title = "Liar"
    routes = (Route(("text",), "image"),)

    def result(self, inputs: Sequence[Artifact], seed: int) -> Artifact:
        return Text("a picture")


class Attentive(ModelManager):
    """Keeps what it was told to expect."""

    told: list[tuple[str, ...]]

    def expect(self, keys: Sequence[str]) -> None:
        self.told = [*getattr(self, "told", []), tuple(dict.fromkeys(keys))]
        super().expect(keys)


def step(id: str, op: str, *inputs: str, output: str, **params: JsonValue) -> Step:
    return Step(id=id, op=op, inputs=inputs, output=output, params=params)


def plan_of(*steps: Step) -> Plan:
    return Plan(steps=steps, outputs=tuple(f"${step.id}" for step in steps))


APPLE = step("a", "tiny-paint", "text:a red apple", output="image")
SOUND = step("b", "tone", "$a", output="audio")
OBJECT = step("c", "carve", "$b", output="mesh")
PEAR = step("d", "tiny-paint", "text:a pear", output="image", steps=1)
BOTH = step("e", "tiny-blend", "$a", "$d", output="image")
CHAIN = plan_of(APPLE, SOUND, OBJECT)


def told(events: Sequence[StepEvent]) -> list[tuple[str, str]]:
    """Kind and step of each event, without progress."""
    return [(type(event).__name__, event.step.id) for event in events if not isinstance(event, Running)]


def done(events: Sequence[StepEvent]) -> dict[str, Done]:
    return {event.step.id: event for event in events if isinstance(event, Done)}


def run(studio: Studio, plan: Plan) -> dict[str, Done]:
    return done(list(execute(studio, plan, {})))


def bug() -> None:
    raise ZeroDivisionError("a bug")


def uses(manager: ModelManager) -> int:
    return manager.metrics.hits + manager.metrics.misses
