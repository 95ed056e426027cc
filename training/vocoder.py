"""Recipe of ``assets/weights/vocoder-lite``: log-mels to waveforms by an inverse Fourier transform (IstftVocoder).

    python -m training.vocoder --data FOLDER

Loss: multi-resolution STFT distance and L1 of the log-mels, on random seconds of clips, some of them mixed; there are
no discriminators. The measure has fewer resolutions than the loss, and Griffin-Lim is measured on the same clips.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.mel import LITE_MEL, log_mel
from models.nets.vocoder import IstftVocoder, VocoderConfig
from training.loop import STATE, Metrics, Schedule, optimizer_groups, shuffled_batches, train
from training.pictures import data_folder
from training.publish import write_sums
from training.sound_measures import griffin_lim, mel_error, save_spectrograms, stft_distance, with_phases_of
from training.sounds import Sounds, augment, load_sounds, sound_arguments, weights_name

SEED, BATCH, STEPS = 43, 16, 6000
CROP = LITE_MEL.samples(64)
CONFIG = VocoderConfig(width=256, hidden=768, blocks=8)
FFT_SIZES = (256, 512, 1024, 2048)
ITERATIONS = 32


def vocoder_loss(made: Tensor, real: Tensor) -> tuple[Tensor, Metrics]:
    """Of waveforms ``made`` for those of ``real``, (B, N) in [-1, 1], N a multiple of the hop."""
    distance = stft_distance(made, real, FFT_SIZES).mean()
    heard = F.l1_loss(log_mel(made, LITE_MEL), log_mel(real, LITE_MEL))
    return distance + heard, {"stft_distance": distance, "mel_l1": heard}


def held_out_waveforms(sounds: Sounds) -> Tensor:
    """(48, SAMPLES): 24 held-out files of known classes, 24 clips of held-out classes."""
    parts = [sounds.select("heldout-file"), sounds.select("heldout-class")]
    return torch.cat([sounds.waveforms(items[:: max(1, len(items) // 24)][:24]) for items in parts])


def rival_metrics(waveforms: Tensor) -> Metrics:
    """On the same clips: Griffin-Lim, which the trained vocoder has to beat, and its bands with the true phases."""
    mels = log_mel(waveforms, LITE_MEL)
    made = griffin_lim(mels, LITE_MEL, ITERATIONS)
    return {
        "griffin_lim_distance": stft_distance(made, waveforms).mean(),
        "griffin_lim_error_db": mel_error(log_mel(made, LITE_MEL), mels, LITE_MEL).mean(),
        "true_phases_distance": stft_distance(with_phases_of(waveforms, mels, LITE_MEL), waveforms).mean(),
    }


def evaluate(model: IstftVocoder, waveforms: Tensor, name: str, step: int) -> Metrics:
    """Measures on held-out clips, and a sheet of ten, each beside what was made of it."""
    mels = log_mel(waveforms, LITE_MEL)
    made = torch.cat([model(part) for part in mels.split(16)])
    heard = log_mel(made, LITE_MEL)
    pairs = torch.stack([mels[::5][:10], heard[::5][:10]], 1).flatten(0, 1)
    save_spectrograms(pairs, LITE_MEL, STATE / name / f"step{step}.png", columns=4)
    return {
        "heldout_distance": stft_distance(made, waveforms).mean(),
        "heldout_error_db": mel_error(heard, mels, LITE_MEL).mean(),
    }


def main() -> None:
    arguments = sound_arguments(__doc__, STEPS).parse_args()
    sounds = load_sounds(data_folder(arguments.data))
    items = sounds.select("train", permissive_only=arguments.permissive_only)
    held_out = held_out_waveforms(sounds)
    rival = rival_metrics(held_out)
    name = weights_name("vocoder", arguments.permissive_only)
    torch.manual_seed(SEED)
    model = IstftVocoder(CONFIG, LITE_MEL)
    optimizer = torch.optim.AdamW(optimizer_groups(model, 1e-3, 1e-3), betas=(0.8, 0.99))

    def loss_of(indices: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        crops = sounds.crops([items[i] for i in indices], CROP, np.random.default_rng((SEED, step)))
        real = augment(crops, 0.3, -20, 0)
        return vocoder_loss(model(log_mel(real, LITE_MEL)), real)

    weights = train(
        name,
        model,
        [optimizer],
        Schedule(arguments.steps, warmup=100, cooldown=0.5),
        lambda step: shuffled_batches(len(items), BATCH, SEED, step),
        loss_of,
        lambda step: evaluate(model, held_out, name, step) | rival,
        seed=SEED,
        ema_decay=0.998,
        evaluate_every=1000,
    )
    model.load_state_dict(weights)
    target = Path("assets/weights") / f"{name}-lite"
    model.save_pretrained(target)
    write_sums(target)


if __name__ == "__main__":
    main()
