"""``sim-v1``: a simulated visual cortex that answers to pictures. Computed from the picture, not measured in a person.

The forward model of the fMRI sheet, sections 8.1 and 8.2. Early voxels see a part of the picture, higher ones what it
means; the noise is half private and half shared, and most of what is shared looks like a signal, because independent
noise would average away over a thousand voxels and make decoding far too easy.

No surface is at hand, so areas are plain labels along an index: all subjects sample one model cortex, with as many
places as the visual cortex has vertices in fs_LR 32k, on which the preferred place in the picture changes smoothly.

Shapes: T trials, V voxels, R reference pictures.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from training.brain_features import CELLS, CHANNELS, SEMANTIC, Features

VERSION = "sim-v1"
SEED = 83
SCALE = 300  # int16 steps per percent signal change, as in NSD

# NSD's voxels of the "nsdgeneral" mask, divided by 13.
VOXELS = {"S1": 1210, "S2": 1098, "S3": 1171, "S4": 1012, "S5": 1003, "S6": 1377, "S7": 976, "S8": 1107}

LEFT, RIGHT = 4540, 4381  # vertices of the visual cortex in fs_LR 32k
HALF_WIDTH = 4.2  # degrees from the middle of a picture to its edge, as in NSD
FOVEA = 0.3  # degrees, the least eccentricity

PRIVATE, TUNED, GLOBAL = 0.5, 0.35, 0.15  # shares of the variance of the noise
PICTURES_AT_ONCE, FACTORS = 8, 20
CONCENTRATION = 6  # of the noise ceilings around their area's mean
SPARSE, TEMPLATE = 0.15, 0.7
SESSION_TRIALS, OFFSET, GAIN = 750, 0.3, 0.1

_TUNING, _TEMPLATES, _NOISE, _ORDER, _SESSION = range(5)  # what a stream of random numbers is for


@dataclass(frozen=True)
class Area:
    """``share`` of the voxels, mean ``ceiling`` of three repeats, how much of the signal is ``low``-level, and how many
    times larger than in V1 the receptive ``field`` is."""

    name: str
    share: float
    ceiling: float
    low: float
    field: float


AREAS = (
    Area("V1", 0.180, 0.30, 0.95, 1.0),
    Area("V2", 0.135, 0.30, 0.90, 1.3),
    Area("V3", 0.075, 0.30, 0.80, 1.7),
    Area("V4", 0.070, 0.25, 0.50, 2.5),
    Area("LO", 0.100, 0.25, 0.25, 3.0),
    Area("ventral", 0.180, 0.25, 0.10, 3.0),
    Area("parahippocampal", 0.080, 0.25, 0.10, 3.0),
    Area("dorsal", 0.180, 0.18, 0.50, 2.5),
)


@dataclass(frozen=True)
class Cortex:
    """Of every place (8921,): the index of its area, and what it sees, in degrees from the middle, right and up."""

    area: np.ndarray
    x: np.ndarray
    y: np.ndarray


@cache
def model_cortex() -> Cortex:
    """Area after area in the left hemisphere, which sees the right half of the picture, then in the right one.

    Along an area the eccentricity grows, slowly near the fovea, while the angle swings between lower and upper field.
    """
    area, x, y = [], [], []
    for places, side in ((LEFT, 1), (RIGHT, -1)):
        borders = np.rint(np.cumsum([0, *(area.share for area in AREAS)]) * places).astype(int)
        for index, count in enumerate(np.diff(borders)):
            along = (np.arange(count) + 0.5) / count
            swing = 1 - np.abs(1 - along * round(count**0.5) % 2)
            angle, eccentricity = (swing - 0.5) * np.pi, FOVEA * (HALF_WIDTH / FOVEA) ** along
            area.append(np.full(count, index))
            x.append(side * eccentricity * np.cos(angle))
            y.append(eccentricity * np.sin(angle))
    return Cortex(np.concatenate(area), np.concatenate(x), np.concatenate(y))


@dataclass(frozen=True)
class Subject:
    """``mask`` (8921,) bool: the voxels' places on the model cortex; ``areas`` (V,): the name of each voxel's area.

    The rest is the tuning. The signal is ``(tanh(grid @ low + semantic @ high + bias) - mean) / deviation``, of unit
    variance over the reference pictures, whose ``signals`` (R, V) are kept. ``snr`` (V,): the signal's deviation
    beside noise of deviation 1. ``factors`` (20, V): unit columns, what the subject's global fluctuations touch.
    """

    name: str
    mask: np.ndarray
    areas: np.ndarray
    low: np.ndarray
    high: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    snr: np.ndarray
    factors: np.ndarray
    signals: np.ndarray

    @property
    def voxels(self) -> int:
        return len(self.snr)

    @property
    def mask_hash(self) -> str:
        """SHA-256 of the mask's bits in C order."""
        return hashlib.sha256(np.packbits(self.mask).tobytes()).hexdigest()

    def noise_ceiling(self, repeats: int) -> np.ndarray:
        """(V,) in [0, 1]: the share of the variance of the mean of so many repeats that the picture explains."""
        return self.snr**2 / (self.snr**2 + 1 / repeats)


