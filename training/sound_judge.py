"""Recipe of ``assets/weights/sound-judge``: the judge of generated sounds, independent of every generator.

    python -m training.sound_judge --data FOLDER

A small residual network hears clips of 4.096 s through a mel definition of its own, other than the generators', and
learns to tell all classes. It is never used in a loss or a condition of another model. It hears held-out classes too (a
judge must know what they sound like), but not the clips that :func:`is_reserved_sound` names, which no generator hears
either: on those, real clips give the benchmark's ceiling.

Shapes: B sounds, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import UserError
from models.mel import MelConfig, load_mel_config, log_mel
from models.packing import save_half
from training.evaluator import ResidualBlock
from training.loop import Metrics, Schedule, optimizer_groups, shuffled_batches, train
from training.pictures import data_folder
from training.publish import write_sums
from training.sound_text import hide_bands
from training.sounds import HELD_OUT, SAMPLES, TABLE, Sound, Sounds, load_sounds, sound_arguments, weights_name
from training.sounds import augment as mix_and_turn_down
from training.tables import in_held_out_tenth

SEED, BATCH, STEPS = 67, 64, 1500
WEIGHTS = Path("assets/weights")
CONFIG, FILE = "config.json", "model.safetensors"
WIDTHS = (32, 64, 128, 256)
FEATURES = WIDTHS[-1]
# Windows of 40 ms every 20 ms. Quieter than -73 dB below a full-scale sine is silence: there generators differ from
# recordings in what nobody hears. Mean and deviation are those of the sounding frames of the training clips, rounded.
JUDGE_MEL = MelConfig(16_000, 640, 320, 80, 50.0, 7800.0, 1e-3, -4.6, 1.9)


class SoundJudge(nn.Module):
    """``classes``: the names that it tells apart, in the order of its logits."""

    def __init__(self, classes: Sequence[str], mel: MelConfig = JUDGE_MEL) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.mel = mel
        steps = zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)
        self.stem = nn.Conv2d(1, WIDTHS[0], 3, 2, 1)
        self.blocks = nn.Sequential(*(ResidualBlock(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(steps)))
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(FEATURES, len(self.classes))

    def hear(self, waveforms: Tensor) -> Tensor:
        """(B, SAMPLES) in [-1, 1] -> the judge's own log-mels (B, 204, 80), standardised.

        Raises :class:`ValueError` for another length: how long a clip is must not tell what it is.
        """
        if waveforms.ndim != 2 or waveforms.shape[1] != SAMPLES:
            raise ValueError(f"expected (B, {SAMPLES}), not {tuple(waveforms.shape)}")
        return log_mel(waveforms, self.mel)

    def features_of(self, mels: Tensor) -> Tensor:
        """Log-mels (B, 204, 80) -> (B, 256) float32: mean over bands, then mean and maximum over time, as in PANNs
        (arXiv 1912.10211), so that the silence after a short sound does not drown it."""
        picture = mels[:, None].contiguous(memory_format=torch.channels_last)
        over_time = self.blocks(self.stem(picture)).float().mean(3)
        return cast(Tensor, over_time.mean(2) + over_time.amax(2))

    def features(self, waveforms: Tensor) -> Tensor:
        """(B, SAMPLES) in [-1, 1] -> (B, 256), the space of the Frechet distance."""
        return self.features_of(self.hear(waveforms))

    def logits(self, features: Tensor) -> Tensor:
        """(B, 256) -> (B, K)."""
        return cast(Tensor, self.head(self.dropout(features)))

    def save_pretrained(self, folder: Path) -> None:
        """``config.json``, ``mel.json`` and ``model.safetensors`` in float16."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {"features": FEATURES, "classes": list(self.classes)}
        (folder / CONFIG).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        self.mel.save(folder)
        save_half(self.state_dict(), folder / FILE)


def load_sound_judge(folder: Path = WEIGHTS / "sound-judge") -> SoundJudge:
    """A folder as :meth:`SoundJudge.save_pretrained` writes it. Raises :class:`UserError` if it is not there."""
    if not (folder / FILE).is_file():
        raise UserError(
            f"The judge of sounds is missing: '{folder}'.", "Train it with 'python -m training.sound_judge'."
        )
    classes = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["classes"]
    model = SoundJudge(classes, load_mel_config(folder))
    model.load_state_dict(load_file(folder / FILE))
    return model.eval()


# ---------------------------------------------------------------------------------------------------- reserved clips


def is_reserved_sound(source: str, path: str) -> bool:
    """Whether all clips of this file are kept from the judge: a tenth of the files.

    Of the known classes it is the very tenth that :func:`training.sounds.split_of` keeps from the generators, so that
    one clip can be both a fresh query and a fair ceiling; of the held-out classes it is a tenth too.
    """
    return in_held_out_tenth(f"{source}|{path}")


