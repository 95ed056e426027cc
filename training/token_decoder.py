"""Recipe of STTM's brain decoder at its published size (``--size published`` of ``training.brain_decoder``).

    python -m training.brain_decoder --size published --nsd NSD --clip CLIP --autoencoder VAE --out FOLDER

``NSD``: the dataset, as ``training.nsd`` says; ``CLIP``: a folder of ``openai/clip-vit-large-patch14``; ``VAE``: one of
``stabilityai/sd-vae-ft-ema``, the full profile's ``autoencoder``. ``FOLDER`` is then given to the full profile:
``--profile full --local-weights '{"brain-decoder": "FOLDER"}'``. It needs a GPU of 40 GB; nobody here has NSD, so it
has run on tiny files in NSD's layout only, and how well it decodes is not known.

STTM's losses (section 3.3 of its paper's code): as many scans of every subject in a step; for 35 % of the steps scans
are mixed in pairs (BiMixCo), then pictures that are alike count as each other a little (SoftCLIP). Compared are all
tokens, the class token, and a caption. The prior's loss is beside them, the two weighted by chance anew in each step.
The low-level network learns latents meanwhile; its gradients do not reach the core.

Shapes: B scans of all subjects; T tokens of D numbers.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.autoencoder import ImageAutoencoder, load_autoencoder
from models.nets.brain_fitting import MIX_SHAPE, MIX_SHARE
from models.nets.token_decoder import PUBLISHED, TokenDecoder, TokenDecoderConfig, prior_schedule, scaled
from models.published_spaces import PublishedPictureText, load_picture_space
from training.loop import DEVICE, Metrics, Schedule, optimizer_groups, shuffled_batches, train
from training.nsd import NSD, Answers
from training.publish import write_sums

NAME, SEED = "brain-decoder-published", 71
SUBJECTS = (1, 2, 5, 7)  # those who came to all sessions
STEPS, BATCH = 28_000, 16  # 50 epochs of 8,859 pictures, scans of each subject in a step
RATE, WEIGHT_DECAY = 3e-4, 1e-2
MIXED = 0.35  # of the steps
MIX_TEMPERATURE, FIRST_TEMPERATURE, LAST_TEMPERATURE = 0.006, 0.004, 0.006
CLASS_WEIGHTS = (0.5, 0.2)  # of the class token and of the caption, while scans are mixed and after
PRIOR_WEIGHT, NOISE = 30.0, 0.01
VALIDATED = 300  # of the pictures that all subjects share


@dataclass(frozen=True)
class Spaces:
    """What the targets are read by, on the device of the training."""

    clip: PublishedPictureText
    autoencoder: ImageAutoencoder

    @torch.no_grad()
    def tokens(self, pictures: Tensor) -> Tensor:
        """CLIP's of (B, 3, H, W), normed and projected, and divided by the class token's length: (B, T, D)."""
        model = self.clip.clip
        states = model.vision_model(pixel_values=self.clip.scaled(pictures)).last_hidden_state
        tokens = model.visual_projection(model.vision_model.post_layernorm(states)).float()
        return tokens / tokens[:, :1].norm(dim=-1, keepdim=True)

    @torch.no_grad()
    def latents(self, pictures: Tensor, config: TokenDecoderConfig) -> Tensor:
        """Of pictures as large as the ``latents`` of ``config`` need: (B, C, H, W)."""
        factor = 2 ** (len(self.autoencoder.model.config.block_out_channels) - 1)
        size = [side * factor for side in config.latents[1:]]
        resized = F.interpolate(pictures, size, mode="bicubic", antialias=True).clamp(-1, 1)
        return self.autoencoder.encode(resized)

    def check(self, config: TokenDecoderConfig) -> None:
        """Raises :class:`SystemExit` for spaces of other sizes than ``config`` is made for."""
        vision = self.clip.clip.config.vision_config
        found = (vision.image_size // vision.patch_size) ** 2 + 1, self.clip.clip.config.projection_dim
        if found != (config.tokens, config.dimension):
            raise SystemExit(
                f"This CLIP has {found[0]} tokens of {found[1]} numbers, not {config.tokens} of {config.dimension}: "
                "use clip-vit-large-patch14."
            )
        channels = self.autoencoder.model.config.latent_channels
        if channels != config.latents[0]:
            raise SystemExit(f"This autoencoder's latents have {channels} channels, not {config.latents[0]}.")


@dataclass(frozen=True)
class Targets:
    """Of B pictures: CLIP's ``tokens`` (B, T, D), the unit vector of a caption (``words``, B, D), ``latents``."""

    tokens: Tensor
    words: Tensor
    latents: Tensor


