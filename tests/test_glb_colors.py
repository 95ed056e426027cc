"""Vertex colours in GLB files: linear by glTF, whoever wrote them, and sRGB here."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from models.errors import UserError
from pipelines.formats.glb_colors import linear_of, srgb_of
from pipelines.formats.mesh import decode_mesh, encode_mesh
from pipelines.media import Artifact, Mesh, load_artifact
from tests.edit_examples import sphere
from tests.test_media_refusals import glb

LINEAR = {0: 0.0, 1: 0.0003035, 10: 0.0030353, 11: 0.0033465, 128: 0.2158605, 188: 0.5028865, 255: 1.0}
TYPES = {np.dtype(np.uint8): 5121, np.dtype(np.uint16): 5123, np.dtype(np.float32): 5126}


def all_levels() -> Mesh:
    """Each of the 256 levels in each channel."""
    ball = sphere(3)
    levels = np.arange(len(ball.vertices)) % 256
    return replace(ball, vertex_colors=np.stack([levels, levels[::-1], 255 - levels], axis=1).astype(np.uint8))


def colors_of(mesh: Artifact) -> np.ndarray:
    assert isinstance(mesh, Mesh) and mesh.vertex_colors is not None
    return mesh.vertex_colors


def stored(data: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """The accessor of our colours, and what it is of, (V, 3) float32."""
    length = struct.unpack_from("<I", data, 12)[0]
    header = json.loads(data[20 : 20 + length])
    accessor = header["accessors"][header["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
    start = 20 + length + 8 + header["bufferViews"][accessor["bufferView"]]["byteOffset"]
    return accessor, np.frombuffer(data, "<f4", 3 * accessor["count"], start).reshape(-1, 3)


def foreign(*parts: np.ndarray, extras: dict[str, Any] | None = None, color: int | None = None) -> bytes:
    """One triangle each, beside each other, whose colours are (3, 3), (3, 4) or of a wrong shape.

    ``color``: the accessor that all refer to instead of their own.
    """
    binary, views, accessors, meshes, nodes = b"", [], [], [], []
    for part, colors in enumerate(parts):
        corners = np.eye(3, dtype=np.float32) + part
        for array, kind in ((corners, 5126), (colors, TYPES[colors.dtype])):
            views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": array.nbytes})
            accessor = {"bufferView": len(views) - 1, "componentType": kind, "count": len(array)}
            accessors.append({**accessor, "type": f"VEC{array.shape[1]}", "normalized": kind != 5126})
            binary += array.tobytes() + b"\0" * (-array.nbytes % 4)
        attributes = {"POSITION": 2 * part, "COLOR_0": 2 * part + 1 if color is None else color}
        meshes.append({"name": f"part {part}", "primitives": [{"attributes": attributes}], "extras": extras or {}})
        nodes.append({"mesh": part})
    header = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": list(range(len(parts)))}],
        "nodes": nodes,
        "meshes": meshes,
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    return glb(header, binary)


# ---------------------------------------------------------------------------------------------------------- of our own


def test_all_levels_come_back_exactly(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8)
    assert (srgb_of(linear_of(levels)) == levels).all() and (np.diff(linear_of(levels)) > 0).all()
    mesh = all_levels()
    mesh.save(tmp_path / "it.glb")
    again = load_artifact(tmp_path / "it.glb")
    assert np.array_equal(colors_of(again), colors_of(mesh)) and again.content_hash() == mesh.content_hash()


def test_a_file_has_linear_colours_as_floats() -> None:
    mesh = all_levels()
    data = mesh.encode(".glb")
    accessor, colors = stored(data)
    assert (accessor["componentType"], accessor["type"]) == (5126, "VEC3") and len(colors) == len(mesh.vertices)
    assert accessor["min"] == colors.min(0).tolist() and accessor["max"] == colors.max(0).tolist()
    for level, linear in LINEAR.items():
        assert colors[level, 0] == pytest.approx(linear, abs=1e-5)
    assert mesh.encode(".glb") == data
    assert struct.unpack_from("<I", data, 8)[0] == len(data) and b"OLOR_0" not in data.replace(b'"COLOR_0"', b"")


def test_other_programs_find_its_shape() -> None:
    mesh = all_levels()
    read: Any = trimesh.load(io.BytesIO(mesh.encode(".glb")), file_type="glb", force="mesh", process=False)
    assert np.array_equal(read.vertices, mesh.vertices) and np.array_equal(read.faces, mesh.faces)
    assert read.visual.kind == "vertex"


def test_one_without_colours_gets_none() -> None:
    data = replace(sphere(1), vertex_colors=None).encode(".glb")
    assert b"OLOR_0" not in data and decode_mesh(data, ".glb")[2] is None


def test_a_note_about_colours_is_no_colour() -> None:
    mesh = all_levels()
    note = json.dumps({"prompt": 'say "COLOR_0"'})
    data = encode_mesh(mesh.vertices, mesh.faces, mesh.vertex_colors, ".glb", note)
    *_, colors, again = decode_mesh(data, ".glb")
    assert again == note and colors is not None and np.array_equal(colors, colors_of(mesh))


def test_ply_keeps_srgb() -> None:
    mesh = all_levels()
    read: Any = trimesh.load(io.BytesIO(mesh.encode(".ply")), file_type="ply", process=False)
    assert np.array_equal(read.visual.vertex_colors[:, :3], colors_of(mesh))


# ----------------------------------------------------------------------------------------------------------- of others


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(
    ("colors", "expected"),
    [
        pytest.param(np.array([[0, 55, 255]], np.uint8), [0, 128, 255], id="8 bits"),
        pytest.param(np.array([[20, 14146, 65535]], np.uint16), [1, 128, 255], id="16 bits"),
        pytest.param(np.array([[0.0003, 0.2158605, 0.5028865]], np.float32), [1, 128, 188], id="floats"),
        pytest.param(np.array([[-1.0, np.nan, 7.0]], np.float32), [0, 0, 255], id="impossible"),
    ],
)
def test_others_colours_are_linear(colors: np.ndarray, expected: list[int], channels: int) -> None:
    opaque = np.pad(colors, ((0, 0), (0, channels - 3)), constant_values=1)
    read = decode_mesh(foreign(opaque.repeat(3, axis=0)), ".glb")[2]
    assert read is not None and read.tolist() == [expected] * 3


def test_parts_have_colours_of_any_type() -> None:
    parts = (np.full((3, 4), 55, np.uint8), np.full((3, 3), 14146, np.uint16), np.full((3, 3), 1, np.float32))
    vertices, faces, colors, _ = decode_mesh(foreign(*parts), ".glb")
    assert colors is not None and len(faces) == 3
    assert {int(vertex.min()): int(color[0]) for vertex, color in zip(vertices, colors, strict=True)} == {
        0: 128,
        1: 128,
        2: 255,
    }


def test_our_own_old_files_had_srgb() -> None:
    old = np.full((3, 4), 55, np.uint8)
    read = decode_mesh(foreign(old, extras={"synesthete": "{}"}), ".glb")[2]
    assert read is not None and (read == 55).all()


@pytest.mark.parametrize("colors", [np.zeros((2, 3), np.float32), np.zeros((3, 2), np.uint8)])
def test_colours_that_fit_no_vertices_are_left_out(colors: np.ndarray) -> None:
    vertices, _, read, _ = decode_mesh(foreign(colors), ".glb")
    assert len(vertices) == 3 and read is None


def test_colours_that_are_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "it.glb").write_bytes(foreign(np.zeros((3, 3), np.float32), color=99))
    with pytest.raises(UserError):
        load_artifact(tmp_path / "it.glb")
