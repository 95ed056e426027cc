"""Recipe of ``assets/weights/neuropictor-lite``: what was seen, from simulated brains on a map (NeuroPictor in small).

    python -m training.neuropictor --data FOLDER

The same brains, trials, pictures, targets and losses as ``training.brain_decoder`` has, but painted on one map of the
cortex (``pipelines.neuropictor.maps``), and read without a layer for each subject. As in the paper (arXiv 2403.18211),
first one network is trained for seven subjects together, its second semantic branch silent; that is what is kept. Then
copies of it are refined, branch and all, for one subject each, and for the eighth one, whom it has never met. Those are
only measured, beside the shipped ``brain-decoder-lite``, which has an adapter for each subject: maps against adapters.
Needs ``picture-text-lite``, ``autoencoder-lite`` and ``brain-decoder-lite``.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.nets.brain_decoder import BrainDecoder, Decoded, load_brain_decoder
from models.nets.brain_fitting import Pairs, contrastive_loss, mix, regression_loss, soft_shares
from models.nets.brain_measures import Ridge
from models.nets.map_decoder import MapDecoder, MapDecoderConfig
from pipelines.neuropictor.maps import maps_of, pixels_of
from training.brain_decoder import (
    MIXED,
    NEW_SUBJECT,
    RATE,
    SEED,
    SUBJECTS,
    WEIGHT_DECAY,
    Decode,
    Recording,
    Row,
    World,
    batches,
    decoding,
    load_world,
    other_rows,
    record,
    score,
    write_rows,
)
from training.loop import Metrics, Schedule, optimizer_groups, train
from training.pictures import data_folder
from training.publish import write_sums

NAME = "neuropictor"
WEIGHTS = Path("assets/weights")
STEPS, REFINING_STEPS, REFINING_RATE = 750, 300, 1e-4
REFINED = (SUBJECTS[0], NEW_SUBJECT)


def untrained(world: World, config: MapDecoderConfig | None = None) -> MapDecoder:
    torch.manual_seed(SEED)
    decoder = MapDecoder(config or MapDecoderConfig())
    decoder.center.copy_(world.means.semantic)
    decoder.low_level_center.copy_(world.means.low_level)
    return decoder


def read_maps(decoder: MapDecoder, recording: Recording) -> Decode:
    """What :func:`~training.brain_decoder.score` asks: from the subject's voxels, here by way of the map."""
    shown = torch.from_numpy(pixels_of(recording.subject.name))

    def decode(values: Tensor) -> Decoded:
        return decoder.decode(maps_of(values, shown))

    return decode


def map_loss(
    decoder: MapDecoder, pairs: Sequence[Pairs], shown: Sequence[Tensor], rows: np.ndarray, mixed: bool
) -> tuple[Tensor, Metrics]:
    """Of ``rows`` (subjects, B) of each subject's trials, ``shown`` as :func:`pixels_of` has it; every map must find
    its picture among those of all subjects. Scans are mixed within a subject."""
    seen = [one.rows(torch.from_numpy(chosen)) for one, chosen in zip(pairs, rows, strict=True)]
    semantic = torch.cat([one.semantic for one in seen])
    if mixed:
        mixtures = [mix(one) for one in seen]
        seen = [mixture for mixture, _ in mixtures]
        shares = torch.block_diag(*(share for _, share in mixtures))
    else:
        shares = soft_shares(semantic, decoder.center)
    maps = torch.cat([maps_of(one.values, where) for one, where in zip(seen, shown, strict=True)])
    decoded = decoder(maps)
    contrast = contrastive_loss(decoded.semantic, semantic, shares, decoder.center)
    regression = regression_loss(decoded, *(torch.cat(parts) for parts in zip(*(one[1:] for one in seen), strict=True)))
    return contrast + regression, {"contrast": contrast, "regression": regression}


