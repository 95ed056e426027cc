"""How 3-D objects look before they are turned around: the painter, and the page's route to its pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
import trimesh
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app.studio import Studio
from app.ui import markup
from app.ui.objects import SIDE, view_route
from pipelines.formats.mesh_views import mesh_view
from pipelines.media import Mesh, Text
from tests.library_examples import made

RED, BLUE = (220, 20, 20), (20, 20, 220)


def two_boxes() -> Mesh:
    """A red box in front of (+z) a blue one, which is twice as high."""
    front = trimesh.creation.box((1, 1, 0.2), transform=trimesh.transformations.translation_matrix((0, 0, 1)))
    back = trimesh.creation.box((1, 2, 0.2), transform=trimesh.transformations.translation_matrix((0, 0.5, -1)))
    vertices = np.concatenate([front.vertices, back.vertices])
    faces = np.concatenate([front.faces, back.faces + len(front.vertices)])
    colors = np.repeat([RED, BLUE], [len(front.vertices), len(back.vertices)], axis=0)
    return Mesh(vertices.astype(np.float32), faces.astype(np.int32), colors.astype(np.uint8))


def seen(azimuth: float, elevation: float = 0.0, mesh: Mesh | None = None) -> np.ndarray:
    shown = mesh or two_boxes()
    return mesh_view(shown.vertices, shown.faces, shown.vertex_colors, 64, azimuth, elevation)


def share(pixels: np.ndarray, channel: int) -> float:
    """Of all pixels, those where ``channel`` is by far the brightest."""
    others = np.delete(pixels, channel, axis=2).max(2).astype(int)
    return float((pixels[:, :, channel] > others + 40).mean())


def test_what_is_in_front_hides_what_is_behind() -> None:
    front, behind = seen(0), seen(180)
    assert share(front, 0) > 0.15 and share(front, 2) > 0.15  # the upper half of the higher one shows
    assert share(front[40:], 2) == 0 < share(front[:24], 2)
    assert share(behind, 0) == 0 and share(behind, 2) > 0.3


def test_right_is_right_and_above_is_above() -> None:
    beside = seen(90)  # from +x: the front, +z, is to the left
    assert share(beside[:, :32], 0) > 0 == share(beside[:, 32:], 0)
    assert share(beside[:, 32:], 2) > 0 == share(beside[:, :32], 2)
    above = seen(0, 90)  # the front lies below
    assert share(above[32:], 0) > 0 == share(above[:32], 0)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_it_fills_the_picture_whatever_its_size_and_turning_faces_over_changes_nothing(scale: float) -> None:
    mesh = two_boxes()
    larger = Mesh(mesh.vertices * np.float32(scale) + np.float32(3 * scale), mesh.faces[:, ::-1], mesh.vertex_colors)
    expected, shown = seen(30, 20), seen(30, 20, larger)
    assert np.abs(shown.astype(int) - expected).mean() < 1
    drawn = np.nonzero((shown < 250).any(2))
    assert max(np.ptp(drawn[0]), np.ptp(drawn[1])) > 50


def test_a_mesh_without_colours_is_grey_and_one_without_extent_is_drawn_too() -> None:
    mesh = two_boxes()
    pixels = mesh_view(mesh.vertices, mesh.faces, None, 32)
    assert (np.ptp(pixels, axis=2) == 0).all() and (pixels < 250).any()
    point = np.zeros((3, 3), np.float32)
    assert mesh_view(point, np.array([[0, 1, 2]]), None, 32).shape == (32, 32, 3)


def test_the_page_gets_a_picture_of_an_object_and_of_nothing_else(tiny_studio: Studio) -> None:
    client = TestClient(Starlette(routes=[view_route(tiny_studio)]))
    entry = tiny_studio.library.add(two_boxes().with_provenance(made()), "two boxes")
    assert f'src="view/{entry.id}"' in markup.thumbnails([entry], "none")
    answer = client.get(f"/view/{entry.id}")
    assert answer.headers["content-type"] == "image/webp"
    pixels = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))
    assert pixels.shape == (SIDE, SIDE, 3) and share(pixels, 0) > 0.05 and share(pixels, 2) > 0.05
    assert client.get(f"/view/{entry.id}").content == answer.content
    tiny_studio.library.remove(entry.id)
    assert client.get(f"/view/{entry.id}").status_code == 404, "nothing that was removed is shown from memory"
    words = tiny_studio.library.add(Text("words").with_provenance(made()), "words")
    for unseen, said in ((words.id, "no 3-D object but text"), ("nobody", "gallery")):
        answer = client.get(f"/view/{unseen}")
        assert answer.status_code == 404 and said in answer.text
