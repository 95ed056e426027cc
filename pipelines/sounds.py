"""What all pipelines of sounds share: from vectors to finished sounds.

Shapes: B sounds of N samples, F frames and M bands; C channels, f frames and m bands of latents; D dimensions of a
condition.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby
from typing import TYPE_CHECKING, Self

import av
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from models.errors import UserError
from models.mel import MelConfig
from pipelines.base import (
    ADVANCED,
    Event,
    Params,
    Pipeline,
    Produced,
    Progress,
    Runtime,
    is_preview,
    precision,
    provenance,
)
from pipelines.crossflow.prompts import clean_prompt
from pipelines.media import Artifact, Audio, Image, Video

if TYPE_CHECKING:  # they import diffusers and transformers, which takes seconds that a mere listing need not spend
    from models.nets.audio_autoencoder import AudioAutoencoder
    from models.nets.vocoder import HifiGanVocoder, IstftVocoder
    from models.sound_generator import SoundGenerator

SHORTEST, LONGEST, USUAL = 0.5, 30.0, 4.0  # seconds of a sound

LOUDNESS = -18.0  # LUFS
MOST_GAIN = 20.0  # decibels: what is nearly silent stays quiet
TRUE_PEAK = 0.88  # a hundredth below the limit of -1 dB, since no two meters agree to the last digit
OVERSAMPLING = 4
FADE_SECONDS = 0.02

SHOWN = 4  # of the spectrograms in a preview
BAND_HEIGHT = 2  # pixels of a preview
# From silence to the loudest: night, violet, ember, sand, chalk.
COLOURS = np.array([(9, 11, 28), (72, 32, 118), (196, 62, 88), (248, 158, 72), (255, 246, 214)])


class SoundParams(Params):
    """What all of them let a person choose."""

    num_sounds: int = Field(1, ge=1, le=8, description="Variations to make at once, each from its own seed.")
    steps: int = Field(
        20, ge=1, le=200, description="Steps of denoising: more are slower and finer.", json_schema_extra=ADVANCED
    )
    guidance: float = Field(
        2.5,
        ge=1,
        le=10,
        description="How strictly to follow what is asked. 1 is free, 10 is rigid.",
        json_schema_extra=ADVANCED,
    )

    def bridge_seeds(self) -> list[int]:
        """One a variation; others than its sound's, or a bridge's noise would be the beginning of its sound's noise."""
        return [seed ^ 1 << 20 for seed in self.seeds(self.num_sounds)]

    def sampling(self, seconds: float) -> float:
        """What a run's time grows with, if each sound has to be ``seconds`` long."""
        return self.num_sounds * self.steps * max(seconds, USUAL)


class SoundOfWordsParams(SoundParams):
    """Of those that words alone may ask."""

    duration: float = Field(USUAL, ge=SHORTEST, le=LONGEST, description="Seconds.")


# ---------------------------------------------------------------------------------------------------- words, pictures


def clean_words(text: str, what: str) -> str:
    """One line of words; raises :class:`UserError` if there are none, or far too many."""
    try:
        return clean_prompt(text, what)
    except UserError as error:
        raise UserError(error.sentence, "Say in a few words what to hear, such as 'rain on a roof'.") from None


def shown_in(item: Sequence[Artifact]) -> Image | Video:
    """The one picture or clip of an input; raises :class:`UserError` for anything else."""
    [shown] = item
    if not isinstance(shown, Image | Video):
        raise UserError(f"A picture or a clip is needed here, not {shown.medium}.", "Attach one.")
    return shown


# ------------------------------------------------------------------------------------------------------------- sounds


@dataclass(frozen=True)
class Wanted:
    """One sound to be made: of the unit vector ``condition`` (D,), ``seconds`` long; ``note`` is what progress says."""

    condition: Tensor
    seed: int
    seconds: float
    note: str


