"""Answers a browser session's :class:`~app.ui.talk.Talk` through the assistant. Knows nothing of Gradio."""

from __future__ import annotations

import random
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import cast

from app.assistant import Assistant
from app.controller.executor import Done, Failed, Running, Skipped, Started, StepEvent
from app.controller.plan import ARTIFACT, TEXT, UPLOAD, Plan, Step, check
from app.controller.planner import Answer, Choice, example_requests
from app.library import Entry
from app.names import name_of
from app.studio import InternalError, Studio, reporting
from app.ui.replies import exchange, instead_of_words, named
from app.ui.sounds import waveform_of
from app.ui.talk import WORDS_SHOWN, Piece, StepState, Talk, Turn, attached, replaced
from models.errors import Cancelled, UserError
from pipelines.media import Artifact, Text, load_artifact

COSTLY_SECONDS = 20.0  # above this a plan is shown before it runs; whoever sees it run can stop it
MAX_ATTACHMENTS = 12
EXAMPLES = 6
NOTHING_AT_HAND: Mapping[str, Artifact] = {}
ANOTHER = "another one"
SEEDS = 1_000_000  # "another one" counts up from where a request began


class Host:
    """Every method changes the talk; :meth:`run` then does what is to do. Threads may share one Host."""

    def __init__(self, assistant: Assistant) -> None:
        self.assistant = assistant
        self.studio = assistant.studio
        self._lock = threading.Lock()  # held only to see whether a talk is busy, and to make it so

    @property
    def examples(self) -> list[str]:
        """Requests to begin with: things to see or to hear, and one of each way to turn one into another."""
        turning = []
        for pipeline in self.studio.registry:
            made = pipeline.routes[0].output
            pairs = [texts for texts in pipeline.examples if len(texts) == 2]
            turning += [f"{name_of(made).wish} of {a} turning into {b}" for a, b in pairs[:1]]
        return [*example_requests(self.studio.registry)[: EXAMPLES - len(turning)], *turning]

    def take(self, talk: Talk, prompt: str, files: Sequence[str]) -> None:
        """Answer ``prompt`` about the attached ``files``, which are paths, and note what is to be run.

        Raises :class:`UserError` for a file or a prompt that cannot be used; nothing has changed then.
        """
        if len(files) > MAX_ATTACHMENTS:
            raise UserError(f"{len(files)} files are too many at once.", f"Attach at most {MAX_ATTACHMENTS}.")
        with self._claimed(talk):
            uploads = [load_artifact(Path(file)) for file in files]
            for upload in uploads:
                self.studio.library.keep_input(upload)
            answer = self._answer(talk, prompt, uploads)
            brought = []
            for upload, file in zip(uploads, files, strict=True):
                number = talk.conversation.attach(upload, Path(file).name).number
                brought.append(attached(number, upload, Path(file).name))
            talk.pieces |= {piece.number: piece for piece in brought}
            self._begin(talk, talk.add(prompt, brought), answer, brought, uploads)

    def choose(self, talk: Talk, number: int, index: int) -> None:
        """Answer the choice ``index`` of the turn ``number``, about what was attached there."""
        with self._claimed(talk):
            turn = talk.turn(number)
            choice = turn.choices[index]
            if (chosen := choice.prompt.removeprefix(ARTIFACT)).isdecimal() and int(chosen) in talk.pieces:
                self._select(talk, talk.add(choice.label), [int(chosen)])
                return
            about = turn.brought if turn.stage == "said" else []
            uploads = [self.studio.library.load_by_hash(talk.conversation.hashes[piece.number]) for piece in about]
            answer = self._answer(talk, choice.prompt, uploads)
            self._begin(talk, talk.add(choice.prompt), answer, about, uploads)

    def vary(self, talk: Talk, entry: str) -> None:
        """Another one of the piece that is the ``entry`` of the gallery, as if somebody had asked for it."""
        with self._claimed(talk):
            numbers = [piece.number for piece in talk.pieces.values() if piece.entry and piece.entry.id == entry]
            talk.conversation.bring_forward(numbers[-1:])
            answer = self._answer(talk, ANOTHER, [])
            self._begin(talk, talk.add(ANOTHER), answer, [], [])

    def go(self, talk: Talk, number: int) -> None:
        """Run the plan of the turn ``number``: for the first time, or what is not done of it."""
        with self._claimed(talk):
            turn = talk.turn(number)
            for state in turn.steps:
                state.restart()
            turn.stage, turn.problem, talk.todo = "running", None, turn

    def change(self, talk: Talk, number: int, plan: Plan) -> None:
        """Run ``plan`` instead of that of the turn ``number``; beside it, if that has run.

        Raises :class:`~app.controller.plan.PlanError` if it cannot run, and nothing has changed then.
        """
        with self._claimed(talk):
            self.check(talk, plan)
            turn = talk.turn(number)
            if turn.stage != "proposed":
                turn = talk.add(turn.prompt)
            turn.plan, turn.steps, turn.changed = plan, [self.state(step) for step in plan.steps], True
            turn.stage, talk.todo = "running", turn

    def check(self, talk: Talk, plan: Plan) -> None:
        """Raises :class:`~app.controller.plan.PlanError` unless ``plan`` can run in this talk."""
        if not plan.steps:
            raise UserError("There is no step left in the plan.", "Close it, or keep at least one step.")
        check(plan, self.studio.registry, talk.conversation.request("").available)

    def begin_anew(self, talk: Talk) -> None:
        """Forget the talk; what was made in it stays in the gallery."""
        with self._claimed(talk):
            talk.clear()

    @contextmanager
    def _claimed(self, talk: Talk) -> Iterator[None]:
        """Keep others from the talk until it is said what it has to do; raises :class:`UserError` where it is busy."""
        with self._lock:
            if talk.busy:
                raise UserError("One thing at a time: something is still being made.", "Wait for it, or stop it.")
            talk.claimed = True
        try:
            yield
        finally:
            talk.claimed = False

    def stop(self, talk: Talk) -> None:
        with self._lock:
            if talk.todo is not None:
                talk.todo.stage, talk.todo = "stopped", None
            if talk.cancelled is not None:
                talk.cancelled.set()

    def turned_away(self, talk: Talk) -> None:
        """Too many others are waiting: what was to run can be run later."""
        with self._lock:
            if talk.todo is not None:
                talk.todo.problem = UserError("Too many requests are waiting already.", "Try again in a minute.")
                talk.todo.stage, talk.todo = "ended", None

    def run(self, talk: Talk) -> Iterator[bool]:
        """Do what is to do. Yields whenever there is something new to see, and whether it is more than a step's
        progress. Closing it stops the run.
        """
        with self._lock:
            turn = talk.todo
            if turn is None:
                return
            talk.cancelled, talk.todo = threading.Event(), None
        try:
            with reporting():
                yield from self._run(talk, turn, talk.cancelled)
            turn.stage = "ended" if turn.plan else "said"
        except Cancelled:
            turn.stage = "stopped"
        except (UserError, InternalError) as error:
            turn.problem, turn.stage = error, "ended"
        finally:
            if turn.stage == "running":
                turn.stage = "stopped"
            for state in turn.steps:
                state.progress = None
                if state.state == "running":
                    state.state = "waiting"
            talk.cancelled = None
        yield True

    def _run(self, talk: Talk, turn: Turn, cancelled: threading.Event) -> Iterator[bool]:
        if turn.plan is None:
            yield from self._write(talk, turn, cancelled)
            return
        events = self.assistant.run(talk.conversation, turn.left(), cancelled=cancelled)
        with closing(cast(Generator[StepEvent, None, None], events)):
            for event in events:
                self._note(talk, turn, event)
                yield not isinstance(event, Running)

    def _write(self, talk: Talk, turn: Turn, cancelled: threading.Event) -> Iterator[bool]:
        """Answer in words, as far as something here can."""
        talk.conversation.said = [exchange(earlier) for earlier in talk.turns[:-1]]
        try:
            for words in self.assistant.reply(talk.conversation, turn.prompt, cancelled):
                turn.sentence += words
                yield False
        except UserError as problem:
            if turn.sentence:
                raise
            turn.sentence = instead_of_words(problem, self.studio.registry)
            turn.choices = tuple(Choice(text, text) for text in self.examples[:3])

    def _note(self, talk: Talk, turn: Turn, event: StepEvent) -> None:
        state = turn.step(event.step.id)
        match event:
            case Started():
                state.state = "running"
            case Running(progress=progress):
                state.progress = progress
            case Done(saved=saved, cached=cached, seconds=seconds):
                items = talk.conversation.items[-len(saved) :]
                state.pieces = [
                    piece_of(item.number, item.title, item.recipe, one.entry, one.artifact, self.studio)
                    for item, one in zip(items, saved, strict=True)
                ]
                talk.pieces |= {piece.number: piece for piece in state.pieces}
                state.state, state.cached, state.seconds = "done", cached, seconds
            case Failed(error=error):
                state.state, state.error = "failed", error
            case Skipped(because=because):
                state.state, state.because = "skipped", because

    def _answer(self, talk: Talk, prompt: str, uploads: Sequence[Artifact]) -> Answer:
        with reporting():
            return self.assistant.answer(talk.conversation, prompt, uploads, random.randrange(SEEDS))

    def _begin(
        self, talk: Talk, turn: Turn, answer: Answer, about: Sequence[Piece], uploads: Sequence[Artifact]
    ) -> None:
        """Answer ``turn`` by ``answer``, in which ``about`` were the attachments, which are ``uploads``."""
        turn.answer, turn.reader = answer, self.assistant.reader
        turn.sentence, turn.choices = answer.sentence, answer.choices
        if answer.plan is not None:
            numbers = [f"{ARTIFACT}{piece.number}" for piece in about]
            places = {f"{UPLOAD}{place}": number for place, number in enumerate(numbers, 1)}
            at_hand = dict(zip(numbers, uploads, strict=True))
            turn.plan = replaced(answer.plan, places)
            turn.steps = [self.state(step, at_hand) for step in turn.plan.steps]
            turn.stage = "proposed" if turn.to_fetch or turn.expected > COSTLY_SECONDS else "running"
        elif answer.act == "undo" and not answer.sentence:
            item = talk.conversation.undo()
            turn.shown = [talk.pieces[item.number]] if item else []
            turn.sentence = f"Back to {named(turn.shown[0])}." if item else "Undone; nothing is being talked about now."
        elif answer.act == "select" and answer.focus:
            self._select(talk, turn, answer.focus)
        elif answer.act == "chat":
            turn.stage = "running"
        if turn.stage == "running":
            talk.todo = turn

    def _select(self, talk: Talk, turn: Turn, numbers: Sequence[int]) -> None:
        talk.conversation.bring_forward(numbers)
        turn.shown = [talk.pieces[numbers[0]]]
        turn.sentence = f"This is {named(turn.shown[0])}. What comes next is about it."

    def state(self, step: Step, at_hand: Mapping[str, Artifact] = NOTHING_AT_HAND) -> StepState:
        """The step before it runs, with what it is going to take: all that it may, unless its inputs are words or
        ``at_hand``, by reference. Nothing is read from the gallery for that."""
        pipeline = self.studio.registry.get(step.op)
        models, seconds = pipeline.models, self.studio.seconds(pipeline)
        inputs = [_known(reference, at_hand) for reference in step.inputs]
        known = [item for item in inputs if item is not None]
        if len(known) == len(inputs):
            try:
                params = pipeline.parse_params(step.params)
                models = pipeline.models_for(known, params)
                seconds = self.studio.durations.expected(pipeline.name, pipeline.effort(known, params)) or seconds
            except UserError:  # it is the step's to say, when it runs
                pass
        specs = self.studio.manager.specs
        sources = {key: specs[key].source for key in models if key in specs}
        to_fetch = tuple(key for key, source in sources.items() if source.published and source.missing())
        return StepState(step, pipeline.title, models, seconds, to_fetch)


def _known(reference: str, at_hand: Mapping[str, Artifact]) -> Artifact | None:
    return Text(reference.removeprefix(TEXT)) if reference.startswith(TEXT) else at_hand.get(reference)


def piece_of(
    number: int, title: str, recipe: Step | None, entry: Entry, artifact: Artifact | None, studio: Studio
) -> Piece:
    """The piece of something that ``recipe`` made; ``artifact``: for a text, so that its words can be shown.

    What is made of files only is called like its pipeline, which says nothing.
    """
    own = any(pipeline.title == title for pipeline in studio.registry if recipe and pipeline.name == recipe.op)
    words = artifact.text[:WORDS_SHOWN] if isinstance(artifact, Text) else ""
    waveform = waveform_of(studio.library, entry)
    return Piece(number, entry.medium, "" if own else title, entry, words=words, waveform=waveform)
