"""Fitting an adapter of the brain decoder for somebody whom it does not know: what the command and the page share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from models.checksums import SUMS
from models.errors import UserError
from models.manager import ModelManager
from models.modules import BUILDING
from models.nets.brain_decoder import BrainDecoder, load_brain_decoder
from models.nets.brain_subjects import CONFIG
from models.working_memory import Work
from pipelines.atomic import plain_folder_errors
from pipelines.base import Progress, Runtime, precision

if TYPE_CHECKING:  # they import diffusers, which takes seconds that a page need not spend
    from models.autoencoder import ImageAutoencoder
    from models.picture_text import PictureText
    from pipelines.fmri.adapting import Curve

DECODER = "brain-decoder"
SEEING = ("picture-text", "autoencoder")  # what a fit leases
MOST_MESSAGES = 7  # of a fit


@dataclass(frozen=True)
class Fitted:
    """``folder``: of the decoder with the new adapter in it; ``z_scored``: its scans do not say by what they were, so
    that later ones must be too."""

    subject: str
    folder: Path
    curve: Curve
    z_scored: bool

    def notes(self) -> list[str]:
        """What is to be said besides the curve."""
        lines = [f"By chance {self.curve.chance['top1']:.0%}. The adapter that is kept was fitted on all pictures."]
        if self.z_scored:
            lines.append(f"Scans of {self.subject} must be z-scored as these were: they do not say by what.")
        return lines

    @property
    def flags(self) -> str:
        """What makes the app take this decoder when it starts."""
        return f"--local-weights '{json.dumps({DECODER: str(self.folder)})}'"


def fit_subject(
    manager: ModelManager, runtime: Runtime, scans: Sequence[Path], pictures: Path, subject: str, target: Path
) -> Fitted:
    """``scans`` and ``pictures`` as :func:`~pipelines.fmri.adapting.read_recording` takes them. The decoder that is
    already in the folder ``target`` gets the adapter, else a copy of the manager's: an adapter is of no use without the
    core that it was fitted to.

    What sees the pictures is leased. The decoder is not, because it is changed, and stays in float32; its bytes count
    as those that the work takes. ``runtime`` is told what comes next; when it is cancelled, nothing is written. Raises
    :class:`UserError` for what cannot be fitted.
    """
    from pipelines.fmri.adapting import add_adapter, check_new, pairs_of, read_recording

    numbers = count()

    def say(message: str) -> None:
        runtime.raise_if_cancelled()
        runtime.report(Progress(next(numbers), MOST_MESSAGES, message))

    with manager.working(Work("adapt-subject"), SEEING):
        with BUILDING:
            decoder = _decoder_to_change(manager, target)
        check_new(decoder, subject)  # now, and not when all pictures have been looked at
        recording = read_recording(scans, pictures)
        with runtime.lease(SEEING[0]) as space, runtime.lease(SEEING[1]) as autoencoder:
            eyes: Any = _Eyes(space, autoencoder, runtime)
            pairs = pairs_of(recording, eyes, eyes, say)
        # The core is asked in every step of the training.
        decoder.core.register_forward_pre_hook(lambda core, given: runtime.raise_if_cancelled())
        curve = add_adapter(decoder, subject, recording, pairs, say)
        runtime.raise_if_cancelled()
        with plain_folder_errors(target / CONFIG):
            decoder.save_pretrained(target)
    return Fitted(subject, target, curve, z_scored=not bool(recording.mean.any()))


def _decoder_to_change(manager: ModelManager, target: Path) -> BrainDecoder:
    if target.is_file() or (target / SUMS).is_file():
        what = "a file" if target.is_file() else "a folder of weights as they were published"
        raise UserError(f"'{target.name[:60]}' is {what}.", "Choose another folder.")
    if (target / CONFIG).is_file():
        return load_brain_decoder(target)
    spec = manager.specs[DECODER]
    decoder = spec.load(spec.source.resolve(lambda share, said: None).folder)
    if not isinstance(decoder, BrainDecoder):
        raise UserError(
            "Adapters are fitted to the small brain decoder, and this one is of the published size.",
            "Use the lite profile, without other weights for it.",
        )
    return decoder


@dataclass(frozen=True)
class _Eyes:
    """Both leased models as those that call them know them: pictures (B, 3, H, W) go to the models' device, and what is
    seen comes back from there, float32. Between batches they look whether to go on."""

    space: PictureText
    autoencoder: ImageAutoencoder
    runtime: Runtime

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        return self._seen(self.space.embed_pictures, pictures)

    def encode(self, pictures: Tensor) -> Tensor:
        return self._seen(self.autoencoder.encode, pictures)

    def _seen(self, see: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
        self.runtime.raise_if_cancelled()
        models = self.runtime.models
        with precision(models):
            return see(pictures.to(models.device)).float().cpu()
