"""Records what requests ask of the model manager: sent through Ask, by the lite models that this repository has.

Each kind of request is really run a few times, each time with other words or another file and another seed, after
all models were brought in; so the seconds between two events are computing alone, the gallery's work included.
The trace draws from these runs, by the weights of the house plan's sheet on model managers (section 3.6). So a trace of
300 requests takes minutes to record and not an hour, and all its seconds are ones that were measured.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.assistant import Assistant
from app.controller.conversation import Conversation
from app.controller.executor import Done, Failed
from app.settings import load_settings
from app.studio import Studio, build_manager
from benchmarks.manager_rules import Event, Kind
from models.manager import ModelManager
from models.sources import OnProgress
from models.working_memory import Work
from pipelines.media import load_artifact

EXAMPLES = Path(__file__).parents[1] / "assets" / "examples"
PICTURES = [
    EXAMPLES / "pictures" / f"{name}.png" for name in ("bell", "dog", "drum", "locomotive", "rooster", "violin")
]
SCANS = sorted((EXAMPLES / "scans").glob("S*.npz"))
THINGS = ("violin", "dog", "drum", "rooster", "train", "bell")
OBJECTS = ("wooden chair", "desk lamp", "sofa", "car", "bathtub", "palm tree")


@dataclass(frozen=True)
class RequestKind:
    """``prompt``: ``{}`` stands for one of ``words``; ``makes``: the media that the plan has to give, so that nothing
    is recorded under a wrong name.
    """

    name: str
    weight: int
    prompt: str
    makes: tuple[str, ...]
    words: tuple[str, ...] = ("",)
    files: Sequence[Path] = ()


KINDS = (
    RequestKind("picture", 30, "a picture of a {}", ("image",), THINGS),
    RequestKind("picture, sound", 12, "a picture of a {} and the sound of that picture", ("image", "audio"), THINGS),
    RequestKind("sound from words", 18, "the sound of a {}", ("audio",), THINGS),
    RequestKind("picture and object", 10, "a picture of a {} and a 3-D object of it", ("image", "mesh"), OBJECTS),
    RequestKind("all three", 5, "a picture, a sound and a 3-D object of a {}", ("image", "audio", "mesh"), OBJECTS),
    RequestKind("scan decoded", 4, "what did this person see? show the picture", ("image",), files=SCANS),
    RequestKind("scan to sound", 2, "make a sound of this brain scan", ("audio",), files=SCANS),
    RequestKind("sound of a picture", 10, "make the sound of this picture", ("audio",), files=PICTURES),
    RequestKind("object from words", 9, "a 3-D object of a {}", ("mesh",), OBJECTS),
    RequestKind("object of a picture", 5, "make a 3-D object of this picture", ("mesh",), files=PICTURES),
    RequestKind("described", 8, "describe this picture", ("text",), files=PICTURES),
)  # fmt: skip

SEEDS_OF_A_KIND = 1000
WARM_UP = ("all three", "scan to sound", "described")  # together they run every pipeline


class Recorder(ModelManager):
    """Writes down what is asked of it, and the seconds in between. Equal models are under one key."""

    events: list[Event] | None = None  # none are noted

    _writing = threading.Lock()

    def start(self) -> None:
        with self._writing:
            self.events, self._at = [], time.perf_counter()

    def stop(self) -> list[Event]:
        with self._writing:
            events, self.events = self.events, None
        return events or []

    def canonical(self, key: str) -> str:
        """The first key of the same files."""
        spec = self.specs[key]
        return next(k for k, other in self.specs.items() if (other.source, other.load) == (spec.source, spec.load))

    @contextmanager
    def _told(self, kind: Kind, said: Any) -> Iterator[None]:
        """Note an event, and that the manager's own time with it is not computing."""
        with self._writing:
            if self.events is not None:
                self.events += [("compute", round(time.perf_counter() - self._at, 4)), (kind, said)]
        yield
        with self._writing:
            self._at = time.perf_counter()

    def expect(self, keys: Sequence[str]) -> None:
        with self._told("expect", list(dict.fromkeys(map(self.canonical, keys)))):
            super().expect(keys)

    @contextmanager
    def working(self, work: Work, keys: Collection[str] = ()) -> Iterator[None]:
        canonical = list(dict.fromkeys(map(self.canonical, keys)))
        with ExitStack() as stack:
            with self._told("work", canonical):
                stack.enter_context(super().working(work, keys))
            try:
                yield
            finally:
                with self._told("done", canonical):
                    stack.close()

    @contextmanager
    def lease(self, key: str, on_progress: OnProgress | None = None) -> Iterator[Any]:
        with ExitStack() as stack:
            with self._told("lease", self.canonical(key)):
                model = stack.enter_context(super().lease(key, on_progress))
            try:
                yield model
            finally:
                with self._told("release", self.canonical(key)):
                    stack.close()


