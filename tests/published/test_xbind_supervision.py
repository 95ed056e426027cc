"""What teaches XBind by published models: slopes, references, and the catalogue's files; tiny and random."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from torch import Tensor
from torch.nn import functional as F

from models import full_shape_models
from models.bind import WordsEars
from models.errors import UserError
from models.full_shape_models import UNCLIP, VIT_H, VIT_L, ZERO123, load_words_ears, xbind_models
from models.published_spaces import PublishedPictureText, load_picture_space
from models.sources import Hub
from models.stable_unclip import StableUnCLIP, load_stable_unclip
from models.zero123 import load_zero123
from pipelines.base import Runtime
from pipelines.media import Image
from pipelines.xbind.optimisation import grey_ball
from pipelines.xbind.rendering import Cameras, Framing, lit, render
from pipelines.xbind.supervision import Weights
from pipelines.xbind_published import supervision
from pipelines.xbind_published.pipeline import PHASES, PublishedXBind
from pipelines.xbind_published.supervision import Meant, PublishedSupervision, facing, in_place, normals_shown
from tests.box_shapes import boxes
from tests.tiny_models import manager_of
from tests.tiny_published import WIDTH, write_older_tokenizer
from tests.tiny_sounds import picture
from tests.tiny_xbind import make_small, xbind_folders
from tests.weight_folders import resolve

THINGS = ("rain", "a dog", "an engine")
EVERYTHING = replace(PHASES[0], planar=1.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return xbind_folders(tmp_path_factory.mktemp("xbind"))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


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
    assert {spec.key for spec in xbind_models()} < set(PublishedXBind.models)
