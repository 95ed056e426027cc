"""Recipe of ``assets/weights/picture-text-lite`` : pictures and sentences in one space of 256-d unit vectors.

    python -m training.picture_text --data FOLDER [--backbone FOLDER]

CLIP-lite. Symmetric contrastive loss between a batch of pictures and one phrase for each: its concept, another word
for it, or "a photo of" it. Pictures of one concept are each other's right answers. The backbone is frozen, so what it
sees in every picture, plain and in three augmented views, is computed once and cached (25 minutes on two cores); only
the two heads are trained.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.nets.efficientnet_lite import EfficientNetLite2, load_efficientnet_lite2
from models.picture_text import PictureText, PictureTextConfig, PictureTextHeads
from models.text_encoder import load_text_encoder
from training.captions import with_article
from training.images import to_tensor
from training.loop import STATE, Metrics, Schedule, optimizer_groups, shuffled_batches, train
from training.pictures import Picture, Pictures, Split, data_folder, load_pictures, verify_checksums
from training.publish import checksum_of, write_sums
from training.sound_text import retrieval
from training.tables import in_held_out_tenth

SEED, BATCH, STEPS = 61, 512, 2000
VIEWS = 4  # the plain picture and three augmented ones
WEIGHTS = Path("assets/weights")
BACKBONE = Path("../shared/pretrained/efficientnet-lite2")
CLASS_NAMES = Path(__file__).parent / "imagenet_classes.txt"
HELD_OUT: tuple[Split, Split] = ("heldout-pair", "heldout-concept")
NOUNS = {"photo", "drawing", "letter", "emoji", "sticker", "render"}  # the styles that a picture can be "a ... of"
SIDES = {"left", "right", "clockwise", "counterclockwise", "anticlockwise"}


# ---------------------------------------------------------------------------------------------------------- phrases


def styled_phrase(item: Picture) -> str:
    """A picture's concept and how it is drawn: "a photo of apple", "a flat picture of apple"."""
    medium = item.style if item.style in NOUNS else f"{item.style} picture"
    return f"{with_article(medium)} of {item.concept}"


def other_words(item: Picture) -> list[str]:
    """The synonyms, but for those that are a held-out concept: such a word is never trained on."""
    return [word for word in item.synonyms if not in_held_out_tenth(word)]


def draw_phrase(item: Picture, rng: np.random.Generator) -> str:
    """What a picture is called in training: 60 % its concept, 25 % another word if there is one, 15 % with style."""
    kind, words = rng.random(), other_words(item)
    if kind < 0.15:
        return styled_phrase(item)
    return words[rng.integers(len(words))] if words and kind < 0.4 else item.concept


