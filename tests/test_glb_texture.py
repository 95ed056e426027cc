"""A GLB whose colours are in a texture: what other programs see of it, and that it comes back as it was."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import trimesh

from pipelines.formats import glb_texture, mesh
from pipelines.formats.glb_texture import TEXTURED, textured_glb
from pipelines.formats.mesh import decode_mesh, encode_mesh
from pipelines.media import Mesh
from tests.edit_examples import sphere
from tests.test_mesh_files import noisy, painted, sampled
from tests.test_objects import two_boxes


def stored(given: Mesh, note: str | None = None) -> bytes:
    return encode_mesh(given.vertices, given.faces, given.vertex_colors, TEXTURED, note)


def header(data: bytes) -> dict[str, Any]:
    return dict(json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]]))


def attribute(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """The values of an attribute of floats, and where in the file they begin."""
    tree = header(data)
    accessor = tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"][name]]
    start = 20 + struct.unpack_from("<I", data, 12)[0] + 8 + tree["bufferViews"][accessor["bufferView"]]["byteOffset"]
    width = {"SCALAR": 1, "VEC3": 3}[accessor["type"]]
    return np.frombuffer(data, "<f4", width * accessor["count"], start).reshape(-1, width), start


def as_others_load_it(data: bytes) -> Any:
    return trimesh.load(io.BytesIO(data), file_type="glb", process=False, force="mesh")


@pytest.mark.parametrize(
    ("given", "mean", "most"),
    [
        pytest.param(painted(4), 0.5, 1.0, id="fine"),
        pytest.param(painted(1), 1.0, 25.0, id="coarse"),
        pytest.param(two_boxes(), 0.5, 1.0, id="boxes"),
        pytest.param(noisy(2), 1.0, 45.0, id="noise"),
    ],
)
def test_other_programs_find_the_colours_of_the_vertices_all_over_its_surface(
    given: Mesh, mean: float, most: float
) -> None:
    read = as_others_load_it(stored(given))
    assert read.visual.kind == "texture" and read.visual.uv.min() >= 0 and read.visual.uv.max() <= 1
    points, faces = trimesh.sample.sample_surface(read, 4000, seed=0)
    weights = trimesh.triangles.points_to_barycentric(read.triangles[faces], points)
    np.testing.assert_allclose(read.triangles, given.vertices[given.faces], atol=1e-6)
    assert given.vertex_colors is not None
    expected = (given.vertex_colors[given.faces[faces]] * weights[:, :, None]).sum(1)
    uv = (read.visual.uv[read.faces[faces]] * weights[:, :, None]).sum(1)
    image = np.asarray(read.visual.material.baseColorTexture.convert("RGB")).astype(float)
    differences = np.abs(sampled(image, uv) - expected)
    assert differences.mean() < mean and differences.max() <= most


def test_trimesh_turns_it_into_the_same_vertex_colours() -> None:
    given = painted(3)
    assert given.vertex_colors is not None
    colors = as_others_load_it(stored(given)).visual.to_color().vertex_colors[:, :3]
    # trimesh takes the nearest texel, and a corner lies on an edge between four.
    assert np.abs(colors.astype(float) - given.vertex_colors[given.faces].reshape(-1, 3)).mean() < 2


def test_the_file_says_that_it_is_matt_and_is_read_as_it_is() -> None:
    data = stored(painted(1))
    [primitive], tree = header(data)["meshes"][0]["primitives"], header(data)
    assert {"POSITION", "NORMAL", "TEXCOORD_0"} <= set(primitive["attributes"]) and "COLOR_0" not in str(primitive)
    [material], [sampler] = tree["materials"], tree["samplers"]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0
    assert material["pbrMetallicRoughness"]["roughnessFactor"] == 1
    assert sampler["minFilter"] == sampler["magFilter"] == 9729 and tree["textures"][0]["sampler"] == 0


@pytest.mark.parametrize("given", [painted(2), noisy(1), two_boxes()], ids=["ball", "noise", "boxes"])
def test_it_comes_back_exactly(given: Mesh) -> None:
    for suffix in (TEXTURED, ".glb"):
        vertices, faces, colors, note = decode_mesh(stored(given, "a note"), suffix)
        assert np.array_equal(vertices, given.vertices) and np.array_equal(faces, given.faces)
        assert np.array_equal(colors, given.vertex_colors) and note == "a note"  # type: ignore[arg-type]


def test_vertices_of_no_face_and_faces_without_area_come_back_too() -> None:
    vertices = np.array([[9, 9, 9], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [7, 7, 7]], np.float32)
    given = Mesh(vertices, np.array([[1, 2, 3], [2, 3, 4]], np.int32), np.arange(18, dtype=np.uint8).reshape(6, 3))
    data = stored(given)
    np.testing.assert_allclose(np.linalg.norm(attribute(data, "NORMAL")[0], axis=1), 1, atol=1e-5)
    found, faces, colors, _ = decode_mesh(data, ".glb")
    assert np.array_equal(found, vertices) and np.array_equal(faces, given.faces)
    assert np.array_equal(colors, given.vertex_colors)  # type: ignore[arg-type]


def test_edges_are_sharp_and_round_things_round() -> None:
    box = trimesh.creation.box()
    flat = Mesh(box.vertices.astype(np.float32), box.faces.astype(np.int32), np.full((8, 3), 90, np.uint8))
    normals, _ = attribute(stored(flat), "NORMAL")
    np.testing.assert_allclose(normals, box.face_normals.repeat(3, axis=0), atol=1e-5)
    ball = painted(2)
    normals, _ = attribute(stored(ball), "NORMAL")
    out = ball.vertices[ball.faces].reshape(-1, 3).astype(np.float64)
    assert (normals * out / np.linalg.norm(out, axis=1, keepdims=True)).sum(1).min() > 0.999


def test_what_has_no_colours_or_too_many_faces_is_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, given = replace(sphere(1), vertex_colors=None), painted(1)
    assert stored(plain) == encode_mesh(plain.vertices, plain.faces, None, ".glb", None)
    for module in (mesh, glb_texture):
        monkeypatch.setattr(module, "MOST_TEXTURED", len(given.faces) - 1)
    assert stored(given) == encode_mesh(given.vertices, given.faces, given.vertex_colors, ".glb", None)
    assert given.vertex_colors is not None
    with pytest.raises(ValueError, match="more than"):
        textured_glb(given.vertices, given.faces, given.vertex_colors, {})


@pytest.mark.parametrize("wrong", [-1.0, 1e9, 0.5, float("nan")])
def test_numbers_that_are_none_leave_the_file_as_it_is(wrong: float) -> None:
    given = painted(1)
    data = stored(given)
    _, start = attribute(data, "_VERTEX")
    broken = data[:start] + struct.pack("<f", wrong) + data[start + 4 :]
    vertices, faces, _, _ = decode_mesh(broken, ".glb")
    assert len(vertices) == given.faces.size and len(faces) == len(given.faces)