def reserved_files(folder: Path) -> dict[int, str]:
    """Of the reserved rows of the table in ``folder``: the file that each clip was cut from."""
    rows = pq.read_table(folder / TABLE, columns=["source", "path"]).to_pylist()
    return {
        index: f"{row['source']}|{row['path']}"
        for index, row in enumerate(rows)
        if is_reserved_sound(row["source"], row["path"])
    }


# ---------------------------------------------------------------------------------------------- training and measures


def augment(waveforms: Tensor) -> Tensor:
    """What a vocoder gets wrong must not fool the judge: of (B, N) in [-1, 1] a third with another clip far behind it,
    all up to 18 dB quieter, with their spectrum bent by some decibels, and half of them with hiss; within [-1, 1]."""
    bent = bend_spectrum(mix_and_turn_down(waveforms, 0.3, -25, -10))
    hiss = 10 ** (-(50 + 30 * torch.rand(len(bent), 1)) / 20) * torch.randn_like(bent)
    return (bent + torch.where(torch.rand(len(bent), 1) < 0.5, hiss, 0.0)).clamp(-1, 1)


def bend_spectrum(waveforms: Tensor, decibels: float = 4.0) -> Tensor:
    """(B, N) through a smooth random equaliser each: six points of ``decibels`` deviation, straight lines between."""
    spectrum = torch.fft.rfft(waveforms)
    points = decibels * torch.randn(len(waveforms), 1, 6)
    curve = F.interpolate(points, spectrum.shape[1], mode="linear", align_corners=True)[:, 0]
    return torch.fft.irfft(spectrum * 10 ** (curve / 20), waveforms.shape[1])


def hits(logits: Tensor, answers: Tensor, first: int) -> Tensor:
    """(B, K), (B,) -> (B,) float: 1 where the answer is among the ``first`` likeliest classes."""
    ranked = logits.topk(min(first, logits.shape[1])).indices
    return (ranked == answers[:, None]).any(1).float()


@torch.no_grad()
def judged(model: SoundJudge, waveforms: Tensor) -> tuple[Tensor, Tensor]:
    """(B, SAMPLES) -> features (B, 256) and logits (B, K), 64 at a time, in float32 whatever trains."""
    with torch.autocast("cpu", enabled=False):
        features = torch.cat([model.features(part) for part in waveforms.split(64)])
        return features, model.logits(features)


def evaluate(model: SoundJudge, sounds: Sounds, items: Sequence[Sound]) -> Metrics:
    """Accuracy on reserved clips, apart for known classes and for those that the generators do not know."""
    number = {name: index for index, name in enumerate(model.classes)}
    metrics: Metrics = {}
    for split in HELD_OUT:
        chosen = [item for item in items if item.split == split]
        if chosen:
            _, logits = judged(model, sounds.waveforms(chosen))
            answers = torch.tensor([number[item.name] for item in chosen])
            metrics |= {f"{split}_top{first}": hits(logits, answers, first).mean() for first in (1, 5)}
    return metrics


def known_classes(sounds: Sounds, reserved: Iterable[int]) -> set[str]:
    """Classes that have a clip outside the ``reserved`` rows: of the others the judge has only the name."""
    left_out = set(reserved)
    return {item.name for item in sounds.items if item.row not in left_out}


def main() -> None:
    arguments = sound_arguments(__doc__, STEPS).parse_args()
    folder = data_folder(arguments.data)
    sounds = load_sounds(folder)
    reserved = reserved_files(folder)
    known = known_classes(sounds, reserved)
    items = [
        item for item in sounds.items if item.row not in reserved and (item.permissive or not arguments.permissive_only)
    ]
    asked = [item for item in sounds.items if item.row in reserved and item.name in known]
    classes = sorted({item.name for item in sounds.items})
    number = {name: index for index, name in enumerate(classes)}
    print(f"{len(items)} clips, {len(asked)} reserved ones of {len(known)} known classes", flush=True)
    name = weights_name("sound-judge", arguments.permissive_only)
    torch.manual_seed(SEED)
    model = SoundJudge(classes)

    def loss_of(indices: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        chosen = [items[i] for i in indices]
        waveforms = sounds.crops(chosen, SAMPLES, np.random.default_rng((SEED, step)))
        logits = model.logits(model.features_of(hide_bands(model.hear(augment(waveforms)))))
        answers = torch.tensor([number[item.name] for item in chosen])
        return F.cross_entropy(logits, answers, label_smoothing=0.1), {"accuracy": hits(logits, answers, 1).mean()}

    weights = train(
        name,
        model,
        [torch.optim.AdamW(optimizer_groups(model, 2e-3, 0.05))],
        Schedule(arguments.steps, warmup=100, cooldown=0.6),
        lambda step: shuffled_batches(len(items), BATCH, SEED, step),
        loss_of,
        lambda _: evaluate(model, sounds, asked),
        seed=SEED,
        ema_decay=0.99,
        evaluate_every=250,
    )
    model.load_state_dict(weights)
    target = WEIGHTS / name
    model.save_pretrained(target)
    write_sums(target)


if __name__ == "__main__":
    main()
