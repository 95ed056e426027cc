"""Brain decoder after STTM (arXiv 2403.06361), in small: an adapter for each subject, and one core for all.

A subject's voxels become 256 numbers that mean the same in every subject: the leading components of what was seen, as
they stand in that brain. From them the core reads:

- ``semantic``: a unit vector of CLIP-lite's space, 256-d;
  What it is called is the concept whose pictures are nearest to it on average (:meth:`BrainDecoder.nearest`);
- ``low_level``: latents of the lite image autoencoder, averaged over 2 x 2: (8, 8, 8) instead of (8, 16, 16) for a
  picture of 128 x 128. That is about as fine as voxels tell; a generator starts from them, doubled.

Shapes: B scans of V voxels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import UserError
from models.packing import save_half

CONFIG, WEIGHTS = "config.json", "model.safetensors"
CONCEPTS, SENTENCES = "concepts.safetensors", "concepts.txt"
SEMANTIC = 256
LOW_LEVEL = (8, 8, 8)  # channels, rows, columns
LATENTS = 512


class Decoded(NamedTuple):
    """``semantic`` (B, 256), unit vectors; ``low_level`` (B, 8, 8, 8), of about unit deviation; both float32."""

    semantic: Tensor
    low_level: Tensor


class Concept(NamedTuple):
    """What it is called, "a bell" or "rain", and the cosine between what was decoded and the mean of its pictures, both
    as seen from the mean of all pictures."""

    sentence: str
    cosine: float

    @property
    def name(self) -> str:
        """Without its article."""
        return re.sub(r"^an? ", "", self.sentence)


def similarities(made: Tensor, true: Tensor, center: Tensor) -> Tensor:
    """Cosines of every one of ``made`` (A, D) with every one of ``true`` (B, D) as seen from ``center`` (D,): (A, B).

    Seen from the origin all pictures are alike, and what lies near the mean would be near to everything.
    """
    with torch.autocast(made.device.type, enabled=False):  # bfloat16 would make ties
        return F.normalize(made.float() - center, dim=-1) @ F.normalize(true - center, dim=-1).T


@dataclass(frozen=True)
class BrainDecoderConfig:
    """``width`` of what adapters give, a multiple of 4; ``blocks`` of the core; ``dropout`` behind every layer."""

    width: int = 256
    blocks: int = 3
    dropout: float = 0.3


class ResidualBlock(nn.Module):
    """STTM's; begins as the identity."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        norm = nn.LayerNorm(width)
        nn.init.zeros_(norm.weight)
        self.layers = nn.Sequential(nn.Linear(width, width), norm, nn.GELU(), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.layers(x))


