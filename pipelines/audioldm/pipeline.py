"""AudioLDM: a sound from words, by a generator that was given the vectors of sounds and never a word.

Words are where the sound-text space has them; its training has put them beside the sounds that they describe
(arXiv 2301.12503, section 3.1). Of several sounds the one nearest to the words is kept, as its authors' program does.
That takes 200 noisy steps for each (DDIM, eta 1); here they are a few without noise, since a person waits for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from models.errors import UserError
from pipelines.base import Event, Params, Pipeline, Progress, Route, Runtime, candidate_seed
from pipelines.media import Artifact, Audio, Text
from pipelines.sounds import SoundOfWordsParams, Wanted, clean_words, made_sounds, told
from pipelines.spaces import is_heard, sound_vector, words_vector


class AudioLDMParams(SoundOfWordsParams):
    candidates: int = Field(
        3, ge=1, le=8, description="Sounds to make for each that is asked for; the one nearest to the words is kept."
    )

    def candidate_seeds(self) -> list[int]:
        """``candidates`` for the first variation, then for the next; the first of each is the variation's own."""
        candidates = range(self.candidates)
        return [candidate_seed(seed, number) for seed in self.seeds(self.num_sounds) for number in candidates]


class AudioLDM(Pipeline):
    name = "audioldm"
    title = "Sound from words"
    summary = "Type what to hear. The generator learned from sounds; words say where among them to look."
    routes = (Route(("text",), "audio"),)
    params_type = AudioLDMParams
    models: ClassVar[tuple[str, ...]] = (
        "sound-text",
        "sentence-encoder",
        "sound-generator",
        "audio-autoencoder",
        "vocoder",
    )
    examples = (("rain",), ("a barking dog",), ("a church bell",), ("a train",), ("waves on a beach",), ("a cat",))

    def shape_of_work(self, inputs: Sequence[Artifact], params: Params) -> tuple[int, ...]:
        params = cast(AudioLDMParams, params)
        return params.num_sounds * params.candidates, round(params.duration)

    def effort(self, inputs: Sequence[Artifact], params: Params) -> float:
        params = cast(AudioLDMParams, params)
        return params.sampling(params.duration) * params.candidates

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        params = cast(AudioLDMParams, params)
        phrases = [_words(item) for item in inputs]
        yield Progress(0, params.steps, "Loading models")
        vectors, wanted = [], []
        for phrase in phrases:
            vector, heard = words_vector("sound-text", phrase, runtime)
            vectors.append(vector[0])
            note = f'Asked for "{heard[:80]}"'
            wanted += [Wanted(vector[0], seed, params.duration, note) for seed in params.candidate_seeds()]
        made = yield from made_sounds("sound-generator", wanted, params, runtime)
        choices = [made[i : i + params.candidates] for i in range(0, len(made), params.candidates)]
        asked = [vector for vector in vectors for _ in range(params.num_sounds)]
        yield from told(self, inputs, nearest(choices, asked, runtime), params, runtime)


def nearest(choices: Sequence[Sequence[Audio]], vectors: Sequence[Tensor], runtime: Runtime) -> list[Audio]:
    """Of each of ``choices`` the sound that the sound-text space has nearest to its unit vector (D,) of words."""
    if all(len(sounds) == 1 for sounds in choices):
        return [sounds[0] for sounds in choices]
    with runtime.lease("sound-text") as space:

        def likeness(sound: Audio, vector: Tensor) -> float:
            return float(torch.dot(sound_vector(space, sound, runtime), vector.float())) if is_heard(sound) else -1.0

        return [
            max(sounds, key=lambda sound: likeness(sound, vector))
            for sounds, vector in zip(choices, vectors, strict=True)
        ]


def _words(item: Sequence[Artifact]) -> str:
    """Raises :class:`UserError` for anything else, and for no words."""
    [said] = item
    if not isinstance(said, Text):
        raise UserError(f"Words are needed here, not {said.medium}.", "Say what to hear.")
    return clean_words(said.text, "The text")
