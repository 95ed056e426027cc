"""XBind's presets that refine: what is produced, also when stopped; what is leased, refused, and said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from app.recovery import events_of
from models.errors import Cancelled, UserError
from models.manager import ModelManager
from models.nets.view_diffusion import Given, ViewDiffusion
from pipelines.base import Produced, Progress, Runtime
from pipelines.media import Mesh, Text
from pipelines.xbind import optimisation, pipeline
from pipelines.xbind.pipeline import XBind
from tests.test_view_diffusion import TINY, tiny
from tests.tiny_models import resident
from tests.tiny_shapes import AUTOENCODER, Ball, Nothing, tiny_generator
from tests.tiny_sounds import picture, sound_manager

XBIND = XBind()


@pytest.fixture(scope="module", autouse=True)
def small_pictures() -> Iterator[None]:
    """What is judged and shown costs more than all else here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("JUDGED_SIDE", "SHOWN_SIDE"):
            patch.setattr(optimisation, name, 24)
        yield


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pipeline.REFINING, "draft", (4, 3, 3))


def refining_manager(
    folder: Path,
    autoencoder: type[Ball] | type[Nothing] = Ball,
    width: int = TINY.condition_width,
    prior: Callable[[], ViewDiffusion] | None = None,
) -> ModelManager:
    """Everything that the pipeline may lease. ``prior``: the view diffusion model, or a tiny one with conditions of
    ``width``."""
    return sound_manager(
        folder,
        instead={
            "shape-generator": tiny_generator,
            "shape-autoencoder": lambda: autoencoder(AUTOENCODER),
            "view-diffusion": prior or (lambda: tiny(replace(TINY, condition_width=width))),
        },
    )


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> ModelManager:
    return refining_manager(tmp_path_factory.mktemp("models"))


def run(manager: ModelManager, stop_at: int = 10**9, **params: Any) -> tuple[list[Progress], list[Mesh], bool]:
    """Its progress, its objects, and whether it was cancelled, which it is once so many steps are done."""
    runtime, progress, made = Runtime(manager), [], []
    values = {"preset": "draft", "steps": 2, "resolution": 32, **params}
    try:
        for event in XBIND.run([Text("dog")], XBIND.parse_params(values), runtime):
            if isinstance(event, Produced):
                assert isinstance(event.artifact, Mesh)
                made.append(event.artifact)
            elif isinstance(event, Progress):
                progress.append(event)
                if event.step >= stop_at:
                    runtime.cancelled.set()
    except Cancelled:
        return progress, made, True
    return progress, made, False


def test_a_preset_refines_and_the_preview_stays_what_it_was(manager: ModelManager, short: None) -> None:
    progress, [made], _ = run(manager, similarity_weight=3)
    assert [event.step for event in progress] == [0, 1, 2, *range(2, 13), 12] and progress[-1].total == 12
    assert made.provenance is not None and made.provenance.params["preset"] == "draft"
    assert "view-diffusion" in {record.key for record in made.provenance.models}
    _, [again], _ = run(manager, similarity_weight=3)
    np.testing.assert_array_equal(made.vertices, again.vertices)
    shown, [preview], _ = run(manager, preset="preview")
    assert [event.step for event in shown] == [0, 1, 2] and shown[-1].total == 2
    assert preview.provenance is not None
    assert "view-diffusion" not in {record.key for record in preview.provenance.models}


def test_the_preview_leases_no_view_diffusion(tmp_path: Path) -> None:
    manager = refining_manager(tmp_path)
    run(manager, preset="preview")
    assert "view-diffusion" not in resident(manager)
    for preset in ("draft", "fine"):
        assert "view-diffusion" in XBIND.models_for([picture(0)], XBIND.parse_params({"preset": preset}))
    assert "view-diffusion" not in XBIND.models_for([picture(0)], XBIND.parse_params({}))


# Two steps of the flow, then phases of four, three and three: each is stopped at its beginning, inside, and at its end.
@pytest.mark.parametrize("stop_at", [2, 3, 6, 7, 9, 11, 12])
def test_what_is_stopped_is_kept_with_its_steps_as_its_recipe(manager: ModelManager, short: None, stop_at: int) -> None:
    _, [made], cancelled = run(manager, stop_at)
    assert cancelled and made.provenance is not None and made.provenance.index == 0
    recipe: dict[str, Any] = {name: made.provenance.params[name] for name in ("preset", "refine_steps")}
    _, [again], _ = run(manager, **recipe)
    np.testing.assert_array_equal(made.vertices, again.vertices)
    np.testing.assert_array_equal(made.vertex_colors, again.vertex_colors)
    assert all(row.leases == 0 for row in manager.status())


