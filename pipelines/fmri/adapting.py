"""A new subject: pairs of scans and pictures in, an adapter to the frozen brain decoder out (fMRI sheet, section 7.3).

A fifth of the pictures is set aside first. From growing parts of the rest an adapter is fitted, and beside it the same
with the pictures shuffled, and ridge regression; what each makes of the pictures set aside is the learning curve. The
adapter that is kept is fitted on all.

Shapes: N scans of V voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torch.nn import functional as F

from models.autoencoder import ImageAutoencoder
from models.errors import UserError
from models.modules import BUILDING
from models.nets.brain_decoder import SEMANTIC, BrainDecoder
from models.nets.brain_fitting import HELD_BACK, Pairs, by_picture, fit_adapter
from models.nets.brain_measures import Means, Ridge, chance, measure
from models.nets.category_decoder import SUBJECT as MEASURED_SUBJECT
from models.picture_text import PictureText
from pipelines.fmri.picture_files import picture_files
from pipelines.formats.scans.betas import Betas, read_betas
from pipelines.formats.scans.checks import SCALE, Choices
from pipelines.formats.scans.files import RAW, Z_SCORED
from pipelines.formats.scans.subjects import NEW_SUBJECT
from pipelines.media import Image

FEWEST_PAIRS = 50
MOST_TRIALS = 100_000
CURVE = (50, 150, 300, 750)  # pictures, and all
SIDE = 128  # of the pictures that the decoder was trained on
AT_ONCE = 32

Say = Callable[[str], None]


# ------------------------------------------------------------------------------------------------------------ the pairs


@dataclass(frozen=True)
class Recording:
    """``values`` (N, V), z-scored by ``mean`` and ``std`` (V,), in percent signal change: 0 and 1 where the scans were
    z-scored before and nobody says by what. ``image_ids`` (N,): rows of ``pictures``, the files of what was seen."""

    values: Tensor
    mean: Tensor
    std: Tensor
    mask_hash: str
    image_ids: Tensor
    pictures: tuple[Path, ...]


def read_recording(scans: Sequence[Path], pictures: Path) -> Recording:
    """``scans``: a file, or betas and their mask; ``pictures``: a folder or a table, as :func:`picture_files` says.

    Raises :class:`UserError` for less than 50 pairs, and where scans and pictures do not go together.
    """
    choices = Choices(divide_by_300=False, fill=True, subject=NEW_SUBJECT, max_trials=MOST_TRIALS)
    betas = read_betas(scans, choices)
    if betas.values.ndim != 2:
        raise UserError("An adapter is of voxels, and these scans are maps.", "Choose the betas, with their mask.")
    files = picture_files(pictures)
    count = len(betas.values)
    if count < FEWEST_PAIRS:
        raise UserError(f"{count} scans are too few to fit an adapter.", f"Use at least {FEWEST_PAIRS}, better 300.")
    rows = _rows(betas.image_id, [number for number, _ in files], count)
    values, mean, std = _standardised(betas)
    return Recording(values, mean, std, betas.mask_hash or "", rows, tuple(path for _, path in files))


def _standardised(betas: Betas) -> tuple[Tensor, Tensor, Tensor]:
    values = torch.from_numpy(betas.values)
    if betas.units == Z_SCORED:
        zero, one = torch.zeros(values.shape[1]), torch.ones(values.shape[1])
        found = betas.statistics
        return (values, *((zero, one) if found is None else map(torch.from_numpy, found)))
    values = values / SCALE if betas.units == RAW else values
    mean, std = values.mean(0), values.std(0)
    if not (std > 0).all():
        raise UserError("Some voxels never change.", "Leave them out of the mask.")
    return (values - mean) / std, mean, std


def _rows(image_id: np.ndarray | None, numbers: Sequence[int | None], count: int) -> Tensor:
    """Of each of ``count`` trials the row of its picture, (N,): by its number, else the trials' order is theirs."""
    if image_id is None:
        if len(numbers) != count:
            raise UserError(
                f"The scans do not say which pictures they show, and there are {len(numbers)} pictures for {count}.",
                "Save 'image_id' with them, or one picture for each scan, in their order.",
            )
        return torch.arange(count)
    row_of = {number: row for row, number in enumerate(numbers) if number is not None}
    if len(row_of) < sum(number is not None for number in numbers):
        twice = next(number for number in numbers if number is not None and numbers.count(number) > 1)
        raise UserError(f"Two pictures have the number {twice}.", "Number each once, in its name or in a table.")
    missing = sorted({int(number) for number in image_id} - set(row_of))
    if missing:
        raise UserError(
            f"{len(missing)} of the pictures that were seen are missing, the first of them number {missing[0]}.",
            f"Call the file {missing[0]}.png, or list it in a table.",
        )
    return torch.tensor([row_of[int(number)] for number in image_id])