def record(runs: int, requests: int, repeat: float, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs of every kind, and which of them are the ``requests``; one repeats the last kind with chance ``repeat``."""
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(output_folder=Path(folder))
        plain = build_manager(settings)
        manager = Recorder(plain.specs, plain.device, 10**12, precisions=plain.precisions)
        assistant = Assistant(Studio(settings, manager=manager))
        recorded: dict[str, list[list[Event]]] = {}
        for key in manager.specs:
            with manager.lease(key):  # also what a plan only seems to need, and is loaded ahead for it
                pass
        for kind in KINDS:
            if kind.name in WARM_UP:
                _send(assistant, kind, runs)
        loads = manager.metrics.loads + manager.metrics.prefetches
        for kind in KINDS:
            recorded[kind.name] = []
            for number in range(runs):
                started = time.perf_counter()
                manager.start()
                _send(assistant, kind, number)
                recorded[kind.name].append(_joined(manager.stop()))
                say(f"{kind.name}: {time.perf_counter() - started:.1f} s")
        if manager.metrics.loads + manager.metrics.prefetches > loads:
            raise RuntimeError("models were loaded while requests were recorded: their loads would count as computing")
        sizes = {manager.canonical(key): row.bytes for row in manager.status() for key in row.keys}
    chance = random.Random(seed)
    chosen: list[tuple[str, int]] = []
    for _ in range(requests):
        again = chosen and chance.random() < repeat
        name = chosen[-1][0] if again else chance.choices(KINDS, [kind.weight for kind in KINDS])[0].name
        chosen.append((name, chance.randrange(runs)))
    precisions = {key: manager.precisions[key] for key in sizes}
    return {"precisions": precisions, "bytes": sizes, "runs": recorded, "requests": chosen}


def _send(assistant: Assistant, kind: RequestKind, number: int) -> None:
    """One request in a conversation of its own. Raises :class:`ValueError` if it does not come to what it should."""
    prompt = kind.prompt.format(kind.words[number % len(kind.words)])
    uploads = [load_artifact(kind.files[number % len(kind.files)])] if kind.files else []
    conversation = Conversation()
    seed = SEEDS_OF_A_KIND * KINDS.index(kind) + number  # not another kind's: the gallery would have what it made
    answer = assistant.answer(conversation, prompt, uploads, seed)
    if answer.plan is None or sorted(answer.outputs) != sorted(kind.makes):
        raise ValueError(f"'{prompt}' was read as {answer.act} {answer.outputs}: {answer.sentence}")
    done = []
    for event in assistant.run(conversation, answer.plan, uploads):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Done):
            if event.cached:
                raise RuntimeError(f"'{prompt}' was in the gallery already: nothing was computed for it")
            done.append(event.step.output)
    if not set(kind.makes) <= set(done):
        raise ValueError(f"'{prompt}' made {done}")


def _joined(events: Sequence[Event]) -> list[Event]:
    """Without computing of no length, and without what tells the manager what it knows already."""
    joined: list[Event] = []
    expected: object = None
    for kind, said in events:
        if kind == "expect":
            if said == expected:
                continue
            expected = said
        if kind == "compute" and joined and joined[-1][0] == "compute":
            joined[-1] = ("compute", round(joined[-1][1] + said, 4))
        elif kind != "compute" or said > 0:
            joined.append((kind, said))
    return joined
