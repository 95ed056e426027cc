"""The page's programming interface: a typed endpoint for every pipeline, ``/generate_crossflow`` and so on.

A pipeline that can be made from several things has a further one for each, ``/generate_hum_from_image``. ``/ask`` takes
a request in plain words. ``/machine`` tells what models are where, and ``/free`` drops them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import asdict
from html import escape
from typing import Any

import gradio as gr
from gradio import FileData
from gradio.events import api
from gradio_client.utils import is_file_obj_with_meta

from app.assistant import Assistant
from app.library import Entry
from app.plan_commands import as_json
from app.studio import InternalError, Saved, Studio, reporting
from app.ui.host import Host
from app.ui.inputs import artifact_of, labels_of, ways_in
from app.ui.markup import file_name
from app.ui.replies import reply
from app.ui.studio_tab import COMPUTE_LANE
from app.ui.talk import Talk
from models.errors import Cancelled, UserError
from pipelines.base import Pipeline
from pipelines.media import Text


def build_api(studio: Studio, assistant: Assistant) -> None:
    """Add the endpoints to the Blocks that one stands in."""
    for pipeline in studio.registry:
        for index, media in enumerate(ways_in(pipeline)):
            api(
                endpoint(studio, pipeline, media),
                api_name=endpoint_name(pipeline) if index == 0 else f"{endpoint_name(pipeline)}_from_{'_'.join(media)}",
                api_description=f"{pipeline.title}: {pipeline.summary}",
                concurrency_id=COMPUTE_LANE,
                concurrency_limit=1,
            )
    api(ask_endpoint(assistant), api_name="ask", concurrency_id=COMPUTE_LANE, concurrency_limit=1)
    # Past the queue, because they are asked when generations take too long or too much.
    api(machine_endpoint(studio), api_name="machine", queue=False)
    if not studio.settings.shared:
        api(free_endpoint(studio), api_name="free", queue=False)


def endpoint_name(pipeline: Pipeline) -> str:
    return "generate_" + re.sub(r"\W", "_", pipeline.name)


def endpoint(studio: Studio, pipeline: Pipeline, media: tuple[str, ...]) -> Callable[..., list[dict[str, Any]]]:
    """A function of inputs of these media and the pipeline's settings, typed as those are.

    It returns, for each artifact, its ``file`` and its ``provenance``. Its errors hold the sentence for the user.
    """
    labels = labels_of(media)
    names = [label.lower().replace(" ", "_") for label in labels]

    def generate(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        values = dict(given.arguments)
        try:
            taken = [
                (medium, _value(medium, values.pop(name)), name) for medium, name in zip(media, names, strict=True)
            ]
            inputs = [artifact_of(*item) for item in taken]
            events = studio.generate(pipeline.name, inputs, values)
            return [_answer(event.entry) for event in events if isinstance(event, Saved)]
        except (UserError, InternalError) as error:
            raise gr.Error(escape(str(error), quote=False), print_exception=False) from error
        except Cancelled:
            return []

    types = [str if medium == Text.medium else FileData for medium in media]
    parameters = [*map(_parameter, names, types), *_settings(pipeline)]
    signature = inspect.Signature(parameters, return_annotation=list[dict[str, Any]])
    generate.__signature__ = signature  # type: ignore[attr-defined]
    generate.__annotations__ = {name: given.annotation for name, given in signature.parameters.items()}
    return generate


def ask_endpoint(assistant: Assistant) -> Callable[[str, list[FileData]], dict[str, Any]]:
    """A function that answers a request and runs its plan at once, however long that takes."""
    host = Host(assistant)

    def ask(prompt: str, files: list[FileData] = []) -> dict[str, Any]:  # noqa: B006 - the client shows the default
        """Do what ``prompt`` asks for, about the attached files, in a conversation of its own.

        Returns what ``plan --json`` prints, and ``reply``: what was done, in words; ``results``: what was made, a file
        with its number and provenance each; ``errors``: a sentence for each step that failed.
        """
        talk = Talk()
        try:
            host.take(talk, str(prompt), [path for file in files if (path := _value("file", file))])
            [turn] = talk.turns
            if turn.stage == "proposed":
                host.go(talk, turn.number)
            for _ in host.run(talk):
                pass
        except (UserError, InternalError) as error:
            raise gr.Error(escape(str(error), quote=False), print_exception=False) from error
        assert turn.answer is not None
        errors = [state.error for state in turn.steps if state.error] + [turn.problem] * bool(turn.problem)
        return as_json(str(prompt), turn.answer) | {
            "reply": reply(turn) if turn.plan else turn.sentence,
            "results": [{"number": p.number} | _answer(p.entry) for p in turn.pieces if p.entry],
            "errors": list(map(str, errors)),
        }

    return ask


def machine_endpoint(studio: Studio) -> Callable[[], dict[str, Any]]:
    """A function that returns the studio's :class:`~app.studio.MachineState` as JSON."""

    def machine() -> dict[str, Any]:
        """The models in memory, the memory in use and allowed, the latest decisions, and counters."""
        state = studio.machine()
        return {
            "models": [asdict(model) for model in state.models],
            "decisions": [item.as_json() | {"sentence": item.sentence()} for item in state.decisions],
            "metrics": vars(state.metrics) | {"hit_rate": state.metrics.hit_rate},
            "used_bytes": state.used_bytes,
            "budget_bytes": state.budget_bytes,
            "rss_bytes": state.rss_bytes,
            "device": state.device,
            "precision": state.precision,
        }

    return machine


def free_endpoint(studio: Studio) -> Callable[[str, bool], dict[str, Any]]:
    """A function that frees models and returns bytes before and after, by device. Its errors are for the user."""

    def free(key: str = "", everything: bool = False) -> dict[str, Any]:
        """Drop the model of that key, or those that nobody uses, with ``everything`` also those needed next."""
        try:
            with reporting():
                freed = studio.free(str(key) or None, keep_expected=not (key or everything))
        except (UserError, InternalError) as error:
            raise gr.Error(escape(str(error), quote=False), print_exception=False) from error
        return asdict(freed) | {"bytes": freed.bytes}

    return free


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation, default=default)


def _settings(pipeline: Pipeline) -> list[inspect.Parameter]:
    fields = pipeline.params_type.model_fields
    return [
        _parameter(name, field.annotation, field.get_default(call_default_factory=True))
        for name, field in fields.items()
    ]


def _value(medium: str, value: Any) -> Any:
    """A text, or the path of an uploaded file. Whatever Gradio has not checked to be an upload counts as nothing."""
    if medium == Text.medium:
        return value
    return value["path"] if is_file_obj_with_meta(value) else None


def _answer(entry: Entry) -> dict[str, Any]:
    return {
        "file": FileData(path=str(entry.path.absolute()), orig_name=file_name(entry)).model_dump(),
        "provenance": entry.provenance.model_dump(mode="json"),
    }