def make_subject(name: str, features: Features) -> Subject:
    """One of :data:`VOXELS`, "S1" to "S8", the same at every call."""
    count = VOXELS[name]
    rng = np.random.default_rng((SEED, _TUNING, _number(name)))
    cortex = model_cortex()
    edges = np.linspace(0, LEFT + RIGHT, count + 1).astype(int)
    places = rng.integers(edges[:-1], edges[1:])  # one in each of V equal parts, so every area has its share
    area = cortex.area[places]
    ceiling, share, field = (np.array([getattr(a, key) for a in AREAS])[area] for key in ("ceiling", "low", "field"))
    nearness = np.hypot(cortex.x, cortex.y)[places]
    size = (0.25 + 0.16 * nearness) * field * np.exp(0.2 * rng.standard_normal(count))
    x, y = (place[places] + 0.3 * size * rng.standard_normal(count) for place in (cortex.x, cortex.y))
    low = rng.standard_normal((CHANNELS, 1, count)) * _receptive_fields(x, y, size).T
    chosen = rng.random((SEMANTIC, count)) < SPARSE
    high = (
        chosen * rng.standard_normal((SEMANTIC, count)) / np.sqrt(SPARSE * SEMANTIC) + TEMPLATE * _templates()[area].T
    )
    ceilings = rng.beta(CONCENTRATION * ceiling, CONCENTRATION * (1 - ceiling))
    factors = rng.standard_normal((FACTORS, count))
    mask = np.zeros(LEFT + RIGHT, bool)
    mask[places] = True
    return Subject(
        name,
        mask,
        np.array([a.name for a in AREAS])[area],
        **_tuned(low.reshape(-1, count), high, share, features),
        snr=np.sqrt(ceilings / (1 - ceilings) / 3).astype(np.float32),
        factors=(factors / np.linalg.norm(factors, axis=0)).astype(np.float32),
    )


def _tuned(low: np.ndarray, high: np.ndarray, share: np.ndarray, features: Features) -> dict[str, np.ndarray]:
    """``low``, ``high``, ``bias``, ``mean``, ``deviation`` and ``signals`` of :class:`Subject`, all float32.

    Over the reference pictures the two parts of the mixture have the variances ``share`` and 1 - ``share`` (V,).
    """
    seen, meant = features.grid[features.reference], features.semantic[features.reference]
    bias: np.ndarray = np.zeros_like(share)
    scaled = []
    for inputs, weights, part in ((seen, low, share), (meant, high, 1 - share)):
        answers = inputs @ weights
        scale = np.sqrt(part) / np.maximum(answers.std(0), 1e-6)
        scaled.append(weights * scale)
        bias = bias - answers.mean(0) * scale
    compressed = np.tanh(seen @ scaled[0] + meant @ scaled[1] + bias)
    mean, deviation = compressed.mean(0), np.maximum(compressed.std(0), 1e-6)
    found = {
        "low": scaled[0],
        "high": scaled[1],
        "bias": bias,
        "mean": mean,
        "deviation": deviation,
        "signals": (compressed - mean) / deviation,
    }
    return {name: value.astype(np.float32) for name, value in found.items()}


