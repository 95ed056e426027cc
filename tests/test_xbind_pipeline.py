"""XBind's pipeline on tiny untrained models."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import trimesh
from torch import nn
from torch.nn import functional as F

from models.bind import among_words
from models.catalog import catalog
from models.errors import Cancelled, UserError
from models.manager import ModelManager
from models.nets.shape_autoencoder import ShapeAutoencoder
from pipelines.base import EXAMPLES, Event, Produced, Progress, Runtime, candidate_seed
from pipelines.fmri.pipeline import GUIDED, OF_MEASUREMENT, Reading
from pipelines.media import Artifact, BrainScan, Image, Mesh, Text, load_artifact
from pipelines.xbind import prompts
from pipelines.xbind.cut_out import cut_out
from pipelines.xbind.pipeline import XBind
from tests.test_cut_out import crowd
from tests.tiny_models import resident
from tests.tiny_shapes import Nothing, shape_manager
from tests.tiny_sounds import WIDTH, clip, picture, tone

XBIND = XBind()
GENERATION = {"shape-generator", "shape-autoencoder"}
READING = {"picture-text", "sentence-encoder"}


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> ModelManager:
    return shape_manager(tmp_path_factory.mktemp("models"))


def events(manager: ModelManager, *given: Artifact, micro_batch: int = 16, **params: Any) -> list[Event]:
    values = {"steps": 2, "resolution": 32, **params}
    return list(XBIND.run(given, XBIND.parse_params(values), Runtime(manager, micro_batch=micro_batch)))


def meshes(manager: ModelManager, *given: Artifact, **params: Any) -> list[Mesh]:
    made = [event.artifact for event in events(manager, *given, **params) if isinstance(event, Produced)]
    assert all(isinstance(one, Mesh) for one in made)
    return made  # type: ignore[return-value]


def vertices(manager: ModelManager, *given: Artifact, **params: Any) -> np.ndarray:
    return meshes(manager, *given, **params)[0].vertices


def same(a: np.ndarray, b: np.ndarray, within: float = 1e-3) -> bool:
    return a.shape == b.shape and bool(np.abs(a - b).max() < within)


# ------------------------------------------------------------------------------------------------------------- routes


@pytest.mark.parametrize(
    "given",
    [(Text("a dog"),), (picture(0),), (tone(440),), (Text("a dog"), picture(0)), (tone(440), Text("a dog"))],
    ids=lambda given: "+".join(one.medium for one in given),
)
def test_every_route_gives_a_closed_coloured_object(manager: ModelManager, given: tuple[Artifact, ...]) -> None:
    assert XBIND.accepts([one.medium for one in given], "mesh")
    [made] = meshes(manager, *given, size=0.4, num_faces=900)
    assert made.vertex_colors is not None and len(made.faces) <= 900
    assert np.ptp(made.vertices, axis=0).max() == pytest.approx(0.4, rel=1e-5) and made.vertices[:, 1].min() == 0
    assert trimesh.Trimesh(made.vertices, made.faces, process=False).is_watertight
    assert made.provenance is not None and made.provenance.pipeline == "xbind"
    assert [one["medium"] for one in made.provenance.inputs] == [one.medium for one in given]


def test_what_is_asked_for_matters(manager: ModelManager) -> None:
    said, shown = vertices(manager, Text("dog")), vertices(manager, picture(0))
    assert same(said, vertices(manager, Text("  dog\n")), 1e-9)
    assert not same(said, vertices(manager, Text("rain")))
    assert not same(shown, vertices(manager, picture(5)))
    assert not same(vertices(manager, tone(440)), vertices(manager, tone(2000)))


@pytest.mark.parametrize("shown", [picture(0), tone(440)], ids=["picture", "sound"])
def test_a_blend_goes_from_the_words_to_the_example(manager: ModelManager, shown: Artifact) -> None:
    words = Text("dog")
    ends = [vertices(manager, words), vertices(manager, shown)]
    blends = [vertices(manager, words, shown, share=share) for share in (0.0, 1.0, 0.5)]
    np.testing.assert_array_equal(blends[0], ends[0])
    np.testing.assert_array_equal(blends[1], ends[1])
    assert not same(blends[2], ends[0]) and not same(blends[2], ends[1])
    np.testing.assert_array_equal(vertices(manager, shown, words), blends[2])


def test_a_sound_becomes_the_words_that_are_near_it() -> None:
    said = torch.eye(3)
    heard = F.normalize(torch.tensor([0.1, 0.9, 0.2]), dim=0)
    vector, nearest = among_words(heard, said)
    assert nearest == 1 and float(vector.norm()) == pytest.approx(1) and float(vector[1]) > 0.999
    between, _ = among_words(F.normalize(torch.tensor([1.0, 1.0, 0.0]), dim=0), said)
    torch.testing.assert_close(between, F.normalize(torch.tensor([1.0, 1.0, 0.0]), dim=0))


@pytest.mark.parametrize(
    ("given", "share", "leased"),
    [
        ((Text("dog"),), 1.0, READING),
        ((picture(0),), 0.0, {"picture-text"}),
        ((tone(440),), 0.0, READING | {"bind-audio"}),
        ((Text("dog"), picture(0)), 0.5, READING),
        ((Text("dog"), picture(0)), 1.0, {"picture-text"}),
        ((Text("dog"), tone(440)), 0.5, READING | {"bind-audio"}),
        ((Text("dog"), tone(440)), 1.0, READING | {"bind-audio"}),
        ((Text("dog"), tone(440)), 0.0, READING),
    ],
)
def test_only_what_a_run_needs_is_leased(
    tmp_path: Path, given: tuple[Artifact, ...], share: float, leased: set[str]
) -> None:
    manager = shape_manager(tmp_path)
    [made] = meshes(manager, *given, share=share, steps=1)
    expected = GENERATION | leased
    assert set(resident(manager)) == expected
    assert set(XBIND.models_for(given, XBIND.parse_params({"share": share}))) == expected
    assert made.provenance is not None and {record.key for record in made.provenance.models} == expected


def scan_of(name: str) -> BrainScan:
    scan = load_artifact(EXAMPLES / "scans" / f"{name}.npz")
    assert isinstance(scan, BrainScan)
    return scan


def test_a_measured_scan_gives_what_its_category_gives(tmp_path: Path) -> None:
    decoder = catalog("lite")["category-decoder"].load
    folder = Path("assets/weights/category-decoder-lite")
    manager = shape_manager(tmp_path, instead={"category-decoder": lambda: cast(nn.Module, decoder(folder))})
    scan = scan_of("measured-house")
    run = events(manager, scan)
    [made] = [event.artifact for event in run if isinstance(event, Produced)]
    assert "Making what was decoded, perhaps a house" in {e.message for e in run if isinstance(e, Progress)}
    assert isinstance(made, Mesh) and same(made.vertices, vertices(manager, Text("a house")), 1e-9)
    expected = GENERATION | READING | {"category-decoder"}
    assert set(resident(manager)) == set(XBIND.models_for([scan], XBIND.parse_params({}))) == expected
    assert made.provenance is not None and OF_MEASUREMENT in made.provenance.badge and GUIDED in made.provenance.badge


def test_a_simulated_scan_gives_what_is_where_it_was_decoded_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, vectors = scan_of("S6-placard"), F.normalize(torch.eye(WIDTH)[:2] + 0.1, dim=1)
    monkeypatch.setattr(prompts, "decoded", lambda *_: Reading("a placard", vectors[0], None, "words", "a badge"))
    manager = shape_manager(tmp_path, instead={"brain-decoder": lambda: nn.Identity()})
    [alone] = meshes(manager, scan)
    assert alone.provenance is not None and alone.provenance.badge == "a badge"
    assert {record.key for record in alone.provenance.models} == GENERATION | {"brain-decoder"}
    with_words = meshes(manager, Text("dog"), scan, share=0.5)[0]
    assert not same(alone.vertices, with_words.vertices)
    monkeypatch.setattr(prompts, "decoded", lambda *_: Reading("a dog", vectors[1], None, "words", "a badge"))
    assert not same(alone.vertices, vertices(manager, scan))


def test_an_object_before_a_ground_is_cut_out_first_unless_told(manager: ModelManager) -> None:
    pixels = np.full((60, 60, 3), (60, 120, 90), np.uint8)
    pixels[20:40, 15:45] = (200, 30, 40)
    removed, kept = (events(manager, Image(pixels), background=choice) for choice in ("remove", "keep"))
    [shown] = [event for event in removed if isinstance(event, Progress) and "Cut the object" in event.message]
    assert shown.preview is not None and (shown.preview.pixels[0] == 255).all()
    assert not any(isinstance(event, Progress) and "Cut" in event.message for event in kept)
    [cut], [whole] = ([e.artifact for e in run if isinstance(e, Produced)] for run in (removed, kept))
    assert isinstance(cut, Mesh) and isinstance(whole, Mesh) and not same(cut.vertices, whole.vertices)
    # It is the picture given that a remix begins with.
    assert cut.provenance is not None and cut.provenance.parents == (Image(pixels).content_hash(),)
    assert same(vertices(manager, cut_out(Image(pixels))), cut.vertices)


def test_of_many_things_in_a_picture_it_is_said_that_one_should_be_shown(manager: ModelManager) -> None:
    for count, expected in ((20, "the 20 things in the picture have in common; crop it to one"), (3, prompts.SHOWN)):
        run = events(manager, crowd(count, 120))
        assert [event.message for event in run if isinstance(event, Progress)][-1].endswith(expected)
        [made] = [event.artifact for event in run if isinstance(event, Produced)]
        assert isinstance(made, Mesh) and len(made.faces)


# ------------------------------------------------------------------------------------------ seeds, batches, progress


def test_variations_come_from_consecutive_seeds(manager: ModelManager) -> None:
    batch = meshes(manager, Text("dog"), seed=5, num_shapes=3)
    assert [one.provenance.index for one in batch if one.provenance] == [0, 1, 2]
    for one, seed in zip(batch, (5, 6, 7), strict=True):
        assert same(one.vertices, vertices(manager, Text("dog"), seed=seed))
    np.testing.assert_array_equal(batch[0].vertices, vertices(manager, Text("dog"), seed=5, num_shapes=3))
    assert not same(batch[0].vertices, batch[1].vertices)
    assert len(meshes(manager, Text("dog"), seed=2**31 - 1, num_shapes=2)) == 2


def test_a_batch_keeps_its_order_however_much_is_computed_at_once(manager: ModelManager) -> None:
    inputs: list[list[Artifact]] = [[Text("dog")], [picture(0)], [Text("rain"), picture(5)]]
    params = XBIND.parse_params({"steps": 2, "resolution": 32, "num_shapes": 2})
    for micro_batch in (1, 4):
        run = XBIND.run_batch(inputs, params, Runtime(manager, micro_batch=micro_batch))
        made = [event.artifact for event in run if isinstance(event, Produced)]
        assert len(made) == 6
        for index, given in enumerate(inputs):
            expected = meshes(manager, *given, num_shapes=2)
            for one, other in zip(made[2 * index : 2 * index + 2], expected, strict=True):
                assert isinstance(one, Mesh) and same(one.vertices, other.vertices)


def test_progress_counts_every_step_and_shows_the_objects_so_far(manager: ModelManager) -> None:
    run = [event for event in events(manager, Text("dog"), steps=12, num_shapes=3) if isinstance(event, Progress)]
    assert [(event.step, event.total) for event in run] == [(step, 12) for step in range(13)]
    assert run[-1].message == 'Making "dog"'
    previews = [event.preview for event in run if event.preview]
    assert 3 <= len(previews) <= 5
    assert all(preview.pixels.shape == (128, 384, 3) for preview in previews)
    parts = np.split(previews[-1].pixels, 3, axis=1)
    assert all((part < 250).any() and (part[0, 0] == 255).all() for part in parts)
    assert not np.array_equal(parts[0], parts[1])


def test_what_comes_in_pieces_gives_way_to_the_first_candidate_that_does_not(
    manager: ModelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[torch.Tensor] = []

    def third_is_whole(grid: torch.Tensor) -> bool:
        looked_at.append(grid)
        return len(looked_at) % 3 == 0

    monkeypatch.setattr("pipelines.xbind.pipeline.is_one_piece", third_is_whole)
    run = events(manager, Text("dog"), seed=5)
    assert len(looked_at) == 3
    assert [e.message for e in run if isinstance(e, Progress)].count("It came in pieces: trying once more") == 2
    [made] = [event.artifact for event in run if isinstance(event, Produced)]
    monkeypatch.setattr("pipelines.xbind.pipeline.is_one_piece", lambda grid: True)
    assert isinstance(made, Mesh) and made.provenance and made.provenance.seed == 5
    assert same(made.vertices, vertices(manager, Text("dog"), seed=candidate_seed(5, 2)))
    first = vertices(manager, Text("dog"), seed=5)
    assert not same(made.vertices, first)
    monkeypatch.setattr("pipelines.xbind.pipeline.is_one_piece", lambda grid: False)
    assert same(vertices(manager, Text("dog"), seed=5), first), "of several in pieces the first"


def test_a_run_in_many_parts_has_no_more_previews(manager: ModelManager) -> None:
    run = [e for e in events(manager, Text("dog"), steps=9, num_shapes=4, micro_batch=1) if isinstance(e, Progress)]
    assert [event.step for event in run] == list(range(37)) and run[-1].total == 36
    assert 3 <= sum(event.preview is not None for event in run) <= 5


def test_stopping_ends_a_run_within_a_step(manager: ModelManager) -> None:
    runtime = Runtime(manager, threading.Event())
    stream, seen = XBIND.run([Text("dog")], XBIND.parse_params({"steps": 150}), runtime), 0
    with pytest.raises(Cancelled):
        for _ in stream:
            seen += 1
            if seen == 3:
                runtime.cancelled.set()
    assert seen == 3 and all(row.leases == 0 for row in manager.status())


def test_stopping_after_the_last_step_makes_no_surface(manager: ModelManager) -> None:
    runtime = Runtime(manager, threading.Event())
    stream = XBIND.run([Text("dog")], XBIND.parse_params({"steps": 2, "resolution": 32}), runtime)
    assert [next(stream) for _ in range(3)]
    runtime.cancelled.set()
    with pytest.raises(Cancelled):
        next(stream)


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b\u202e"])
def test_empty_words_are_refused_before_anything_is_loaded(tmp_path: Path, text: str) -> None:
    manager = shape_manager(tmp_path)
    with pytest.raises(UserError, match="The text is empty") as refusal:
        meshes(manager, Text(text), picture(0))
    assert "what to make" in refusal.value.hint and not resident(manager)


def blank(*levels: int) -> Image:
    return Image(np.resize(np.array(levels, np.uint8), (16, 16, 3)))


@pytest.mark.parametrize("shown", [blank(255), blank(0), blank(30, 200, 90), blank(250, 251, 255, 254), blank(7)])
def test_a_picture_of_nothing_is_refused(tmp_path: Path, shown: Image) -> None:
    manager = shape_manager(tmp_path)
    with pytest.raises(UserError, match="shows nothing") as refusal:
        meshes(manager, shown)
    assert "one object" in refusal.value.hint and not resident(manager)


@pytest.mark.parametrize("given", [(tone(440, level=0.0),), (Text("dog"), tone(440, level=1e-5))])
def test_silence_is_refused(tmp_path: Path, given: tuple[Artifact, ...]) -> None:
    manager = shape_manager(tmp_path)
    with pytest.raises(UserError, match="The sound is silent") as refusal:
        meshes(manager, *given)
    assert "can be heard" in refusal.value.hint and not resident(manager)


def test_a_small_thing_on_white_is_something(manager: ModelManager) -> None:
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[30:34, 30:34] = 0
    assert meshes(manager, Image(pixels))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ((clip(2),), "not video"),
        ((Text("dog"), clip(2)), "not video"),
        ((Text("dog"), Text("rain")), "one of each"),
        ((picture(0), picture(5)), "one of each"),
        ((picture(0), tone(440)), "one of each"),
        ((Text("dog"), picture(0), picture(5)), "one of each"),
    ],
)
def test_other_inputs_are_refused(manager: ModelManager, given: tuple[Artifact, ...], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        meshes(manager, *given)


def test_a_shape_of_nothing_offers_the_next_seed(tmp_path: Path) -> None:
    manager = shape_manager(tmp_path, Nothing)
    for seed, following in ((41, 42), (2**31 - 1, 0)):
        with pytest.raises(UserError, match=f"No object came of the seed {seed}") as refusal:
            meshes(manager, Text("dog"), seed=seed)
        assert refusal.value.hint == f"Try the seed {following}."
    assert all(row.leases == 0 for row in manager.status())


def test_previews_of_nothing_are_white(tmp_path: Path) -> None:
    manager, previews = shape_manager(tmp_path, Nothing), []
    params = XBIND.parse_params({"steps": 3, "resolution": 32})
    with pytest.raises(UserError):
        for event in XBIND.run([Text("dog")], params, Runtime(manager)):
            previews += [event.preview] if isinstance(event, Progress) and event.preview else []
    assert previews and all((preview.pixels == 255).all() for preview in previews)


def test_latents_of_another_autoencoder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not mean the same by latents"):
        meshes(shape_manager(tmp_path, ShapeAutoencoder, plane=2), Text("dog"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_shapes", 0),
        ("num_shapes", 5),
        ("steps", 10**9),
        ("guidance", float("nan")),
        ("resolution", 129),
        ("num_faces", 0),
        ("num_faces", 10**9),
        ("size", 0),
        ("share", 1.1),
        ("seed", 2**31),
    ],
)
def test_params_out_of_bounds_are_named(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"'{name}'"):
        XBIND.parse_params({name: value})
