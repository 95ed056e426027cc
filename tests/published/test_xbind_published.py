"""XBind by its published models, tiny and random: every medium, the phases, what is leased, kept and refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from huggingface_hub import constants
from torch import Tensor
from torch.nn import functional as F

from models import full_shape_models
from models.bind import WordsEars, load_language_bind_audio
from models.errors import Cancelled, UserError
from models.full_shape_models import UNCLIP, VIT_H, VIT_L, ZERO123, load_words_ears, xbind_models
from models.manager import ModelManager
from models.published_spaces import PublishedPictureText, load_picture_space
from models.sources import Hub
from models.stable_unclip import StableUnCLIP, load_stable_unclip
from models.zero123 import load_zero123
from pipelines.base import Produced, Progress, Runtime
from pipelines.media import Artifact, Image, Mesh, Text
from pipelines.xbind import optimisation
from pipelines.xbind.optimisation import grey_ball, has_surface
from pipelines.xbind.phases import COLORS, DISTANCES
from pipelines.xbind.rendering import Cameras, Framing, lit, render
from pipelines.xbind.supervision import Weights
from pipelines.xbind_published import pipeline, supervision
from pipelines.xbind_published.pipeline import DRAWS, PHASES, PublishedXBind, metric, square
from pipelines.xbind_published.supervision import Meant, PublishedSupervision, facing, in_place, normals_shown
from tests.box_shapes import boxes
from tests.published.test_shap_e import Ball, Nothing
from tests.test_language_bind import PROJECTION, write_published
from tests.tiny_models import manager_of, resident, spec_of
from tests.tiny_priors import unclip_folder, zero123_folder
from tests.tiny_published import WIDTH, clip_folder, write_older_tokenizer
from tests.tiny_shap_e import shap_e_pictures_folder
from tests.tiny_shapes import ball
from tests.tiny_sounds import picture, tone
from tests.weight_folders import resolve

XBIND = PublishedXBind()
THINGS = ("rain", "a dog", "an engine")
EVERYTHING = replace(PHASES[0], planar=1.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("xbind")
    clip_folder(place / "vit-h", seed=3)
    clip_folder(place / "vit-l", seed=4, width=PROJECTION)
    clip_folder(place / "other", seed=5)
    (place / "ears").mkdir()
    write_published(place / "ears")
    return {
        "vit-h": place / "vit-h",
        "vit-l": place / "vit-l",
        "other": place / "other",
        "ears": place / "ears",
        "unclip": unclip_folder(place / "unclip"),
        "zero123": zero123_folder(place / "zero123"),
        "shap-e": shap_e_pictures_folder(place / "shap-e"),
    }


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, values in (
        (optimisation, {"JUDGED_SIDE": 24, "SHOWN_SIDE": 24}),
        (supervision, {"SIDE": 16, "LOOKED_AT": 32, "AROUND": 4}),
        (pipeline, {"SHAPE_STEPS": 2, "DRAWS": 3, "GRID": 16}),
    ):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setitem(pipeline.REFINING, "draft", (3, 2, 2))


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


# ---------------------------------------------------------------------------------------------------------- supervision


def a_shape() -> Tensor:
    """Asymmetric, with a red and a blue end."""
    return boxes(16, ((-0.3, 0, 0), (0.3, 0.35, 0.2), (0.9, 0.1, 0.1)), ((0.3, 0, 0), (0.3, 0.2, 0.4), (0.1, 0.1, 0.9)))


AROUND_IT = Cameras.of((0, 0), (90, 0), (180, 10), (250, 20))


def supervised(folders: dict[str, Path], weights: Weights, micro_batch: int = 16) -> PublishedSupervision:
    planar, stereoscopic = load_stable_unclip(folders["unclip"]), load_zero123(folders["zero123"])
    meant = Meant(F.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(1)), dim=0), "rain", 0)
    front = Cameras.of((0.0, 0.0))
    runtime = Runtime(manager_of(10), micro_batch=micro_batch)
    return PublishedSupervision(planar, stereoscopic, meant, picture(1, 32, 32), front, weights, 0, runtime, side=16)


@pytest.fixture
def views() -> Tensor:
    shape = a_shape()
    return render(shape, AROUND_IT, Framing.of(shape[0]), 16)


@pytest.mark.parametrize("distillation", ["sds", "cds"])
@pytest.mark.parametrize("weights", [Weights(2, 0, 0), Weights(0, 3, 0)])
def test_each_supervision_has_the_norm_of_its_weight_in_what_the_phase_goes_by(
    folders: dict[str, Path], views: Tensor, weights: Weights, distillation: Any
) -> None:
    made = supervised(folders, weights)
    made.draw_reference(views[0])
    for phase in (EVERYTHING, replace(PHASES[1], planar=1.0), PHASES[2]):
        slope = made.slope(views, AROUND_IT, 0.4, replace(phase, distillation=distillation))
        lacking = torch.full_like(slope[:, phase.seen], supervision.USUAL)
        usual = (2 * lacking / (len(views) * views.shape[-1] ** 2)).norm().item()
        assert slope.norm().item() == pytest.approx(usual * (weights.planar + weights.stereoscopic), rel=1e-3)
        unseen = slope.clone()
        unseen[:, phase.seen] = 0
        assert not unseen.any() and (slope.flatten(1).norm(dim=1) > 0).all()


def test_without_weights_nothing_is_computed(folders: dict[str, Path], views: Tensor) -> None:
    made = supervised(folders, Weights(0, 0, 1))
    made.stereoscopic = None
    made.planar.unet.forward = None
    assert not made.slope(views, AROUND_IT, 0.4, EVERYTHING).any()


@pytest.mark.parametrize("distillation", ["sds", "cds"])
def test_fewer_at_once_give_the_same(folders: dict[str, Path], views: Tensor, distillation: Any) -> None:
    phase = replace(EVERYTHING, distillation=distillation)
    slopes = []
    for count in (16, 3, 1):
        made = supervised(folders, Weights(1, 1, 1), count)
        made.draw_reference(views[0])
        slopes.append(made.slope(views, AROUND_IT, 0.4, phase))
    for other in slopes[1:]:
        assert (slopes[0] - other).norm() < 1e-3 * slopes[0].norm()


@pytest.mark.parametrize("distillation", ["sds", "cds"])
def test_views_go_where_a_prior_wants_them(folders: dict[str, Path], distillation: Any) -> None:
    """A prior that takes what it is given for the latents of one picture, the more so the noisier it is."""
    shape = a_shape()
    framing = Framing.of(shape[0])
    truth, start = (render(grid, AROUND_IT, framing, 16) for grid in (shape, grey_ball(16)))
    made = supervised(folders, Weights(1, 0, 0))
    wanted = made.planar.encode(supervision.at_side(supervision.with_margin(lit(truth)), 16)).detach()
    present = wanted

    def estimate(noisy: Tensor, time: float, *_: Any) -> tuple[Tensor, Tensor]:
        return torch.lerp(present, wanted, 0.3 + 0.7 * time), torch.zeros_like(noisy)

    made.planar.estimate = estimate  # type: ignore[method-assign, assignment]

    def error(views: Tensor) -> float:
        seen = made.planar.encode(supervision.at_side(supervision.with_margin(lit(views)), 16))
        return float((seen - wanted).square().mean().sqrt())

    views, phase = start.clone(), replace(EVERYTHING, distillation=distillation)
    present = made.planar.encode(supervision.at_side(supervision.with_margin(lit(views)), 16)).detach()
    length = made.slope(views, AROUND_IT, 0.4, phase).norm()
    for _ in range(60):
        present = made.planar.encode(supervision.at_side(supervision.with_margin(lit(views)), 16)).detach()
        views = views - 0.5 * made.slope(views, AROUND_IT, 0.4, phase) / length
    assert error(views) < 0.6 * error(start)


def test_the_first_view_goes_to_the_reference(folders: dict[str, Path], views: Tensor) -> None:
    made = supervised(folders, Weights(0, 1, 0))
    made.draw_reference(views[0])
    slope = made.slope(views, AROUND_IT, 0.4, PHASES[2])
    before = (lit(views[:1]) - made.first).square().mean()
    after = (lit(views[:1] - 0.1 * slope[:1] / slope[0].abs().max()) - made.first).square().mean()
    assert after < before


def test_consistency_distillation_is_one_estimate_less_another_of_the_same_noise(
    folders: dict[str, Path], views: Tensor
) -> None:
    made = supervised(folders, Weights(1, 0, 0))
    asked: list[tuple[Tensor, float]] = []

    def estimate(noisy: Tensor, time: float, *_: Any) -> tuple[Tensor, Tensor]:
        asked.append((noisy, time))
        return torch.full_like(noisy, time), torch.zeros_like(noisy)

    made.planar.estimate = estimate  # type: ignore[method-assign, assignment]
    made.planar.encode = lambda pixels: 0 * pixels.mean() + pixels.new_zeros(len(pixels), 4, 8, 8)  # type: ignore[method-assign]
    phase = replace(EVERYTHING, distillation="cds")
    made.slope(views, AROUND_IT, 0.3, phase)
    (first, later), (second, earlier) = asked
    assert earlier == 0.3 and 0.4 <= later <= 0.6
    torch.testing.assert_close(second, torch.full_like(second, later * made.planar.share(earlier) ** 0.5))
    assert torch.equal(first[0], first[3])  # one noise for all views
    made.slope(views, AROUND_IT, 0.3, phase)
    again, time = asked[2]
    scale = ((1 - made.planar.share(time)) / (1 - made.planar.share(later))) ** 0.5
    torch.testing.assert_close(again, first * scale)


def test_normals_are_shown_on_white(views: Tensor) -> None:
    shown = normals_shown(views)
    covered = views[:, 6] > 0.9
    assert covered.any()
    ours, theirs = (part.permute(0, 2, 3, 1)[covered] for part in (shown, views[:, 3:6]))
    torch.testing.assert_close(ours, theirs, atol=0.06, rtol=0)
    assert (shown.permute(0, 2, 3, 1)[views[:, 6] < -0.99] > 0.98).all()


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_the_reference_is_found_from_where_it_was_seen(folders: dict[str, Path], degrees: int) -> None:
    shape = a_shape()
    seen = lit(render(shape, Cameras.of((degrees, 0)), Framing.of(shape[0]), 32))[0]
    reference = Image(((seen.permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).byte().numpy())
    camera = facing(shape, reference, load_stable_unclip(folders["unclip"]), Runtime(manager_of(10)))
    assert torch.rad2deg(camera.azimuths).item() == pytest.approx(degrees, abs=1)


def test_a_reference_gets_the_place_and_size_of_the_object() -> None:
    pixels = np.full((40, 40, 3), 255, np.uint8)
    pixels[5:15, 2:22] = (200, 0, 0)  # twice as wide as high
    covered = torch.zeros(16, 16, dtype=torch.bool)
    covered[4:12, 2:14] = True
    placed = in_place(Image(pixels), covered).pixels
    rows, columns = (np.flatnonzero(np.any(placed < 240, axis=(axis, 2))) for axis in (1, 0))
    assert (columns[0], columns[-1] + 1) == pytest.approx((4, 28), abs=1)
    assert (rows[0] + rows[-1] + 1) / 2 == pytest.approx(16, abs=1) and len(rows) == pytest.approx(12, abs=1)
    assert np.array_equal(in_place(Image(pixels), covered & False).pixels, pixels)


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


# -------------------------------------------------------------------------------------------------------------- loading


def in_the_cache(hub: Hub, folder: Path, cache: Path) -> None:
    """Only those files that the catalogue names."""
    snapshot = cache / f"models--{hub.repo.replace('/', '--')}" / "snapshots" / ("0" * 40)
    for name in hub.files:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        if (folder / name).exists():
            shutil.copy(folder / name, snapshot / name)
    if "merges.txt" in hub.files:
        write_older_tokenizer(snapshot)
    refs = cache / f"models--{hub.repo.replace('/', '--')}" / "refs"
    refs.mkdir(exist_ok=True)
    (refs / hub.revision).write_text("0" * 40)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    yield tmp_path


@pytest.mark.parametrize(("key", "hub", "name"), [("stable-unclip", UNCLIP, "unclip"), ("zero123", ZERO123, "zero123")])
def test_the_catalogue_names_all_files_that_a_prior_needs(
    folders: dict[str, Path], cache: Path, key: str, hub: Hub, name: str
) -> None:
    in_the_cache(hub, folders[name], cache)
    [spec] = [spec for spec in xbind_models() if spec.key == key]
    assert spec.source == hub and not spec.restricted
    model = spec.load(resolve(hub).folder)
    assert isinstance(model, StableUnCLIP) is (key == "stable-unclip")


def test_ears_are_led_by_the_words_of_both_spaces(
    folders: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for hub, name in ((VIT_H, "vit-h"), (VIT_L, "vit-l")):
        in_the_cache(hub, folders[name], cache)
    monkeypatch.setattr(full_shape_models, "sounding_things", lambda: THINGS)
    ears = load_words_ears(folders["ears"])
    assert isinstance(ears, WordsEars) and ears.there.shape == (3, WIDTH)
    there = load_picture_space(folders["vit-h"])
    assert isinstance(there, PublishedPictureText)
    torch.testing.assert_close(
        ears.there, there.embed_words([f"the sound of {x}" for x in ("rain", "a dog", "an engine")])
    )
    sounds = torch.randn(2, 16_000).clamp(-1, 1) * 0.3
    heard = ears.ears.embed(sounds)
    shares = ((heard @ ears.said.T) / 0.02).softmax(1)
    torch.testing.assert_close(ears.embed_sounds(sounds), F.normalize(shares @ ears.there, dim=1))
    assert ears.embed_sounds(torch.zeros(1, 10)).isfinite().all()
    in_the_cache(VIT_L, folders["vit-h"], cache)
    with pytest.raises(UserError, match="do not meet"):
        load_words_ears(folders["ears"])


def test_only_imagebind_is_asked_about() -> None:
    assert {spec.key for spec in xbind_models() if spec.restricted} == {"imagebind"}
    assert {spec.key for spec in xbind_models()} < set(XBIND.models)
