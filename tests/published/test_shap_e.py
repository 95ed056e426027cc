"""Shap-E from its published folders, tiny and random: what diffusers computes, in our pipeline, as our objects."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from diffusers import ShapEImg2ImgPipeline, ShapEPipeline
from diffusers.pipelines.shap_e.renderer import MeshDecoderOutput, volume_query_points
from huggingface_hub import constants
from PIL import Image as PillowImage
from skimage.measure import marching_cubes
from torch import Tensor

from models.errors import Cancelled, UserError
from models.full_shape_models import shape_models
from models.manager import ModelManager
from models.precision import Precision
from models.quantize import apply_precision
from models.shap_e import POINTS_AT_ONCE, PicturesReader, WholeLinear, WordsReader, load_shap_e
from models.shap_e import ShapE as Model
from models.sources import Hub
from pipelines.base import Event, Produced, Progress, Runtime
from pipelines.media import Artifact, Image, Mesh, Text
from pipelines.shap_e.pipeline import PICTURES, WORDS, ShapE
from tests.tiny_models import CPU, manager_of, resident, spec_of
from tests.tiny_shap_e import LATENT, ROWS, shap_e_folder, shap_e_pictures_folder
from tests.tiny_shapes import ball
from tests.tiny_sounds import picture
from tests.weight_folders import resolve

SHAP_E = ShapE()


@pytest.fixture(scope="module")
def words_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shap_e_folder(tmp_path_factory.mktemp("shap-e") / "words")


@pytest.fixture(scope="module")
def pictures_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shap_e_pictures_folder(tmp_path_factory.mktemp("shap-e") / "pictures")


class Ball(Model):
    """Its objects are balls with bumps as the network has them, the smaller the earlier: untrained, none is one."""

    def grid(self, latents: Tensor, resolution: int, between: Any = lambda: None) -> Tensor:
        grid = super().grid(latents, resolution, between)
        grid[:1] = ball(resolution) + 0.2 * grid[:1]
        return grid


class Nothing(Model):
    def grid(self, latents: Tensor, resolution: int, between: Any = lambda: None) -> Tensor:
        return super().grid(latents, resolution, between).abs()


def _made(place: Path, kind: type[Model], folder: Path) -> Model:
    """From ``place``, whatever the ``folder`` that makes the two differ for the manager."""
    model = load_shap_e(place)
    model.__class__ = kind
    return model


@pytest.fixture
def manager(words_folder: Path, pictures_folder: Path, tmp_path: Path) -> ModelManager:
    return manager_with(words_folder, pictures_folder, tmp_path)


def manager_with(words: Path, pictures: Path, folder: Path, kind: type[Model] = Ball) -> ModelManager:
    places = {WORDS: words, PICTURES: pictures}
    specs = [spec_of(key, folder, load=partial(_made, place, kind)) for key, place in places.items()]
    return manager_of(10**6, *specs)


def told(manager: ModelManager, *given: Artifact, **params: Any) -> list[Event]:
    parsed = SHAP_E.parse_params({"steps": 2, "resolution": 32, **params})
    return list(SHAP_E.run(given, parsed, Runtime(manager)))


def meshes(manager: ModelManager, *given: Artifact, **params: Any) -> list[Mesh]:
    made = [event.artifact for event in told(manager, *given, **params) if isinstance(event, Produced)]
    assert all(isinstance(one, Mesh) for one in made)
    return made  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------------- what diffusers computes


def noise_of(*seeds: int) -> Tensor:
    return torch.cat([torch.randn(1, ROWS * LATENT, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@pytest.mark.parametrize(("steps", "guidance"), [(1, 4.0), (3, 15.0), (4, 1.0)])
def test_words_become_the_latents_that_diffusers_makes(words_folder: Path, steps: int, guidance: float) -> None:
    model = load_shap_e(words_folder)
    assert isinstance(model.reader, WordsReader)
    said = ["rain", "a long green boat, " * 40]
    theirs = ShapEPipeline(model.prior, model.reader.encoder, model.reader.tokenizer, model.scheduler, model.renderer)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        said, latents=noise_of(3, 8), num_inference_steps=steps, guidance_scale=guidance, output_type="latent"
    ).images
    stages = list(model.denoise(model.reader.read(said), steps, guidance, [3, 8]))
    assert len(stages) == model.evaluations(steps)
    torch.testing.assert_close(stages[-1][1], expected, atol=1e-4, rtol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_a_picture_becomes_the_latents_that_diffusers_makes(pictures_folder: Path) -> None:
    model = load_shap_e(pictures_folder)
    assert isinstance(model.reader, PicturesReader)
    theirs = ShapEImg2ImgPipeline(
        model.prior, model.reader.encoder, model.reader.processor, model.scheduler, model.renderer
    )
    theirs.set_progress_bar_config(disable=True)
    model.scheduler.set_timesteps(3)
    noise = noise_of(5) * model.scheduler.init_noise_sigma  # this one of theirs does not scale what it is given
    shown = [picture(number, 40, 56).pixels for number in (0, 1)]
    for pixels in shown:
        expected = theirs(
            PillowImage.fromarray(pixels), latents=noise, num_inference_steps=3, guidance_scale=3.0,
            output_type="latent",
        ).images  # fmt: skip
        *_, (_, latents) = model.denoise(model.reader.read([pixels]), 3, 3.0, [5])
        torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-4)
    both = model.reader.read(shown)
    assert both.shape == (2, 16, 16) and (both[0] - both[1]).abs().max() > 0.1


def test_an_object_depends_on_its_own_seed_alone(words_folder: Path) -> None:
    model = load_shap_e(words_folder)
    condition = model.reader.read(["rain"])
    *_, (_, several) = model.denoise(condition.repeat(3, 1), 2, 4.0, [1, 2, 3])
    *_, (_, one) = model.denoise(condition, 2, 4.0, [2])
    torch.testing.assert_close(several[1:2], one, atol=1e-3, rtol=1e-3)
    assert (several[0] - several[1]).abs().max() > 0.1


class MarchingCubes(torch.nn.Module):
    """In place of the renderer's own, whose tables are in the published file."""

    def forward(self, field: Tensor, low: Tensor, size: Tensor) -> MeshDecoderOutput:
        vertices, faces, _, _ = marching_cubes(field.numpy(), 0.0)
        places = torch.from_numpy(vertices.copy()) / (len(field) - 1) * size + low
        return MeshDecoderOutput(places, torch.from_numpy(faces.copy()), vertex_channels=None)


