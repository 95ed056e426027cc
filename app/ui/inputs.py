"""What a pipeline is given: one Gradio component per input of its routes, and artifacts from what they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import FileData
from gradio.components import Component
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from models.errors import UserError
from pipelines.base import Pipeline
from pipelines.media import Artifact, BrainScan, Text, Video, load_artifact, suffixes_of

WORDS = {
    "text": "Prompt",
    "image": "Picture",
    "audio": "Sound",
    "video": "Clip",
    "mesh": "Object",
    "scan": "Brain scan",
}
ORDINALS = ("First", "Second", "Third", "Fourth")


def ways_in(pipeline: Pipeline) -> list[tuple[str, ...]]:
    """The different media that a pipeline can be given; several routes may begin with the same."""
    return list(dict.fromkeys(route.inputs for route in pipeline.routes))


def labels_of(media: Sequence[str]) -> list[str]:
    """A label for each input: ``("text", "text")`` gives "First prompt" and "Second prompt"."""
    counts, seen, labels = Counter(media), Counter[str](), []
    for medium in media:
        word = WORDS.get(medium, medium.capitalize())
        labels.append(f"{ORDINALS[seen[medium]]} {word.lower()}" if counts[medium] > 1 else word)
        seen[medium] += 1
    return labels


def component_for(medium: str, label: str) -> Component:
    """A component that holds a text, or the path of an attached file."""
    common: dict[str, Any] = {"label": label, "interactive": True}
    match medium:
        case "text":
            # One line to begin with, because Enter then submits; Shift and Enter begin another.
            return gr.Textbox(placeholder="A few words", lines=1, max_lines=8, elem_classes=["prompt"], **common)
        case "image":
            picture = gr.Image(type="filepath", image_mode=None, format="png", height=240, **common)
            # Gradio would open the file, and refuse what it cannot read or finds too large in no words of ours. (A
            # class of our own it would write a file about beside this one.)
            picture.preprocess = _as_attached  # type: ignore[method-assign]
            return picture
        case "audio":
            # Without a format, because Gradio would need FFmpeg's program to bring others to it.
            return gr.Audio(type="filepath", **common)
        case "video":
            clip = gr.Video(height=240, **common)
            # Gradio would store anew what not every browser shows, and so change its frames.
            clip.postprocess = _as_kept
            return clip
        case "mesh":
            return gr.Model3D(height=240, **common)
    return gr.File(file_types=list(suffixes_of(medium)) if medium == BrainScan.medium else None, **common)


def _as_attached(payload: Any) -> str | None:
    """The path of the file, with its transparency and its 16 bits."""
    return payload.path if payload else None


def _as_kept(value: str | None) -> FileData | None:
    return FileData(path=value) if value else None


def artifact_of(medium: str, value: object, label: str) -> Artifact:
    """The artifact in a component, as ``medium`` if its file can be that.

    Raises :class:`UserError` for a missing or unreadable file.
    """
    if medium == Text.medium:
        if not isinstance(value, str | None):
            raise UserError(f"'{label}' has to be text.", "Write it in quotes.")
        return Text(value or "")
    if not value or not isinstance(value, str):
        raise UserError(f"'{label}' is empty.", "Attach a file there.")
    return load_artifact(Path(value), medium)


def value_of(artifact: Artifact) -> str:
    """What a component shows of an artifact: a text, or a copy of it as a file of the page's own, in the page's cache.

    Read again it is the same artifact: a clip that came from a file is that file.
    """
    if isinstance(artifact, Text):
        return artifact.text
    own = artifact.source if isinstance(artifact, Video) else None  # browsers show the formats that others are kept in
    suffix, data = own or (artifact.kept_as, artifact.encode(artifact.kept_as))
    return save_bytes_to_cache(data, f"{artifact.content_hash()[:16]}{suffix}", get_upload_folder())