class Phrases:
    """Sentence embeddings from the frozen text encoder, cached."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self.row = {phrase: row for row, phrase in enumerate(sorted(set(phrases)))}
        folder = WEIGHTS / "text-encoder-lite"
        key = hashlib.sha256("\n".join([checksum_of(folder), *self.row]).encode()).hexdigest()[:12]

        def embed() -> Tensor:
            encoder, all_phrases = load_text_encoder(folder), list(self.row)
            parts = (all_phrases[i : i + 128] for i in range(0, len(all_phrases), 128))
            return torch.cat([encoder.sentence_embeddings(part) for part in parts])

        self.embeddings = cached(STATE / "cache" / f"phrases-{key}.pt", embed)

    def of(self, phrases: Sequence[str]) -> Tensor:
        """(N, 384)."""
        return self.embeddings[[self.row[phrase] for phrase in phrases]]


def cached(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """The tensor stored at ``path``; made and stored there, whole or not at all, if there is none."""
    if not path.exists():
        print(f"making {path.name}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".partial")
        torch.save(make(), unfinished)
        unfinished.replace(path)
    stored: Tensor = torch.load(path, weights_only=True)
    return stored


# --------------------------------------------------------------------------------------------------- augmented views


def may_be_mirrored(item: Picture) -> bool:
    """Letters, and what is called by its side, mean something else in a mirror."""
    return item.style != "letter" and not SIDES & set(item.concept.replace("-", " ").split())


def augment(pictures: Tensor, mirrorable: Tensor) -> Tensor:
    """Pictures on white (B, 3, H, W) in [-1, 1], moved; half of them on another colour. ``mirrorable`` (B,) bool."""
    moved = move(pictures, mirrorable)
    coloured = on_colour(moved, torch.rand(len(moved), 3, 1, 1))
    return torch.where(torch.rand(len(moved), 1, 1, 1) < 0.5, coloured, moved)


def move(pictures: Tensor, mirrorable: Tensor) -> Tensor:
    """Turned by up to 12 degrees, 0.75 to 1.25 times as large, shifted by up to a twentieth, half of them mirrored if
    they may be; what comes in from outside is white."""
    count = len(pictures)
    angle = (torch.rand(count) * 2 - 1) * np.deg2rad(12)
    size = 0.75 + 0.5 * torch.rand(count)
    side = torch.where(mirrorable & (torch.rand(count) < 0.5), -1.0, 1.0)
    shift = (torch.rand(2, count) * 2 - 1) / 10  # of half a side
    cosine, sine = angle.cos() / size, angle.sin() / size
    rows = [torch.stack([side * cosine, -sine, shift[0]], 1), torch.stack([side * sine, cosine, shift[1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)
    return 1 - F.grid_sample(1 - pictures, grid, align_corners=False)


def on_colour(pictures: Tensor, colours: Tensor) -> Tensor:
    """``pictures`` on white (B, 3, H, W) in [-1, 1] put on ``colours`` (B, 3, 1, 1) in [0, 1].

    Background and edges are multiplied, as light through a coloured glass: an edge's share of white becomes a share of
    the colour. White inside the picture stays.
    """
    near = F.max_pool2d(background(pictures).float(), 5, 1, 2) > 0
    return (pictures + 1) * torch.where(near, colours, 1.0) - 1


def background(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, 1, H, W) bool: the white that is connected with the border."""
    white = pictures.amin(1, keepdim=True) > 0.9
    reached = white.clone()
    reached[..., 1:-1, 1:-1] = False
    while True:
        grown = fill_runs(fill_runs(reached, white, 2), white, 3)
        if torch.equal(grown, reached):
            return reached
        reached = grown


def fill_runs(reached: Tensor, white: Tensor, dimension: int) -> Tensor:
    """Along one dimension, every unbroken run of ``white`` that has a ``reached`` pixel is reached to both its ends."""
    run = (~white).cumsum(dimension)
    size = [*white.shape]
    size[dimension] += 1  # as many runs as pixels, and the one before the first break
    touched = torch.zeros(size).scatter_add(dimension, run, reached.float())
    return white & (touched.gather(dimension, run) > 0)


# ------------------------------------------------------------------------------------------- what the backbone sees


@dataclass(frozen=True)
class Seen:
    """Of V views of N pictures ``items``: ``features`` (V, N, 1280) and ``senses`` (V, N, 384), both float16."""

    items: list[Picture]
    features: Tensor
    senses: Tensor


@torch.no_grad()
def see(model: PictureText, pictures: Pictures, split: Split, views: int, key: str) -> Seen:
    """The pictures of ``split``, plain and in ``views`` - 1 augmented views. Features are cached under ``key``."""
    items = pictures.select(split)

    def features_of(view: int) -> Tensor:
        torch.manual_seed(SEED * 1_000 + view)
        parts = []
        for start in range(0, len(items), 32):
            part = items[start : start + 32]
            pixels = to_tensor(pictures.pixels[[item.row for item in part]])
            if view:
                pixels = augment(pixels, torch.tensor([may_be_mirrored(item) for item in part]))
            parts.append(model.features(pixels).half())
        return torch.cat(parts)

    folder = STATE / "cache"
    paths = [folder / f"features-{key}-{split}-{len(items)}-view{view}.pt" for view in range(views)]
    features = [cached(path, partial(features_of, view)) for view, path in enumerate(paths)]
    return Seen(items, torch.stack(features), torch.stack([model.senses(part.float()).half() for part in features]))


