"""Recipe of ``assets/weights/clipsonic-lite``: CLIPSonic in small, CLIP-lite's vector of a picture to a sound.

    python -m training.picture_sound --data FOLDER [--batch B] [--steps N] [--continue-from FOLDER]

The network begins as ``sound-generator-lite``, whose condition is the vector of a sound; before the layer that takes it
comes a regression from pictures' vectors to those of their sounds, unless the run goes on from weights that know
pictures. The condition of a clip is the vector of a random picture that shows what sounds, and no text is ever seen
(arXiv 2306.09635). Two clips are mixed only together with their pictures' vectors. Needs ``audio-autoencoder-lite``,
``picture-text-lite``, and ``sound-text-lite``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow.parquet as pq
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn
from torch.nn import functional as F

from models.picture_text import PictureText, load_picture_text
from models.sound_generator import SoundGenerator, load_sound_generator
from training.images import to_tensor
from training.loop import DEVICE, Metrics
from training.pictures import Picture, Pictures, data_folder, load_pictures
from training.sound_diffusion import (
    WEIGHTS,
    Evaluation,
    Listener,
    diffusion_loss,
    mix,
    shifted,
    soften,
    train_generator,
)
from training.sounds import Sound, Sounds, load_sounds, sound_arguments, weights_name
from training.tables import add_continue_from

SEED, BATCH, STEPS = 59, 64, 3600
PAIRED = 16  # pictures of each clip for the regression from pictures to sounds
REGRESSION_STEPS, REGRESSION_BATCH, REGRESSION_RATE, REGRESSION_DECAY = 3000, 256, 2e-3, 0.5
MIXED = 0.2
MAPPING = "sounds_mapping.json"
SPEECH = "speech"  # a voice that names its stamp: not what the stamp sounds like
PERMISSIVE_LICENCES = ("MIT", "Apache-2.0")


@dataclass(frozen=True)
class Links:
    """``vectors`` (N, D) of pictures; ``kinds``: the pictures of a clip (by row), apart for each kind of link.

    Kinds are drawn alike, so that the one photograph of a clip isn't lost among thirty drawings of emoji.
    """

    vectors: Tensor
    kinds: dict[int, list[list[int]]]

    def draw(self, items: Iterable[Sound], rng: np.random.Generator) -> Tensor:
        """The vector of a random picture of each clip, (B, D)."""
        rows = []
        for item in items:
            kinds = self.kinds[item.row]
            kind = kinds[rng.integers(len(kinds))]
            rows.append(kind[rng.integers(len(kind))])
        return self.vectors[rows]


def bare(emoji: str) -> str:
    """Without U+FE0F, which asks for a coloured picture and which not every table writes."""
    return emoji.replace("\ufe0f", "")


def picture_keys(folder: Path) -> list[tuple[str, bool]]:
    """For the rows of :func:`load_pictures` that sounds are linked to: emoji or stamp id, and whether permissive."""
    emoji = pq.read_table(folder / "emoji128.parquet", columns=["emoji", "licence"]).to_pylist()
    stamps = pq.read_table(folder / "stamps128.parquet", columns=["id", "licence_family"]).to_pylist()
    keys = [(bare(row["emoji"]), row["licence"] in PERMISSIVE_LICENCES) for row in emoji]
    return keys + [(row["id"], row["licence_family"] == "permissive") for row in stamps]


def rows_by_key(
    keys: list[tuple[str, bool]], pictures: Iterable[Picture], permissive_only: bool
) -> dict[str, list[int]]:
    """Rows of the given pictures under the emoji or the stamp id that they have; some have neither."""
    rows: dict[str, list[int]] = defaultdict(list)
    for picture in pictures:
        if picture.row < len(keys):
            key, permissive = keys[picture.row]
            if key and (permissive or not permissive_only):
                rows[key].append(picture.row)
    return rows


def kinds_of(item: Sound, stamps_of_class: list[str], rows: dict[str, list[int]]) -> list[list[int]]:
    """Rows of a clip's own stamp, of its class's stamps and of its emoji; kinds without a picture are left out."""
    own, of_class = ([], []) if item.name == SPEECH else ([item.stamp], stamps_of_class)
    kinds = [[row for key in keys for row in rows.get(key, ())] for keys in (own, of_class, map(bare, item.emoji))]
    return [kind for kind in kinds if kind]


@torch.no_grad()
def embed(space: PictureText, pictures: Pictures, kinds: dict[int, list[list[int]]]) -> Links:
    """The vectors of all pictures in ``kinds``, which then names them by their row among the vectors."""
    rows = sorted({row for groups in kinds.values() for kind in groups for row in kind})
    parts = [space.embed_pictures(to_tensor(pictures.pixels[rows[i : i + 64]])) for i in range(0, len(rows), 64)]
    number = {row: index for index, row in enumerate(rows)}
    renamed = {clip: [[number[row] for row in kind] for kind in groups] for clip, groups in kinds.items()}
    return Links(torch.cat(parts), renamed)


def load_links(folder: Path, sounds: Sounds, permissive_only: bool) -> Links:
    """Pictures of every clip that has one: for a training clip, training pictures; for others, held-out ones if any."""
    pictures = load_pictures(folder)
    keys = picture_keys(folder)
    stamps = {name: entry["stamps"] for name, entry in json.loads((folder / MAPPING).read_text())["classes"].items()}
    seen = rows_by_key(keys, pictures.select("train"), permissive_only)
    unseen = rows_by_key(keys, pictures.select("heldout-pair", "heldout-concept"), permissive_only)
    kinds = {}
    for item in sounds.items:
        found = kinds_of(item, stamps.get(item.name, []), seen)
        if item.split != "train":
            found = kinds_of(item, stamps.get(item.name, []), unseen) or found
        if found:
            kinds[item.row] = found
    space = load_picture_text(WEIGHTS / f"{weights_name('picture-text', permissive_only)}-lite")
    return embed(space, pictures, kinds)


@torch.no_grad()
def paired(sounds: Sounds, items: list[Sound], links: Links, listener: Listener) -> tuple[Tensor, Tensor]:
    """Vectors (N, D) of pictures of the clips, a few each, and of what is to be heard there."""
    parts = [items[i : i + 32] for i in range(0, len(items), 32)]
    heard = torch.cat([listener.hear(sounds.waveforms(part))[1].float() for part in parts])
    rng = np.random.default_rng(SEED)
    seen = torch.cat([links.draw(items, rng) for _ in range(PAIRED)])
    return seen.to(heard), heard.repeat(PAIRED, 1)


def read_pictures_as_sounds(model: SoundGenerator, seen: Tensor, heard: Tensor) -> SoundGenerator:
    """``model``, but conditioned on pictures: two layers instead of one take vectors like ``seen`` (N, D) for the mean
    of what ``model`` knows as ``heard`` (N, D), so the shorter, the less a picture says.

    That is V2A-Mapper's regression, learned from softened pictures. The null condition is learned beside it, to mean
    what it did.
    """
    torch.manual_seed(SEED)
    layer: nn.Linear = model.unet.class_embedding
    unet = UNet2DConditionModel.from_config({**model.unet.config, "class_embed_type": "projection"}).to(seen.device)
    kept = {name: value for name, value in model.unet.state_dict().items() if not name.startswith("class_embedding.")}
    unet.load_state_dict(kept, strict=False)
    made = SoundGenerator(unet, model.scheduler, model.null_condition, model.window, model.bands).to(seen.device)
    layers: TimestepEmbedding = unet.class_embedding
    second = nn.Linear(layers.linear_2.in_features, layer.in_features, device=seen.device)
    _regress(nn.Sequential(layers.linear_1, layers.act, second), made.null_condition, seen, heard)
    with torch.no_grad():
        layers.linear_2.weight.copy_(layer.weight @ second.weight)
        layers.linear_2.bias.copy_(layer.weight @ second.bias + layer.bias)
    return made


def _regress(layers: nn.Sequential, null: nn.Parameter, seen: Tensor, heard: Tensor) -> None:
    """Teach ``layers`` what is ``heard`` (N, D) with ``seen`` (N, D), and find the ``null`` (D,) that they take for the
    one that was given."""
    known = null.detach().clone()
    scale = seen.shape[1] ** 0.5  # gives the components of unit vectors about unit deviation
    optimizer = torch.optim.AdamW([*layers.parameters(), null], weight_decay=REGRESSION_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, REGRESSION_RATE, total_steps=REGRESSION_STEPS)
    for _ in range(REGRESSION_STEPS):
        rows = torch.randint(len(seen), (REGRESSION_BATCH,))
        given, wanted = torch.cat([soften(seen[rows]), null[None]]), torch.cat([heard[rows], known[None]])
        errors = (layers(scale * given) - scale * wanted).square().mean(1)
        optimizer.zero_grad()
        (errors[:-1].mean() + errors[-1]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        cast(nn.Linear, layers[0]).weight.mul_(scale)
        for parameter in layers[-1].parameters():
            parameter.div_(scale)


def main() -> None:
    arguments = add_continue_from(sound_arguments(__doc__, STEPS, BATCH)).parse_args()
    folder = data_folder(arguments.data)
    sounds = load_sounds(folder)
    links = load_links(folder, sounds, arguments.permissive_only)
    linked = Sounds(sounds.clips, [item for item in sounds.items if item.row in links.kinds])
    items = linked.select("train", permissive_only=arguments.permissive_only)
    name = weights_name("clipsonic", arguments.permissive_only)
    listener = Listener(arguments.permissive_only)
    of_sounds = WEIGHTS / f"{weights_name('sound-generator', arguments.permissive_only)}-lite"
    model = load_sound_generator(arguments.continue_from or of_sounds).to(DEVICE)
    if not arguments.continue_from:
        model = read_pictures_as_sounds(model, *paired(linked, items, links, listener))

    def loss_of(indices: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        rng = np.random.default_rng((SEED, step))
        chosen = [items[i] for i in indices]
        waveforms, vectors = shifted(linked, chosen, rng), links.draw(chosen, rng)
        mixed = torch.rand(len(chosen)) < MIXED
        latents, _ = listener.hear(mix(waveforms, mixed, torch.zeros(len(chosen))))
        both = F.normalize(vectors + torch.where(mixed[:, None], vectors.roll(1, 0), 0.0), dim=1).to(DEVICE)
        return diffusion_loss(model, latents, both)

    def condition_of(held_out: list[Sound], _: Tensor) -> Tensor:
        return links.draw(held_out, np.random.default_rng(SEED)).to(DEVICE)

    train_generator(
        name,
        model,
        loss_of,
        Evaluation(model, listener, linked, name, condition_of),
        count=len(items),
        batch=arguments.batch,
        steps=arguments.steps,
        rate=3e-4,
        seed=SEED,
    )


if __name__ == "__main__":
    main()
