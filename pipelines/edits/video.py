"""Edits of clips, with their sound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil
from typing import ClassVar, Literal, cast

import numpy as np
from pydantic import Field

from models.errors import UserError
from pipelines.base import Event, Params, Pipeline, Produced, Route, Runtime, provenance
from pipelines.edits.audio import SpeedParams, TrimParams, at_speed, fitted, part_to_keep
from pipelines.edits.base import Edit
from pipelines.media import Artifact, Audio, Video

CLIP_TO_CLIP = (Route(("video",), "video"),)
SLOWEST_FRAME_RATE, FASTEST_FRAME_RATE = 0.1, 60.0  # a screen shows no more


class VideoTrim(Edit[Video, TrimParams]):
    name = "video-trim"
    title = "Trim a clip"
    summary = "Keep a part of a clip, with its sound."
    routes = CLIP_TO_CLIP
    params_type = TrimParams

    def change(self, given: Video, params: TrimParams) -> Video:
        first, last = part_to_keep(params, duration_of(given), given.frame_rate, "clip")
        sound = given.audio and _between(given.audio, first / given.frame_rate, last / given.frame_rate)
        return replace(given, frames=given.frames[first:last], audio=sound)


class VideoSpeed(Edit[Video, SpeedParams]):
    name = "video-speed"
    title = "Faster or slower clip"
    summary = "Play a clip in fast or in slow motion; the pitch of its sound follows."
    routes = CLIP_TO_CLIP
    params_type = SpeedParams

    def change(self, given: Video, params: SpeedParams) -> Video:
        """The same frames at another rate; of more than a screen can show, every second (third, ...) one."""
        frame_rate = given.frame_rate * params.factor
        if frame_rate < SLOWEST_FRAME_RATE:
            raise UserError("The clip would have hardly any frames a second.", "Slow it down less.")
        every = ceil(frame_rate / FASTEST_FRAME_RATE)
        sound = given.audio and at_speed(given.audio, params.factor)
        return replace(given, frames=given.frames[::every], frame_rate=frame_rate / every, audio=sound)


class VideoReverse(Edit[Video, Params]):
    name = "video-reverse"
    title = "Reverse a clip"
    summary = "Play a clip backwards, and its sound too."
    routes = CLIP_TO_CLIP
    params_type = Params

    def change(self, given: Video, params: Params) -> Video:
        sound = given.audio
        if sound is not None:
            # As long as the clip, or it would begin too early or too late.
            sound = fitted(sound, duration_of(given), loop=False)
            sound = replace(sound, samples=sound.samples[:, ::-1])
        return replace(given, frames=given.frames[::-1], audio=sound)


class VideoRotateParams(Params):
    degrees: Literal[90, 180, 270] = Field(90, description="Degrees clockwise.")


class VideoRotate(Edit[Video, VideoRotateParams]):
    name = "video-rotate"
    title = "Rotate a clip"
    summary = "Turn a clip upright, or upside down."
    routes = CLIP_TO_CLIP
    params_type = VideoRotateParams

    def change(self, given: Video, params: VideoRotateParams) -> Video:
        return replace(given, frames=np.rot90(given.frames, -params.degrees // 90, axes=(1, 2)))


class VideoMute(Edit[Video, Params]):
    name = "video-mute"
    title = "Mute a clip"
    summary = "Take the sound out of a clip."
    routes = CLIP_TO_CLIP
    params_type = Params

    def change(self, given: Video, params: Params) -> Video:
        return replace(given, audio=None)


class AddSoundParams(Params):
    loop: bool = Field(True, description="Repeat a sound that is shorter than the clip; otherwise silence follows.")


class VideoAddSound(Pipeline):
    """The one edit of two things, so no :class:`Edit`."""

    name = "video-add-sound"
    title = "Give a clip a sound"
    summary = "Put a sound under a clip, in place of its own, for as long as the clip lasts."
    routes = (Route(("video", "audio"), "video"),)
    params_type = AddSoundParams
    models: ClassVar[tuple[str, ...]] = ()
    is_edit = True
    uses_chance = False

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        for item in inputs:
            runtime.raise_if_cancelled()
            [clip] = [given for given in item if isinstance(given, Video)]  # in whichever order they come
            [sound] = [given for given in item if isinstance(given, Audio)]
            sound = fitted(sound, duration_of(clip), cast(AddSoundParams, params).loop)
            made_by = provenance(self, item, params, runtime.models)
            yield Produced(replace(clip, audio=sound, provenance=made_by))


def duration_of(clip: Video) -> float:
    """Seconds."""
    return len(clip.frames) / clip.frame_rate


def _between(sound: Audio, start: float, end: float) -> Audio | None:
    """The part of ``sound`` between two moments in seconds; ``None`` where it is over by then."""
    samples = sound.samples[:, round(start * sound.sample_rate) : round(end * sound.sample_rate)]
    return replace(sound, samples=samples) if samples.size else None
