"""Recipe of ``assets/weights/brain-decoder-lite``: what was seen, from simulated brain activity (STTM in small).

    python -m training.brain_decoder --data FOLDER
    python -m training.brain_decoder --size published ...    # ``training.token_decoder`` says how

Seven subjects of the simulator (``sim-v1``) have each seen 1,300 training pictures once, no two the same, and 600
held-out pictures, each of another concept, three times: 300 to validate with while it trains, and 300 to test in the
end. Each subject's first layer is solved; all behind it is trained, with equally many trials of every subject in a
step, by BiMixCo for the first 35 % of the steps and then by SoftCLIP.
The eighth subject gets an adapter to the finished, frozen core. Needs ``picture-text-lite`` and ``autoencoder-lite``.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.autoencoder import load_autoencoder
from models.nets.brain_decoder import BrainDecoder, BrainDecoderConfig, Decoded
from models.nets.brain_fitting import (
    Pairs,
    contrastive_loss,
    fit_adapter,
    mix,
    regression_loss,
    soft_shares,
    solve_linear,
)
from models.nets.brain_measures import Means, Ridge, chance, measure
from training.brain_features import Features, make_features
from training.brain_simulator import (
    SCALE,
    VOXELS,
    Subject,
    Trials,
    averaged,
    make_subject,
    normalised,
    simulate,
    statistics_of,
)
from training.bridges import picture_vectors, vectors_of_space
from training.images import to_tensor
from training.loop import STATE, Metrics, Schedule, optimizer_groups, shuffled_batches, train
from training.pictures import Pictures, data_folder, load_pictures, verify_checksums
from training.publish import write_sums
from training.token_decoder import STEPS as PUBLISHED_STEPS
from training.token_decoder import SUBJECTS as PUBLISHED_SUBJECTS
from training.token_decoder import train_published

SEED, STEPS, BATCH = 71, 500, 32  # trials of each subject in a step
NAME = "brain-decoder"
WEIGHTS = Path("assets/weights")
SUBJECTS, NEW_SUBJECT = tuple(VOXELS)[:-1], tuple(VOXELS)[-1]
TRAINING_IMAGES, HELD_OUT_IMAGES, HELD_OUT_REPEATS = 1300, 300, 3
REPEATS = (1, HELD_OUT_REPEATS)
Part = Literal["validation", "test"]
PARTS: tuple[Part, ...] = ("validation", "test")
MIXED = 0.35  # of the steps
FEW_TRIALS = (50, 150, 300, 750)
RATE, WEIGHT_DECAY = 3e-4, 0.1  # at 1e-3 scans are learnt by heart: top-1 fell from 60 to 52 % in 800 steps

# ------------------------------------------------------------------------------------------------------------- world


@dataclass(frozen=True)
class World:
    """All pictures, (N, ...): what brains answer to, and the targets; ``training`` rows, rows ``held_out`` of training.

    ``means`` are of the training pictures.
    """

    features: Features
    semantic: Tensor
    low_level: Tensor
    training: np.ndarray
    held_out: dict[Part, np.ndarray]
    means: Means


def make_world(
    vectors: Tensor, latents: Tensor, pixels: np.ndarray, training: np.ndarray, held_out: dict[Part, np.ndarray]
) -> World:
    """From CLIP-lite vectors (N, 256), latents (N, 8, 8, 8) and pictures (N, H, W, 3) uint8."""
    means = Means(vectors[training].mean(0), latents[training].mean(0))
    return World(make_features(vectors, pixels, training), vectors, latents, training, held_out, means)


def held_out_rows(pictures: Pictures) -> dict[Part, np.ndarray]:
    """Held-out pictures for either part, no two of one concept."""
    held_out = pictures.select("heldout-pair", "heldout-concept")
    order = np.random.default_rng(SEED).permutation(len(held_out))
    first = {held_out[index].concept: held_out[index].row for index in reversed(order)}
    chosen = np.random.default_rng(SEED).permutation(sorted(first.values()))
    of_parts = [chosen[index * HELD_OUT_IMAGES : (index + 1) * HELD_OUT_IMAGES] for index in range(len(PARTS))]
    # The first 300 are those that rates and steps were chosen on: they stay for validation.
    return {part: np.sort(rows) for part, rows in zip(PARTS, of_parts, strict=True)}


def reduced_latents(pictures: Pictures, weights: Path) -> Tensor:
    """The image autoencoder's latents of every picture, averaged over 2 x 2: (N, 8, 8, 8)."""

    def batches() -> Iterator[Tensor]:
        model = load_autoencoder(weights)
        for start in range(0, len(pictures.items), 64):
            yield F.avg_pool2d(model.encode(to_tensor(pictures.pixels[start : start + 64])), 2)

    return vectors_of_space("reduced-latents", weights, len(pictures.items), batches)


