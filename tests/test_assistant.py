"""Turns over the tiny pipelines, requests on the command line, and a language model behind a server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from app import plan_commands
from app.assistant import Assistant
from app.cli import main
from app.controller.conversation import Conversation
from app.controller.endpoint import Endpoint, EndpointRouter
from app.controller.executor import Done, Failed
from app.controller.planner import Answer
from app.controller.request import Request
from app.settings import Settings
from app.studio import Studio
from models.errors import Cancelled, UserError
from pipelines.base import Event, Params, Pipeline, Produced, Registry, Route, Runtime, provenance
from pipelines.media import Artifact, Audio, Image

MEDIA = ("text", "image", "audio", "video", "mesh")


class Listen(Pipeline):
    """A picture's brightness as a tone."""

    name = "listen"
    title = "Listen to a picture"
    summary = "Turns brightness into pitch."
    routes = (Route(("image",), "audio"),)
    params_type = Params
    models: ClassVar[tuple[str, ...]] = ()

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        for item in inputs:
            (picture,) = item
            assert isinstance(picture, Image)
            wave = np.sin(np.arange(800, dtype=np.float32) * (0.1 + picture.pixels.mean() / 1000))
            made_by = provenance(self, item, params, runtime.models)
            yield Produced(Audio(0.5 * wave[None].astype(np.float32), 8000, provenance=made_by))


@pytest.fixture
def studio(tiny_studio: Studio) -> Studio:
    return Studio(tiny_studio.settings, Registry([*tiny_studio.registry, Listen()]), tiny_studio.manager)


@pytest.fixture
def assistant(studio: Studio) -> Assistant:
    return Assistant(studio)


def do(assistant: Assistant, conversation: Conversation, prompt: str, *uploads: Image) -> tuple[Answer, list[Done]]:
    answer = assistant.answer(conversation, prompt, uploads)
    assert answer.plan is not None, answer.sentence
    events = list(assistant.run(conversation, answer.plan, uploads))
    assert not any(isinstance(event, Failed) for event in events)
    return answer, [event for event in events if isinstance(event, Done)]


def test_later_turns_speak_of_what_was_made(assistant: Assistant) -> None:
    talk = Conversation()
    _, (apple,) = do(assistant, talk, "draw a red apple")
    _, (hum,) = do(assistant, talk, "now give it a sound")
    assert isinstance(hum.result.artifact, Audio) and hum.step.inputs == ("@1",)
    answer, (again,) = do(assistant, talk, "the same picture but green")
    assert answer.act == "regenerate" and again.step.inputs == ("text:a green apple",)
    assert [item.medium for item in talk.items] == ["image", "audio", "image"]
    assert again.result.entry.content_hash != apple.result.entry.content_hash


def test_another_one_is_another_and_the_same_again_comes_from_the_gallery(assistant: Assistant) -> None:
    talk = Conversation()
    _, (first,) = do(assistant, talk, "draw a red apple")
    _, (second,) = do(assistant, talk, "another one")
    _, (third,) = do(assistant, Conversation(), "draw a red apple")
    assert first.result.entry.content_hash != second.result.entry.content_hash
    assert third.cached and third.result.entry.id == first.result.entry.id


def test_attachments_can_be_spoken_of_later(assistant: Assistant) -> None:
    talk = Conversation()
    photo = Image(np.full((8, 8, 3), 90, np.uint8))
    _, (hum,) = do(assistant, talk, "give this photo a sound", photo)
    assert [item.medium for item in talk.items] == ["image", "audio"]
    assert talk.items[1].recipe is not None and talk.items[1].recipe.inputs == ("@1",)
    _, (again,) = do(assistant, talk, "make a sound from the first one")
    assert again.cached and again.result.entry.id == hum.result.entry.id


def test_what_comes_of_a_file_is_named_after_it(assistant: Assistant) -> None:
    talk = Conversation()
    photo = Image(np.full((8, 8, 3), 90, np.uint8))
    answer = assistant.answer(talk, "give this photo a sound", [photo])
    assert answer.plan is not None
    [hum] = [event for event in assistant.run(talk, answer.plan, [photo], ["dog.png"]) if isinstance(event, Done)]
    assert hum.result.entry.title == "dog.png" == talk.items[1].title
    _, (again,) = do(assistant, talk, "make a sound from the first one")
    assert again.result.entry.title == "dog.png"


def test_undo_takes_the_newest_out_of_focus(assistant: Assistant) -> None:
    talk = Conversation()
    do(assistant, talk, "draw a red apple")
    do(assistant, talk, "draw a blue car")
    answer = assistant.answer(talk, "undo")
    assert answer.act == "undo" and answer.focus == (1,)
    current = talk.undo()
    assert current is not None and current.number == 1 and len(talk.items) == 2
    _, (hum,) = do(assistant, talk, "give it a sound")
    assert hum.step.inputs == ("@1",)


def test_what_can_be_done_is_said_without_a_model(assistant: Assistant) -> None:
    answer = assistant.answer(Conversation(), "what can you do?")
    said = "".join(assistant.reply(Conversation(), "what can you do?"))
    assert answer.act == "chat" and all(pipeline.title in said for pipeline in assistant.studio.registry)