def load_backbone(folder: Path) -> tuple[EfficientNetLite2, str]:
    """The backbone and the first characters of its checksum."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise SystemExit(f"{path} is missing: pass --backbone FOLDER with the weights of EfficientNet-Lite2.")
    return load_efficientnet_lite2(folder), hashlib.sha256(path.read_bytes()).hexdigest()[:12]


# ------------------------------------------------------------------------------------------------- loss and measures


def contrastive_loss(
    heads: PictureTextHeads, features: Tensor, senses: Tensor, sentences: Tensor, same: Tensor
) -> tuple[Tensor, Metrics]:
    """``features`` (B, 1280), ``senses`` and ``sentences`` (B, 384); ``same`` (B, B) bool: whether picture i and
    sentence j belong together. Each picture's right answers share its probability alike, and so do each sentence's."""
    logits = heads.scale * heads.embed_pictures(features, senses) @ heads.embed_sentences(sentences).T
    of_pictures, of_sentences = (right.float() / right.sum(1, keepdim=True) for right in (same, same.T))
    loss = (F.cross_entropy(logits, of_pictures) + F.cross_entropy(logits.T, of_sentences)) / 2
    hits = same[torch.arange(len(same)), logits.argmax(1)]
    return loss, {"batch_top1": hits.float().mean(), "scale": heads.scale}


def belong_together(items: Sequence[Picture], phrases: Sequence[str]) -> Tensor:
    """(B, B) bool: pictures of one concept, and pictures that are called the same."""
    same = np.zeros((len(items), len(items)), bool)
    for values in ([item.concept for item in items], list(phrases)):
        names = np.array(values)
        same |= names[:, None] == names[None, :]
    return torch.from_numpy(same)


@torch.no_grad()
def evaluate(heads: PictureTextHeads, held_out: dict[Split, Seen], phrases: Phrases, concepts: list[str]) -> Metrics:
    """Of the held-out pictures among all ``concepts``: retrieval by split, the share of photographs named in the top
    five, and the modality gap: the distance between the mean picture and the mean of the pictures' concepts."""
    texts = heads.embed_sentences(phrases.of(concepts))
    number = {concept: index for index, concept in enumerate(concepts)}
    metrics: Metrics = {}
    vectors, answers, photos = [], [], []
    for split, seen in held_out.items():
        vectors.append(heads.embed_pictures(seen.features[0].float(), seen.senses[0].float()))
        answers.append(torch.tensor([number[item.concept] for item in seen.items]))
        photos += [item.style == "photo" for item in seen.items]
        found = retrieval(vectors[-1], texts, answers[-1])
        metrics |= {f"{split}_{name.replace('sound', 'picture')}": value for name, value in found.items()}
    pictures, named = torch.cat(vectors), torch.cat(answers)
    gap = (pictures.mean(0) - texts[named].mean(0)).norm()
    is_photo = torch.tensor(photos)
    of_photos = retrieval(pictures[is_photo], texts, named[is_photo])
    return metrics | {"photos_named_top5": of_photos["sound_to_text_r5"], "modality_gap": gap}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of the picture tables")
    parser.add_argument("--backbone", type=Path, default=BACKBONE, help="folder of EfficientNet-Lite2's weights")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    folder = data_folder(arguments.data)
    backbone, key = load_backbone(arguments.backbone)
    verify_checksums(folder)
    pictures = load_pictures(folder)
    items = pictures.select("train")
    concepts = sorted({item.concept for item in pictures.select("train", *HELD_OUT)})
    classes = CLASS_NAMES.read_text().splitlines()
    spoken = (phrase for item in items for phrase in (styled_phrase(item), *other_words(item)))
    phrases = Phrases([*classes, *concepts, *spoken])
    torch.manual_seed(SEED)
    model = PictureText(PictureTextConfig(), backbone, phrases.of(classes)).eval()
    seen = see(model, pictures, "train", VIEWS, key)
    held_out = {split: see(model, pictures, split, 1, key) for split in HELD_OUT}
    untrained = evaluate(model.heads, held_out, phrases, concepts)
    print("untrained:", " ".join(f"{name} {float(value):.3f}" for name, value in untrained.items()), flush=True)

    def loss_of(indices: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        rng = np.random.default_rng((SEED, step))
        chosen = [items[i] for i in indices]
        said = [draw_phrase(item, rng) for item in chosen]
        which = rng.integers(VIEWS, size=len(indices)), indices
        features, senses = seen.features[which].float(), seen.senses[which].float()
        return contrastive_loss(model.heads, features, senses, phrases.of(said), belong_together(chosen, said))

    weights = train(
        "picture-text",
        model.heads,
        [torch.optim.AdamW(optimizer_groups(model.heads, 1e-3, 0.1))],
        Schedule(arguments.steps, warmup=100, cooldown=0.6),
        lambda step: shuffled_batches(len(items), BATCH, SEED, step),
        loss_of,
        lambda _: evaluate(model.heads, held_out, phrases, concepts),
        seed=SEED,
        ema_decay=0.995,
        log_every=50,
        evaluate_every=200,
    )
    model.heads.load_state_dict(weights)
    target = WEIGHTS / "picture-text-lite"
    model.save_pretrained(target)
    write_sums(target)


if __name__ == "__main__":
    main()
