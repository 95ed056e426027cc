"""What decoders of brains have in common, at either size: an adapter for each subject, and names for what is decoded.

Shapes: B scans of V voxels; D dimensions of a picture's vector.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import UserError
from models.packing import save_half

CONFIG, WEIGHTS = "config.json", "model.safetensors"
CONCEPTS, SENTENCES = "concepts.safetensors", "concepts.txt"


class Decoded(NamedTuple):
    """``semantic`` (B, D), unit vectors; ``low_level`` (B, C, H, W), latents of about unit deviation, lite's (8, 8, 8);
    both float32."""

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


class ResidualBlock(nn.Module):
    """STTM's; begins as the identity."""

    def __init__(
        self, width: int, dropout: float, bias: bool = True, activation: Callable[[], nn.Module] = nn.GELU
    ) -> None:
        super().__init__()
        norm = nn.LayerNorm(width)
        nn.init.zeros_(norm.weight)
        self.layers = nn.Sequential(nn.Linear(width, width, bias), norm, activation(), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.layers(x))


class SubjectAdapter(nn.Module):
    """From one subject's z-scored voxels (B, V) to what the core reads, (B, width).

    ``dropout`` is behind the first layer and behind the block that follows it. ``mask_hash`` says which voxels, in
    which order. ``mean`` and ``std`` (V,), in percent signal change, are those of the trials that it was fitted on:
    they z-score a scan that comes without a session. Without any, means are 0 and deviations 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, voxels: int, mask_hash: str, width: int, dropout: tuple[float, float]) -> None:
        super().__init__()
        self.voxels = voxels
        self.mask_hash = mask_hash
        self.linear = nn.Linear(voxels, width)
        self.rest = nn.Sequential(
            nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout[0]), ResidualBlock(width, dropout[1])
        )
        self.register_buffer("mean", torch.zeros(voxels))
        self.register_buffer("std", torch.ones(voxels))

    def forward(self, values: Tensor) -> Tensor:
        return cast(Tensor, self.rest(self.linear(values)))


class SubjectDecoder(nn.Module, ABC):
    """``adapters`` by the subjects' names; ``center`` (D,): the mean vector of the pictures it was trained on, from
    where nearness is measured. ``learnt_from``: what kind of brains."""

    learnt_from: ClassVar[Literal["measured", "simulated"]]

    config: Any  # a dataclass; each size has its own
    center: Tensor
    concepts: Tensor

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.sentences: tuple[str, ...] = ()
        self.adapters = nn.ModuleDict()
        self.register_buffer("center", torch.zeros(dimension))
        self.register_buffer("concepts", torch.zeros(0, dimension), persistent=False)  # it has a file of its own

    @abstractmethod
    def decode(self, subject: str, values: Tensor) -> Decoded:
        """What was seen in z-scored voxels (B, V), B > 0; no scan depends on the others.

        Raises :class:`UserError` for an unknown subject, another number of voxels and values that are no numbers.
        """

    def vectors(self, subject: str, values: Tensor) -> Tensor:
        """Of what :meth:`decode` gives the unit vectors alone, (B, D)."""
        return self.decode(subject, values).semantic

    @abstractmethod
    def new_adapter(self, voxels: int, mask_hash: str) -> SubjectAdapter:
        """An untrained one of this decoder's width."""

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
        adapter = self.new_adapter(len(mean), mask_hash)
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

    # ---------------------------------------------------------------------------------------------------------- naming

    def name_concepts(self, sentences: Sequence[str], concepts: Tensor) -> None:
        """``sentences``: what concepts are called; ``concepts`` (C, D): the mean vectors of their pictures."""
        if concepts.shape != (len(sentences), len(self.center)):
            raise ValueError(f"{len(sentences)} concepts and {tuple(concepts.shape)} do not fit together")
        self.sentences, self.concepts = tuple(sentences), concepts.float().to(self.center.device)

    def likeness(self, semantic: Tensor) -> Tensor:
        """Of vectors (B, D) to every concept, (B, C). Raises :class:`UserError` if it knows none."""
        if not self.sentences:
            raise UserError("The brain decoder has no names for what it decodes.", "Run training.brain_concepts.")
        return similarities(semantic, self.concepts.float(), self.center.float())

    def nearest(self, semantic: Tensor, count: int) -> list[tuple[Concept, ...]]:
        """The ``count`` concepts, or all if there are fewer, nearest to each of (B, D), the nearest first."""
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

    def add_subjects(self, subjects: Mapping[str, Mapping[str, str | int]]) -> None:
        """Those of a ``config.json``, with nothing known of their voxels yet."""
        for name, entry in subjects.items():
            voxels = int(entry["voxels"])
            self.add_subject(name, str(entry["mask_hash"]), torch.zeros(voxels), torch.ones(voxels))

    def read_pretrained(self, folder: Path) -> None:
        """Fill this new decoder, which has its subjects, from ``folder``.

        Raises :class:`UserError` where a weight is missing, superfluous or of another shape.
        """
        try:
            self.load_state_dict(load_file(folder / WEIGHTS))
            if (folder / CONCEPTS).is_file():
                sentences = (folder / SENTENCES).read_text().splitlines()
                self.name_concepts(sentences, load_file(folder / CONCEPTS)["concepts"])
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            said = " ".join(str(error).split())[:300].rstrip(". ")
            raise UserError(
                f"The weights in '{folder.name}' are not those that its {CONFIG} tells of: {said}.",
                "Save the decoder again, or choose another folder.",
            ) from error
        self.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder of weights; empty where there is none that can be read."""
    try:
        values = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


@contextmanager
def damaged_config(folder: Path) -> Iterator[None]:
    """Raises :class:`UserError` where what its ``config.json`` says makes no decoder."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise no_decoder(folder) from error


def no_decoder(folder: Path) -> UserError:
    return UserError(f"The weights in '{folder}' are no brain decoder.", "Choose a folder that was saved as one.")