def load_world(folder: Path) -> World:
    """The picture tables in ``folder``, by the trained spaces."""
    verify_checksums(folder)
    return world_of(load_pictures(folder))


def world_of(pictures: Pictures) -> World:
    vectors = picture_vectors(pictures, WEIGHTS / "picture-text-lite")
    latents = reduced_latents(pictures, WEIGHTS / "autoencoder-lite")
    training = np.array([item.row for item in pictures.select("train")])
    return make_world(vectors, latents, pictures.pixels, training, held_out_rows(pictures))


# -------------------------------------------------------------------------------------------------------- recordings


@dataclass(frozen=True)
class Recording:
    """A subject's training trials (``values`` (T, V) z-scored, ``image_ids`` (T,)), and what they said of held-out
    pictures: of each part, by the number of repeats that were averaged."""

    subject: Subject
    trials: Trials
    values: Tensor
    image_ids: np.ndarray
    held_out: dict[Part, dict[int, Tensor]]

    def pairs(self, world: World) -> Pairs:
        return Pairs(self.values, world.semantic[self.image_ids], world.low_level[self.image_ids])

    def shuffled(self) -> Recording:
        """The same scans, each of another picture: whoever decodes those has learnt about something else."""
        order = np.random.default_rng(SEED).permutation(len(self.image_ids))
        return replace(self, image_ids=self.image_ids[order])


def record(world: World, name: str) -> Recording:
    """Training pictures once, no two subjects the same; held-out pictures three times, in the same sessions.

    Sessions are z-scored by their training trials.
    """
    subject = make_subject(name, world.features)
    shuffled = np.random.default_rng(SEED).permutation(world.training)
    first = list(VOXELS).index(name) * TRAINING_IMAGES
    own = shuffled[first : first + TRAINING_IMAGES]
    others = np.concatenate(list(world.held_out.values()))
    repeats = np.repeat([1, HELD_OUT_REPEATS], [len(own), len(others)])
    trials = simulate(subject, world.features, np.concatenate([own, others]), repeats, SEED)
    learnt = np.isin(trials.image_id, own)
    values = normalised(trials, learnt)
    held_out = {
        part: {count: torch.from_numpy(averaged(trials, values, rows, count)) for count in REPEATS}
        for part, rows in world.held_out.items()
    }
    kept = trials.select(learnt)
    return Recording(subject, kept, torch.from_numpy(values[learnt]), kept.image_id, held_out)


def untrained(recordings: Sequence[Recording], world: World) -> BrainDecoder:
    """A new decoder for these subjects."""
    torch.manual_seed(SEED)
    decoder = BrainDecoder(BrainDecoderConfig())
    decoder.learn_components(world.semantic[world.training], world.low_level[world.training])
    for recording in recordings:
        add_subject(decoder, recording)
    return decoder


def add_subject(decoder: BrainDecoder, recording: Recording) -> None:
    mean, deviation = statistics_of(recording.trials.betas.astype(np.float32) / SCALE)
    subject = recording.subject
    decoder.add_subject(subject.name, subject.mask_hash, torch.from_numpy(mean), torch.from_numpy(deviation))


# ---------------------------------------------------------------------------------------------------------- training