def test_the_surface_is_that_of_decode_to_mesh(words_folder: Path) -> None:
    """At the same points: the same corners and faces, and colours but for their gamma."""
    model, latents, size = load_shap_e(words_folder), torch.randn(ROWS, LATENT), 9
    volume, last = model.renderer.volume, model.renderer.mlp.mlp[-1]
    points = volume_query_points(volume, size)
    with torch.no_grad():  # half of it inside
        last.weight[0] /= 4
        last.bias[0] = 0
        last.bias[0] = -model.fields(latents, points)[:, 0].median().atanh()
    model.renderer.mesh_decoder = MarchingCubes()
    theirs = model.renderer.decode_to_mesh(latents[None], torch.device("cpu"), grid_size=size)
    padded = torch.full((size + 2,) * 3, -1.0)
    padded[1:-1, 1:-1, 1:-1] = model.fields(latents, points)[:, 0].view(size, size, size)
    ours = MarchingCubes()(padded, volume.bbox_min, volume.bbox_max - volume.bbox_min)
    assert len(theirs.verts) > 100
    torch.testing.assert_close(ours.verts, theirs.verts)
    assert torch.equal(ours.faces, theirs.faces)
    linear = torch.stack([theirs.vertex_channels[name] for name in "RGB"], dim=1)
    srgb = torch.where(linear <= 0.04045 / 12.92, linear * 12.92, 1.055 * linear.clamp(min=0) ** (1 / 2.4) - 0.055)
    torch.testing.assert_close(model.fields(latents, theirs.verts)[:, 1:], srgb, atol=1e-4, rtol=1e-3)
    assert srgb.std() > 0.05