def targets_of(nsd: NSD, spaces: Spaces, numbers: np.ndarray, config: TokenDecoderConfig) -> Targets:
    """Of pictures by their numbers (B,); which of a picture's captions is drawn from torch's generator."""
    pictures = nsd.pictures(numbers).to(DEVICE)
    said = [nsd.captions(int(number)) for number in numbers]
    words = [texts[int(torch.randint(len(texts), ()))] for texts in said]
    return Targets(spaces.tokens(pictures), spaces.clip.embed_words(words), spaces.latents(pictures, config))


# ------------------------------------------------------------------------------------------------------------ losses


def contrast(made: Tensor, true: Tensor, shares: Tensor | None, temperature: float) -> Tensor:
    """Cross-entropy, both ways, between (B, K) and (B, K). ``shares`` (B, B): how much each scan is of each picture;
    without them pictures are of each as much as they are like it."""
    made, true = F.normalize(made.float(), dim=-1), F.normalize(true.float(), dim=-1)
    logits = made @ true.T / temperature
    if shares is None:
        shares = (true @ true.T / temperature).softmax(-1)
    of_scans = (shares * logits.log_softmax(-1)).sum(-1)
    of_pictures = (shares.T * logits.T.log_softmax(-1)).sum(-1)
    return -(of_scans.mean() + of_pictures.mean()) / 2


def mixed(values: Tensor) -> tuple[Tensor, Tensor]:
    """BiMixCo within one subject's scans (B, V): half of them with a share of another one, and (B, B) the shares."""
    count = len(values)
    drawn = torch.distributions.Beta(MIX_SHAPE, MIX_SHAPE).sample((count,))
    weights = torch.where(torch.rand(count) < MIX_SHARE, drawn, 1.0)
    shares = torch.diag(weights)
    shares[torch.arange(count), torch.randperm(count)] += 1 - weights
    return shares.to(values) @ values, shares


def decoding_loss(
    decoder: TokenDecoder, scans: Sequence[tuple[str, Tensor]], targets: Targets, done: float
) -> tuple[Tensor, Metrics]:
    """Of ``scans``: each subject's name and z-scored voxels (B, V), whose ``targets`` are one after the other.

    ``done``: the share of the training that lies behind, by which its parts and temperatures go.
    """
    mixing = done < MIXED
    shown = [(name, *mixed(values)) if mixing else (name, values, None) for name, values in scans]
    features = [decoder.core.features(decoder.adapters[name](values)) for name, values, _ in shown]
    brain = decoder.core.tokens(torch.cat(features))
    projected = decoder.projector(brain)
    if mixing:
        shares: Tensor | None = torch.block_diag(*(part for *_, part in shown if part is not None)).to(brain.device)
        temperature, weight = MIX_TEMPERATURE, CLASS_WEIGHTS[0]
    else:
        way = (1 - math.cos(math.pi * (done - MIXED) / (1 - MIXED))) / 2
        shares, weight = None, CLASS_WEIGHTS[1]
        temperature = FIRST_TEMPERATURE + (LAST_TEMPERATURE - FIRST_TEMPERATURE) * way
    of_tokens = contrast(projected.flatten(1), targets.tokens.flatten(1), shares, temperature)
    of_class = contrast(projected[:, 0], targets.tokens[:, 0], shares, temperature)
    of_words = contrast(projected[:, 0], targets.words, shares, temperature)
    compared = of_tokens + weight * (of_class + of_words)
    latents = targets.latents if shares is None else (shares @ targets.latents.flatten(1)).view_as(targets.latents)
    made = [
        decoder.low_level(name, values, own.detach()) for (name, values, _), own in zip(shown, features, strict=True)
    ]
    low_level = F.l1_loss(torch.cat(made).float(), latents)
    prior = prior_loss(decoder, brain, targets.tokens)
    weights = torch.randn(2).softmax(0).to(brain.device)
    loss = weights[0] * compared + weights[1] * PRIOR_WEIGHT * prior + low_level
    return loss, {"contrast": compared, "prior": prior, "low_level": low_level}


def prior_loss(decoder: TokenDecoder, brain: Tensor, tokens: Tensor) -> Tensor:
    """Squared error of the prior's clean tokens, at random steps."""
    schedule, clean = prior_schedule(decoder.config.timesteps), scaled(tokens)
    steps = torch.randint(decoder.config.timesteps, (len(tokens),)).to(tokens.device)
    noisy = schedule.add_noise(clean, torch.randn(clean.shape).to(clean), steps)
    return F.mse_loss(decoder.prior(noisy, steps, brain).float(), clean)


# ---------------------------------------------------------------------------------------------------------- training