class SubjectAdapter(nn.Module):
    """From one subject's z-scored voxels (B, V) to what the core reads, (B, width).

    ``linear`` is solved, as ridge regression; only what follows is trained by descent. ``mask_hash`` says which voxels,
    in which order. ``mean`` and ``std`` (V,), in percent signal change, are those of the trials that it was fitted on:
    they z-score a scan that comes without a session. Without any, means are 0 and deviations 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, voxels: int, mask_hash: str, config: BrainDecoderConfig) -> None:
        super().__init__()
        self.voxels = voxels
        self.mask_hash = mask_hash
        self.linear = nn.Linear(voxels, config.width).requires_grad_(False)
        self.rest = nn.Sequential(
            nn.LayerNorm(config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            ResidualBlock(config.width, config.dropout),
        )
        self.register_buffer("mean", torch.zeros(voxels))
        self.register_buffer("std", torch.ones(voxels))

    def forward(self, values: Tensor) -> Tensor:
        return cast(Tensor, self.rest(self.linear(values)))


class BrainDecoder(nn.Module):
    """``center`` (256,): the mean vector of the pictures it was trained on; nearness is measured from there.

    ``components`` (K, 256 + 512) of vectors and latents, each of unit length, and their ``deviations`` (K,) over those
    pictures, K = width / 2: a quarter of the width for the vectors, a quarter for the latents. Adapters give each
    component twice, once with the other sign, because GELU forgets what is below zero. ``low_level_center`` (512,).
    """

    center: Tensor
    low_level_center: Tensor
    components: Tensor
    deviations: Tensor
    concepts: Tensor

    def __init__(self, config: BrainDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.sentences: tuple[str, ...] = ()
        self.adapters = nn.ModuleDict()
        self.core = nn.Sequential(*(ResidualBlock(config.width, config.dropout) for _ in range(config.blocks)))
        self.semantic = nn.Linear(config.width, SEMANTIC)
        self.low_level = nn.Linear(config.width, LATENTS)
        self.register_buffer("center", torch.zeros(SEMANTIC))
        self.register_buffer("low_level_center", torch.zeros(LATENTS))
        self.register_buffer("components", torch.zeros(config.width // 2, SEMANTIC + LATENTS))
        self.register_buffer("deviations", torch.ones(config.width // 2))
        self.register_buffer("concepts", torch.zeros(0, SEMANTIC), persistent=False)  # it has a file of its own

    @property
    def heads(self) -> tuple[nn.Linear, nn.Linear]:
        return self.semantic, self.low_level

    @torch.no_grad()
    def learn_components(self, semantic: Tensor, low_level: Tensor) -> None:
        """From unit vectors (N, 256) and latents (N, 8, 8, 8) of at least width / 4 pictures. The heads then begin as
        what puts components together again."""
        half = len(self.components) // 2
        for part, center, columns, head, targets in (
            (slice(None, half), self.center, slice(None, SEMANTIC), self.semantic, semantic),
            (slice(half, None), self.low_level_center, slice(SEMANTIC, None), self.low_level, low_level.flatten(1)),
        ):
            mean = targets.double().mean(0)
            values, directions = torch.linalg.eigh((targets - mean).T @ (targets - mean) / len(targets))
            center.copy_(mean)
            self.components[part, columns] = directions.flip(1)[:, :half].T.float()
            self.deviations[part] = values.flip(0)[:half].clamp(min=1e-8).sqrt().float()
            readout = (self.components[:, columns] * self.deviations[:, None]).T
            head.weight.copy_(torch.cat([readout, -readout], 1))
            head.bias.copy_(mean)

    def scores(self, semantic: Tensor, low_level: Tensor) -> Tensor:
        """The components of unit vectors (N, 256) and latents (N, 8, 8, 8), not divided by deviations: (N, K)."""
        both = torch.cat([semantic - self.center, low_level.flatten(1) - self.low_level_center], 1)
        return both @ self.components.T

    # -------------------------------------------------------------------------------------------------------- subjects

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(self.adapters)

    def adapter(self, subject: str) -> SubjectAdapter:
        """Raises :class:`UserError` for a subject without one."""
        if subject not in self.adapters:
            raise UserError(
                f"'{subject[:40]}' is no known subject ({', '.join(self.adapters)}).",
                "Choose one of them, or pick 'new subject' to fit an adapter.",
            )
        return cast(SubjectAdapter, self.adapters[subject])

    def add_subject(self, subject: str, mask_hash: str, mean: Tensor, std: Tensor) -> None:
        """An untrained adapter for as many voxels as ``mean`` and ``std`` (V,) have, instead of an earlier one.

        Raises :class:`UserError` for a name that is not of letters, digits, "-" and "_", and where a deviation is not
        above zero.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", subject):
            raise UserError(f"A subject cannot be called '{subject[:40]}'.", "Use up to 40 letters, digits, - and _.")
        if not (std > 0).all() or not mean.isfinite().all():
            raise UserError("Some voxels never change or hold no numbers.", "Leave them out of the mask.")
        adapter = SubjectAdapter(len(mean), mask_hash, self.config)
        adapter.mean.copy_(mean)
        adapter.std.copy_(std)
        self.adapters[subject] = adapter.to(self.center.device)

    def recognise(self, voxels: int, mask_hash: str | None = None) -> str:
        """The subject with so many voxels and, where a mask is known, with that mask.

        Raises :class:`UserError` where none has as many, and where only the number is the same.
        """
        same = [name for name in self.adapters if self.adapter(name).voxels == voxels]
        if not same:
            raise self._no_such_count(voxels)
        if mask_hash is None and len(same) == 1:
            return same[0]
        for name in same:
            if self.adapter(name).mask_hash == mask_hash:
                return name
        if mask_hash is None:
            raise UserError(f"{voxels} voxels fit several subjects ({', '.join(same)}).", "Say which, or add the mask.")
        raise UserError(
            f"Same number of voxels as {' and '.join(same)}, but another mask: results would be meaningless.",
            "Use that subject's mask, or pick 'new subject' to fit an adapter.",
        )

    def _no_such_count(self, voxels: int) -> UserError:
        known = ", ".join(f"{self.adapter(name).voxels} = {name}" for name in self.adapters)
        return UserError(
            f"{voxels} voxels do not match any known subject ({known}).",
            "Pick 'new subject' to fit an adapter, or supply a mask.",
        )

    # -------------------------------------------------------------------------------------------------------- decoding

    def standardised(self, subject: str, betas: Tensor) -> Tensor:
        """Percent signal change (B, V) of trials without a session, z-scored by the statistics of the adapter.

        Raises :class:`UserError` as :meth:`check` does, and where the adapter was fitted on z-scores alone.
        """
        adapter = self.adapter(subject)
        self.check(subject, betas)
        if not adapter.mean.any():
            raise UserError(
                f"The adapter of {subject} knows z-scores only, and the scan is none.",
                "z-score it as the scans were that the adapter was fitted on.",
            )
        return (betas.float() - adapter.mean) / adapter.std

    @torch.no_grad()
    def decode(self, subject: str, values: Tensor) -> Decoded:
        """What was seen in z-scored voxels (B, V), B > 0; no scan depends on the others.

        Raises :class:`UserError` for an unknown subject, another number of voxels and values that are no numbers.
        """
        self.check(subject, values)
        return self.read(self.adapters[subject](values.float()))

    def read(self, hidden: Tensor) -> Decoded:
        """What adapters give (B, width), of one or several subjects -> what was seen."""
        hidden = self.core(hidden)
        semantic, low_level = self.semantic(hidden).float(), self.low_level(hidden).float()
        return Decoded(F.normalize(semantic, dim=-1), low_level.unflatten(1, LOW_LEVEL))

    # ---------------------------------------------------------------------------------------------------------- naming

    def name_concepts(self, sentences: Sequence[str], concepts: Tensor) -> None:
        """``sentences``: what concepts are called; ``concepts`` (C, 256): the mean vectors of their pictures."""
        if concepts.shape != (len(sentences), SEMANTIC):
            raise ValueError(f"{len(sentences)} concepts and {tuple(concepts.shape)} do not fit together")
        self.sentences, self.concepts = tuple(sentences), concepts.float().to(self.center.device)

    def likeness(self, semantic: Tensor) -> Tensor:
        """Of vectors (B, 256) to every concept, (B, C). Raises :class:`UserError` if it knows none."""
        if not self.sentences:
            raise UserError("The brain decoder has no names for what it decodes.", "Run training.brain_concepts.")
        return similarities(semantic, self.concepts.float(), self.center.float())

    def nearest(self, semantic: Tensor, count: int) -> list[tuple[Concept, ...]]:
        """The ``count`` concepts, or all if there are fewer, nearest to each of (B, 256), the nearest first."""
        best = self.likeness(semantic).topk(min(count, len(self.sentences)), dim=1)
        rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [tuple(Concept(self.sentences[i], cosine) for cosine, i in zip(*row, strict=True)) for row in rows]

    def check(self, subject: str, values: Tensor) -> None:
        """Whether ``values`` (B, V) can be this subject's; what it raises, :meth:`decode` says."""
        adapter = self.adapter(subject)
        if values.ndim != 2 or not len(values):
            raise ValueError(f"expected (B, V) with B > 0, not {tuple(values.shape)}")
        voxels = values.shape[1]
        if voxels != adapter.voxels:
            others = [name for name in self.adapters if self.adapter(name).voxels == voxels]
            if others:
                raise UserError(
                    f"{voxels} voxels do not match {subject}, who has {adapter.voxels}.",
                    f"They may be those of {' or '.join(others)}.",
                )
            raise self._no_such_count(voxels)
        if not values.isfinite().all():
            raise UserError("The scan has values that are no numbers.", "Fill them, or leave these trials out.")

    # ----------------------------------------------------------------------------------------------------------- files

    def save_pretrained(self, folder: Path) -> None:
        """``config.json`` with the subjects, ``model.safetensors`` in float16, and the concepts, if it knows any, in
        ``concepts.safetensors`` and as lines of ``concepts.txt``."""
        folder.mkdir(parents=True, exist_ok=True)
        subjects = {
            name: {"voxels": self.adapter(name).voxels, "mask_hash": self.adapter(name).mask_hash}
            for name in self.adapters
        }
        config = {"_class_name": type(self).__name__, **asdict(self.config), "subjects": subjects}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_half(self.state_dict(), folder / WEIGHTS)
        if self.sentences:
            save_half({"concepts": self.concepts}, folder / CONCEPTS)
            (folder / SENTENCES).write_text("".join(f"{sentence}\n" for sentence in self.sentences))


def load_brain_decoder(folder: Path) -> BrainDecoder:
    """A folder as :meth:`BrainDecoder.save_pretrained` writes it; float32 on the CPU, ready to decode.

    Raises :class:`UserError` if it holds something else.
    """
    path = folder / CONFIG
    values = json.loads(path.read_text()) if path.is_file() else {}
    if values.pop("_class_name", None) != BrainDecoder.__name__:
        raise UserError(f"The weights in '{folder}' are no brain decoder.", "Choose a folder that was saved as one.")
    subjects: dict[str, dict[str, str | int]] = values.pop("subjects")
    decoder = BrainDecoder(BrainDecoderConfig(**values))
    for name, entry in subjects.items():
        voxels = int(entry["voxels"])
        decoder.add_subject(name, str(entry["mask_hash"]), torch.zeros(voxels), torch.ones(voxels))
    decoder.load_state_dict(load_file(folder / WEIGHTS))
    if (folder / CONCEPTS).is_file():
        sentences = (folder / SENTENCES).read_text().splitlines()
        decoder.name_concepts(sentences, load_file(folder / CONCEPTS)["concepts"])
    return decoder.eval()
