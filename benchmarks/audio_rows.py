"""What ``benchmarks/audio.py`` asks, and the ways to answer: every row makes sounds by the pipelines or their parts.

Rows that the app offers run its pipelines. The others (true sound vector, no mapper, zero-shot with noise) put another
condition into the same maker of sounds. All get the same models by lease, and all sounds are brought to one loudness.

Shapes: D dimensions of a condition.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.mel import log_mel
from pipelines.audioldm.pipeline import AudioLDM
from pipelines.base import Pipeline, Produced, Progress, Runtime, precision
from pipelines.clipsonic.pipeline import CLIPSonic, picture_phrase
from pipelines.media import Artifact, Audio, Image, Text
from pipelines.sounds import USUAL, SoundMaker, SoundParams, Wanted, clean_words, finished
from pipelines.spaces import picture_vector, sentence_embedding
from pipelines.v2a_mapper.pipeline import V2AMapper
from training.picture_sound import MAPPING, kinds_of, picture_keys, rows_by_key
from training.pictures import Picture, load_pictures
from training.sound_diffusion import SOFTENING
from training.sound_judge import known_classes, reserved_files
from training.sounds import SAMPLES, Sound, Sounds

Asked = Literal["", "pictures", "photographs", "words"]
STEPS: int = SoundParams.model_fields["steps"].default
GUIDANCE: float = SoundParams.model_fields["guidance"].default
PARTS = ("audio-autoencoder", "vocoder")


# ------------------------------------------------------------------------------------------------------------ queries


@dataclass(frozen=True)
class Query:
    """A real clip (``waveform`` (SAMPLES,) in [-1, 1]) that stands for its class, and a picture of it that no model of
    sounds or spaces was trained on. ``number``: from which its seeds come."""

    number: int
    item: Sound
    waveform: Tensor
    picture: Image

    @property
    def words(self) -> str:
        return self.item.name


@dataclass(frozen=True)
class Queries:
    """``photographs`` are few; ``reference``: the other half of the reserved files, to measure distances from."""

    pictures: list[Query]
    photographs: list[Query]
    reference: Tensor

    def of(self, asked: Asked) -> list[Query]:
        return self.photographs if asked == "photographs" else self.pictures


def load_queries(folder: Path, sounds: Sounds, count: int) -> Queries:
    """At most ``count`` queries, spread evenly over the table, from clips that neither judge nor generator has heard.

    One half of the files gives queries and the other the reference, so that real queries are as far from it as real
    sounds are from each other. Photographs, which need no reference, come from both halves.
    """
    reserved = reserved_files(folder)
    known = known_classes(sounds, reserved)
    items = [item for item in sounds.items if item.row in reserved and item.name in known]
    number = {file: index for index, file in enumerate(dict.fromkeys(reserved.values()))}
    is_query = {item.row: number[reserved[item.row]] % 2 == 1 for item in items}
    pictures = load_pictures(folder)
    shown = held_out_pictures(folder, pictures.items, items)

    def queries(chosen: Sequence[Sound], photographs: bool) -> list[Query]:
        made: list[Query] = []
        for item in chosen:
            kinds = _only_photographs(shown[item.row], pictures.items) if photographs else shown[item.row]
            if kinds:
                image = Image(pictures.pixels[_draw(kinds, item.row)])
                made.append(Query(len(made), item, sounds.waveforms([item])[0], image))
        return made

    asked = [item for item in items if is_query[item.row] and shown[item.row]]
    spread = [asked[i] for i in np.linspace(0, len(asked) - 1, min(count, len(asked))).astype(int)]
    return Queries(
        queries(spread, photographs=False),
        queries(items, photographs=True)[:count],
        sounds.waveforms([item for item in items if not is_query[item.row]]),
    )


def held_out_pictures(folder: Path, pictures: Sequence[Picture], items: Sequence[Sound]) -> dict[int, list[list[int]]]:
    """For the row of each clip, the rows of held-out ``pictures`` that show it, apart for each kind of link."""
    classes = json.loads((folder / MAPPING).read_text(encoding="utf-8"))["classes"]
    held_out = [picture for picture in pictures if picture.split != "train"]
    rows = rows_by_key(picture_keys(folder), held_out, permissive_only=False)
    return {item.row: kinds_of(item, classes.get(item.name, {}).get("stamps", []), rows) for item in items}


def _only_photographs(kinds: Sequence[Sequence[int]], pictures: Sequence[Picture]) -> list[list[int]]:
    photographs = [[row for row in kind if pictures[row].style == "photo"] for kind in kinds]
    return [kind for kind in photographs if kind]


def _draw(kinds: Sequence[Sequence[int]], seed: int) -> int:
    """Kinds are drawn alike, as in training."""
    rng = np.random.default_rng(seed)
    kind = kinds[int(rng.integers(len(kinds)))]
    return kind[int(rng.integers(len(kind)))]


# --------------------------------------------------------------------------------------------------------------- rows

Make = Callable[[Runtime, Query, Sequence[int]], list[Audio]]  # one sound a seed
Condition = Callable[[Runtime, Query, Sequence[int]], Tensor]  # unit vectors, (seeds, D)


@dataclass(frozen=True)
class Row:
    """``needs``: keys of models; ``seeded``: whether another seed gives another sound."""

    name: str
    asked: Asked
    needs: tuple[str, ...]
    make: Make
    seeded: bool = True

    @property
    def title(self) -> str:
        return f"{self.name}, {self.asked}" if self.asked else self.name


def rows(steps: int = STEPS) -> list[Row]:
    """All of them, but for the shuffled one, which makes no sounds of its own; ``steps`` of denoising."""
    heard = ("sound-generator", *PARTS)
    v2a = {kind: _by_pipeline(V2AMapper(), _shown, mapper=kind, steps=steps) for kind in ("generative", "regression")}
    show = _by_pipeline(CLIPSonic(), _shown, steps=steps)
    say = {
        bridge: _by_pipeline(CLIPSonic(), _said, bridge=bridge, steps=steps)
        for bridge in ("prior", "mean_shift", "zero_shot")
    }
    seen = _by_condition("sound-generator", _vector_of_the_picture, steps)
    noisy = _by_condition("clipsonic", _noisy_vector_of_the_words, steps)
    return [
        Row("real clips", "", (), _real, seeded=False),
        Row("real clips, coded and voiced", "", PARTS, _voiced, seeded=False),
        Row("true sound vector", "", ("sound-text", *heard), _by_condition("sound-generator", _true_vector, steps)),
        Row("V2A generative", "pictures", V2AMapper.models, v2a["generative"]),
        Row("V2A generative", "photographs", V2AMapper.models, v2a["generative"]),
        Row("V2A regression", "pictures", V2AMapper.models, v2a["regression"]),
        Row("V2A regression", "photographs", V2AMapper.models, v2a["regression"]),
        Row("no mapper", "pictures", ("picture-text", *heard), seen),
        Row("CLIPSonic image query", "pictures", CLIPSonic.models, show),
        Row("CLIPSonic image query", "photographs", CLIPSonic.models, show),
        Row("CLIPSonic prior", "words", CLIPSonic.models, say["prior"]),
        Row("CLIPSonic mean shift", "words", CLIPSonic.models, say["mean_shift"]),
        Row("CLIPSonic zero-shot", "words", CLIPSonic.models, say["zero_shot"]),
        Row("AudioLDM", "words", AudioLDM.models, _by_pipeline(AudioLDM(), _said, steps=steps)),
        Row("CLIPSonic zero-shot + noise", "words", ("picture-text", "sentence-encoder", "clipsonic", *PARTS), noisy),
    ]


def _shown(query: Query) -> Image:
    return query.picture


def _said(query: Query) -> Text:
    return Text(query.words)


def _by_pipeline(pipeline: Pipeline, ask: Callable[[Query], Artifact], **params: str | int) -> Make:
    """As the app does it; the pipeline's seeds follow each other, as those of a query do."""

    def make(runtime: Runtime, query: Query, seeds: Sequence[int]) -> list[Audio]:
        values = pipeline.parse_params({"seed": seeds[0], "num_sounds": len(seeds), **params})
        stream = pipeline.run([ask(query)], values, runtime)
        return [cast(Audio, event.artifact) for event in stream if isinstance(event, Produced)]

    return make