# ---------------------------------------------------------------------------------------------------------- the targets


@torch.no_grad()
def pairs_of(recording: Recording, space: PictureText, autoencoder: ImageAutoencoder, say: Say) -> Pairs:
    """The scans with the vectors and latents of what was seen; each picture is read once, its middle square."""
    seen = recording.image_ids.unique()
    say(f"Looking at {len(seen)} pictures")
    semantic, low_level = [], []
    for rows in seen.split(AT_ONCE):
        pictures = torch.stack([_square(recording.pictures[int(row)]) for row in rows])
        semantic.append(space.embed_pictures(pictures).float())
        low_level.append(F.avg_pool2d(autoencoder.encode(pictures), 2))
    vectors, latents = torch.cat(semantic), torch.cat(low_level)
    if vectors.shape[1] != SEMANTIC:
        raise UserError(
            f"The decoder's vectors have {SEMANTIC} dimensions, and those of 'picture-text' {vectors.shape[1]}.",
            "Take both from the lite profile.",
        )
    place = torch.searchsorted(seen, recording.image_ids)
    return Pairs(recording.values, vectors[place], latents[place])


def _square(path: Path) -> Tensor:
    """(3, 128, 128) float32 in [-1, 1]."""
    pixels = Image.load(path).pixels
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = PillowImage.fromarray(pixels[top : top + side, left : left + side])
    resized = np.asarray(square.resize((SIDE, SIDE), PillowImage.Resampling.BICUBIC))
    return torch.from_numpy(resized.copy()).permute(2, 0, 1).float() / 127.5 - 1


# ---------------------------------------------------------------------------------------------------------- the adapter

Row = dict[str, float]


@dataclass(frozen=True)
class Curve:
    """Of ``held_back`` pictures, by how many others were learnt from, what :func:`measure` says of the "adapter", of
    one fitted on "shuffled" pictures and of "ridge" regression; ``chance``: of guesses."""

    held_back: int
    rows: Mapping[int, Mapping[str, Row]]
    chance: Row


def check_new(decoder: BrainDecoder, name: str) -> None:
    """Raises :class:`UserError` for a subject that there is already."""
    if name in (*decoder.subjects, MEASURED_SUBJECT):
        raise UserError(f"'{name}' is a subject already.", "Choose another name.")


def add_adapter(decoder: BrainDecoder, name: str, recording: Recording, pairs: Pairs, say: Say, seed: int = 0) -> Curve:
    """Give ``decoder`` an adapter for the subject ``name``, fitted on all ``pairs``; nothing else in it changes.

    Raises :class:`UserError` for a name that it has already, or cannot have, and for less than 50 pictures.
    """
    check_new(decoder, name)
    images = recording.image_ids.unique()
    if len(images) < FEWEST_PAIRS:
        raise UserError(f"{len(images)} pictures are too few to fit an adapter.", f"Use at least {FEWEST_PAIRS}.")
    with BUILDING:
        decoder.add_subject(name, recording.mask_hash, recording.mean, recording.std)
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
    split = round(HELD_BACK * len(images))
    held_back, learnt = images[:split], images[split:]
    test = by_picture(*_of(pairs, recording.image_ids, held_back))
    means = Means(decoder.center, decoder.low_level_center.view_as(test.low_level[0]))

    def score(decode: Callable[[Tensor], Any]) -> Row:
        return measure(decode(test.values), test.semantic, test.low_level, means)

    rows: dict[int, dict[str, Row]] = {}
    for count in (*(count for count in CURVE if count < len(learnt)), len(learnt)):
        say(f"Fitting on {count} pictures")
        part, ids = _of(pairs, recording.image_ids, learnt[:count])
        rows[count] = {}
        for way, shown in (("adapter", part), ("shuffled", _shuffled(part, ids, seed))):
            fit_adapter(decoder, name, shown, ids, seed=seed)
            rows[count][way] = score(partial(decoder.decode, name))
        rows[count]["ridge"] = score(Ridge(part, ids).decode)
    say(f"Fitting on all {len(images)} pictures")
    fit_adapter(decoder, name, pairs, recording.image_ids, seed=seed)
    return Curve(split, rows, chance(split))


def _of(pairs: Pairs, image_ids: Tensor, images: Tensor) -> tuple[Pairs, Tensor]:
    chosen = torch.isin(image_ids, images)
    return pairs.rows(chosen), image_ids[chosen]


def _shuffled(pairs: Pairs, image_ids: Tensor, seed: int) -> Pairs:
    """Every picture's scans with what another one shows."""
    images, number = image_ids.unique(return_inverse=True)
    first = torch.stack([(number == index).nonzero()[0, 0] for index in range(len(images))])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(order)
    other[order] = order.roll(1)  # a single circle: nobody keeps its own
    source = first[other[number]]
    return pairs._replace(semantic=pairs.semantic[source], low_level=pairs.low_level[source])
