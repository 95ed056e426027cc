"""``python -m app adapt-subject ...``: an adapter of the brain decoder for somebody whom it does not know."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from app.adapters import Fitted, fit_subject
from app.commands import progress_bar
from app.settings import Settings
from models.catalog import catalog
from models.machine import choose_device, memory_budget
from models.manager import ModelManager
from pipelines.base import Runtime


def adapt_subject(settings: Settings, arguments: argparse.Namespace) -> int:
    """Fit the adapter, write the decoder with it to a folder, and print the learning curve."""
    device = choose_device(settings.device)
    manager = ModelManager(catalog("lite", settings.local_weights), device, memory_budget(device))
    scans, pictures = [Path(name) for name in arguments.scans], Path(arguments.pictures)
    with progress_bar(sys.stderr) as bar:
        runtime = Runtime(manager, report=bar)
        fitted = fit_subject(manager, runtime, scans, pictures, arguments.subject, Path(arguments.out))
    if arguments.json:
        print(json.dumps({"subject": fitted.subject, "folder": str(fitted.folder), **asdict(fitted.curve)}, indent=2))
    else:
        print(_told(fitted))
    return 0


def _told(fitted: Fitted) -> str:
    curve = fitted.curve
    lines = [
        f"Of {curve.held_back} pictures that were set aside, the right one is the nearest for so many scans:",
        f"{'pictures':>10}" + "".join(f"{way:>10}" for way in next(iter(curve.rows.values()))),
    ]
    for pictures, ways in curve.rows.items():
        lines.append(f"{pictures:>10}" + "".join(f"{row['top1']:>9.0%} " for row in ways.values()))
    return "\n".join([*lines, *fitted.notes(), f"Decode scans of '{fitted.subject}' with: {fitted.flags}"])