@dataclass
class SoundMaker:
    """The three leased models, for the length of one run."""

    generator: SoundGenerator
    autoencoder: AudioAutoencoder
    vocoder: IstftVocoder | HifiGanVocoder
    runtime: Runtime

    @classmethod
    def lease(cls, generator: str, runtime: Runtime, stack: ExitStack) -> Self:
        """``generator``: its model key. Raises :class:`UserError` if autoencoder and vocoder do not fit together."""
        keys = (generator, "audio-autoencoder", "vocoder")
        network, autoencoder, vocoder = (stack.enter_context(runtime.lease(key)) for key in keys)
        if autoencoder.mel != vocoder.mel:
            raise UserError(
                "The sound autoencoder and the vocoder do not mean the same by a spectrogram.",
                "Take both from the same model.",
            )
        return cls(network, autoencoder, vocoder, runtime)

    def make(self, wanted: Sequence[Wanted], steps: int, guidance: float) -> Generator[Progress, None, list[Audio]]:
        """Yields progress after every step, with a few previews; returns the sounds in the order of ``wanted``."""
        chunks = self._chunks(wanted)
        sounds: list[Audio] = []
        for number, chunk in enumerate(chunks):
            self.runtime.raise_if_cancelled()
            before = Progress(number * steps, len(chunks) * steps, chunk[0].note)
            latents = yield from self._sample(chunk, steps, guidance, before)
            for one, of_one in zip(chunk, latents, strict=True):
                self.runtime.raise_if_cancelled()
                sounds.append(self._voiced(of_one, one.seconds))
        return sounds

    def _chunks(self, wanted: Sequence[Wanted]) -> list[list[Wanted]]:
        """Neighbours of one length of latents, no more than may be computed at once."""
        alike = [list(group) for _, group in groupby(wanted, key=lambda one: self._latent_frames(one.seconds))]
        size = self.runtime.micro_batch
        return [group[i : i + size] for group in alike for i in range(0, len(group), size)]

    def _latent_frames(self, seconds: float) -> int:
        """At least the window, since the generator knows nothing shorter; what is over is cut off in the end."""
        frames = math.ceil(self._samples(seconds) / self.vocoder.mel.hop)
        return max(math.ceil(frames / self.autoencoder.factor), self.generator.window)

    def _samples(self, seconds: float) -> int:
        return round(seconds * self.vocoder.mel.sample_rate)

    def _sample(
        self, chunk: Sequence[Wanted], steps: int, guidance: float, before: Progress
    ) -> Generator[Progress, None, Tensor]:
        """Latents (B, C, f, m) of sounds of one length; ``before``: what is done and to be done of the whole run."""
        conditions = torch.stack([one.condition for one in chunk])
        frames, seeds = self._latent_frames(chunk[0].seconds), [one.seed for one in chunk]
        stages = self.generator.denoise(conditions, frames, steps, guidance, seeds)
        for step in range(1, steps + 1):
            self.runtime.raise_if_cancelled()
            with precision(self.runtime.models):
                clean, latents = next(stages)
            preview = self._preview(clean, chunk) if is_preview(step, steps) else None
            yield replace(before, step=before.step + step, preview=preview)
        return latents

    def _voiced(self, latents: Tensor, seconds: float) -> Audio:
        """(C, f, m) -> the sound. One at a time, since a waveform's features take far more room than its latents."""
        with precision(self.runtime.models), torch.no_grad():
            waveform = self.vocoder(self.autoencoder.decode(latents[None]))[0]
        samples = waveform[: self._samples(seconds)].float().cpu().numpy()
        return finished(samples, self.vocoder.mel.sample_rate)

    def _preview(self, latents: Tensor, chunk: Sequence[Wanted]) -> Image:
        """The first four spectrograms, one above the other, as the present estimate would end them."""
        frames = math.ceil(self._samples(chunk[0].seconds) / self.vocoder.mel.hop)
        with precision(self.runtime.models):
            mels = self.autoencoder.decode(latents[:SHOWN])
        return mel_picture(mels[:, :frames], self.autoencoder.mel)


def made_sounds(
    generator: str, wanted: Sequence[Wanted], params: SoundParams, runtime: Runtime
) -> Generator[Progress, None, list[Audio]]:
    """What is ``wanted``, made by the model ``generator``, which may go from memory afterwards."""
    with ExitStack() as stack:
        maker = SoundMaker.lease(generator, runtime, stack)
        return (yield from maker.make(wanted, params.steps, params.guidance))


def told(
    pipeline: Pipeline,
    inputs: Sequence[Sequence[Artifact]],
    sounds: Sequence[Audio],
    params: SoundParams,
    runtime: Runtime,
) -> Iterator[Event]:
    """The results: ``sounds``, ``num_sounds`` for each of ``inputs``."""
    for number, sound in enumerate(sounds):
        which, index = divmod(number, params.num_sounds)
        made_by = provenance(pipeline, inputs[which], params, runtime.models, index)
        yield Produced(sound.with_provenance(made_by))


def mel_picture(mels: Tensor, config: MelConfig) -> Image:
    """Standardised log-mels (B, F, M) as one picture, below each other: time to the right, low bands below."""
    low, high = config.silence, (math.log(10) - config.mean) / config.deviation
    shades = ((mels.float().cpu().numpy() - low) / (high - low)).clip(0, 1).transpose(0, 2, 1)[:, ::-1]
    tall = shades.repeat(BAND_HEIGHT, axis=1).reshape(-1, shades.shape[2])
    stops = np.linspace(0, 1, len(COLOURS))
    return Image(np.stack([np.interp(tall, stops, channel) for channel in COLOURS.T], axis=-1).astype(np.uint8))


# ----------------------------------------------------------------------------------------------------------- loudness


def finished(samples: np.ndarray, sample_rate: int) -> Audio:
    """(N,) float32 of any level -> a sound of ``LOUDNESS``, or quieter where its true peak would pass ``TRUE_PEAK``.

    One gain for all of it, so nothing is squeezed. Its last moment fades, because it may be cut anywhere.
    """
    length = min(round(FADE_SECONDS * sample_rate), len(samples))
    samples = samples.copy()
    samples[len(samples) - length :] *= np.linspace(1, 0, length, dtype=np.float32)
    wanted = min(LOUDNESS - loudness(samples, sample_rate), MOST_GAIN)
    gain = min(10 ** (wanted / 20), TRUE_PEAK / max(true_peak(samples), 1e-9))
    return Audio(np.float32(gain) * samples[None], sample_rate)


def loudness(samples: np.ndarray, sample_rate: int) -> float:
    """Integrated loudness (EBU R 128) of (N,) float32 in LUFS, by FFmpeg's meter; -70 for silence."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(
        sample_rate=sample_rate, format="fltp", layout="mono", time_base=Fraction(1, sample_rate)
    )
    graph.link_nodes(source, graph.add("ebur128", "metadata=1:framelog=quiet"), graph.add("abuffersink")).configure()
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts = sample_rate, 0
    graph.push(frame)
    graph.push(None)
    measured = "-70"
    while True:
        try:
            measured = graph.pull().metadata.get("lavfi.r128.I", measured)
        except EOFError:
            return float(measured)


def true_peak(samples: np.ndarray) -> float:
    """The highest magnitude of the continuous wave through (N,) samples, at four times as many (ITU-R BS.1770)."""
    # Silence around it, or its end would be taken to run into its beginning.
    spectrum = np.fft.rfft(np.pad(samples.astype(np.float64), 256))
    length = len(samples) + 512
    return float(np.abs(np.fft.irfft(spectrum, OVERSAMPLING * length)).max() * OVERSAMPLING)
