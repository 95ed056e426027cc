"""Fitting an adapter of the brain decoder for somebody whom it does not know: what the command and the page share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.checksums import SUMS
from models.errors import UserError
from models.spec import ModelSpec
from pipelines.atomic import plain_folder_errors

if TYPE_CHECKING:
    from pipelines.fmri.adapting import Curve

DECODER = "brain-decoder"
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
    specs: Mapping[str, ModelSpec],
    scans: Sequence[Path],
    pictures: Path,
    subject: str,
    target: Path,
    say: Callable[[str], None],
) -> Fitted:
    """``scans`` and ``pictures`` as :func:`~pipelines.fmri.adapting.read_recording` takes them. The decoder that is
    already in the folder ``target`` gets the adapter, else a copy of the one in ``specs``: an adapter is of no use
    without the core that it was fitted to.

    ``say`` is told what comes next, at most :data:`MOST_MESSAGES` times; what it raises ends the fit, and nothing is
    written then. Raises :class:`UserError` for what cannot be fitted.
    """
    from models.nets.brain_decoder import BrainDecoder, load_brain_decoder
    from models.nets.brain_subjects import CONFIG
    from pipelines.fmri.adapting import add_adapter, check_new, pairs_of, read_recording

    def load(key: str) -> Any:
        return specs[key].load(specs[key].source.resolve(lambda share, said: None).folder)

    if target.is_file() or (target / SUMS).is_file():
        what = "a file" if target.is_file() else "a folder of weights as they were published"
        raise UserError(f"'{target.name[:60]}' is {what}.", "Choose another folder.")
    decoder = load_brain_decoder(target) if (target / CONFIG).is_file() else load(DECODER)
    if not isinstance(decoder, BrainDecoder):
        raise UserError(
            "Adapters are fitted to the small brain decoder, and this one is of the published size.",
            "Use the lite profile, without other weights for it.",
        )
    check_new(decoder, subject)  # now, and not when all pictures have been looked at
    recording = read_recording(scans, pictures)
    pairs = pairs_of(recording, load("picture-text"), load("autoencoder"), say)
    curve = add_adapter(decoder, subject, recording, pairs, say)
    with plain_folder_errors(target / CONFIG):
        decoder.save_pretrained(target)
    return Fitted(subject, target, curve, z_scored=not bool(recording.mean.any()))