def batches(sizes: Sequence[int], step: int) -> Iterator[np.ndarray]:
    """(subjects, BATCH): rows of every subject's trials, of which there are ``sizes``."""
    streams = [shuffled_batches(size, BATCH, SEED + index, step) for index, size in enumerate(sizes)]
    return (np.stack(rows) for rows in zip(*streams, strict=True))


def decoding_loss(
    decoder: BrainDecoder, solved: Mapping[str, Pairs], rows: np.ndarray, mixed: bool
) -> tuple[Tensor, Metrics]:
    """Of ``rows`` (subjects, B) of each subject's trials, as the first layer sees them; every scan must find its
    picture among those of all subjects."""
    seen = [pairs.rows(torch.from_numpy(chosen)) for pairs, chosen in zip(solved.values(), rows, strict=True)]
    semantic = torch.cat([pairs.semantic for pairs in seen])
    if mixed:  # within a subject, as one mixes voxels
        mixtures = [mix(pairs) for pairs in seen]
        seen = [mixture for mixture, _ in mixtures]
        shares = torch.block_diag(*(share for _, share in mixtures))
    else:
        shares = soft_shares(semantic, decoder.center)
    hidden = [decoder.adapter(name).rest(pairs.values) for name, pairs in zip(solved, seen, strict=True)]
    decoded = decoder.read(torch.cat(hidden))
    contrast = contrastive_loss(decoded.semantic, semantic, shares, decoder.center)
    shown = (torch.cat(parts) for parts in zip(*(pairs[1:] for pairs in seen), strict=True))
    regression = regression_loss(decoded, *shown)
    return contrast + regression, {"contrast": contrast, "regression": regression}


def train_decoder(world: World, recordings: Sequence[Recording], steps: int) -> BrainDecoder:
    """A decoder for the recorded subjects; its state goes to ``training/state/brain-decoder``."""
    decoder = untrained(recordings, world)
    solved = {r.subject.name: solve_linear(decoder, r.subject.name, r.pairs(world)) for r in recordings}

    def evaluate(_: int) -> Metrics:
        found = [score(world, recording, decoding(decoder, recording), "validation") for recording in recordings]
        return {key: float(np.mean([row[key] for row in found])) for key in found[0]}

    weights = train(
        NAME,
        decoder,
        [torch.optim.AdamW(optimizer_groups(decoder, RATE, WEIGHT_DECAY))],
        Schedule(steps, warmup=50, cooldown=0.5),
        lambda step: batches([len(pairs.values) for pairs in solved.values()], step),
        lambda rows, step: decoding_loss(decoder, solved, rows, step < MIXED * steps),
        evaluate,
        seed=SEED,
        ema_decay=0.99,
        log_every=100,
        evaluate_every=250,
    )
    decoder.load_state_dict(weights)
    return decoder.eval()


# ---------------------------------------------------------------------------------------------------------- measures

Decode = Callable[[Tensor], Decoded]  # z-scored voxels (B, V)
Row = dict[str, float]


def decoding(decoder: BrainDecoder, recording: Recording) -> Decode:
    return partial(decoder.decode, recording.subject.name)


def score(world: World, recording: Recording, decode: Decode, part: Part = "test") -> Row:
    """:func:`measure` on held-out pictures, with one and with three repeats: ``top1_of_1`` to ``low_level_r_of_3``."""
    rows = world.held_out[part]
    semantic, low_level = world.semantic[rows], world.low_level[rows]
    row: Row = {}
    for repeats, values in recording.held_out[part].items():
        found = measure(decode(values), semantic, low_level, world.means)
        row |= {f"{key}_of_{repeats}": value for key, value in found.items()}
    return row


def compare(world: World, recordings: Sequence[Recording], decoder: BrainDecoder) -> dict[str, dict[str, Row]]:
    """By subject: the decoder, ridge, the decoder given each time the scan of another picture ("shuffled"), and the
    mean noise ceiling of the voxels."""
    rows: dict[str, dict[str, Row]] = {}
    others = other_rows(len(world.held_out["test"]))
    for recording in recordings:
        swapped = {count: values[others] for count, values in recording.held_out["test"].items()}
        mismatched = replace(recording, held_out={"test": swapped})
        ridge = Ridge(recording.pairs(world), torch.from_numpy(recording.image_ids))
        ceilings = {f"ceiling_of_{count}": float(recording.subject.noise_ceiling(count).mean()) for count in REPEATS}
        rows[recording.subject.name] = {
            "decoder": score(world, recording, decoding(decoder, recording)),
            "ridge": score(world, recording, ridge.decode),
            "shuffled": score(world, mismatched, decoding(decoder, recording)),
            "voxels": ceilings,
        }
    return rows


