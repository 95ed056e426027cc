"""One conversation's turns: a request becomes an answer, its plan runs, and what it makes can be spoken of later."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing

from app.controller.conversation import Conversation
from app.controller.endpoint import Endpoint, EndpointRouter
from app.controller.executor import Done, StepEvent, execute
from app.controller.plan import ARTIFACT, UPLOAD, Plan
from app.controller.planner import Answer, Controller, by_rules, what_there_is
from app.controller.prototypes import PrototypeRouter
from app.controller.recall import characters, messages, tokens
from app.controller.routers import READ_CHARACTERS, LanguageModelRouter, Router, RuleRouter
from app.controller.rules import asks_for_help, is_talk
from app.studio import InternalError, Studio, reporting
from models.errors import Cancelled, UserError
from models.manager import ModelManager
from pipelines.media import Artifact

log = logging.getLogger(__name__)

LANGUAGE_MODEL, READER = "language-model", "request-reader"
ENCODER, SLOT_READER = "sentence-encoder", "slot-reader"
MAX_REPLY_TOKENS = 200
ENDPOINT_CHARACTERS = 8000  # of a chat: some 2000 tokens, half of what the smallest servers take
MANNER = (
    "You are the assistant of a studio that makes pictures, sounds and 3-D objects. Answer in a few plain sentences."
)


class Assistant:
    """What the Ask tab, the command line and the API talk to. Holds no conversation itself; threads may share it."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        settings = studio.settings
        self.endpoint: Endpoint | None = None
        manager = studio.manager
        untaught = PrototypeRouter(lambda: manager.lease(ENCODER)) if ENCODER in manager.specs else RuleRouter()
        router: Router = LanguageModelRouter(
            lambda: manager.lease(READER), lambda: _is_missing(manager, READER), untaught
        )
        if settings.language_model_url:
            self.endpoint = Endpoint(
                settings.language_model_url, settings.language_model_name, settings.language_model_key
            )
            router = EndpointRouter(self.endpoint)
        slots = self._slots if {ENCODER, SLOT_READER} <= set(manager.specs) else by_rules
        self.controller = Controller(studio.registry, router, studio.seconds, slots)

    @property
    def reader(self) -> str:
        """Who reads the requests: "rules", or the model that does."""
        return self.controller.router.name

    def warm(self) -> None:
        """Have the reader of requests in memory before the first of them, unless it would have to be fetched."""
        manager = self.studio.manager
        if self.endpoint is None and not _is_missing(manager, READER):
            try:
                with reporting(), manager.lease(READER):
                    pass
            except (UserError, InternalError) as problem:  # the first request will say so, if it is still so then
                log.info("The reader of requests is not loaded ahead: %s", problem)

    def answer(
        self, conversation: Conversation, prompt: str, uploads: Sequence[Artifact] = (), seed: int = 0
    ) -> Answer:
        """What ``prompt`` comes to, nothing done yet. Raises :class:`UserError` only for a prompt beyond all bounds."""
        return self.controller.answer(conversation.request(prompt, uploads), seed)

    def _slots(self, prompt: str, wanted: Sequence[str]) -> dict[str, str]:
        """The words for each medium. Raises :class:`UserError` where reader or text encoder cannot be had."""
        manager = self.studio.manager
        with manager.lease(ENCODER) as encoder, manager.lease(SLOT_READER) as reader:
            words: dict[str, str] = reader.read(prompt[: 2 * READ_CHARACTERS], wanted, encoder)
            return words

    def run(
        self,
        conversation: Conversation,
        plan: Plan,
        uploads: Sequence[Artifact] = (),
        names: Sequence[str] = (),
        cancelled: threading.Event | None = None,
    ) -> Iterator[StepEvent]:
        """Run ``plan``; its results, and the ``uploads`` (called ``names``), are in ``conversation`` from then on.

        Raises as :func:`~app.controller.executor.execute`.
        """
        library = self.studio.library
        uploads = [library.keep_input(upload) for upload in uploads]
        sources = {f"{UPLOAD}{number}": upload for number, upload in enumerate(uploads, 1)}
        earlier = {reference for step in plan.steps for reference in step.inputs if reference.startswith(ARTIFACT)}
        sources |= {ref: library.load_by_hash(conversation.hashes[int(ref.removeprefix(ARTIFACT))]) for ref in earlier}
        names = names or [upload.medium for upload in uploads]
        titles = {f"{ARTIFACT}{item.number}": item.title for item in conversation.items}
        titles |= {f"{UPLOAD}{number}": name for number, name in enumerate(names, 1)}
        uploaded = []
        for upload, name in zip(uploads, names, strict=True):
            uploaded.append(conversation.attach(upload, name).number)
        made: dict[str, int] = {}
        with closing(execute(self.studio, plan, sources, cancelled, titles)) as events:
            for event in events:
                if isinstance(event, Done):
                    for saved in event.saved:
                        item = conversation.add(saved.entry, event.step, made, uploaded)
                        if saved is event.result:
                            made[event.step.id] = item.number
                yield event

    def reply(self, conversation: Conversation, prompt: str, cancelled: threading.Event | None = None) -> Iterator[str]:
        """Words in answer to ``prompt``, piece by piece, in view of the latest of what was said, as far as it fits.
        What can be done here is said by the pipelines, not by a model.

        Raises :class:`UserError` if there is no language model here or it fails, :class:`Cancelled` when told to stop.
        """
        stop = cancelled or threading.Event()
        with reporting():
            if asks_for_help(prompt):
                yield what_there_is(self.studio.registry)
                return
            if self.endpoint is not None:
                chat = messages(MANNER, conversation.said, prompt, characters, ENDPOINT_CHARACTERS)
                for piece in self.endpoint.reply(chat):
                    if stop.is_set():
                        raise Cancelled
                    yield piece
                return
            if _is_missing(self.studio.manager, LANGUAGE_MODEL):
                raise UserError(
                    "There is no language model on this machine to answer in words.",
                    "Fetch it with 'python -m app models fetch language-model'.",
                )
            with self.studio.manager.lease(LANGUAGE_MODEL) as model:
                longest = min(MAX_REPLY_TOKENS, model.context // 2)
                said = [] if is_talk(prompt) else conversation.said  # to "hello" it would tell what was made
                chat = messages(MANNER, said, prompt, tokens(model), model.context - longest)
                yield from model.reply(chat, longest, stop.is_set)
            if stop.is_set():
                raise Cancelled


def _is_missing(manager: ModelManager, key: str) -> bool:
    spec = manager.specs.get(key)
    return spec is None or bool(spec.source.missing())
