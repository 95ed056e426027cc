"""Recipe of ``assets/weights/bind-audio-lite``: sounds bound into the frozen picture-text space (CLIP-lite).

    python -m training.bind_audio --data FOLDER

The encoder begins with CLAP-lite's audio tower. Half of the symmetric contrastive loss draws a clip to the vector of a
random picture that shows what sounds, as in ImageBind (arXiv 2305.05665), half to that of a phrase for it, as in
LanguageBind (2310.01852); pictures and words stay where they are. Clips of one class are each other's right answers,
and the sounds are changed as in ``training/sound_text.py``. At the end a second encoder, trained on phrases alone, says
how much of the way to pictures words would have led. Needs ``sound-text-lite`` and ``picture-text-lite``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ClapAudioConfig

from models.bind import BindAudio
from models.mel import log_mel
from models.picture_text import PictureText, load_picture_text
from models.sound_text import load_sound_text
from training.loop import STATE, Metrics, Schedule, optimizer_groups, shuffled_batches, train
from training.picture_sound import Links, load_links
from training.pictures import data_folder
from training.publish import write_sums
from training.sound_text import RANKS, PhraseTable, hide_bands, phrases_of
from training.sounds import HELD_OUT, Sound, Sounds, augment, load_sounds, sound_arguments, weights_name

SEED, BATCH, STEPS = 67, 128, 800
WEIGHTS = Path("assets/weights")


def new_encoder(tower: Path, width: int) -> BindAudio:
    """An encoder whose tower is that of the sound-text space in ``tower``; the projection to ``width`` is new."""
    space = load_sound_text(tower)
    model = BindAudio(ClapAudioConfig.from_dict({**space.config.to_dict(), "projection_dim": width}), space.mel)
    model.audio.audio_model.load_state_dict(space.audio.audio_model.state_dict())
    return model


def contrastive_loss(sounds: Tensor, others: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """Unit vectors ``sounds`` and ``others`` (B, D); ``same`` (B, B) bool: whether sound i and other j belong together.

    Each sound's right answers share its probability alike, and so do each other's.
    """
    with torch.autocast(sounds.device.type, enabled=False):  # bf16 would round the logits to quarters
        logits = scale * sounds.float() @ others.float().T
        of_sounds, of_others = (right.float() / right.sum(1, keepdim=True) for right in (same, same.T))
        return (F.cross_entropy(logits, of_sounds) + F.cross_entropy(logits.T, of_others)) / 2


def recalls(queries: Tensor, answers: Tensor, right: Tensor) -> dict[int, Tensor]:
    """The share of ``queries`` (N, D) with a right one among the 1, 5 and 10 nearest of ``answers`` (K, D).

    ``right`` (N, K) bool; queries without a right answer don't count.
    """
    with torch.autocast(queries.device.type, enabled=False):  # bf16 would make ties
        order = (queries.float() @ answers.float().T).topk(min(max(RANKS), len(answers)), 1).indices
    hits = right.gather(1, order)[right.any(1)]
    return {rank: hits[:, :rank].any(1).float().mean() for rank in RANKS}


class Judge:
    """Retrieval of the held-out clips in the frozen space: among the names of all classes, and among all pictures that
    held-out clips are linked to. A picture is right for a clip if it is linked to a held-out clip of its class."""

    @torch.no_grad()
    def __init__(self, sounds: Sounds, links: Links, space: PictureText, table: PhraseTable) -> None:
        self.sounds = sounds
        self.classes = sorted({item.name for item in sounds.items})
        shown: dict[str, set[int]] = defaultdict(set)
        for item in sounds.select(*HELD_OUT):
            shown[item.name].update(row for kind in links.kinds[item.row] for row in kind)
        rows = sorted(set().union(*shown.values()))
        self.pictures = links.vectors[rows]
        self.pictures_of_class = torch.tensor([[row in shown[name] for row in rows] for name in self.classes])
        self.texts = space.embed_sentences(table.of(self.classes))

    @torch.no_grad()
    def __call__(self, model: BindAudio) -> Metrics:
        """Recall at 1, 5 and 10 in all four directions, for both kinds of held-out clips."""
        metrics: Metrics = {}
        for split in HELD_OUT:
            items = self.sounds.select(split)
            parts = (self.sounds.waveforms(items[i : i + 64]) for i in range(0, len(items), 64))
            vectors = torch.cat([model.embed(part) for part in parts])
            classes = torch.tensor([self.classes.index(item.name) for item in items])
            kinds = {
                "picture": (self.pictures, self.pictures_of_class[classes]),
                "text": (self.texts, classes[:, None] == torch.arange(len(self.classes))),
            }
            for kind, (others, right) in kinds.items():
                for name, found in (
                    (f"sound_to_{kind}", recalls(vectors, others, right)),
                    (f"{kind}_to_sound", recalls(others, vectors, right.T)),
                ):
                    metrics |= {f"{split}_{name}_r{rank}": value for rank, value in found.items()}
        return metrics


@dataclass(frozen=True)
class Task:
    """What an encoder is trained on, ``items`` of ``sounds``, towards what, and how it is judged."""

    sounds: Sounds
    items: list[Sound]
    links: Links
    space: PictureText
    table: PhraseTable
    judge: Judge

    def loss(self, model: BindAudio, chosen: list[Sound], rng: np.random.Generator, pictures: float) -> Tensor:
        """``pictures``: the share of the loss that draws sounds to pictures; the rest draws them to phrases."""
        mels = hide_bands(log_mel(augment(self.sounds.waveforms(chosen), 0.3, -25, -10), model.mel))
        vectors = model.embed_sounds(mels)
        names = np.array([item.name for item in chosen])
        same = torch.from_numpy(names[:, None] == names[None, :])
        phrases = [phrases_of(item)[rng.choice(3, p=(0.6, 0.2, 0.2))] for item in chosen]
        with torch.no_grad():
            sentences = self.space.embed_sentences(self.table.of(phrases))
        of_pictures = contrastive_loss(vectors, self.links.draw(chosen, rng), same, model.scale)
        of_phrases = contrastive_loss(vectors, sentences, same, model.scale)
        return pictures * of_pictures + (1 - pictures) * of_phrases


def load_task(folder: Path, permissive_only: bool) -> Task:
    """Clips without any picture are left out."""
    sounds = load_sounds(folder)
    links = load_links(folder, sounds, permissive_only)
    linked = Sounds(sounds.clips, [item for item in sounds.items if item.row in links.kinds])
    space = load_picture_text(WEIGHTS / f"{weights_name('picture-text', permissive_only)}-lite")
    table = PhraseTable(linked.items)
    items = linked.select("train", permissive_only=permissive_only)
    return Task(linked, items, links, space, table, Judge(linked, links, space, table))


def train_encoder(name: str, model: BindAudio, task: Task, pictures: float, steps: int) -> None:
    """Leaves ``model`` with the averaged weights, ready for use."""

    def loss_of(indices: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        rng = np.random.default_rng((SEED, step))
        return task.loss(model, [task.items[i] for i in indices], rng, pictures), {"scale": model.scale}

    weights = train(
        name,
        model,
        [torch.optim.AdamW(optimizer_groups(model, 5e-4, 0.05))],
        Schedule(steps, warmup=100, cooldown=0.6),
        lambda step: shuffled_batches(len(task.items), BATCH, SEED, step),
        loss_of,
        lambda _: task.judge(model),
        seed=SEED,
        ema_decay=0.995,
        log_every=25,
        evaluate_every=250,
    )
    model.load_state_dict(weights)
    model.eval()


def compare(name: str, rows: dict[str, Metrics]) -> None:
    """Printed, and written to ``training/state/NAME/comparison.json``."""
    numbers = {row: {key: round(float(value), 5) for key, value in found.items()} for row, found in rows.items()}
    (STATE / name / "comparison.json").write_text(json.dumps(numbers, indent=2) + "\n")
    for row, found in numbers.items():
        print(f"{row}: " + " ".join(f"{key} {value:g}" for key, value in found.items()), flush=True)


def main() -> None:
    arguments = sound_arguments(__doc__, STEPS).parse_args()
    only = arguments.permissive_only
    task = load_task(data_folder(arguments.data), only)
    tower = WEIGHTS / f"{weights_name('sound-text', only)}-lite"
    name = weights_name("bind-audio", only)

    def trained(run: str, pictures: float) -> BindAudio:
        torch.manual_seed(SEED)
        model = new_encoder(tower, task.space.config.width)
        train_encoder(run, model, task, pictures, arguments.steps)
        return model

    model = trained(name, 0.5)
    model.save_pretrained(WEIGHTS / f"{name}-lite")
    write_sums(WEIGHTS / f"{name}-lite")
    of_words = trained(f"{name}-words", 0.0)
    compare(name, {"pictures and words": task.judge(model), "words alone": task.judge(of_words)})


if __name__ == "__main__":
    main()