def test_the_grid_is_in_our_axes_whatever_the_number_of_points(
    words_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, latents = load_shap_e(words_folder), torch.randn(ROWS, LATENT)
    grid = model.grid(latents, 8)
    assert grid.shape == (4, 8, 8, 8) and grid[1:].min() >= 0 and grid[1:].max() <= 1
    monkeypatch.setattr("models.shap_e.POINTS_AT_ONCE", 100)
    calls: list[None] = []
    torch.testing.assert_close(model.grid(latents, 8, lambda: calls.append(None)), grid)
    assert len(calls) == 6 and POINTS_AT_ONCE > 100
    # Up is their z, the front their +y, and right their -x.
    for ours, theirs in (((7, 3, 3), (-1, 0, 0)), ((3, 7, 3), (0, 0, 1)), ((3, 3, 7), (0, 1, 0))):
        middle = torch.full((3,), -1 / 8)
        middle[0] = 1 / 8
        place = torch.where(torch.tensor(theirs) == 0, middle, torch.tensor(theirs) * 7 / 8)
        distance, *color = model.fields(latents, place[None])[0]
        torch.testing.assert_close(grid[:, *ours], torch.stack([-distance, *color]))


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_the_network_that_is_a_shape_keeps_its_precision(words_folder: Path, precision: Precision) -> None:
    model = load_shap_e(words_folder)
    layers = [part for part in model.renderer.modules() if isinstance(part, torch.nn.Linear)]
    assert len(layers) == 11 and {type(layer) for layer in layers} == {WholeLinear}
    layers[0].weight = torch.nn.Parameter(torch.randn(200, 200))  # large enough to be held in less
    apply_precision(model, precision, CPU)
    assert layers[0].weight.dtype == torch.float32


# -------------------------------------------------------------------------------------------------------------- loading


def test_either_kind_of_file_is_loaded(words_folder: Path, tmp_path: Path) -> None:
    first, second = load_shap_e(words_folder), load_shap_e(shap_e_folder(tmp_path / "same", safetensors=True))
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "are no Shap-E"),
        ("model_index.json", None, "is missing"),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "of another kind"),
        ("scheduler/scheduler_config.json", None, "is missing"),
        ("prior/diffusion_pytorch_model.bin", None, "no PriorTransformer"),
        ("text_encoder/pytorch_model.bin", None, "no CLIPTextModelWithProjection"),
    ],
)
def test_other_folders_are_refused(words_folder: Path, tmp_path: Path, name: str, content: Any, words: str) -> None:
    folder = Path(shutil.copytree(words_folder, tmp_path / "other"))
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=words):
        load_shap_e(folder)