def other_rows(count: int) -> np.ndarray:
    """For each of so many rows another one; not the next of the table, which is often of the same kind."""
    order = np.random.default_rng(SEED).permutation(count)
    others = np.empty_like(order)
    others[order] = np.roll(order, 1)
    return others


def few_trials(world: World, recording: Recording, decoder: BrainDecoder, counts: Sequence[int]) -> dict[str, Row]:
    """A subject that ``decoder`` does not know, from its first ``counts`` training trials: an adapter to the frozen
    core, the same with pictures shuffled, a whole decoder from scratch, and ridge. ``decoder`` stays as it is."""
    rows: dict[str, Row] = {}
    for count in counts:
        part = replace(
            recording,
            trials=recording.trials.select(np.arange(count)),
            values=recording.values[:count],
            image_ids=recording.image_ids[:count],
        )
        ways = {
            "adapter": (copy.deepcopy(decoder), part, True),
            "adapter, shuffled": (copy.deepcopy(decoder), part.shuffled(), True),
            "from scratch": (untrained([part], world), part, False),
        }
        for way, (learner, source, core_frozen) in ways.items():
            add_subject(learner, source)
            images = torch.from_numpy(source.image_ids)
            fit_adapter(learner, part.subject.name, source.pairs(world), images, core_frozen=core_frozen)
            rows[f"{way}, {count}"] = score(world, part, decoding(learner, part))
        ridge = Ridge(part.pairs(world), torch.from_numpy(part.image_ids))
        rows[f"ridge, {count}"] = score(world, part, ridge.decode)
    return rows


def write_rows(name: str, rows: Mapping[str, object]) -> None:
    """To ``training/state/brain-decoder/NAME.json``."""
    path = STATE / NAME / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of the picture tables")
    parser.add_argument("--steps", type=int, help=f"{STEPS} if not given; {PUBLISHED_STEPS:,} of the published size")
    parser.add_argument("--size", choices=("lite", "published"), default="lite")
    published = parser.add_argument_group("for --size published")
    published.add_argument("--nsd", type=Path, help="folder of the Natural Scenes Dataset, in its own layout")
    published.add_argument("--clip", type=Path, help="folder of clip-vit-large-patch14")
    published.add_argument("--autoencoder", type=Path, help="folder of sd-vae-ft-ema")
    published.add_argument("--out", type=Path, help="folder for the weights")
    published.add_argument("--subjects", type=int, nargs="+", choices=range(1, 9), default=PUBLISHED_SUBJECTS)
    arguments = parser.parse_args()
    if arguments.size == "published":
        train_published(arguments)
        return
    world = load_world(data_folder(arguments.data))
    recordings = [record(world, name) for name in SUBJECTS]
    decoder = train_decoder(world, recordings, arguments.steps or STEPS)
    rows = compare(world, recordings, decoder)
    write_rows("comparison", {**rows, "chance": {"guess": chance(len(world.held_out["test"]))}})
    for name, ways in rows.items():
        for way, row in ways.items():
            print(f"{name} {way}: " + " ".join(f"{key} {value:.3f}" for key, value in row.items()), flush=True)
    few = few_trials(world, record(world, NEW_SUBJECT), decoder, FEW_TRIALS)
    write_rows("few-trials", few)
    for way, row in few.items():
        print(f"{way}: " + " ".join(f"{key} {value:.3f}" for key, value in row.items()), flush=True)
    folder = WEIGHTS / f"{NAME}-lite"
    decoder.save_pretrained(folder)
    write_sums(folder)


if __name__ == "__main__":
    main()
