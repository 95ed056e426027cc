"""One browser session's chat as the page shows it: turns, what their plans' steps came to, and pieces to look at."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps

from app.controller.conversation import Conversation
from app.controller.plan import ARTIFACT, STEP, TEXT, Plan, Step
from app.controller.planner import Answer, Choice
from app.library import Entry
from app.names import name_of
from app.studio import InternalError
from app.ui.sounds import Waveform
from models.errors import UserError
from pipelines.base import Progress
from pipelines.fmri.cortex import draw_scan
from pipelines.media import Artifact, BrainScan, Image, Text, Video

FACE_SIZE = 192
WORDS_SHOWN = 20_000


@dataclass(frozen=True)
class Piece:
    """What ``@number`` is: ``entry`` in the gallery, none for attachments; ``face``: how an attachment looks, if it
    can be seen; ``words``: the start of a text; ``waveform``: of a sound in the gallery."""

    number: int
    medium: str
    title: str
    entry: Entry | None = None
    face: Image | None = None
    words: str = ""
    waveform: Waveform | None = None


@dataclass
class StepState:
    """A step, and what has come of it. ``expected``: seconds; ``to_fetch``: models that are not on this machine yet.

    ``pieces``: all that it made; ``because``: the id of the failed step for which it was skipped.
    """

    step: Step
    title: str
    models: tuple[str, ...]
    expected: float
    to_fetch: tuple[str, ...] = ()
    state: Literal["waiting", "running", "done", "failed", "skipped"] = "waiting"
    progress: Progress | None = None
    pieces: list[Piece] = field(default_factory=list)
    seconds: float = 0.0
    cached: bool = False
    error: UserError | InternalError | None = None
    because: str = ""

    @property
    def result(self) -> Piece:
        """What other steps get of it. Raises ``StopIteration`` before it is done."""
        return next(piece for piece in self.pieces if piece.medium == self.step.output)

    def restart(self) -> None:
        """Wait again, unless it is done."""
        if self.state != "done":
            self.state, self.progress, self.error, self.because = "waiting", None, None, ""


@dataclass
class Turn:
    """What the person asked, and the answer to it.

    ``stage``: "said": words, a question or something shown; "proposed": a plan that waits to be run; "running";
    "ended"; "stopped". ``changed``: whether the plan was changed by hand; ``problem``: why nothing could run at all.
    """

    number: int
    prompt: str
    brought: list[Piece]
    stage: Literal["said", "proposed", "running", "ended", "stopped"] = "said"
    answer: Answer | None = None
    reader: str = ""
    sentence: str = ""
    choices: tuple[Choice, ...] = ()
    shown: list[Piece] = field(default_factory=list)
    plan: Plan | None = None
    steps: list[StepState] = field(default_factory=list)
    changed: bool = False
    problem: UserError | InternalError | None = None

    def step(self, id: str) -> StepState:
        return next(state for state in self.steps if state.step.id == id)

    @property
    def pieces(self) -> list[Piece]:
        return [piece for state in self.steps for piece in state.pieces]

    @property
    def expected(self) -> float:
        """Seconds until all that is not done would be."""
        return sum(state.expected for state in self.steps if state.state != "done")

    @property
    def to_fetch(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key for state in self.steps for key in state.to_fetch))

    @property
    def unfinished(self) -> bool:
        return any(state.state != "done" for state in self.steps)

    def left(self) -> Plan:
        """The plan of what is not done, over what is: a second run makes nothing twice."""
        assert self.plan is not None
        made = {STEP + s.step.id: f"{ARTIFACT}{s.result.number}" for s in self.steps if s.state == "done"}
        return replaced(self.plan, made, without=[s.step.id for s in self.steps if s.state == "done"])


@dataclass
class Talk:
    """``pieces``: by number; ``claimed``: whether a request is being answered; ``todo``: the turn that is going to
    run; ``cancelled``: set to stop the one that runs; ``notice``: what the person should know of all of it.
    """

    conversation: Conversation = field(default_factory=Conversation)
    turns: list[Turn] = field(default_factory=list)
    pieces: dict[int, Piece] = field(default_factory=dict)
    claimed: bool = False
    todo: Turn | None = None
    cancelled: threading.Event | None = None
    notice: str = ""

    @property
    def busy(self) -> bool:
        return self.claimed or self.todo is not None or self.cancelled is not None

    def add(self, prompt: str, brought: list[Piece] | None = None) -> Turn:
        """A new turn, at the end."""
        turn = Turn(len(self.turns) + 1, prompt, brought or [])
        self.turns.append(turn)
        return turn

    def clear(self) -> None:
        """Begin anew."""
        self.become(Talk())

    def become(self, other: Talk) -> None:
        """Go on with what was said in ``other``; what this one is doing goes on too."""
        self.conversation, self.turns, self.pieces = other.conversation, other.turns, other.pieces
        self.notice = other.notice

    def turn(self, number: int) -> Turn:
        """Raises ``KeyError`` if there is none."""
        return {turn.number: turn for turn in self.turns}[number]


def replaced(plan: Plan, references: dict[str, str], without: list[str] | None = None) -> Plan:
    """``plan`` with other references, and without some steps."""
    steps = tuple(
        step.model_copy(update={"inputs": tuple(references.get(source, source) for source in step.inputs)})
        for step in plan.steps
        if step.id not in (without or ())
    )
    return plan.model_copy(
        update={"steps": steps, "outputs": tuple(references.get(output, output) for output in plan.outputs)}
    )


def attached(number: int, artifact: Artifact, name: str) -> Piece:
    """The piece of something that a person brought."""
    words = artifact.text[:WORDS_SHOWN] if isinstance(artifact, Text) else ""
    return Piece(number, artifact.medium, name, face=_face(artifact), words=words)


def _face(artifact: Artifact) -> Image | None:
    if isinstance(artifact, Image):
        pixels = artifact.pixels
    elif isinstance(artifact, Video):
        pixels = artifact.frames[0]
    elif isinstance(artifact, BrainScan):
        drawn = PillowImage.fromarray(draw_scan(artifact).pixels)
        pixels = np.asarray(ImageOps.pad(drawn, (FACE_SIZE, FACE_SIZE), color="white"))
    else:
        return None
    small = PillowImage.fromarray(pixels)
    small.thumbnail((FACE_SIZE, FACE_SIZE))
    return Image(np.asarray(small))


def described(reference: str, turn: Turn, pieces: dict[int, Piece]) -> str:
    """What a step takes, in a few words: the words themselves, ``@3``, or the result of an earlier step."""
    if reference.startswith(TEXT):
        return reference.removeprefix(TEXT)
    if reference.startswith(ARTIFACT) and (piece := pieces.get(int(reference.removeprefix(ARTIFACT)))):
        return f"{piece.title} ({reference})"
    for number, state in enumerate(turn.steps, 1):
        if reference == STEP + state.step.id:
            return f"the {name_of(state.step.output).noun} of step {number}"
    return reference
