"""3-D objects in files for other programs: colours in a texture beside an OBJ, and normals in a GLB."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app.studio import Studio
from app.ui import markup
from app.ui.downloads import download_route
from pipelines.formats.mesh import vertex_normals
from pipelines.formats.obj import LARGEST_CELL, SMALLEST_CELL, baked
from pipelines.media import Mesh, load_artifact
from tests.edit_examples import clip, edited, sphere
from tests.library_examples import made
from tests.test_objects import two_boxes


def painted(subdivisions: int) -> Mesh:
    """A ball whose colours change smoothly."""
    ball = sphere(subdivisions)
    colors = (np.sin(3 * ball.vertices.astype(np.float64) + [0, 1, 2]) * 127 + 128).round().astype(np.uint8)
    return replace(ball, vertex_colors=colors)


def noisy(subdivisions: int) -> Mesh:
    """Each corner in a colour of its own."""
    ball = sphere(subdivisions)
    colors = np.random.default_rng(0).integers(0, 256, (len(ball.vertices), 3), dtype=np.uint8)
    return replace(ball, vertex_colors=colors)


def sampled(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """``image`` (H, W, 3) at OBJ's places (N, 2), bilinearly, as renderers do."""
    height, width = image.shape[:2]
    x, y = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
    left, top = np.floor(x).astype(int).clip(0, width - 2), np.floor(y).astype(int).clip(0, height - 2)
    across, down = (x - left)[:, None], (y - top)[:, None]
    rows = [image[top + row, left] * (1 - across) + image[top + row, left + 1] * across for row in (0, 1)]
    return rows[0] * (1 - down) + rows[1] * down


# ----------------------------------------------------------------------------------------------------------------- OBJ


@pytest.mark.parametrize(
    ("mesh", "mean", "most"),
    [
        pytest.param(painted(4), 0.5, 1.0, id="fine"),
        pytest.param(painted(1), 1.0, 25.0, id="coarse"),
        pytest.param(two_boxes(), 0.5, 1.0, id="boxes"),
        pytest.param(noisy(2), 1.0, 45.0, id="noise"),
    ],
)
def test_an_obj_has_the_colours_of_the_glb_all_over_its_surface(
    mesh: Mesh, mean: float, most: float, tmp_path: Path
) -> None:
    mesh.save(tmp_path / "it.obj")
    mesh.save(tmp_path / "it.glb")
    read: Any = trimesh.load(tmp_path / "it.obj", process=False)
    solid: Any = trimesh.load(tmp_path / "it.glb", process=False, force="mesh")
    points, faces = trimesh.sample.sample_surface(solid, 4000, seed=0)
    weights = trimesh.triangles.points_to_barycentric(solid.triangles[faces], points)
    colored = load_artifact(tmp_path / "it.glb")
    assert isinstance(colored, Mesh) and colored.vertex_colors is not None
    expected = (colored.vertex_colors[solid.faces[faces]] * weights[:, :, None]).sum(1)
    uv = (read.visual.uv[read.faces[faces]] * weights[:, :, None]).sum(1)
    np.testing.assert_allclose(read.triangles[faces], solid.triangles[faces], atol=1e-6)
    assert read.visual.kind == "texture" and uv.min() >= 0 and uv.max() <= 1
    image = np.asarray(read.visual.material.image.convert("RGB")).astype(float)
    differences = np.abs(sampled(image, uv) - expected)
    assert differences.mean() < mean and differences.max() <= most


def test_its_own_colours_and_corners_come_back_exactly(tmp_path: Path) -> None:
    mesh = painted(2)
    mesh.with_provenance(made()).save(tmp_path / "a ball.obj")
    assert {path.name for path in tmp_path.iterdir()} == {
        "a ball.obj",
        "a ball.obj.json",
        "a_ball.obj.mtl",
        "a_ball.obj.png",
    }
    again = load_artifact(tmp_path / "a ball.obj")
    assert isinstance(again, Mesh) and again.provenance == made()
    assert np.array_equal(again.faces, mesh.faces)
    assert again.vertex_colors is not None and (again.vertex_colors == mesh.vertex_colors).all()
    assert "mtllib a_ball.obj.mtl" in (tmp_path / "a ball.obj").read_text()
    assert "map_Kd a_ball.obj.png" in (tmp_path / "a_ball.obj.mtl").read_text()


def test_a_picture_of_the_same_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "it.png").write_bytes(b"somebody's")
    painted(1).save(tmp_path / "it.obj")
    assert (tmp_path / "it.png").read_bytes() == b"somebody's"


def test_one_without_colours_is_one_file(tmp_path: Path) -> None:
    replace(sphere(1), vertex_colors=None).save(tmp_path / "it.obj")
    assert {path.name for path in tmp_path.iterdir()} == {"it.obj", "it.obj.json"}
    assert "mtllib" not in (tmp_path / "it.obj").read_text()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 200, 20_000])