def _receptive_fields(x: np.ndarray, y: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Gaussians at ``x`` and ``y`` (V,) in degrees, integrated over the cells of a picture: (V, 64), row by row."""

    def along(centre: np.ndarray) -> np.ndarray:
        borders = np.linspace(-HALF_WIDTH, HALF_WIDTH, CELLS + 1)
        return np.diff(torch.special.ndtr(torch.from_numpy((borders - centre[:, None]) / size[:, None])).numpy())

    return (along(-y)[:, :, None] * along(x)[:, None, :]).reshape(len(x), -1)


@cache
def _templates() -> np.ndarray:
    """What each area's voxels have in common in all subjects: (areas, 64), unit vectors."""
    drawn = np.random.default_rng((SEED, _TEMPLATES)).standard_normal((len(AREAS), SEMANTIC))
    unit: np.ndarray = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit


# ------------------------------------------------------------------------------------------------------------ trials


@dataclass(frozen=True)
class Trials:
    """In the order of the sessions: ``betas`` (T, V) int16, percent signal change times 300; ``image_id``, ``repeat``
    (from 0) and ``session`` (from 0), (T,)."""

    betas: np.ndarray
    image_id: np.ndarray
    repeat: np.ndarray
    session: np.ndarray

    def select(self, rows: np.ndarray) -> Trials:
        """``rows``: numbers, or (T,) bool."""
        return Trials(self.betas[rows], self.image_id[rows], self.repeat[rows], self.session[rows])


def signals_of(subject: Subject, features: Features, image_ids: np.ndarray) -> np.ndarray:
    """What the subject's voxels say of the pictures, without noise: (N, V) float32, of about unit variance."""
    mixed = features.grid[image_ids] @ subject.low + features.semantic[image_ids] @ subject.high + subject.bias
    signals: np.ndarray = (np.tanh(mixed) - subject.mean) / subject.deviation
    return signals


def simulate(
    subject: Subject, features: Features, image_ids: np.ndarray, repeats: int | np.ndarray, seed: int
) -> Trials:
    """Every picture (a row of ``features``) as often as ``repeats`` says, shuffled over sessions of up to 750 trials.

    The noise of a trial depends on the seed, the subject, the picture and the repeat alone.
    """
    counts = np.broadcast_to(repeats, len(image_ids))
    shown = np.repeat(np.arange(len(image_ids)), counts)
    repeat = np.arange(len(shown)) - np.repeat(np.cumsum(counts) - counts, counts)
    number = _number(subject.name)
    order = np.random.default_rng((SEED, _ORDER, seed, number)).permutation(len(shown))
    shown, repeat = shown[order], repeat[order]
    signals = signals_of(subject, features, image_ids) * subject.snr
    values = np.empty((len(shown), subject.voxels), np.float32)
    for row, (index, time) in enumerate(zip(shown, repeat, strict=True)):
        rng = np.random.default_rng((SEED, _NOISE, seed, number, int(image_ids[index]), int(time)))
        values[row] = signals[index] + _noise(subject, rng)
    session = np.arange(len(shown)) * max(1, -(-len(shown) // SESSION_TRIALS)) // max(1, len(shown))
    for index in np.unique(session):
        rng = np.random.default_rng((SEED, _SESSION, seed, number, int(index)))
        gain, offset = rng.uniform(1 - GAIN, 1 + GAIN), OFFSET * rng.standard_normal(subject.voxels)
        values[session == index] = values[session == index] * gain + offset
    betas = np.clip(np.rint(values * SCALE), -32_767, 32_767).astype(np.int16)
    return Trials(betas, image_ids[shown], repeat, session)


def _noise(subject: Subject, rng: np.random.Generator) -> np.ndarray:
    """(V,) of unit variance. The tuned part is what the voxels would say of a few other pictures at once."""
    private = rng.standard_normal(subject.voxels)
    others = subject.signals[rng.integers(len(subject.signals), size=PICTURES_AT_ONCE)]
    fluctuations = rng.standard_normal(FACTORS) @ subject.factors
    tuned = others.sum(0) / PICTURES_AT_ONCE**0.5
    return np.sqrt(PRIVATE) * private + np.sqrt(TUNED) * tuned + np.sqrt(GLOBAL) * fluctuations


def normalised(trials: Trials, learnt: np.ndarray | None = None) -> np.ndarray:
    """(T, V) float32: divided by 300, and every voxel z-scored within each session.

    Means and deviations are those of the ``learnt`` (T,) trials, so that the others stay unseen; of all by default.
    Raises :class:`ValueError` for a session with less than two of them.
    """
    values = trials.betas.astype(np.float32) / SCALE
    chosen = np.ones(len(values), bool) if learnt is None else learnt
    for index in np.unique(trials.session):
        within = trials.session == index
        if (within & chosen).sum() < 2:
            raise ValueError(f"session {index} has less than two trials to take a deviation from")
        mean, deviation = statistics_of(values[within & chosen])
        values[within] = (values[within] - mean) / deviation
    return values


def statistics_of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of every voxel (V,), T > 1; a voxel that never changes has the deviation 1."""
    mean, deviation = values.mean(0), values.std(0, ddof=1)
    return mean, np.where(deviation > 0, deviation, 1).astype(np.float32)


def averaged(trials: Trials, values: np.ndarray, image_ids: np.ndarray, repeats: int) -> np.ndarray:
    """The mean of the first ``repeats`` of ``values`` (T, V) of each picture, (len(image_ids), V)."""
    early = trials.repeat < repeats
    return np.stack([values[(trials.image_id == image) & early].mean(0) for image in image_ids])


def write_scan(path: Path, subject: Subject, trials: Trials, seed: int, among: Trials | None = None) -> None:
    """``.npz`` with the keys that uploads have, and what says that it is simulated; the same bytes every time.

    ``mean`` and ``std`` (V,) are in percent signal change, of the trials ``among`` which these are: by those of a few
    repeats of one picture nothing would be left of it. Without ``among`` they are of these trials.
    """
    mean, deviation = statistics_of((among or trials).betas.astype(np.float32) / SCALE)
    np.savez_compressed(
        path,
        betas=trials.betas,
        mask=subject.mask,
        subject=np.array(subject.name),
        image_id=trials.image_id,
        repeat=trials.repeat,
        mean=mean,
        std=deviation,
        provenance=np.array("simulated"),
        simulator=np.array(VERSION),
        seed=np.array(seed),
    )


def _number(name: str) -> int:
    return list(VOXELS).index(name)
