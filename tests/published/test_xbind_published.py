"""XBind by its published models, tiny and random: every medium, the phases, what is leased, kept and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor
from torch.nn import functional as F

from models.bind import WordsEars, load_language_bind_audio
from models.errors import Cancelled, UserError
from models.manager import ModelManager
from models.published_spaces import PublishedPictureText, load_picture_space
from models.stable_unclip import load_stable_unclip
from models.zero123 import load_zero123
from pipelines.base import Produced, Progress, Runtime
from pipelines.media import Artifact, Image, Mesh, Text
from pipelines.xbind import optimisation
from pipelines.xbind.optimisation import has_surface
from pipelines.xbind.phases import COLORS, DISTANCES
from pipelines.xbind_published import pipeline
from pipelines.xbind_published.pipeline import DRAWS, PHASES, PublishedXBind, metric, square
from tests.published.test_shap_e import Ball, Nothing
from tests.tiny_models import manager_of, resident, spec_of
from tests.tiny_published import WIDTH
from tests.tiny_shapes import ball
from tests.tiny_sounds import picture, tone
from tests.tiny_xbind import make_small, xbind_folders

XBIND = PublishedXBind()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return xbind_folders(tmp_path_factory.mktemp("xbind"))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


def ears_of(folders: dict[str, Path]) -> WordsEars:
    ears = load_language_bind_audio(folders["ears"])
    generator = torch.Generator().manual_seed(5)
    said, there = (F.normalize(torch.randn(9, width, generator=generator), dim=1) for width in (ears.width, WIDTH))
    return WordsEars(ears, said, there).eval()


class Bound(torch.nn.Module):
    """In place of ImageBind, which has tests of its own: a space that hears, too."""

    reads = "words"
    hears = "waveforms"
    sample_rate = 16_000
    samples = 160_000

    def __init__(self, folders: dict[str, Path]) -> None:
        super().__init__()
        self.space, self.ears = load_picture_space(folders["other"]), ears_of(folders)

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        assert isinstance(self.space, PublishedPictureText)
        return self.space.embed_pictures(pixels)

    def embed_words(self, words: list[str]) -> Tensor:
        assert isinstance(self.space, PublishedPictureText)
        return self.space.embed_words(words)

    def embed_sounds(self, waveforms: Tensor) -> Tensor:
        return self.ears.embed_sounds(waveforms)


def manager_with(folders: dict[str, Path], folder: Path, kind: type[Any] = Ball) -> ModelManager:
    def shapes(_: Path) -> Any:
        from models.shap_e import load_shap_e

        model = load_shap_e(folders["shap-e"])
        model.__class__ = kind
        return model

    loads: dict[str, Callable[[Path], object]] = {
        "aligned-space": lambda _: load_picture_space(folders["vit-h"]),
        "aligned-ears": lambda _: ears_of(folders),
        "imagebind": lambda _: Bound(folders),
        "stable-unclip": lambda _: load_stable_unclip(folders["unclip"]),
        "zero123": lambda _: load_zero123(folders["zero123"]),
        "shap-e-pictures": shapes,
    }
    return manager_of(10**6, *(spec_of(key, folder, load=load) for key, load in loads.items()))


@pytest.fixture
def manager(folders: dict[str, Path], tmp_path: Path) -> ModelManager:
    return manager_with(folders, tmp_path)


def run(
    manager: ModelManager, *given: Artifact, stop_at: int = 10**9, micro_batch: int = 16, **params: Any
) -> tuple[list[Progress], list[Mesh], bool]:
    """Its progress, its objects, and whether it was cancelled, which it is once so many steps are done."""
    runtime, progress, made = Runtime(manager, micro_batch=micro_batch), [], []
    values = {"draw_steps": 2, "resolution": 32, **params}
    try:
        for event in XBIND.run(given, XBIND.parse_params(values), runtime):
            if isinstance(event, Produced):
                assert isinstance(event.artifact, Mesh)
                made.append(event.artifact)
            else:
                progress.append(event)
                if event.step >= stop_at:
                    runtime.cancelled.set()
    except Cancelled:
        return progress, made, True
    return progress, made, False


# ------------------------------------------------------------------------------------------------------------- pipeline


@pytest.mark.parametrize(
    ("given", "encoder", "reads"),
    [
        ((picture(0),), "languagebind", {"aligned-space"}),
        ((tone(440, 1.0),), "languagebind", {"aligned-ears"}),
        ((Text("rain"), tone(440, 1.0)), "languagebind", {"aligned-space", "aligned-ears"}),
        ((Text("rain"), tone(440, 1.0)), "imagebind", {"imagebind"}),
    ],
    ids=["picture", "sound", "both", "both by ImageBind"],
)
def test_every_medium_becomes_a_closed_object(
    manager: ModelManager, given: tuple[Artifact, ...], encoder: str, reads: set[str]
) -> None:
    progress, [made], cancelled = run(manager, *given, encoder=encoder, size=0.4, num_faces=900)
    closed = trimesh.Trimesh(made.vertices, made.faces, process=False)
    assert not cancelled and closed.is_watertight and closed.volume > 0 and len(made.faces) <= 900
    assert np.ptp(made.vertices, axis=0).max() == pytest.approx(0.4)
    assert set(resident(manager)) == reads | {"stable-unclip", "shap-e-pictures"}
    assert made.provenance is not None
    assert {model.key for model in made.provenance.models} == set(resident(manager))
    assert [event.step for event in progress] == sorted(event.step for event in progress)
    assert any(event.message == "Drew the picture to go by" and event.preview is not None for event in progress)


def test_prompts_seeds_and_settings_count(manager: ModelManager) -> None:
    def reference(*given: Artifact, **params: Any) -> np.ndarray:
        progress, _, _ = run(manager, *given, **params)
        [shown] = [event.preview for event in progress if event.message == "Drew the picture to go by"]
        assert shown is not None
        return shown.pixels

    said = reference(Text("rain"))
    assert np.array_equal(said, reference(Text(" rain\n")))
    for other in (
        reference(Text("dog")),
        reference(Text("rain"), seed=1),
        reference(Text("rain"), guidance=2),
        reference(Text("rain"), noise_level=600),
        reference(Text("rain"), draw_steps=3),
        reference(Text("rain"), encoder="imagebind"),
    ):
        assert said.shape != other.shape or not np.array_equal(said, other)


def test_a_refinement_goes_through_its_phases_and_names_its_models(manager: ModelManager) -> None:
    progress, [made], _ = run(manager, Text("rain"), preset="draft")
    steps = [event.step for event in progress]
    total = 2 + 3 + 7
    assert steps == sorted(steps) and steps[-1] == total and {event.total for event in progress[1:]} == {total}
    said = [event.message for event in progress]
    places = [next(i for i, message in enumerate(said) if phase.name in message) for phase in PHASES]
    assert places == sorted(places)
    assert trimesh.Trimesh(made.vertices, made.faces, process=False).is_watertight
    assert made.provenance is not None
    used = {"aligned-space", "stable-unclip", "zero123", "shap-e-pictures"}
    assert {model.key for model in made.provenance.models} == used == set(resident(manager))


def test_from_scratch_no_preview_is_made(manager: ModelManager) -> None:
    progress, [made], _ = run(manager, Text("rain"), preset="draft", start="scratch")
    assert set(resident(manager)) == {"aligned-space", "stable-unclip", "zero123"}
    assert progress[-1].step == progress[-1].total == 2 + 7 and progress[-1].message.startswith("Refined.")
    assert trimesh.Trimesh(made.vertices, made.faces, process=False).is_watertight
    away = np.linalg.norm(made.vertices - [0, 0.5, 0], axis=1)
    assert away.std() > 0.005  # that of a ball is 0.001


@pytest.mark.parametrize("stop_at", [6, 10])
def test_what_is_stopped_while_it_is_refined_is_kept_with_its_recipe(manager: ModelManager, stop_at: int) -> None:
    _, [stopped], cancelled = run(manager, Text("rain"), preset="draft", stop_at=stop_at)
    assert cancelled and stopped.provenance is not None
    steps = stopped.provenance.params["refine_steps"]
    assert isinstance(steps, int) and 0 < steps <= stop_at - 4
    _, [again], _ = run(manager, Text("rain"), preset="draft", refine_steps=steps)
    assert np.allclose(stopped.vertices, again.vertices, atol=1e-5)


@pytest.mark.parametrize("stop_at", [1, 3])
def test_what_is_stopped_before_there_is_an_object_is_nothing(manager: ModelManager, stop_at: int) -> None:
    _, made, cancelled = run(manager, Text("rain"), preset="draft", stop_at=stop_at)
    assert cancelled and not made and all(row.leases == 0 for row in manager.status())


def test_a_picture_may_be_the_reference_itself(manager: ModelManager) -> None:
    shown = picture(2, 24, 36)
    progress, made, _ = run(manager, shown, reference="given", background="keep")
    assert len(made) == 1 and not any("Drew" in event.message for event in progress)
    assert made[0].provenance is not None
    assert {model.key for model in made[0].provenance.models} == {"shap-e-pictures"} == set(resident(manager))
    run(manager, Text("rain"), shown, reference="given", share=0.0)
    assert {"stable-unclip", "aligned-space"} < set(resident(manager))  # a picture that does not count is none
    squared = square(shown).pixels
    assert squared.shape == (36, 36, 3) and np.array_equal(squared[6:30], shown.pixels) and (squared[:6] == 255).all()


def test_variations_are_the_objects_of_the_next_seeds(manager: ModelManager) -> None:
    _, several, _ = run(manager, Text("rain"), num_shapes=2, seed=7)
    for index, one in enumerate(several):
        _, [alone], _ = run(manager, Text("rain"), seed=7 + index)
        assert one.provenance is not None and one.provenance.index == index
        np.testing.assert_allclose(one.vertices, alone.vertices, atol=1e-4)


def test_several_are_one_run_of_steps(manager: ModelManager) -> None:
    progress, several, _ = run(manager, Text("rain"), num_shapes=2, preset="draft", micro_batch=2)
    each = 2 * 2 + 3 + 7  # three draws, two at once
    steps = [event.step for event in progress]
    assert steps == sorted(steps) and steps[-1] == 2 * each and len(several) == 2
    assert {event.total for event in progress[1:]} == {2 * each}


def test_with_less_memory_it_computes_less_at_once(manager: ModelManager) -> None:
    """One view at a time gives what all at once give: noise is drawn for all."""
    whole, single = (run(manager, Text("rain"), preset="draft", micro_batch=count)[1][0] for count in (16, 1))
    _, [start], _ = run(manager, Text("rain"))
    volumes = [trimesh.Trimesh(one.vertices, one.faces, process=False).volume for one in (whole, single)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.01) and not np.array_equal(whole.vertices, start.vertices)
    things, _, refines = XBIND.shape_of_work([Text("rain")], XBIND.parse_params({"preset": "draft"}))
    assert (things, refines) == (pipeline.DRAWS, 1) and DRAWS == optimisation.CAMERAS
    assert XBIND.shape_of_work([Text("rain")], XBIND.parse_params({}))[2] == 0


def test_a_stop_while_the_priors_load_keeps_the_preview(manager: ModelManager, monkeypatch: pytest.MonkeyPatch) -> None:
    _, [preview], _ = run(manager, Text("rain"))
    cancelled = False

    def lease(self: Runtime, key: str) -> Any:
        nonlocal cancelled
        if key == "zero123":
            self.cancelled.set()
            cancelled = True
            raise Cancelled
        return usual(self, key)

    usual = Runtime.lease
    monkeypatch.setattr(Runtime, "lease", lease)
    _, [kept], stopped = run(manager, Text("rain"), preset="draft")
    assert cancelled and stopped and np.array_equal(kept.vertices, preview.vertices)
    assert kept.provenance is not None and kept.provenance.params["preset"] == "preview"
    assert run(manager, Text("rain"), preset="draft", start="scratch")[1:] == ([], True)


def test_what_is_not_weighed_is_not_leased(manager: ModelManager) -> None:
    _, [made], _ = run(manager, Text("rain"), preset="draft", stereoscopic_weight=0)
    assert "zero123" not in resident(manager)
    assert made.provenance is not None and "zero123" not in {model.key for model in made.provenance.models}


def test_what_has_no_surface_offers_the_next_seed(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No object came of the seed 4") as refusal:
        run(manager_with(folders, tmp_path, Nothing), Text("rain"), seed=4)
    assert refusal.value.hint == "Try the seed 5."


@pytest.mark.parametrize(
    ("given", "params", "words"),
    [
        (Text(" \n"), {}, "The text is empty"),
        (Image(np.full((40, 40, 3), 255, np.uint8)), {}, "shows nothing"),
        (Text("rain"), {"num_faces": 10**9}, "'num_faces' cannot be '1000000000'"),
        (Text("rain"), {"noise_level": 1000}, "'noise_level' cannot be '1000'"),
        (Text("rain"), {"coarse": "vsd"}, "'coarse' cannot be 'vsd'"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_loaded(
    manager: ModelManager, given: Artifact, params: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run(manager, given, **params)
    assert not resident(manager)


# ----------------------------------------------------------------------------------------------------------- distances


def test_distances_of_any_field_become_those_of_its_surface() -> None:
    exact = ball(64)
    field = torch.cat([(3 * exact).tanh() * 0.2, torch.zeros(3, 64, 64, 64)])
    found = metric(field)[:1]
    near = exact.abs() < 0.7
    assert (found - exact)[near].abs().mean() < 0.06 and (found[exact == 1] > 0.85).all()
    assert has_surface(metric(field)) and torch.equal(metric(field)[COLORS], field[COLORS])


def test_what_is_thin_stays() -> None:
    field = torch.ones(4, 32, 32, 32)
    field[DISTANCES, 16, :, 16] = -0.1  # a rod of one voxel
    assert torch.equal(metric(field)[0] < 0, field[0] < 0)
