"""What each command of the command line does. Everything it can say no to is a :class:`UserError`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from app import describe, doctor
from app.settings import Settings
from app.studio import Studio, title_of
from app.target import Target, choose_route
from models.errors import UserError
from pipelines.base import Pipeline, Produced, Progress, Registry, installed_registry
from pipelines.media import Artifact, Text, load_artifact

BAR_WIDTH = 24


def serve(settings: Settings, arguments: argparse.Namespace) -> int:
    """Open the page. The port and the gallery are tried first, so that what is wrong with them is one sentence."""
    doctor.check_port(settings.host, settings.port)
    studio = Studio(settings)
    studio.library.count()
    from app.ui import launch  # gradio takes seconds to import, and only this command needs it

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a container's stop ends like Ctrl-C
    launch(studio)
    return 0


def generate(settings: Settings, arguments: argparse.Namespace, registry: Registry | None = None) -> int:
    """Run one pipeline and write what comes. Nothing is written before everything has come."""
    if arguments.help_params:
        return pipelines(
            settings, argparse.Namespace(json=False, names=[arguments.pipeline] if arguments.pipeline else []), registry
        )
    if arguments.out is None:
        raise UserError("It is not said where to write.", "Add -o and the name of a file or folder.")
    target = Target.parse(arguments.out)
    target.check()
    studio = Studio(settings, registry)
    inputs: list[Artifact] = [*map(Text, arguments.prompts), *(load_artifact(Path(name)) for name in arguments.input)]
    pipeline, route = choose_route(studio.registry, arguments.pipeline, [item.medium for item in inputs], target)
    artifacts = _run(studio, pipeline, inputs, _params(arguments))
    if target.suffix:  # some runs make several media, such as a clip and a strip of its pictures
        artifacts = [artifact for artifact in artifacts if artifact.medium == route.output]
    paths = target.save(artifacts, title_of(inputs) or pipeline.name)
    for path, artifact in zip(paths, artifacts, strict=True):
        print(json.dumps(_described(path, artifact)) if arguments.json else path)
    return 0


def pipelines(settings: Settings, arguments: argparse.Namespace, registry: Registry | None = None) -> int:
    """List the pipelines with their settings, or just those that are named."""
    found = registry or installed_registry(settings.profile)
    chosen = [found.get(name) for name in arguments.names] or list(found)
    if arguments.json:
        print(json.dumps([describe.as_json(pipeline) for pipeline in chosen], indent=2))
    else:
        print("\n\n".join(map(describe.as_text, chosen)))
    return 0


def examine(settings: Settings, arguments: argparse.Namespace) -> int:
    """Say what works on this machine and what does not; 1 if something that is needed fails."""
    checks = []
    for check in doctor.examine(settings):
        checks.append(check)
        if not arguments.json:
            print(check.line(), flush=True)
    if arguments.json:
        print(json.dumps([check.as_json() for check in checks], indent=2))
    return int(any(check.status == "fail" for check in checks))


def _run(studio: Studio, pipeline: Pipeline, inputs: Sequence[Artifact], params: dict[str, Any]) -> list[Artifact]:
    artifacts = []
    with progress_bar(sys.stderr) as bar:
        for event in studio.run(pipeline.name, inputs, params):
            if isinstance(event, Produced):
                artifacts.append(event.artifact)
            else:
                bar(event)
    return artifacts


def _params(arguments: argparse.Namespace) -> dict[str, Any]:
    """``--set`` values as JSON where they are JSON, else as text; the pipeline checks them."""
    params: dict[str, Any] = {}
    for assignment in arguments.set:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UserError(f"'{assignment[:60]}' sets nothing.", "Write --set NAME=VALUE.")
        try:
            params[name] = json.loads(value)
        except (ValueError, RecursionError):
            params[name] = value
    return params if arguments.seed is None else {**params, "seed": arguments.seed}


def _described(path: Path, artifact: Artifact) -> dict[str, Any]:
    provenance = artifact.provenance.model_dump(mode="json") if artifact.provenance else None
    return {
        "path": str(path),
        "medium": artifact.medium,
        "content_hash": artifact.content_hash(),
        "provenance": provenance,
    }


class _Bar:
    """One line that is drawn over again."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __call__(self, event: Progress) -> None:
        filled = BAR_WIDTH * event.step // max(1, event.total)
        bar = "#" * filled + "." * (BAR_WIDTH - filled)
        self.stream.write(f"\r[{bar}] {event.step}/{event.total} {event.message[:60]}\x1b[K")
        self.stream.flush()


@contextmanager
def progress_bar(stream: TextIO) -> Iterator[Any]:
    """Shows progress on a terminal, nothing anywhere else; the line is gone at the end."""
    if not stream.isatty():
        yield lambda event: None
        return
    try:
        yield _Bar(stream)
    finally:
        stream.write("\r\x1b[K")
        stream.flush()
