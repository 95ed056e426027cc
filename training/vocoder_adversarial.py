"""Recipe that goes on with ``assets/weights/vocoder-lite``: judges of spectra make it sound less smooth.

    python -m training.vocoder_adversarial --data FOLDER

What ``training.vocoder`` learns is a mean over all sounds with the same mels, which rings. Here three networks learn to
tell real seconds from made ones by their complex spectra (EnCodec's discriminators, arXiv 2210.13438, section 3.4), and
the vocoder to be taken for real. Neither is shipped nor needed afterwards. No judge and no loss uses CLAP-lite, by
whose vectors held-out clips are measured here beside those of ``training.vocoder``.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from models.mel import LITE_MEL, log_mel, spectrum
from models.nets.vocoder import IstftVocoder, load_vocoder
from models.sound_text import SoundText, load_sound_text
from training.bridges import frechet_distance
from training.loop import Metrics, Schedule, optimizer_groups, shuffled_batches, train
from training.pictures import data_folder
from training.publish import write_sums
from training.sounds import Sounds, augment, load_sounds, sound_arguments, weights_name
from training.vocoder import CROP, evaluate, held_out_waveforms, vocoder_loss

SEED, BATCH, STEPS = 47, 8, 3000
FFT_SIZES = (256, 512, 1024)
CHANNELS = 16
LOUDNESS_POWER = 0.3  # of magnitudes, so that what is quiet counts too
ADVERSARIAL, FEATURES = 0.2, 1.0  # weights of the two losses beside those of training.vocoder
HEARD = 400  # held-out clips whose CLAP-lite vectors are compared
WEIGHTS = Path("assets/weights")

Judgement = tuple[Tensor, list[Tensor]]  # scores, and the features of every layer


class SpectrumJudge(nn.Module):
    """Scores how real each spot of a complex spectrum of one resolution looks."""

    def __init__(self, fft_size: int) -> None:
        super().__init__()
        self.fft_size = fft_size
        strides = [(1, 1), (2, 1), (2, 1), (2, 1)]  # bands are joined, moments are not
        widths = [2, *[CHANNELS] * len(strides)]
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(
                nn.Conv2d(into, out, (9, 3), stride, padding=(4, dilation), dilation=(1, dilation))
            )
            for (into, out), stride, dilation in zip(pairwise(widths), strides, (1, 1, 2, 4), strict=True)
        )
        self.score = nn.utils.parametrizations.weight_norm(nn.Conv2d(CHANNELS, 1, 3, padding=1))

    def forward(self, waveforms: Tensor) -> Judgement:
        """(B, N) -> scores (B, 1, bands, moments)."""
        bins = spectrum(waveforms, self.fft_size, self.fft_size // 2)  # twice the overlap is twice the time
        loudness = (bins.abs().square() + 1e-8).sqrt()
        x = torch.view_as_real(bins * loudness ** (LOUDNESS_POWER - 1)).permute(0, 3, 1, 2)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.score(x).float(), features


class Judges(nn.Module):
    """One judge a resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.judges = nn.ModuleList(map(SpectrumJudge, FFT_SIZES))

    def forward(self, waveforms: Tensor) -> list[Judgement]:
        return [judge(waveforms) for judge in self.judges]


def judges_loss(judges: Judges, real: Tensor, made: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
    """Hinge loss of telling ``real`` from ``made`` (B, N), and the features of the real ones, for :func:`fooling_loss`.

    Nothing is learnt of how ``made`` came to be.
    """
    losses, features = [], []
    for scores, of_both in judges(torch.cat([real, made.detach()])):
        of_real, of_made = scores.chunk(2)
        losses.append(F.relu(1 - of_real).mean() + F.relu(1 + of_made).mean())
        features.append([layer.chunk(2)[0].detach() for layer in of_both])
    return torch.stack(losses).mean(), features


def fooling_loss(judges: Judges, made: Tensor, real_features: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """How far ``made`` is from being taken for real, and its features from those of the real; judges learn nothing."""
    fixed = {name: value.detach() for name, value in judges.named_parameters()}
    scores, distances = [], []
    for (of_made, features), real in zip(functional_call(judges, fixed, made), real_features, strict=True):
        scores.append(F.relu(1 - of_made).mean())
        distances += [F.l1_loss(a, b) / b.abs().mean() for a, b in zip(features, real, strict=True)]
    return torch.stack(scores).mean(), torch.stack(distances).mean()


def heard_distance(model: IstftVocoder, space: SoundText, waveforms: Tensor) -> Tensor:
    """Frechet distance between CLAP-lite's vectors of real and of voiced clips (B, N), times 100."""
    real, made = [], []
    for part in waveforms.split(16):
        mels = log_mel(part, LITE_MEL)
        real.append(space.embed_sounds(mels))
        made.append(space.embed_sounds(log_mel(model(mels), LITE_MEL)))
    return torch.tensor(100 * frechet_distance(torch.cat(made), torch.cat(real)))


def measured_waveforms(sounds: Sounds) -> Tensor:
    """(up to HEARD, SAMPLES) of held-out files, from end to end of the table."""
    items = sounds.select("heldout-file")
    return sounds.waveforms(items[:: -(-len(items) // HEARD)])


def main() -> None:
    arguments = sound_arguments(__doc__, STEPS).parse_args()
    sounds = load_sounds(data_folder(arguments.data))
    items = sounds.select("train", permissive_only=arguments.permissive_only)
    held_out, heard = held_out_waveforms(sounds), measured_waveforms(sounds)
    target = WEIGHTS / f"{weights_name('vocoder', arguments.permissive_only)}-lite"
    space = load_sound_text(WEIGHTS / f"{weights_name('sound-text', arguments.permissive_only)}-lite")
    name = weights_name("vocoder-adversarial", arguments.permissive_only)
    torch.manual_seed(SEED)
    vocoder = cast(IstftVocoder, load_vocoder(target))
    judges = Judges()
    both = nn.ModuleDict({"vocoder": vocoder, "judges": judges})
    with torch.no_grad():
        before = {"heard_x100_before": heard_distance(vocoder, space, heard)}

    def loss_of(indices: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        crops = sounds.crops([items[i] for i in indices], CROP, np.random.default_rng((SEED, step)))
        real = augment(crops, 0.3, -20, 0)
        made = vocoder(log_mel(real, LITE_MEL))
        told, features = judges_loss(judges, real, made)
        fooled, apart = fooling_loss(judges, made, features)
        spectral, metrics = vocoder_loss(made, real)
        loss = told + spectral + ADVERSARIAL * fooled + FEATURES * apart
        return loss, metrics | {"told": told, "fooled": fooled, "features": apart}

    def evaluation(step: int) -> Metrics:
        distance = heard_distance(vocoder, space, heard)
        return evaluate(vocoder, held_out, name, step) | {"heard_x100": distance} | before

    weights = train(
        name,
        both,
        [torch.optim.AdamW(optimizer_groups(both, 2e-4, 1e-3), betas=(0.8, 0.99))],
        Schedule(arguments.steps, warmup=100, cooldown=0.4),
        lambda step: shuffled_batches(len(items), BATCH, SEED, step),
        loss_of,
        evaluation,
        seed=SEED,
        evaluate_every=500,
    )
    both.load_state_dict(weights)
    vocoder.save_pretrained(target)
    write_sums(target)


if __name__ == "__main__":
    main()
