"""``python -m app plan``: what a request comes to, without running it; one request, or a file of many."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from app.assistant import Assistant
from app.controller.planner import Answer
from app.controller.request import Request
from app.settings import Settings
from app.studio import Studio
from models.errors import UserError
from pipelines.base import Registry
from pipelines.media import known_media, load_artifact

ALIASES = {"fmri": "scan", "brain": "scan", "sound": "audio", "picture": "image", "3d": "mesh", "clip": "video"}


def plan(settings: Settings, arguments: argparse.Namespace, registry: Registry | None = None) -> int:
    """Print the answer to a request; with ``--requests`` a line of JSON for each line of a file, in its order."""
    assistant = Assistant(Studio(settings, registry))
    if arguments.requests:
        for prompt, media, problem in read_requests(Path(arguments.requests)):
            print(json.dumps(_refused(prompt, problem) if problem else _answered(assistant, prompt, media)), flush=True)
        return 0
    if arguments.request is None:
        raise UserError("There is no request to plan.", "Write it in quotes, or give a file of them with --requests.")
    media = [load_artifact(Path(name)).medium for name in arguments.input]
    answer = assistant.controller.answer(Request.of(arguments.request, media))
    print(json.dumps(as_json(arguments.request, answer)) if arguments.json else as_text(answer))
    return 0


def read_requests(path: Path) -> Iterator[tuple[str, list[str], str]]:
    """Prompt, media of the attachments, and what is wrong with the line, if anything, of each line of a JSONL file."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"'{path.name[:60]}' cannot be read: {error}.", "Give a text file with a request a line."
        ) from None
    for line in lines:
        if line.strip():
            try:
                yield *_parsed(json.loads(line)), ""
            except (ValueError, RecursionError) as error:
                yield line[:200], [], f"This line is no request: {error}."


def as_json(prompt: str, answer: Answer) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "act": answer.act,
        "outputs": list(answer.outputs),
        "steps": [step.model_dump(mode="json") for step in answer.plan.steps] if answer.plan else [],
        "results": list(answer.plan.outputs) if answer.plan else [],
        "scores": {"outputs": answer.scores.outputs, "acts": answer.scores.acts},
        "warnings": list(answer.warnings),
        "sentence": answer.sentence,
        "choices": [choice.prompt for choice in answer.choices],
    }


def as_text(answer: Answer) -> str:
    """A few lines to read."""
    lines = [f"{answer.act}: {', '.join(answer.outputs) or 'nothing to make'}"]
    for step in answer.plan.steps if answer.plan else ():
        settings = ", ".join(f"{name}={value}" for name, value in step.params.items())
        lines.append(f"  {step.id}  {step.op} ({settings}): {' + '.join(step.inputs)} -> {step.output}")
    lines += [answer.sentence] * bool(answer.sentence)
    lines += [f"  - {choice.prompt}" for choice in answer.choices]
    lines += [f"Note: {warning}" for warning in answer.warnings if warning != answer.sentence]
    return "\n".join(lines)


def _answered(assistant: Assistant, prompt: str, media: Sequence[str]) -> dict[str, Any]:
    try:
        return as_json(prompt, assistant.controller.answer(Request.of(prompt, media)))
    except UserError as error:
        return _refused(prompt[:200], str(error))


def _refused(prompt: str, problem: str) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "act": "ask",
        "outputs": [],
        "steps": [],
        "results": [],
        "scores": {"outputs": {}, "acts": {}},
        "warnings": [problem],
        "sentence": problem,
        "choices": [],
    }


def _parsed(value: Any) -> tuple[str, list[str]]:
    """Raises ``ValueError`` that says what is wrong."""
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise ValueError('it needs a "prompt", a text')
    given = value.get("inputs", [])
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise ValueError('"inputs" has to be a list of media')
    media = [ALIASES.get(name.lower(), name.lower()) for name in given]
    names = {kind.medium for kind in known_media()}
    if unknown := sorted(set(media) - names):
        raise ValueError(f"there is no medium {unknown[0]!r}; there is {', '.join(sorted(names))}")
    return value["prompt"], media