def test_without_a_language_model_it_says_so(assistant: Assistant) -> None:
    with pytest.raises(UserError, match="no language model on this machine"):
        list(assistant.reply(Conversation(), "why is the sky blue?"))


# ---------------------------------------------------------------------------------------- the command line


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], studio: Studio
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setattr(plan_commands, "Studio", lambda settings, registry: studio)

    def command(*arguments: str) -> tuple[int, str, str]:
        code = main(["plan", *arguments])
        return code, *capsys.readouterr()

    return command


def test_a_request_is_planned_in_words_and_as_json(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("draw a red apple")
    assert code == 0 and out.startswith("new: image\n") and "text:a red apple -> image" in out
    code, out, _ = run("a picture of a bell and its sound", "--json")
    found = json.loads(out)
    assert code == 0 and found["outputs"] == ["image", "audio"] and found["act"] == "new"
    assert [step["inputs"] for step in found["steps"]] == [["text:a bell"], ["$s1"]]
    assert set(found) >= {"outputs", "steps", "act", "scores", "warnings"}


def test_many_requests_come_out_in_their_order_whatever_they_are(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    lines = [
        json.dumps({"prompt": "draw a cat", "inputs": []}),
        "{not json",
        json.dumps({"prompt": "give this a sound", "inputs": ["image"]}),
        json.dumps({"prompt": 7}),
        json.dumps({"prompt": "draw it", "inputs": ["smell"]}),
        json.dumps({"prompt": "what was seen?", "inputs": ["fmri"]}),
        json.dumps({"prompt": "x" * 1_100_000}),
        json.dumps({"prompt": "make a 3d model of a chair"}),
    ]
    (tmp_path / "requests.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    code, out, _ = run("--requests", str(tmp_path / "requests.jsonl"))
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(found) == len(lines)
    assert [row["outputs"] for row in found] == [["image"], [], ["audio"], [], [], ["image"], [], ["mesh"]]
    assert "no request" in found[1]["warnings"][0] and "no medium 'smell'" in found[4]["warnings"][0]
    assert "longer than a million" in found[6]["warnings"][0] and "Nothing installed" in found[7]["warnings"][0]


def test_nothing_to_plan_is_one_sentence(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run()
    assert (code, out) == (2, "") and "no request to plan" in err and err.count("\n") == 1
    code, out, err = run("--requests", "nowhere.jsonl")
    assert (code, out) == (2, "") and "'nowhere.jsonl' cannot be read" in err


# ---------------------------------------------------------------------------------------- a server's language model


class Server(BaseHTTPRequestHandler):
    """Answers as an OpenAI-compatible server does, with what the test wants."""

    content: ClassVar[Any] = {"act": "new", "outputs": ["mesh"]}
    seen: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
        self.send_response(200)
        self.end_headers()
        if body.get("stream"):
            for piece in ("Blue ", "light."):
                delta = json.dumps({"choices": [{"delta": {"content": piece}}]})
                self.wfile.write(f"data: {delta}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
        else:
            text = self.content if isinstance(self.content, str) else json.dumps(self.content)
            self.wfile.write(json.dumps({"choices": [{"message": {"content": text}}]}).encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Server.seen, Server.content = [], {"act": "new", "outputs": ["mesh"]}
    yield Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "some-model", "secret")
    server.shutdown()
    server.server_close()


def test_a_server_reads_the_request(endpoint: Endpoint) -> None:
    scores = EndpointRouter(endpoint).score(Request.of("something to hold", ["image"]), MEDIA)
    assert scores.act == "new" and [m for m in MEDIA if scores.outputs[m] > 0.5] == ["mesh"]
    (seen,) = Server.seen
    assert (seen["path"], seen["key"], seen["model"]) == ("/v1/chat/completions", "Bearer secret", "some-model")
    assert "attached image" in seen["messages"][1]["content"]


@pytest.mark.parametrize(
    "content",
    ["no json", [1], {"act": "fly", "outputs": []}, {"outputs": ["image"]}, {"act": "new", "outputs": ["smell"]}],
)
def test_rules_read_what_a_server_cannot(endpoint: Endpoint, content: Any) -> None:
    Server.content = content
    scores = EndpointRouter(endpoint).score(Request.of("draw a cat"), MEDIA)
    assert scores.act == "new" and scores.outputs["image"] > 0.5


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    nobody = Endpoint("http://127.0.0.1:9/v1", "some-model")
    with pytest.raises(UserError, match="gave no answer"):
        list(nobody.reply([{"role": "user", "content": "hello"}]))


def test_its_words_stream_and_stop(endpoint: Endpoint, tiny_studio: Studio, tmp_path: Path) -> None:
    settings = Settings(output_folder=tmp_path, language_model_url=endpoint.url, _env_file=None)
    assistant = Assistant(Studio(settings, tiny_studio.registry, tiny_studio.manager))
    assert list(assistant.reply(Conversation(), "why is the sky blue?")) == ["Blue ", "light."]
    stopped = threading.Event()
    pieces = assistant.reply(Conversation(), "why?", stopped)
    assert next(pieces) == "Blue "
    stopped.set()
    with pytest.raises(Cancelled):
        list(pieces)
