"""What a language model is told of a conversation: the latest of it, and never more than fits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.assistant import LANGUAGE_MODEL, MAX_REPLY_TOKENS, Assistant
from app.controller.conversation import Conversation, Exchange
from app.controller.recall import MAX_EXCHANGES, MAX_SAID, Message, messages, shortened, tokens
from app.settings import Settings
from app.studio import Studio
from app.ui.host import Host
from app.ui.kept import kept, restored
from app.ui.talk import Talk
from models.language_model import LanguageModel, load_language_model
from models.manager import ModelManager
from models.sources import Folder
from models.spec import ModelSpec, bytes_in_memory
from tests.talks import ask
from tests.test_language_model import save_tokenizer, tiny_llama
from tests.tiny import write_sums
from tests.tiny_models import CPU

CONTEXT = 1024
MANNER = "Be kind."
SAID = [Exchange(f"question {number}", f"answer {number}") for number in range(20)]


class Listening(LanguageModel):
    """Keeps what it was asked."""

    heard: Sequence[Message] = ()

    def reply(
        self, messages: Sequence[Message], max_new_tokens: int = 256, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[str]:
        self.heard = messages
        return super().reply(messages, max_new_tokens, stopped)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    save_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}))
    write_sums(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Listening:
    plain = load_language_model(folder)
    return Listening(plain.tokenizer, plain.model)


@pytest.fixture
def assistant(tiny_studio: Studio, tiny_settings: Settings, folder: Path, model: Listening) -> Assistant:
    size = bytes_in_memory(folder)
    spec = ModelSpec(LANGUAGE_MODEL, "lite", Folder(folder), lambda _: model, "Apache-2.0", size)
    manager = ModelManager({**tiny_studio.manager.specs, LANGUAGE_MODEL: spec}, CPU, budget_bytes=50_000_000)
    return Assistant(Studio(tiny_settings, tiny_studio.registry, manager))


def test_the_latest_exchanges_come_before_the_question() -> None:
    chat = messages(MANNER, SAID, "and now?", len, 100)
    assert [message["role"] for message in chat] == ["system", *["user", "assistant"] * MAX_EXCHANGES, "user"]
    assert (chat[0]["content"], chat[1]["content"], chat[-1]["content"]) == (MANNER, "question 14", "and now?")
    assert [m["content"] for m in messages(MANNER, SAID, "and now?", len, 4)] == [
        MANNER, "question 19", "answer 19", "and now?",
    ]  # fmt: skip
    assert len(messages(MANNER, SAID, "and now?", len, 2)) == 2
    assert len(messages(MANNER, [Exchange("unanswered", " "), Exchange("", "unasked")], "and now?", len, 9)) == 2


def test_a_long_text_loses_its_middle() -> None:
    assert shortened("short", 5) == "short" and shortened("anything", 0) == ""
    cut = shortened("a" * 500 + "b" * 500, 103)
    assert len(cut) == 103 and cut.startswith("aaa") and " … " in cut and cut.endswith("bbb")
    assert shortened("half \ud800", 20) == "half ?"


texts = st.text(max_size=300) | st.builds(lambda text, times: text * times, st.text(max_size=9), st.integers(1, 900))


@given(st.lists(st.builds(Exchange, texts, texts), max_size=8), texts, st.integers(60, 400))
@settings(max_examples=60)
def test_whatever_was_said_it_fits(model: Listening, said: list[Exchange], prompt: str, room: int) -> None:
    length = tokens(model)
    chat = messages(MANNER, said, prompt, length, room)
    assert length(chat) <= room
    told = [e for e in said if e.asked.strip() and e.answered.strip()]
    earlier = [message["content"] for message in chat[1:-1]]
    latest = [text for e in told[len(told) - len(earlier) // 2 :] for text in (e.asked, e.answered)]
    assert earlier == [shortened(text, MAX_SAID) for text in latest], "the oldest go first"
    if len(chat[-1]["content"]) < len(prompt.encode("utf-8", "replace").decode()[:4000]):
        assert not earlier, "nothing of the question goes before all of the history has gone"


def test_a_reply_is_made_in_view_of_what_was_said_and_made(assistant: Assistant, model: Listening) -> None:
    host, talk = Host(assistant), Talk()
    ask(host, talk, "draw a red apple")
    ask(host, talk, "why is the sky blue?")
    heard = [message["content"] for message in model.heard]
    assert heard[1:] == ["draw a red apple", "Made: the picture of a red apple (@1).", "why is the sky blue?"]
    assert talk.turns[1].stage == "said" and talk.turns[1].problem is None
    talk = restored(kept(talk), host)
    ask(host, talk, "why?")
    assert [message["content"] for message in model.heard][1:3] == heard[1:3], "also after a reload"


def test_no_length_is_too_much(assistant: Assistant, model: Listening) -> None:
    conversation = Conversation(said=[Exchange("x y " * 5000, "z " * 9000)] * 50)
    for prompt in ("why? " * 200_000, "\ud800 why?", "why?"):
        assert all(isinstance(piece, str) for piece in assistant.reply(conversation, prompt))
        assert tokens(model)(model.heard) <= CONTEXT - MAX_REPLY_TOKENS


def test_without_anything_said_it_is_the_question_alone(assistant: Assistant, model: Listening) -> None:
    list(assistant.reply(Conversation(), "why is the sky blue?"))
    assert [message["role"] for message in model.heard] == ["system", "user"]