def _by_condition(generator: str, condition: Condition, steps: int) -> Make:
    """The model ``generator`` given another condition than a pipeline gives it."""

    def make(runtime: Runtime, query: Query, seeds: Sequence[int]) -> list[Audio]:
        conditions = condition(runtime, query, seeds)
        wanted = [Wanted(vector, seed, USUAL, "") for vector, seed in zip(conditions, seeds, strict=True)]
        with ExitStack() as stack:
            maker = SoundMaker.lease(generator, runtime, stack)
            return _result_of(maker.make(wanted, steps, GUIDANCE))

    return make


def _result_of(stream: Generator[Progress, None, list[Audio]]) -> list[Audio]:
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return cast(list[Audio], end.value)


def _real(runtime: Runtime, query: Query, seeds: Sequence[int]) -> list[Audio]:
    return [finished(query.waveform.numpy(), 16_000)]


def _voiced(runtime: Runtime, query: Query, seeds: Sequence[int]) -> list[Audio]:
    """The clip as the generators' own parts say it: no generator sounds better than this."""
    with (
        runtime.lease("audio-autoencoder") as autoencoder,
        runtime.lease("vocoder") as vocoder,
        precision(runtime.models),
        torch.no_grad(),
    ):
        mels = log_mel(query.waveform[None].to(runtime.models.device), autoencoder.mel)
        waveform = vocoder(autoencoder.decode(autoencoder.encode(mels)))[0]
    return [finished(waveform[:SAMPLES].float().cpu().numpy(), vocoder.mel.sample_rate)]


def _true_vector(runtime: Runtime, query: Query, seeds: Sequence[int]) -> Tensor:
    """Where CLAP-lite has the very clip: what a perfect mapper would say."""
    with runtime.lease("sound-text") as space, precision(runtime.models), torch.no_grad():
        mels = log_mel(query.waveform[None].to(runtime.models.device), space.mel)
        return cast(Tensor, space.embed_sounds(mels).expand(len(seeds), -1))


def _vector_of_the_picture(runtime: Runtime, query: Query, seeds: Sequence[int]) -> Tensor:
    with runtime.lease("picture-text") as space, torch.no_grad():
        return picture_vector(space, query.picture, runtime).expand(len(seeds), -1)


def _noisy_vector_of_the_words(runtime: Runtime, query: Query, seeds: Sequence[int]) -> Tensor:
    """Zero-shot, with the most noise that training put on a picture's vector: may chance alone bridge the gap?"""
    phrase = picture_phrase(clean_words(query.words, "The text"))
    with runtime.lease("sentence-encoder") as encoder:
        sentence, _ = sentence_embedding(encoder, phrase, runtime)
    with runtime.lease("picture-text") as space, precision(runtime.models), torch.no_grad():
        said = space.embed_sentences(sentence).float()
    # Seeds as of a bridge, or the noise would be the beginning of the sound's own.
    generators = (torch.Generator().manual_seed(seed ^ 1 << 20) for seed in seeds)
    noise = torch.stack([torch.randn(said.shape[1], generator=generator) for generator in generators]).to(said)
    return F.normalize(said + SOFTENING[1] / said.shape[1] ** 0.5 * noise, dim=1)
