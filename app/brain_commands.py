"""``python -m app adapt-subject ...``: an adapter of the brain decoder for somebody whom it does not know."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands import progress_bar
from app.settings import Settings
from models.catalog import catalog
from models.checksums import SUMS
from models.errors import UserError
from models.spec import ModelSpec
from pipelines.atomic import plain_folder_errors
from pipelines.base import Progress

if TYPE_CHECKING:
    from pipelines.fmri.adapting import Curve

DECODER = "brain-decoder"
MOST_MESSAGES = 7  # of a fit


def adapt_subject(settings: Settings, arguments: argparse.Namespace) -> int:
    """Fit the adapter, write the decoder with it to a folder, and print the learning curve.

    The decoder that is already in the folder gets it, else a copy of the one in use: an adapter is of no use without
    the core that it was fitted to.
    """
    from models.nets.brain_decoder import CONFIG, load_brain_decoder
    from pipelines.fmri.adapting import add_adapter, pairs_of, read_recording

    specs = catalog("lite", settings.local_weights)

    def load(spec: ModelSpec) -> Any:
        return spec.load(spec.source.resolve(lambda share, said: None).folder)

    target = Path(arguments.out)
    if target.is_file() or (target / SUMS).is_file():
        what = "a file" if target.is_file() else "a folder of weights as they were published"
        raise UserError(f"'{target.name[:60]}' is {what}.", "Choose another folder.")
    decoder = load_brain_decoder(target) if (target / CONFIG).is_file() else load(specs[DECODER])
    with progress_bar(sys.stderr) as bar:
        said = count()

        def say(message: str) -> None:
            bar(Progress(next(said), MOST_MESSAGES, message))

        recording = read_recording([Path(name) for name in arguments.scans], Path(arguments.pictures))
        space, autoencoder = (load(specs[key]) for key in ("picture-text", "autoencoder"))
        pairs = pairs_of(recording, space, autoencoder, say)
        curve = add_adapter(decoder, arguments.subject, recording, pairs, say)
    with plain_folder_errors(target / CONFIG):
        decoder.save_pretrained(target)
    if arguments.json:
        print(json.dumps({"subject": arguments.subject, "folder": str(target), **asdict(curve)}, indent=2))
    else:
        print(_told(arguments.subject, target, curve, z_scored=not recording.mean.any()))
    return 0


def _told(subject: str, target: Path, curve: Curve, z_scored: bool) -> str:
    lines = [
        f"Of {curve.held_back} pictures that were set aside, the right one is the nearest for so many scans:",
        f"{'pictures':>10}" + "".join(f"{way:>10}" for way in next(iter(curve.rows.values()))),
    ]
    for pictures, ways in curve.rows.items():
        lines.append(f"{pictures:>10}" + "".join(f"{row['top1']:>9.0%} " for row in ways.values()))
    lines.append(f"By chance {curve.chance['top1']:.0%}. The adapter that is kept was fitted on all pictures.")
    if z_scored:
        lines.append(f"Scans of {subject} must be z-scored as these were: they do not say by what.")
    weights = json.dumps({DECODER: str(target)})
    lines.append(f"Decode scans of '{subject}' with: --local-weights '{weights}'")
    return "\n".join(lines)
