"""Recipe of ``assets/weights/sound-generator-lite``: AudioLDM in small, CLAP-lite's vector of a sound to its latents.

    python -m training.sound_generator --data FOLDER [--batch B] [--steps N] [--continue-from FOLDER]

Latent diffusion (velocity prediction, cosine schedule that ends in pure noise) whose condition is the CLAP-lite vector
of the very clip to be made, so no label is needed, and a changed clip has a matching condition: some have another one
behind them, and loops begin anywhere. Noise on the condition, renormalised, makes the generator forgive a mapper's
errors and the gap between words and sounds. Needs ``audio-autoencoder-lite`` and ``sound-text-lite``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.sound_generator import load_sound_generator
from training.loop import DEVICE, Metrics
from training.pictures import data_folder
from training.sound_diffusion import (
    Evaluation,
    Listener,
    diffusion_loss,
    mix,
    new_generator,
    shifted,
    train_generator,
)
from training.sounds import load_sounds, sound_arguments, weights_name
from training.tables import add_continue_from

SEED, BATCH, STEPS = 53, 64, 3600
MIXED, QUIETEST = 0.3, -20.0


def main() -> None:
    arguments = add_continue_from(sound_arguments(__doc__, STEPS, BATCH)).parse_args()
    sounds = load_sounds(data_folder(arguments.data))
    items = sounds.select("train", permissive_only=arguments.permissive_only)
    name = weights_name("sound-generator", arguments.permissive_only)
    listener = Listener(arguments.permissive_only)
    torch.manual_seed(SEED)
    model = load_sound_generator(arguments.continue_from) if arguments.continue_from else new_generator()
    model.to(DEVICE)

    def loss_of(indices: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        waveforms = shifted(sounds, [items[i] for i in indices], np.random.default_rng((SEED, step)))
        chosen = torch.rand(len(waveforms)) < MIXED
        latents, vectors = listener.hear(mix(waveforms, chosen, QUIETEST * torch.rand(len(waveforms))))
        return diffusion_loss(model, latents, vectors)

    train_generator(
        name,
        model,
        loss_of,
        Evaluation(model, listener, sounds, name, lambda _, vectors: vectors),
        count=len(items),
        batch=arguments.batch,
        steps=arguments.steps,
        rate=5e-4,
        seed=SEED,
    )


if __name__ == "__main__":
    main()
