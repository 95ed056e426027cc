"""What was decoded of a scan is said to be that, whatever is made of it: by whole plans, with the shipped models."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.controller.executor import execute
from app.controller.plan import Plan
from app.settings import Settings
from app.studio import Studio
from models.catalog import catalog
from models.manager import ModelManager
from pipelines.audioldm.pipeline import AudioLDM
from pipelines.base import Registry
from pipelines.crossflow.pipeline import CrossFlow
from pipelines.describe.pipeline import Describe
from pipelines.fmri.pipeline import FMRI, GUIDED, OF_SIMULATION
from pipelines.media import BrainScan
from pipelines.neuropictor.small import SmallNeuroPictorPipeline
from tests.tiny_models import CPU
from tests.watched_pipelines import done, plan_of, step

SCAN = Path("assets/examples/scans/S6-placard.npz")
QUICK = {"num_inference_steps": 1}


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    registry = Registry([FMRI(), SmallNeuroPictorPipeline(), CrossFlow(), Describe(), AudioLDM()])
    manager = ModelManager(catalog("lite"), CPU, 2 * 10**9)
    return Studio(Settings(output_folder=tmp_path, _env_file=None), registry, manager)


def badges(studio: Studio, plan: Plan) -> list[str]:
    """Of what each step gives the next, out of the gallery."""
    events = list(execute(studio, plan, {"upload:1": BrainScan.load(SCAN)}))
    results = [studio.library.load(made.result.entry.id).provenance for made in done(events).values()]
    assert len(results) == len(plan.steps)
    return [made_by.badge for made_by in results if made_by]


@pytest.mark.parametrize("reader", ["fmri", "neuropictor"])
def test_a_sound_of_a_description_of_a_picture_of_a_scan_has_its_badge(studio: Studio, reader: str) -> None:
    seen = step("a", reader, "upload:1", output="image", **QUICK)
    said = step("b", "describe", "$a", output="text")
    heard = step("c", "audioldm", "$b", output="audio", steps=2, candidates=1)
    [badge, *others] = badges(studio, plan_of(seen, said, heard))
    assert badge.startswith(OF_SIMULATION) and badge.endswith(GUIDED) and others == [badge, badge]


@pytest.mark.parametrize("reader", ["fmri", "neuropictor"])
def test_a_picture_of_what_a_scan_is_said_to_show_has_its_badge(studio: Studio, reader: str) -> None:
    said = step("a", reader, "upload:1", output="text", **QUICK)
    painted = step("b", "crossflow", "$a", output="image", **QUICK)
    [badge, other] = badges(studio, plan_of(said, painted))
    assert badge.startswith(OF_SIMULATION) and badge.endswith(GUIDED) and other == badge