def test_weights_that_lack_something_or_do_not_fit_are_refused(words_folder: Path, tmp_path: Path) -> None:
    lacking = Path(shutil.copytree(words_folder, tmp_path / "lacking"))
    weights = torch.load(lacking / "prior/diffusion_pytorch_model.bin", weights_only=True)
    del weights["proj_in.weight"]
    torch.save(weights, lacking / "prior/diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"lack 1 tensors, such as 'proj_in\.weight'"):
        load_shap_e(lacking)
    other = Path(shutil.copytree(words_folder, tmp_path / "other"))
    config = json.loads((other / "prior/config.json").read_text()) | {"num_embeddings": ROWS - 1}
    (other / "prior/config.json").write_text(json.dumps(config))
    weights = torch.load(other / "prior/diffusion_pytorch_model.bin", weights_only=True)
    weights["positional_embedding"] = weights["positional_embedding"][:, 1:]
    torch.save(weights, other / "prior/diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="do not mean the same by latents"):
        load_shap_e(other)


def test_the_catalogue_names_places_that_are_pinned_and_all_files_that_are_read(
    words_folder: Path, pictures_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for spec, folder in zip(shape_models(), (words_folder, pictures_folder), strict=True):
        hub = spec.source
        assert isinstance(hub, Hub) and re.fullmatch("[0-9a-f]{40}", hub.revision)
        assert (spec.profile, spec.licence, spec.restricted) == ("full", "MIT", False)
        snapshot = tmp_path / f"models--{hub.repo.replace('/', '--')}" / "snapshots" / hub.revision
        for name in hub.files:
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, snapshot / name)
        assert isinstance(spec.load(resolve(hub).folder), Model)
    assert {spec.key for spec in shape_models()} == set(SHAP_E.models)


# ------------------------------------------------------------------------------------------------------------- pipeline


@pytest.mark.parametrize("given", [Text("rain"), picture(0)], ids=["words", "picture"])
def test_either_gives_a_closed_coloured_object(manager: ModelManager, given: Artifact) -> None:
    [made] = meshes(manager, given, size=0.4, num_faces=900)
    closed = trimesh.Trimesh(made.vertices, made.faces, process=False)
    assert closed.is_watertight and closed.volume > 0 and len(made.faces) <= 900
    assert np.ptp(made.vertices, axis=0).max() == pytest.approx(0.4) and made.vertices[:, 1].min() == 0
    assert made.vertex_colors is not None and np.ptp(made.vertex_colors, axis=0).max() > 10
    used = WORDS if isinstance(given, Text) else PICTURES
    assert resident(manager) == [used]
    assert made.provenance is not None and [model.key for model in made.provenance.models] == [used]


def test_words_pictures_seeds_and_guidance_matter(manager: ModelManager) -> None:
    def places(*given: Artifact, **params: Any) -> np.ndarray:
        return meshes(manager, *given, **params)[0].vertices

    said = places(Text("rain"))
    assert np.array_equal(said, places(Text("  rain\n"))) and np.array_equal(said, places(Text("rain"), guidance=15))
    for other in (places(Text("dog")), places(Text("rain"), seed=1), places(Text("rain"), guidance=2)):
        assert said.shape != other.shape or np.abs(said - other).max() > 1e-3
    shown = places(picture(0))
    assert np.array_equal(shown, places(picture(0), guidance=3))
    assert shown.shape != said.shape or np.abs(shown - said).max() > 1e-3


def test_variations_are_the_objects_of_the_next_seeds(manager: ModelManager) -> None:
    several = meshes(manager, Text("rain"), num_shapes=3, seed=7)
    alone = [meshes(manager, Text("rain"), seed=seed)[0] for seed in (7, 8, 9)]
    for index, (one, other) in enumerate(zip(several, alone, strict=True)):
        assert one.provenance is not None and one.provenance.index == index and one.faces.shape == other.faces.shape
        # As sets: where a surface all but touches a corner of the grid, order and place are chance.
        distances = torch.cdist(torch.tensor(one.vertices), torch.tensor(other.vertices))
        assert distances.min(0).values.mean() < 1e-3 and distances.min(1).values.mean() < 1e-3
    apart = torch.cdist(torch.tensor(alone[0].vertices), torch.tensor(alone[1].vertices))
    assert apart.min(1).values.mean() > 2e-3


def test_progress_counts_evaluations_and_shows_what_comes(manager: ModelManager) -> None:
    steps = [event for event in told(manager, Text("rain"), steps=8) if isinstance(event, Progress)][1:]
    assert [(event.step, event.total) for event in steps] == [(step, 15) for step in range(1, 16)]
    assert {event.message for event in steps} == {'Making "rain"'}
    shown = [event.preview for event in steps if event.preview is not None]
    assert len(shown) >= 3 and all(one.pixels.shape == (128, 128, 3) and (one.pixels < 250).any() for one in shown)


def stops(manager: ModelManager, after: int) -> Iterator[None]:
    runtime = Runtime(manager)
    run = SHAP_E.run([Text("rain")], SHAP_E.parse_params({"steps": 3, "resolution": 64}), runtime)
    for _ in range(after):
        next(run)
    runtime.cancelled.set()
    with pytest.raises(Cancelled):
        next(run)
    yield


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_stop_is_heeded_in_the_denoising_and_before_the_surface(manager: ModelManager, after: int) -> None:
    list(stops(manager, after))
    assert all(row.leases == 0 for row in manager.status())


def test_what_has_no_surface_offers_the_next_seed(words_folder: Path, pictures_folder: Path, tmp_path: Path) -> None:
    manager = manager_with(words_folder, pictures_folder, tmp_path, Nothing)
    with pytest.raises(UserError, match="No object came of the seed 4") as refusal:
        meshes(manager, Text("rain"), seed=4)
    assert refusal.value.hint == "Try the seed 5."


@pytest.mark.parametrize(
    ("given", "params", "words"),
    [
        (Text(" \n"), {}, "The text is empty"),
        (Image(np.full((40, 40, 3), 255, np.uint8)), {}, "shows nothing"),
        (Text("rain"), {"num_faces": 0}, "'num_faces' cannot be '0'"),
        (Text("rain"), {"num_faces": 10**9}, "'num_faces' cannot be '1000000000'"),
        (Text("rain"), {"steps": 0}, "'steps' cannot be '0'"),
        (Text("rain"), {"guidance": float("nan")}, "'guidance' cannot be 'nan'"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_loaded(
    manager: ModelManager, given: Artifact, params: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        meshes(manager, given, **params)
    assert not resident(manager)
