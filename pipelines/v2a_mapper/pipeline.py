"""V2A-Mapper: the sound of a picture or of a clip, which may go some of the way towards words.

The vector of what is seen is mapped to one of what is heard, and a generator that knows sounds only does the rest. The
frames of a clip make one vector, so its sound fits what is seen, but not the moments at which it happens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor

from pipelines.base import (
    ADVANCED,
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
from pipelines.edits.audio import fitted
from pipelines.edits.video import duration_of
from pipelines.media import Artifact, Audio, Image, Video
from pipelines.sounds import LONGEST, SHORTEST, USUAL, SoundMaker, SoundParams, Wanted, clean_words, shown_in
from pipelines.spaces import picture_vector, words_vector

MAPPERS = {"generative": "v2a-mapper", "regression": "v2a-regression"}


class V2AParams(SoundParams):
    duration: float | None = Field(
        None,
        ge=SHORTEST,
        le=LONGEST,
        description=f"Seconds; none is as long as the clip, up to {LONGEST:g}, and {USUAL:g} for a picture.",
    )
    words: str = Field("", description="What it should sound like besides, in words.")
    share: float = Field(0.5, ge=0, le=1, description="How far to go from what is seen to these words.")
    mapper: Literal["generative", "regression"] = Field(
        "generative",
        description="Generative: seeds give different sounds that fit. Regression: always the middle of them.",
        json_schema_extra=ADVANCED,
    )


class V2AMapper(Pipeline):
    name = "v2a"
    title = "Sound from a picture or a clip"
    summary = "Show something and hear what it may sound like. A clip gets it as its sound, but not moment by moment."
    routes = (Route(("image",), "audio"), Route(("video",), "audio"), Route(("video",), "video"))
    params_type = V2AParams
    example_files = tuple(sorted((EXAMPLES / "pictures").glob("*.png")))
    models: ClassVar[tuple[str, ...]] = (
        "picture-text",
        *MAPPERS.values(),
        "sound-text",
        "sentence-encoder",
        "sound-generator",
        "audio-autoencoder",
        "vocoder",
    )

    def models_for(self, inputs: Sequence[Artifact], params: Params) -> tuple[str, ...]:
        params = cast(V2AParams, params)
        share = params.share if params.words.strip() else 0.0
        unused = {key for name, key in MAPPERS.items() if name != params.mapper or share == 1}
        unused |= {"sound-text", "sentence-encoder"} if share == 0 else set()
        unused |= {"picture-text"} if share == 1 else set()
        return tuple(key for key in self.models if key not in unused)

    def shape_of_work(self, inputs: Sequence[Artifact], params: Params) -> tuple[int, ...]:
        params = cast(V2AParams, params)
        return params.num_sounds, round(_seconds(shown_in(inputs), params))

    def effort(self, inputs: Sequence[Artifact], params: Params) -> float:
        params = cast(V2AParams, params)
        return params.sampling(_seconds(shown_in(inputs), params))

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        params = cast(V2AParams, params)
        shown = [shown_in(item) for item in inputs]
        words = clean_words(params.words, "'words'") if params.words.strip() else None
        yield Progress(0, params.steps, "Loading models")
        note = f'Going towards "{words[:60]}"' if words and params.share else "Making the sound"
        wanted = [
            Wanted(condition, seed, _seconds(seen, params), note)
            for seen, conditions in zip(shown, _conditions(shown, words, params, runtime), strict=True)
            for condition, seed in zip(conditions, params.seeds(params.num_sounds), strict=True)
        ]
        with ExitStack() as stack:
            maker = SoundMaker.lease("sound-generator", runtime, stack)
            sounds = yield from maker.make(wanted, params.steps, params.guidance)
        del maker  # its models may go now
        for which, item in enumerate(inputs):
            of_item = sounds[which * params.num_sounds : (which + 1) * params.num_sounds]
            results = (result for sound in of_item for result in _results(sound, shown[which]))
            for index, result in enumerate(results):
                made_by = provenance(self, item, params, runtime.models, index)
                yield Produced(result.with_provenance(made_by))


def _seconds(shown: Image | Video, params: V2AParams) -> float:
    if params.duration is not None:
        return params.duration
    return min(max(duration_of(shown), SHORTEST), LONGEST) if isinstance(shown, Video) else USUAL


def _conditions(
    shown: Sequence[Image | Video], words: str | None, params: V2AParams, runtime: Runtime
) -> Sequence[Tensor]:
    """For each of ``shown`` a unit vector of the space of sounds for every seed, (num_sounds, D)."""
    share = params.share if words else 0.0
    if words is None or share == 0:
        return _mapped(shown, params, runtime)
    vector, _ = words_vector("sound-text", words, runtime)
    said = vector.expand(params.num_sounds, -1)
    if share == 1:
        return [said] * len(shown)
    from models.bridges import slerp

    return [slerp(mapped, said, share) for mapped in _mapped(shown, params, runtime)]


def _mapped(shown: Sequence[Image | Video], params: V2AParams, runtime: Runtime) -> list[Tensor]:
    """From the vector of what is seen to those of what may be heard there."""
    with runtime.lease("picture-text") as space:
        seen = [picture_vector(space, one, runtime) for one in shown]
    with runtime.lease(MAPPERS[params.mapper]) as bridge, precision(runtime.models):
        return [bridge(vector.expand(params.num_sounds, -1), params.bridge_seeds()).float() for vector in seen]


def _results(sound: Audio, shown: Image | Video) -> Iterator[Audio | Video]:
    """The sound, and for a clip the clip with it: cut, or repeated, to last as long."""
    yield sound
    if isinstance(shown, Video):
        yield replace(shown, audio=fitted(sound, duration_of(shown), loop=True))