def new_decoder(answers: Sequence[Answers], config: TokenDecoderConfig) -> TokenDecoder:
    torch.manual_seed(SEED)
    decoder = TokenDecoder(config)
    for one in answers:
        decoder.add_subject(one.subject, one.mask_hash, one.mean, one.std)
    return decoder


def train_decoder(
    nsd: NSD, answers: Sequence[Answers], spaces: Spaces, config: TokenDecoderConfig, steps: int, batch: int
) -> TokenDecoder:
    """A decoder of these subjects, its concepts the first captions of what they saw; its state goes to
    ``training/state/brain-decoder-published``."""
    spaces.check(config)
    decoder = new_decoder(answers, config).to(DEVICE)

    def batches(step: int) -> Iterator[np.ndarray]:
        streams = [shuffled_batches(len(one.values), batch, SEED + index, step) for index, one in enumerate(answers)]
        return (np.stack(rows) for rows in zip(*streams, strict=True))

    def loss_of(rows: np.ndarray, step: int) -> tuple[Tensor, Metrics]:
        numbers = np.concatenate([one.pictures[own] for one, own in zip(answers, rows, strict=True)])
        scans = []
        for one, own in zip(answers, rows, strict=True):
            values = one.values[own]
            scans.append((one.subject, (values + NOISE * torch.randn_like(values)).to(DEVICE)))
        return decoding_loss(decoder, scans, targets_of(nsd, spaces, numbers, config), step / steps)

    weights = train(
        NAME,
        decoder,
        [torch.optim.AdamW(optimizer_groups(decoder, RATE, WEIGHT_DECAY))],
        Schedule(steps, warmup=min(1100, steps), cooldown=0.9),
        batches,
        loss_of,
        lambda _: measured(nsd, answers, spaces, decoder),
        seed=SEED,
        evaluate_every=2000,
    )
    decoder.load_state_dict(weights)
    name_pictures(nsd, answers, spaces, decoder)
    return decoder.cpu().eval()


@torch.no_grad()
def measured(nsd: NSD, answers: Sequence[Answers], spaces: Spaces, decoder: TokenDecoder) -> Metrics:
    """Of every subject's answers to shared pictures: how often the own one is the nearest (``top1``, of up to 300), and
    how near the prior's class token comes to it (``prior_cosine``, of 16)."""
    found: Metrics = {}
    for one in answers:
        values, numbers = one.test_values[:VALIDATED].to(DEVICE), one.test_pictures[:VALIDATED]
        true = class_tokens(nsd, spaces, numbers)
        near = decoder.vectors(one.subject, values) @ true.T
        found[f"{one.subject}_top1"] = float((near.argmax(1).cpu() == torch.arange(len(near))).float().mean())
        made = decoder.picture_tokens(decoder.brain_tokens(one.subject, values[:16]), SEED)[:, 0]
        found[f"{one.subject}_prior_cosine"] = float(F.cosine_similarity(made, true[:16]).mean())
    return found


def name_pictures(nsd: NSD, answers: Sequence[Answers], spaces: Spaces, decoder: TokenDecoder) -> None:
    """Concepts: what the first caption of each training picture says, at the picture's place in CLIP's space."""
    numbers = np.unique(np.concatenate([one.pictures for one in answers]))
    vectors = class_tokens(nsd, spaces, numbers)
    decoder.center.copy_(vectors.mean(0))
    decoder.name_concepts([" ".join(nsd.captions(int(number))[0].split()) for number in numbers], vectors)


def class_tokens(nsd: NSD, spaces: Spaces, numbers: np.ndarray) -> Tensor:
    """(N, D) unit vectors."""
    parts = (numbers[start : start + 64] for start in range(0, len(numbers), 64))
    return torch.cat([spaces.tokens(nsd.pictures(part).to(DEVICE))[:, 0] for part in parts])


def train_published(arguments: argparse.Namespace) -> None:
    missing = [f"--{name}" for name in ("nsd", "clip", "autoencoder", "out") if getattr(arguments, name) is None]
    if missing:
        raise SystemExit(f"The published size needs {' and '.join(missing)} too; training/token_decoder.py says what.")
    clip = load_picture_space(arguments.clip)
    if not isinstance(clip, PublishedPictureText):
        raise SystemExit("--clip is not a folder of CLIP: use clip-vit-large-patch14.")
    spaces = Spaces(clip.to(DEVICE), load_autoencoder(arguments.autoencoder).to(DEVICE))
    spaces.check(PUBLISHED)
    nsd = NSD(arguments.nsd)
    answers = [nsd.answers(number) for number in arguments.subjects]
    decoder = train_decoder(nsd, answers, spaces, PUBLISHED, arguments.steps or STEPS, BATCH)
    decoder.save_pretrained(arguments.out)
    write_sums(Path(arguments.out))
