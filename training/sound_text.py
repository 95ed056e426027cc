"""Recipe of ``assets/weights/sound-text-lite``: sounds and sentences in one space of 256-d unit vectors (CLAP-lite).

    python -m training.sound_text --data FOLDER

Symmetric contrastive loss between a batch of clips and one phrase for each: its caption, the name of its class, or
"the sound of" that. Clips of one class are each other's right answers. A clip may have another, quieter one behind it,
and bands of time and frequency are hidden. The space is trained apart from the picture-text space on purpose: the
mapper of V2A-Mapper needs a gap to bridge.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ClapAudioConfig

from models.mel import LITE_MEL, log_mel
from models.sound_text import SoundText
from models.text_encoder import load_text_encoder
from training.loop import Metrics, Schedule, optimizer_groups, shuffled_batches, train
from training.pictures import data_folder
from training.publish import write_sums
from training.sounds import HELD_OUT, Sound, Sounds, augment, load_sounds, sound_arguments, weights_name

SEED, BATCH, STEPS = 47, 128, 1500
WEIGHTS = Path("assets/weights")
RANKS = (1, 5, 10)


def audio_config() -> ClapAudioConfig:
    """The sheet's small tower: 256 frames of 64 bands, folded into 128x128."""
    return ClapAudioConfig(
        spec_size=128,
        num_mel_bins=LITE_MEL.bands,
        depths=[1, 1, 2],
        num_attention_heads=[2, 4, 8],
        patch_embeds_hidden_size=48,
        hidden_size=192,
        projection_dim=256,
        num_hidden_layers=3,
    )


def phrases_of(item: Sound) -> tuple[str, str, str]:
    """What a clip may be called in training."""
    return item.caption, item.name, f"the sound of {item.name}"


class PhraseTable:
    """Sentence embeddings of all phrases of ``items``, from the frozen text encoder."""

    def __init__(self, items: list[Sound]) -> None:
        phrases = sorted({phrase for item in items for phrase in phrases_of(item)})
        encoder = load_text_encoder(WEIGHTS / "text-encoder-lite")
        parts = [encoder.sentence_embeddings(phrases[i : i + 128]) for i in range(0, len(phrases), 128)]
        self.embeddings = torch.cat(parts)
        self.row = {phrase: row for row, phrase in enumerate(phrases)}

    def of(self, phrases: list[str]) -> Tensor:
        """(N, 384)."""
        return self.embeddings[[self.row[phrase] for phrase in phrases]]


def hide_bands(mels: Tensor) -> Tensor:
    """SpecAugment (arXiv 1904.08779): of each (F, M) up to a quarter of the frames and of the bands become the mean."""
    count, frames, bands = mels.shape
    hidden = _interval(count, frames)[:, :, None] | _interval(count, bands)[:, None, :]
    return mels.masked_fill(hidden, 0.0)


def _interval(count: int, length: int) -> Tensor:
    """(count, length) bool, true on one random stretch of up to a quarter of each row."""
    begin, share = torch.rand(count, 1), torch.rand(count, 1) / 4
    position = torch.arange(length) / length
    return (position >= begin) & (position < begin + share)


def contrastive_loss(model: SoundText, mels: Tensor, sentences: Tensor, same: Tensor) -> tuple[Tensor, Metrics]:
    """``mels`` (B, F, M), ``sentences`` (B, 384); ``same`` (B, B) bool: whether sound i and sentence j belong together.

    Each sound's right answers share its probability alike, and so do each sentence's.
    """
    logits = model.scale * model.embed_sounds(mels) @ model.embed_sentences(sentences).T
    of_sounds, of_sentences = (right.float() / right.sum(1, keepdim=True) for right in (same, same.T))
    loss = (F.cross_entropy(logits, of_sounds) + F.cross_entropy(logits.T, of_sentences)) / 2
    hits = same[torch.arange(len(same)), logits.argmax(1)]
    return loss, {"batch_top1": hits.float().mean(), "scale": model.scale}


def retrieval(sounds: Tensor, texts: Tensor, answers: Tensor) -> Metrics:
    """Recall at 1, 5 and 10 in both directions.

    ``sounds`` (N, D), ``texts`` (K, D), one a class; ``answers`` (N,) is each sound's class. A text is answered if a
    sound of its class is among the nearest; classes without a sound ask nothing.
    """
    cosines = sounds @ texts.T
    named = cosines.topk(min(max(RANKS), len(texts)), 1).indices == answers[:, None]
    asked = answers.unique()
    found = answers[cosines.T[asked].topk(min(max(RANKS), len(sounds)), 1).indices] == asked[:, None]
    metrics: Metrics = {}
    for rank in RANKS:
        metrics[f"sound_to_text_r{rank}"] = named[:, :rank].any(1).float().mean()
        metrics[f"text_to_sound_r{rank}"] = found[:, :rank].any(1).float().mean()
    return metrics


def evaluate(model: SoundText, sounds: Sounds, table: PhraseTable, classes: list[str]) -> Metrics:
    """Retrieval on all held-out clips among all classes, apart for files of known classes and for held-out classes."""
    texts = model.embed_sentences(table.of(classes))
    number = {name: index for index, name in enumerate(classes)}
    metrics: Metrics = {}
    for split in HELD_OUT:
        items = sounds.select(split)
        parts = (sounds.waveforms(items[i : i + 64]) for i in range(0, len(items), 64))
        vectors = torch.cat([model.embed_sounds(log_mel(part, LITE_MEL)) for part in parts])
        found = retrieval(vectors, texts, torch.tensor([number[item.name] for item in items]))
        metrics |= {f"{split}_{name}": value for name, value in found.items()}
    return metrics


def main() -> None:
    arguments = sound_arguments(__doc__, STEPS).parse_args()
    sounds = load_sounds(data_folder(arguments.data))
    items = sounds.select("train", permissive_only=arguments.permissive_only)
    classes = sorted({item.name for item in sounds.items})
    table = PhraseTable(sounds.items)
    name = weights_name("sound-text", arguments.permissive_only)
    torch.manual_seed(SEED)
    model = SoundText(audio_config(), LITE_MEL)

    def loss_of(indices: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        rng = np.random.default_rng((SEED, step))
        chosen = [items[i] for i in indices]
        mels = hide_bands(log_mel(augment(sounds.waveforms(chosen), 0.3, -25, -10), LITE_MEL))
        phrases = [phrases_of(item)[rng.choice(3, p=(0.6, 0.2, 0.2))] for item in chosen]
        names = np.array([item.name for item in chosen])
        same = torch.from_numpy(names[:, None] == names[None, :])
        return contrastive_loss(model, mels, table.of(phrases), same)

    weights = train(
        name,
        model,
        [torch.optim.AdamW(optimizer_groups(model, 1e-3, 0.05))],
        Schedule(arguments.steps, warmup=100, cooldown=0.6),
        lambda step: shuffled_batches(len(items), BATCH, SEED, step),
        loss_of,
        lambda _: evaluate(model, sounds, table, classes),
        seed=SEED,
        ema_decay=0.995,
        log_every=25,
        evaluate_every=250,
    )
    model.load_state_dict(weights)
    target = WEIGHTS / f"{name}-lite"
    model.save_pretrained(target)
    write_sums(target)


if __name__ == "__main__":
    main()
