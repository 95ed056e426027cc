"""What XBind is asked by: words, an example of another medium, or both, as one vector of the space that all share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from torch import Tensor

from models.errors import UserError
from models.sounding_things import sounding_things
from pipelines.base import Runtime
from pipelines.crossflow.prompts import clean_prompt
from pipelines.fmri.pipeline import FMRIParams, decoded
from pipelines.media import Artifact, Audio, BrainScan, Image, Text
from pipelines.spaces import is_heard, picture_vector, sound_vector, words_vector, words_vectors
from pipelines.xbind.cut_out import cut_out, things_in

MANY = 8  # things in a picture; one thing has up to seven parts that stand apart (icons of the training shapes)
SAME_COLOUR = 8  # of 255: what compression does to a single colour
SHOWN = "what the picture shows"
HINT = "Say in a few words what to make, such as 'a wooden chair'."
Example = Image | Audio | BrainScan  # which is to be met in spirit


@dataclass(frozen=True)
class Senses:
    """Keys of the models: of the ``space`` of words and pictures, and of the ``ears`` that hear into it; ``by_words``:
    whether what they hear is led to the words that are near."""

    space: str = "picture-text"
    ears: str = "bind-audio"
    by_words: bool = True


SENSES = Senses()


@dataclass(frozen=True)
class Meaning:
    """``vector``: a unit vector (D,) of the space; ``note``: what progress says; ``badge``: what must be said of it."""

    vector: Tensor
    note: str
    badge: str = ""


def counting(inputs: Sequence[Artifact], share: float) -> list[Artifact]:
    """The inputs that have a say, ``share`` of the way from words to an example: at either end the other has none."""
    if len(inputs) < 2:
        return list(inputs)
    return [item for item in inputs if share != (1 if isinstance(item, Text) else 0)]


@dataclass(frozen=True)
class Prompt:
    """What is asked for; at least one of both."""

    words: str | None
    example: Example | None

    @classmethod
    def of(cls, item: Sequence[Artifact]) -> Self:
        """In any order. Raises :class:`UserError` for other media, empty words, a picture of nothing and silence."""
        for one in item:
            if not isinstance(one, Text | Example):
                raise UserError(
                    f"Words, a picture, a sound or a brain scan are needed here, not {one.medium}.",
                    "Say what to make, or show it.",
                )
        words = [_clean_words(one.text) for one in item if isinstance(one, Text)]
        examples = [_of_something(one) for one in item if isinstance(one, Example)]
        if not 1 <= len(item) <= 2 or len(words) > 1 or len(examples) > 1:
            raise UserError(
                "One text, one picture, sound or scan, or one of each is needed here.",
                "Leave out the others.",
            )
        return cls(words[0] if words else None, examples[0] if examples else None)

    def on_white(self) -> Self:
        """A picture's object cut out of its background."""
        return replace(self, example=cut_out(self.example)) if isinstance(self.example, Image) else self

    def meaning(self, share: float, runtime: Runtime, senses: Senses = SENSES) -> Meaning:
        """``share``: of the way from the words to the example."""
        if self.words is None or (self.example is not None and share == 1):
            met = self._met(runtime, senses)
            return replace(met, note=f"Making {met.note}")
        said, heard = words_vector(senses.space, self.words, runtime)
        note = f'Making "{heard[:80]}"'
        if self.example is None or share == 0:
            return Meaning(said[0], note)
        from models.bridges import slerp

        met = self._met(runtime, senses)
        return Meaning(slerp(said[0], met.vector, share), f"{note} and {met.note}", met.badge)

    def _met(self, runtime: Runtime, senses: Senses) -> Meaning:
        """Of the example."""
        if isinstance(self.example, BrainScan):
            return _decoded(self.example, runtime, senses)
        if isinstance(self.example, Audio):
            return _heard(self.example, runtime, senses)
        assert self.example is not None
        count = things_in(self.example)
        note = f"what the {count} things in the picture have in common; crop it to one" if count >= MANY else SHOWN
        with runtime.lease(senses.space) as space:
            return Meaning(picture_vector(space, self.example, runtime), note)


def _heard(sound: Audio, runtime: Runtime, senses: Senses) -> Meaning:
    if not senses.by_words:
        with runtime.lease(senses.ears) as space:
            return Meaning(sound_vector(space, sound, runtime), "what is heard")
    from models.bind import among_words

    things = sounding_things()
    said = words_vectors(senses.space, things, runtime)
    with runtime.lease(senses.ears) as space:
        vector, nearest = among_words(sound_vector(space, sound, runtime), said)
    return Meaning(vector, f"what is heard, perhaps {things[nearest]}")


def _decoded(scan: BrainScan, runtime: Runtime, senses: Senses) -> Meaning:
    """The mean of all its trials. Of a measured brain a category is decoded, and its name is read; so is that of what
    is nearest, if the space is not the decoder's."""
    reading = decoded(scan, FMRIParams(), runtime)
    vector = reading.semantic if senses.space == SENSES.space else None
    if vector is None:
        vector = words_vector(senses.space, reading.sentence, runtime)[0][0]
    return Meaning(vector, f"what was decoded, perhaps {reading.sentence}", reading.badge)


def _clean_words(text: str) -> str:
    try:
        return clean_prompt(text, "The text")
    except UserError as error:
        raise UserError(error.sentence, HINT) from None


def _of_something(example: Example) -> Example:
    if isinstance(example, Audio) and not is_heard(example):
        raise UserError("The sound is silent.", "Use one in which something can be heard.")
    if isinstance(example, Image) and np.ptp(example.pixels, axis=(0, 1)).max() <= SAME_COLOUR:
        raise UserError("The picture shows nothing: it is one colour all over.", "Use a picture of one object.")
    return example
