"""CLIPSonic: a sound from words, or from a picture, by a generator that has only ever seen pictures beside sounds.

Words become a vector of the picture-text space, which a bridge moves to where pictures are. What no picture shows, such
as "loud" or "far away", is lost on the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor

from models.errors import UserError
from pipelines.base import ADVANCED, Event, Params, Pipeline, Progress, Route, Runtime, precision
from pipelines.media import Artifact, Image, Text
from pipelines.sounds import SoundOfWordsParams, Wanted, clean_words, made_sounds, told
from pipelines.spaces import picture_vector, words_vector

BRIDGES = {"prior": "clipsonic-prior", "mean_shift": "clipsonic-mean-shift"}
BEST_OF = 4  # answers of the prior, of which the one nearest to the words counts (fact sheet ``clipsonic.md``, 8)
OF_A_SOUND = re.compile(r"((the|a|some) )?(sounds?|noises?)( effects?)? of ", re.IGNORECASE)
OF_A_PICTURE = re.compile(r"((the|a) )?(photo|photograph|picture|image|drawing)s? of ", re.IGNORECASE)


class CLIPSonicParams(SoundOfWordsParams):
    bridge: Literal["prior", "zero_shot", "mean_shift"] = Field(
        "prior",
        description="How words become like a picture: a learned prior, not at all, or by the clouds' mean difference.",
        json_schema_extra=ADVANCED,
    )


class CLIPSonic(Pipeline):
    name = "clipsonic"
    title = "Sound from words, by pictures"
    summary = "Type what to hear, or show it. The sounds were learned from pictures alone, never from words."
    routes = (Route(("text",), "audio"), Route(("image",), "audio"))
    params_type = CLIPSonicParams
    models: ClassVar[tuple[str, ...]] = (
        "picture-text",
        "sentence-encoder",
        *BRIDGES.values(),
        "clipsonic",
        "audio-autoencoder",
        "vocoder",
    )
    examples = (("rain",), ("a barking dog",), ("a church bell",), ("a train",), ("waves on a beach",), ("a cat",))

    def models_for(self, inputs: Sequence[Artifact], params: Params) -> tuple[str, ...]:
        said = isinstance(inputs[0], Text)
        unused = {key for name, key in BRIDGES.items() if name != cast(CLIPSonicParams, params).bridge or not said}
        unused |= set() if said else {"sentence-encoder"}
        return tuple(key for key in self.models if key not in unused)

    def shape_of_work(self, inputs: Sequence[Artifact], params: Params) -> tuple[int, ...]:
        params = cast(CLIPSonicParams, params)
        return params.num_sounds, round(params.duration)

    def effort(self, inputs: Sequence[Artifact], params: Params) -> float:
        params = cast(CLIPSonicParams, params)
        return params.sampling(params.duration)

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        params = cast(CLIPSonicParams, params)
        queries = [_query(item) for item in inputs]
        yield Progress(0, params.steps, "Loading models")
        wanted = []
        for query in queries:
            conditions, note = _conditions(query, params, runtime)
            for condition, seed in zip(conditions, params.seeds(params.num_sounds), strict=True):
                wanted.append(Wanted(condition, seed, params.duration, note))
        sounds = yield from made_sounds("clipsonic", wanted, params, runtime)
        yield from told(self, inputs, sounds, params, runtime)


def picture_phrase(words: str) -> str:
    """The caption that is asked for instead: "the sound of rain" -> "a photo of rain" (fact sheet, pitfall 3)."""
    if OF_A_PICTURE.match(words):
        return words
    return f"a photo of {words[match.end() :] if (match := OF_A_SOUND.match(words)) else words}"


def _query(item: Sequence[Artifact]) -> str | Image:
    """The phrase, or the picture, that is asked for. Raises :class:`UserError` for anything else, and for no words."""
    [query] = item
    if isinstance(query, Text):
        return picture_phrase(clean_words(query.text, "The text"))
    if not isinstance(query, Image):
        raise UserError(f"Words or a picture are needed here, not {query.medium}.", "Say what to hear, or show it.")
    return query


def _conditions(query: str | Image, params: CLIPSonicParams, runtime: Runtime) -> tuple[Tensor, str]:
    """A unit vector as a picture has it for every seed, (num_sounds, D), and what progress says of it."""
    if isinstance(query, Image):
        with runtime.lease("picture-text") as space:
            return picture_vector(space, query, runtime).expand(params.num_sounds, -1), "Making the picture's sound"
    said, asked = words_vector("picture-text", query, runtime)
    return _bridged(said.expand(params.num_sounds, -1), params, runtime), f'Asked for "{asked[:80]}"'


def _bridged(said: Tensor, params: CLIPSonicParams, runtime: Runtime) -> Tensor:
    """From the cloud of sentences towards that of pictures, (num_sounds, D)."""
    if params.bridge == "zero_shot":
        return said
    if params.bridge == "mean_shift":
        with runtime.lease(BRIDGES["mean_shift"]) as shift, precision(runtime.models):
            return cast(Tensor, shift(said, params.bridge_seeds()))
    with runtime.lease(BRIDGES["prior"]) as prior, precision(runtime.models):
        return cast(Tensor, prior(said, params.bridge_seeds(), best_of=BEST_OF))