def fit(
    name: str, decoder: MapDecoder, world: World, recordings: Sequence[Recording], steps: int, rate: float
) -> MapDecoder:
    """Train ``decoder`` on the recordings; its state goes to ``training/state/NAME``."""
    pairs = [recording.pairs(world) for recording in recordings]
    shown = [torch.from_numpy(pixels_of(recording.subject.name)) for recording in recordings]

    def evaluate(_: int) -> Metrics:
        found = [score(world, one, read_maps(decoder, one), "validation") for one in recordings]
        return {key: float(np.mean([row[key] for row in found])) for key in found[0]}

    weights = train(
        name,
        decoder,
        [torch.optim.AdamW(optimizer_groups(decoder, rate, WEIGHT_DECAY))],
        Schedule(steps, warmup=min(50, steps), cooldown=0.5),
        partial(batches, [len(one.values) for one in pairs]),
        lambda rows, step: map_loss(decoder, pairs, shown, rows, step < MIXED * steps),
        evaluate,
        seed=SEED,
        ema_decay=0.99,
        log_every=50,
        evaluate_every=250,
    )
    decoder.load_state_dict(weights)
    return decoder.eval()


def train_for_all(world: World, recordings: Sequence[Recording], steps: int) -> MapDecoder:
    decoder = untrained(world)
    for parameter in decoder.refining:
        parameter.requires_grad_(False)
    return fit(NAME, decoder, world, recordings, steps, RATE)


def refine(decoder: MapDecoder, world: World, recording: Recording, steps: int) -> MapDecoder:
    """A copy for one subject, from the trials that ``recording`` has; ``decoder`` stays as it is."""
    own = copy.deepcopy(decoder).train()
    for parameter in own.parameters():
        parameter.requires_grad_()
    return fit(f"{NAME}-{recording.subject.name}", own, world, [recording], steps, REFINING_RATE)


def compare_routes(
    world: World,
    recordings: Sequence[Recording],
    adapters: BrainDecoder,
    maps: MapDecoder,
    refined: Mapping[str, MapDecoder],
) -> dict[str, dict[str, Row]]:
    """By subject, on the test pictures: by maps, by maps ``refined`` for that subject, and by its adapter, where there
    are such; and by maps of other pictures than those that are looked for ("maps, shuffled")."""
    rows: dict[str, dict[str, Row]] = {}
    others = other_rows(len(world.held_out["test"]))
    for recording in recordings:
        name = recording.subject.name
        ways = {"maps": read_maps(maps, recording)}
        if name in refined:
            ways["maps, refined"] = read_maps(refined[name], recording)
        if name in adapters.subjects:
            ways["adapter"] = decoding(adapters, recording)
        rows[name] = {way: score(world, recording, decode) for way, decode in ways.items()}
        swapped = {count: values[others] for count, values in recording.held_out["test"].items()}
        mismatched = replace(recording, held_out={"test": swapped})
        rows[name]["maps, shuffled"] = score(world, mismatched, read_maps(maps, mismatched))
    return rows


def read_flat(ridge: Ridge, recording: Recording) -> Decode:
    """The same for what :func:`ridge_on_maps` gives."""
    shown = torch.from_numpy(pixels_of(recording.subject.name))
    return lambda values: ridge.decode(maps_of(values, shown).flatten(1))


def ridge_on_maps(world: World, recordings: Sequence[Recording]) -> Ridge:
    """What a straight line makes of the maps of all these subjects together, (B, 4096) each."""
    parts = [recording.pairs(world) for recording in recordings]
    maps = [
        maps_of(pairs.values, torch.from_numpy(pixels_of(recording.subject.name))).flatten(1)
        for pairs, recording in zip(parts, recordings, strict=True)
    ]
    pairs = Pairs(torch.cat(maps), *(torch.cat(same) for same in zip(*(part[1:] for part in parts), strict=True)))
    return Ridge(pairs, torch.from_numpy(np.concatenate([recording.image_ids for recording in recordings])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the picture tables")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--refining-steps", type=int, default=REFINING_STEPS)
    arguments = parser.parse_args()
    world = load_world(data_folder(arguments.data))
    recordings = [record(world, name) for name in SUBJECTS]
    decoder = train_for_all(world, recordings, arguments.steps)
    folder = WEIGHTS / f"{NAME}-lite"
    decoder.save_pretrained(folder)
    write_sums(folder)
    everybody = [*recordings, record(world, NEW_SUBJECT)]
    refined = {
        one.subject.name: refine(decoder, world, one, arguments.refining_steps)
        for one in everybody
        if one.subject.name in REFINED
    }
    rows = compare_routes(world, everybody, load_brain_decoder(WEIGHTS / "brain-decoder-lite"), decoder, refined)
    write_rows("maps", rows)
    for name, ways in rows.items():
        for way, row in ways.items():
            print(f"{name} {way}: " + " ".join(f"{key} {value:.3f}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