def test_every_face_has_a_place_of_its_own(count: int) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (count, 3, 3)).astype(np.float32)
    texture, places = baked(colors)
    side = len(texture)
    cells = np.ceil(np.sqrt(np.ceil(count / 2)))
    assert texture.shape == (side, side, 3) and SMALLEST_CELL <= side / cells <= LARGEST_CELL
    middles = places.mean(axis=1)
    read = sampled(texture.astype(float), middles)
    assert np.abs(read - colors.mean(axis=1)).max() <= 1.5
    assert len(np.unique((middles * side).round(3), axis=0)) == count


def test_other_programs_textures_do_not_split_what_belongs_together(tmp_path: Path) -> None:
    corners = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\n" + "".join(f"vt 0.{n} 0.{n}\n" for n in range(6)) + "vn 0 0 1\n"
    (tmp_path / "it.obj").write_text(f"mtllib gone.mtl\n{corners}usemtl a/1\nf 1/1/1 2/2/1 3/3/1\nf 1/-3 3/-2 4/-1\n")
    mesh = load_artifact(tmp_path / "it.obj")
    assert isinstance(mesh, Mesh) and mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]] and len(mesh.vertices) == 4


# -------------------------------------------------------------------------------------------------------- GLB's normals


def stored_normals(data: bytes) -> np.ndarray | None:
    """(V, 3) of the first shape of a GLB, read by its header."""
    length = struct.unpack_from("<I", data, 12)[0]
    header = json.loads(data[20 : 20 + length])
    attributes = header["meshes"][0]["primitives"][0]["attributes"]
    if "NORMAL" not in attributes:
        return None
    accessor = header["accessors"][attributes["NORMAL"]]
    view = header["bufferViews"][accessor["bufferView"]]
    assert accessor["componentType"] == 5126 and accessor["type"] == "VEC3"
    start = 20 + length + 8 + view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    return np.frombuffer(data, np.float32, 3 * accessor["count"], start).reshape(-1, 3)


def test_a_round_object_has_normals_of_unit_length_that_face_outwards() -> None:
    ball = sphere(3)
    loose = replace(  # and a vertex of no face
        ball,
        vertices=np.concatenate([ball.vertices, np.full((1, 3), 9, np.float32)]),
        vertex_colors=np.concatenate([ball.vertex_colors, [[0, 0, 0]]]).astype(np.uint8),
    )
    for mesh in (ball, loose):
        normals = stored_normals(mesh.encode(".glb"))
        assert normals is not None and normals.shape == mesh.vertices.shape
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
        outwards = (normals * mesh.vertices)[: len(ball.vertices)].sum(axis=1)
        assert outwards.min() > 0.99


def test_edges_stay_sharp() -> None:
    boxes = two_boxes()
    assert vertex_normals(boxes.vertices, boxes.faces) is None and stored_normals(boxes.encode(".glb")) is None


def test_faces_without_area_break_no_normal() -> None:
    ball = sphere(3)
    flat = np.concatenate([ball.faces, [[5, 5, 5], [7, 7, 9]]]).astype(np.int32)
    normals = vertex_normals(ball.vertices, flat)
    assert normals is not None and np.isfinite(normals).all()
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- downloads


def test_the_page_offers_formats_and_packs_an_obj_with_its_texture(tiny_studio: Studio) -> None:
    client = TestClient(Starlette(routes=[download_route(tiny_studio)]))
    entry = tiny_studio.library.add(painted(2).with_provenance(made()), "a ball")
    links = markup.downloads(entry, "action")
    assert [f"download/{entry.id}/{known_as}" in links for known_as in ("glb", "obj", "ply")] == [True] * 3
    answer = client.get(f"/download/{entry.id}/obj")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip"
    assert "a-ball.zip" in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["a-ball.obj", "a-ball.obj.mtl", "a-ball.obj.png"]
        assert b"mtllib a-ball.obj.mtl" in archive.read("a-ball.obj")
    assert client.get(f"/download/{entry.id}/obj").content == answer.content
    answer = client.get(f"/download/{entry.id}/ply")
    assert answer.content.startswith(b"ply") and "a-ball.ply" in answer.headers["content-disposition"]


def test_the_page_offers_a_clip_as_a_gif(tiny_studio: Studio) -> None:
    client = TestClient(Starlette(routes=[download_route(tiny_studio)]))
    entry = tiny_studio.library.add(clip().with_provenance(made()), "a clip")
    assert f"download/{entry.id}/gif" in markup.downloads(entry, "action")
    assert client.get(f"/download/{entry.id}/gif").content.startswith(b"GIF89a")


def test_colours_survive_an_edit_and_an_export(tmp_path: Path) -> None:
    edited("mesh-rotate", painted(2), degrees=90).save(tmp_path / "it.obj")
    assert (tmp_path / "it.obj.png").exists()