def test_a_stop_while_the_prior_loads_keeps_the_preview(
    manager: ModelManager, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, [preview], _ = run(manager, preset="preview")
    usual = Runtime.lease

    def lease(self: Runtime, key: str) -> Any:
        if key == "view-diffusion":
            self.cancelled.set()
            raise Cancelled
        return usual(self, key)

    monkeypatch.setattr(Runtime, "lease", lease)
    _, [kept], cancelled = run(manager)
    assert cancelled and np.array_equal(kept.vertices, preview.vertices)
    assert kept.provenance is not None and kept.provenance.params["preset"] == "preview"
    assert run(manager, start="scratch")[1:] == ([], True)


def test_from_scratch_it_begins_with_a_ball_whatever_the_preview(manager: ModelManager, short: None) -> None:
    progress, [made], _ = run(manager, start="scratch")
    assert [event.step for event in progress] == [0, *range(11), 10] and progress[-1].total == 10
    across = made.vertices.max(0) - made.vertices.min(0)
    assert across == pytest.approx(np.ones(3), abs=0.15)  # ten steps on, it still is much like one
    _, [again], _ = run(manager, start="scratch", steps=5)
    np.testing.assert_array_equal(made.vertices, again.vertices)
    assert run(manager, stop_at=0, start="scratch")[1:] == ([], True)
    _, [stopped], cancelled = run(manager, stop_at=4, start="scratch")
    assert cancelled and stopped.provenance is not None and stopped.provenance.params["start"] == "scratch"
    assert "shape-generator" not in {model.key for model in stopped.provenance.models}


def test_the_distillation_of_each_phase_is_the_one_that_is_asked_for(
    manager: ModelManager, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Watched(optimisation.Refinement):
        def run(self) -> Iterator[Progress]:
            asked.append(tuple(phase.distillation for phase in self.phases))
            return super().run()

    monkeypatch.setattr(pipeline, "Refinement", Watched)
    run(manager)
    run(manager, geometry="cds")
    run(manager, coarse="cds", texture="cds", start="scratch")
    assert asked == [("sds", "sds", "sds"), ("sds", "cds", "sds"), ("cds", "sds", "cds")]


def test_variations_are_refined_one_after_the_other(manager: ModelManager, short: None) -> None:
    progress, made, _ = run(manager, num_shapes=2)
    assert progress[-1].total == progress[-1].step == 22 and len(made) == 2
    assert [one.provenance.index for one in made if one.provenance] == [0, 1]
    assert not np.array_equal(made[0].vertices[:99], made[1].vertices[:99])
    _, kept, cancelled = run(manager, stop_at=15, num_shapes=2)
    assert cancelled and len(kept) == 2
    np.testing.assert_array_equal(kept[0].vertices, made[0].vertices)


def test_stopping_before_anything_is_refined_keeps_nothing(manager: ModelManager, short: None) -> None:
    assert run(manager, stop_at=1)[1:] == ([], True)


def test_a_shape_of_nothing_offers_the_next_seed(tmp_path: Path, short: None) -> None:
    with pytest.raises(UserError, match="No object came of the seed 4") as refusal:
        run(refining_manager(tmp_path, Nothing), seed=4)
    assert refusal.value.hint == "Try the seed 5."


def test_a_prior_of_another_space_is_refused(tmp_path: Path, short: None) -> None:
    with pytest.raises(UserError, match="another space"):
        run(refining_manager(tmp_path, width=8))


class Starving(ViewDiffusion):
    """Wants more memory than there is at its calls with the numbers ``starves_at``, and says nothing otherwise."""

    starves_at: range
    calls = 0

    def forward(self, noisy: Tensor, times: Tensor, given: Given) -> Tensor:
        self.calls += 1
        if self.calls in self.starves_at:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1e12 bytes.")
        return super().forward(noisy, times, given)


def starving_manager(folder: Path, starves_at: range) -> tuple[ModelManager, Starving]:
    torch.manual_seed(0)
    prior = Starving(TINY).eval()
    prior.starves_at = starves_at
    return refining_manager(folder, prior=lambda: prior), prior


def recovered(manager: ModelManager) -> list[Mesh]:
    """As the app runs it."""
    runtime, params = Runtime(manager), XBIND.parse_params({"preset": "draft", "steps": 2, "resolution": 32})
    events = events_of(XBIND, [Text("dog")], params, runtime, manager)
    return [event.artifact for event in events if isinstance(event, Produced) and isinstance(event.artifact, Mesh)]


@pytest.fixture(scope="module")
def calls_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pipeline.REFINING, "draft", (4, 3, 3))
        manager, prior = starving_manager(tmp_path_factory.mktemp("fed"), range(0))
        recovered(manager)
    return prior.calls


@pytest.mark.parametrize("steps_before_the_end", [9, 5, 1], ids=["coarse field", "geometry", "texture"])
def test_memory_that_runs_out_once_in_a_phase_changes_nothing(
    tmp_path: Path, short: None, calls_of_a_run: int, steps_before_the_end: int
) -> None:
    for name in ("fed", "starved"):
        (tmp_path / name).mkdir()
    fed, _ = starving_manager(tmp_path / "fed", range(0))
    [expected] = recovered(fed)
    call = calls_of_a_run - steps_before_the_end
    starved, prior = starving_manager(tmp_path / "starved", range(call, call + 1))
    [made] = recovered(starved)
    assert prior.calls == call + calls_of_a_run  # from the beginning
    np.testing.assert_array_equal(made.vertices, expected.vertices)
    np.testing.assert_array_equal(made.vertex_colors, expected.vertex_colors)
    assert any(decision.kind == "out of memory" for decision in starved.decisions())


def test_memory_that_runs_out_each_time_is_said_in_a_sentence_and_nothing_stays_leased(
    tmp_path: Path, short: None, calls_of_a_run: int
) -> None:
    manager, _ = starving_manager(tmp_path, range(calls_of_a_run - 5, 10**9))
    with pytest.raises(UserError, match="memory"):
        recovered(manager)
    assert all(row.leases == 0 for row in manager.status())
    _, [preview], _ = run(manager, preset="preview")  # which the person still can have
    assert len(preview.faces)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("preset", "best"),
        ("planar_weight", -1),
        ("stereoscopic_weight", 11),
        ("similarity_weight", 1e9),
        ("refine_steps", 0),
    ],
)
def test_params_out_of_bounds_are_named(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"'{name}'"):
        XBIND.parse_params({name: value})


def test_refining_is_more_effort() -> None:
    efforts = [XBIND.effort([], XBIND.parse_params({"preset": preset})) for preset in ("preview", "draft", "fine")]
    assert efforts == sorted(efforts) and efforts[1] > 5 * efforts[0]
