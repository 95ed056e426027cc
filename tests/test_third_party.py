"""A package that nobody here has heard of brings a medium that nobody has heard of, and it is asked for by words."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from app import plan_commands
from app.assistant import Assistant
from app.cli import main
from app.controller.conversation import Conversation
from app.controller.executor import Done
from app.settings import Settings
from app.studio import Studio
from app.ui import ask_markup, build, markup
from app.ui.host import Host
from app.ui.kept import kept, restored
from app.ui.replies import reply
from app.ui.talk import Talk
from models.errors import UserError
from pipelines.base import ENTRY_POINTS, installed_registry
from pipelines.media import Text, load_artifact
from tests.installed_packages import install

REQUEST = "make a scent of pine forest"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for path in install("synesthete-scent", tmp_path / "site"):
        monkeypatch.syspath_prepend(path)
    yield
    sys.modules.pop("synesthete_scent", None)


@pytest.fixture
def studio(installed: None, tiny_settings: Settings, tiny_studio: Studio) -> Studio:
    return Studio(tiny_settings, installed_registry(), tiny_studio.manager)


def test_it_is_there_as_long_as_it_is_installed(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed_registry().get("perfumer").routes[0].output == "scent"
    monkeypatch.undo()
    with pytest.raises(UserError, match="no pipeline called 'perfumer'"):
        installed_registry().get("perfumer")


def test_a_package_that_fails_or_takes_a_name_is_left_out_and_the_others_work(
    installed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken_one.py").write_text("raise RuntimeError('built for something older')")
    (tmp_path / "usurper.py").write_text(
        "from pipelines.xbind.pipeline import XBind\n\n\nclass Usurper(XBind):\n    title = 'Mine'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    values = {"broken": "broken_one:Broken", "usurper": "usurper:Usurper"}
    points = [EntryPoint(name, value, ENTRY_POINTS) for name, value in values.items()]
    found = [*entry_points(group=ENTRY_POINTS), *points]
    monkeypatch.setattr("pipelines.base.entry_points", lambda group: found)
    registry = installed_registry()
    assert registry.get("xbind").title != "Mine" and registry.get("perfumer").name == "perfumer"
    assert all(value in caplog.text for value in values.values()) and "built for something older" in caplog.text


def test_what_it_makes_is_asked_for_planned_and_run_by_words(studio: Studio) -> None:
    assistant, conversation = Assistant(studio), Conversation()
    answer = assistant.answer(conversation, REQUEST)
    assert answer.plan is not None, answer.sentence
    [step] = answer.plan.steps
    assert (step.op, step.output) == ("perfumer", "scent") and step.inputs[0].endswith("pine forest")
    [done] = [event for event in assistant.run(conversation, answer.plan) if isinstance(event, Done)]
    path = done.result.entry.path
    assert path.suffix == ".scent" and len(json.loads(path.read_bytes())["notes"]) == 3
    assert [item.medium for item in conversation.items] == ["scent"]


def test_a_later_turn_takes_what_an_earlier_one_made(studio: Studio) -> None:
    assistant, conversation = Assistant(studio), Conversation()
    first = assistant.answer(conversation, REQUEST)
    assert first.plan is not None
    [scent] = [event.result.artifact for event in assistant.run(conversation, first.plan) if isinstance(event, Done)]
    notes = json.loads(scent.encode(".scent"))["notes"]
    second = assistant.answer(conversation, "describe the scent")
    assert second.plan is not None, second.sentence
    assert [(step.op, step.inputs) for step in second.plan.steps] == [("nose", ("@1",))]
    [words] = [event.result.artifact for event in assistant.run(conversation, second.plan) if isinstance(event, Done)]
    assert isinstance(words, Text) and words.text == f"It smells of {', '.join(notes)}."


def test_its_files_are_read_and_attached(studio: Studio, tmp_path: Path) -> None:
    assistant, conversation = Assistant(studio), Conversation()
    answer = assistant.answer(conversation, REQUEST)
    assert answer.plan is not None
    [scent] = [event.result.artifact for event in assistant.run(conversation, answer.plan) if isinstance(event, Done)]
    scent.save(tmp_path / "forest.scent")
    again = load_artifact(tmp_path / "forest.scent")
    assert (again.content_hash(), again.provenance) == (scent.content_hash(), scent.provenance)
    described = assistant.answer(Conversation(), "describe this", [again])
    assert described.plan is not None and [step.inputs for step in described.plan.steps] == [("upload:1",)]


def test_the_command_line_plans_it(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan_commands, "Studio", lambda settings, registry: studio)
    assert main(["plan", REQUEST, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["act"] == "new" and planned["outputs"] == ["scent"]
    [step] = planned["steps"]
    assert (step["op"], step["output"]) == ("perfumer", "scent") and step["inputs"][0].endswith("pine forest")


def test_the_page_offers_it_as_a_file_and_keeps_it(studio: Studio) -> None:
    host, talk = Host(Assistant(studio)), Talk()
    host.take(talk, REQUEST, [])
    assert list(host.run(talk)) and re.match(r"Here is the scent of .*pine forest \(@1\)", reply(talk.turns[0]))
    for shown in (talk, restored(kept(talk), host)):
        page = ask_markup.conversation(shown, {}, [])
        assert re.search(r'href="download/[0-9a-f]+/scent" download="[\w-]*pine-forest\.scent">Download<', page)
    [piece] = talk.turns[0].pieces
    assert piece.entry is not None and 'pine-forest.scent">Download</a>' in markup.result(piece.entry)


def test_the_page_has_its_panel_its_endpoint_and_its_kind_in_the_gallery(studio: Studio) -> None:
    config = build(studio).get_config_file()
    assert "generate_perfumer" in {dependency["api_name"] for dependency in config["dependencies"]}
    assert "Perfumer" in {part["props"].get("label") for part in config["components"]}
    kinds = [part["props"]["choices"] for part in config["components"] if part["props"].get("label") == "Kind"]
    assert ("scent", "scent") in map(tuple, kinds[0])
