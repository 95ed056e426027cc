"""AudioLDM: a sound from words, by a generator that was given the vectors of sounds and never a word.

Words are where the sound-text space has them; its training has put them beside the sounds that they describe
(arXiv 2301.12503, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, cast

from models.errors import UserError
from pipelines.base import Event, Params, Pipeline, Progress, Route, Runtime
from pipelines.media import Artifact, Text
from pipelines.sounds import SoundOfWordsParams, Wanted, clean_words, sounds_for
from pipelines.spaces import words_vector


class AudioLDM(Pipeline):
    name = "audioldm"
    title = "Sound from words"
    summary = "Type what to hear. The generator learned from sounds; words say where among them to look."
    routes = (Route(("text",), "audio"),)
    params_type = SoundOfWordsParams
    models: ClassVar[tuple[str, ...]] = (
        "sound-text",
        "sentence-encoder",
        "sound-generator",
        "audio-autoencoder",
        "vocoder",
    )
    examples = (("rain",), ("a barking dog",), ("a church bell",), ("a train",), ("waves on a beach",), ("a cat",))

    def shape_of_work(self, inputs: Sequence[Artifact], params: Params) -> tuple[int, ...]:
        params = cast(SoundOfWordsParams, params)
        return params.num_sounds, round(params.duration)

    def effort(self, inputs: Sequence[Artifact], params: Params) -> float:
        return cast(SoundOfWordsParams, params).sampling

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        params = cast(SoundOfWordsParams, params)
        phrases = [_words(item) for item in inputs]
        yield Progress(0, params.steps, "Loading models")
        wanted = []
        for phrase in phrases:
            vector, heard = words_vector("sound-text", phrase, runtime)
            note = f'Asked for "{heard[:80]}"'
            wanted += [Wanted(vector[0], seed, params.duration, note) for seed in params.seeds(params.num_sounds)]
        yield from sounds_for(self, "sound-generator", inputs, wanted, params, runtime)


def _words(item: Sequence[Artifact]) -> str:
    """Raises :class:`UserError` for anything else, and for no words."""
    [said] = item
    if not isinstance(said, Text):
        raise UserError(f"Words are needed here, not {said.medium}.", "Say what to hear.")
    return clean_words(said.text, "The text")
