"""Describe: what a picture shows, what a sound is of, and both for a clip, in one plain sentence each.

A vector of the picture-text or the sound-text space goes to a captioner (ClipCap, arXiv 2111.09734). One that reads
pictures themselves, as BLIP does, or brings a space of its own, needs no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image as PillowImage
from pydantic import Field
from torch import Tensor

from models.errors import UserError
from pipelines.base import (
    EXAMPLES,
    Event,
    Params,
    Pipeline,
    Produced,
    Progress,
    Route,
    Runtime,
    precision,
    provenance,
)
from pipelines.media import Artifact, Audio, Image, Text, Video
from pipelines.spaces import is_heard, picture_vector, sound_vector

if TYPE_CHECKING:  # they import transformers, which takes seconds that a mere listing need not spend
    from models.captioner import Captioner, Description, PublishedCaptioner

SEEING = ("picture-text", "picture-captioner")
HEARING = ("sound-text", "sound-captioner")
MOST_FRAMES = 8  # of a clip that a captioner reads


class DescribeParams(Params):
    nearest: int = Field(5, ge=0, le=20, description="How many of the nearest concepts are named.")


class Describe(Pipeline):
    name = "describe"
    title = "Describe in words"
    summary = "Show a picture or a clip, or play a sound, and read what it is, how sure that is and what comes near."
    routes = (Route(("image",), "text"), Route(("audio",), "text"), Route(("video",), "text"))
    params_type = DescribeParams
    example_files = tuple(sorted((EXAMPLES / "pictures").glob("*.png")))
    models: ClassVar[tuple[str, ...]] = (*SEEING, *HEARING)
    uses_chance = False

    def models_for(self, inputs: Sequence[Artifact], params: Params) -> tuple[str, ...]:
        """Of what is seen, of what is heard, or both; a captioner that needs no space then leaves it alone."""
        sight, sound = sight_and_sound(inputs)
        return (*(SEEING if sight else ()), *(HEARING if sound else ()))

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        nearest = cast(DescribeParams, params).nearest
        given = [sight_and_sound(item) for item in inputs]
        yield Progress(0, len(given), "Loading models")
        with ExitStack() as stack:
            see = _sight(runtime, stack, nearest) if any(sight for sight, _ in given) else None
            hear = _hearing(runtime, stack, nearest) if any(sound for _, sound in given) else None
            for number, (item, (sight, sound)) in enumerate(zip(inputs, given, strict=True)):
                runtime.raise_if_cancelled()
                seen = see.describe(sight) if see and sight else None
                heard = hear.describe(sound) if hear and sound else None
                yield Progress(number + 1, len(given), "Putting it into words")
                keys = (*(see.keys if see and sight else ()), *(hear.keys if hear and sound else ()))
                # Of the models that described it alone: the others may be large, and need not even be there.
                made_by = provenance(self, item, params, runtime.models, models=keys)
                yield Produced(Text(in_words(seen, heard), provenance=made_by))


# --------------------------------------------------------------------------------------------------------------- words


def in_words(seen: Description | None, heard: Description | None) -> str:
    """At least one of the two as text: a line of sentences, then a line for each on how sure it is."""
    if seen and heard:
        of_sound = f"perhaps {_said(heard)}" if not heard.sure else _said(heard)
        first = f"{_sentence(seen)}. It sounds like {of_sound}."
        return f"{first}\nSeen: {_details(seen)}\nHeard: {_details(heard)}"
    [only] = [described for described in (seen, heard) if described]
    return f"{_sentence(only)}\n{_details(only)}"


def _sentence(described: Description) -> str:
    return _said(described) if described.sure else f"Perhaps {_said(described)}"


def _said(described: Description) -> str:
    return described.sentence or "nothing that has a name"


def _details(described: Description) -> str:
    nearest = ", ".join(f"{concept.name} {concept.cosine:.2f}" for concept in described.nearest)
    return f"Confidence {100 * described.confidence:.0f} %." + (f" Nearest concepts: {nearest}." if nearest else "")


# --------------------------------------------------------------------------------------------------------------- media


def sight_and_sound(item: Sequence[Artifact]) -> tuple[Image | Video | None, Audio | None]:
    """What is to be looked at and listened to in the one thing given; at least one of them.

    A clip whose sound is silent is only looked at. Raises :class:`UserError` for a sound that is, and for other media.
    """
    [given] = item
    if isinstance(given, Image):
        return given, None
    if isinstance(given, Video):
        return given, given.audio if given.audio and is_heard(given.audio) else None
    if not isinstance(given, Audio):
        raise UserError(f"A picture, a sound or a clip is needed here, not {given.medium}.", "Attach one.")
    if not is_heard(given):
        raise UserError("The sound is silent.", "Use one in which something can be heard.")
    return None, given


@dataclass(frozen=True)
class Sense:
    """``describe``: what describes a thing with the leased models ``keys``."""

    describe: Callable[[Any], Description]
    keys: tuple[str, ...]


def _sight(runtime: Runtime, stack: ExitStack, nearest: int) -> Sense:
    """For pictures and clips; its models are leased for as long as the ``stack`` lasts."""
    captioner = stack.enter_context(runtime.lease("picture-captioner"))
    if captioner.reads == "pictures":
        return Sense(
            lambda shown: _described(captioner, frames_of(shown, captioner.side), nearest, runtime),
            ("picture-captioner",),
        )
    space = stack.enter_context(runtime.lease("picture-text"))
    return Sense(
        lambda shown: _described(captioner, picture_vector(space, shown, runtime), nearest, runtime),
        SEEING,
    )


def _hearing(runtime: Runtime, stack: ExitStack, nearest: int) -> Sense:
    """The same for sounds."""
    captioner = stack.enter_context(runtime.lease("sound-captioner"))
    if captioner.reads == "sounds":
        return Sense(
            lambda sound: _described(
                captioner.captioner, sound_vector(captioner.space, sound, runtime), nearest, runtime
            ),
            ("sound-captioner",),
        )
    space = stack.enter_context(runtime.lease("sound-text"))
    return Sense(
        lambda sound: _described(captioner, sound_vector(space, sound, runtime), nearest, runtime),
        HEARING,
    )


def _described(captioner: Captioner | PublishedCaptioner, given: Tensor, nearest: int, runtime: Runtime) -> Description:
    if captioner.reads == "vectors" and captioner.config.width != len(given):
        raise UserError(
            f"The captioner reads vectors of {captioner.config.width} dimensions, and its space has {len(given)}.",
            "Take both from the same training.",
        )
    with precision(runtime.models):
        [described] = captioner.describe([given.to(runtime.models.device)], nearest)
    return described


def frames_of(shown: Image | Video, side: int) -> Tensor:
    """(T, 3, S, S) float32 in [-1, 1], squeezed to S = ``side``: a picture, or up to 8 frames over all of a clip."""
    if isinstance(shown, Image):
        frames = shown.pixels[None]
    else:
        count = min(MOST_FRAMES, len(shown.frames))
        frames = shown.frames[np.linspace(0, len(shown.frames) - 1, count).round().astype(int)]
    size, bicubic = (side, side), PillowImage.Resampling.BICUBIC
    squeezed = np.stack([np.asarray(PillowImage.fromarray(frame).resize(size, bicubic)) for frame in frames])
    return torch.from_numpy(squeezed).permute(0, 3, 1, 2).float() / 127.5 - 1
