"""3-D objects (GLB, OBJ, PLY), by trimesh."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
import trimesh

from models.errors import UserError
from pipelines.formats.glb_colors import glb_of, hide_colors, show_colors
from pipelines.formats.glb_texture import TEXTURED, put_together, textured_glb
from pipelines.formats.mesh_views import smooth_normals
from pipelines.formats.obj import MOST_TEXTURED, textured_obj, without_texture

MAX_ELEMENTS = 8 * 2**20  # vertices, faces, or values of any other kind in a file
MAX_NODES = 10_000
MOST_WITH_NORMALS = 2**20  # faces
SAME_NORMAL = 0.999  # cosine
ROUND = 0.9  # of its corners have one normal with all others at their vertex

_KEY = "synesthete"
_COMPRESSIONS = {"KHR_draco_mesh_compression", "EXT_meshopt_compression"}


def encode_mesh(
    vertices: np.ndarray, faces: np.ndarray, vertex_colors: np.ndarray | None, suffix: str, note: str | None
) -> bytes:
    """``vertices``: (V, 3) float32; ``faces``: (F, 3) int32; ``vertex_colors``: (V, 3) uint8, sRGB, or ``None``.

    A round object's GLB has normals, without which programs would show its faces flat, one by one. ``.textured.glb``
    has its colours in a texture, and is a plain one where there are none, or more faces than ``MOST_TEXTURED``.
    """
    metadata = {_KEY: note} if note else {}
    if suffix == TEXTURED and vertex_colors is not None and len(faces) <= MOST_TEXTURED:
        return textured_glb(vertices, faces, vertex_colors, metadata)
    mesh: Any = trimesh.Trimesh(vertices, faces, process=False, metadata=metadata)
    if suffix in (".glb", TEXTURED):
        if (normals := vertex_normals(vertices, faces)) is not None:
            mesh.vertex_normals = normals
        return glb_of(mesh, vertex_colors)
    if vertex_colors is not None:
        mesh.visual.vertex_colors = vertex_colors
    if suffix == ".obj":
        return str(mesh.export(file_type="obj", digits=10, header=None)).encode()
    return bytes(mesh.export(file_type=suffix[1:]))


def encode_textured_obj(
    vertices: np.ndarray, faces: np.ndarray, vertex_colors: np.ndarray, name: str
) -> dict[str, bytes]:
    """Its files by name, see :func:`pipelines.formats.obj.textured_obj`."""
    return textured_obj(encode_mesh(vertices, faces, vertex_colors, ".obj", None).decode(), faces, vertex_colors, name)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray | None:
    """Unit normals (V, 3) float32; ``None`` for what has many edges, whose vertices would need several, or is huge."""
    if len(faces) > MOST_WITH_NORMALS:
        return None
    _, corners = smooth_normals(vertices.astype(np.float64), faces)
    normals = np.tile(np.array([0.0, 1.0, 0.0]), (len(vertices), 1))  # of what belongs to no face
    normals[faces] = corners  # one of its corners'
    agree = (normals[faces] * corners).sum(axis=2) > SAME_NORMAL
    lengths = np.linalg.norm(normals, axis=1)
    normals[lengths < 0.5] = (0, 1, 0)  # of faces without area
    return normals.astype(np.float32) if agree.mean() >= ROUND else None


def decode_mesh(data: bytes, suffix: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, str | None]:
    """Vertices, faces, vertex colours (sRGB) and note of all parts of the file together, in the scene's frame."""
    kind = suffix.rpartition(".")[2]
    if kind == "glb":
        _check_glb(data)
        data = hide_colors(data)
    options: dict[str, Any] = {}
    if kind == "obj":
        data, options = without_texture(data), {"maintain_order": True}
    # Without a resolver nothing outside the file is opened, whatever the file refers to.
    scene = trimesh.load_scene(
        io.BytesIO(data), file_type=kind, process=False, skip_materials=True, resolver=None, **options
    )
    _check_instances(scene)
    if kind == "glb":
        show_colors(scene, _KEY)
        put_together(scene)
    parts = [part for part in scene.dump() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    if not parts:
        raise UserError("The file has no 3-D surface in it.", "Export it with its triangles.")
    mesh: Any = parts[0] if len(parts) == 1 else trimesh.util.concatenate(parts)
    colors = mesh.visual.vertex_colors[:, :3] if mesh.visual.kind == "vertex" else None
    return mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32), colors, parts[0].metadata.get(_KEY)


def _check_glb(data: bytes) -> None:
    """Refuses what is cut off, and what a short header could make the reader allocate or repeat."""
    _, _, length, header_length, _ = struct.unpack_from("<4sIII4s", data)
    if len(data) < length:
        raise ValueError(f"the file promises {length} bytes and has {len(data)}")
    header = json.loads(data[20 : 20 + header_length])
    counts = [accessor["count"] for accessor in header.get("accessors", [])]
    if not all(count >= 0 for count in counts):  # NaN is none
        raise ValueError("the file promises less than nothing")
    if sum(counts) > MAX_ELEMENTS or len(header.get("nodes", [])) > MAX_NODES:
        raise _too_large()
    if _COMPRESSIONS.intersection(header.get("extensionsRequired", [])):
        raise UserError("The 3-D object is compressed in a way that is not supported.", "Export it uncompressed.")


def _check_instances(scene: trimesh.Scene) -> None:
    """A scene may show one shape many times; here each becomes vertices and faces of its own."""
    total = 0
    for node in scene.graph.nodes_geometry:
        shape: Any = scene.geometry[scene.graph[node][1]]
        total += len(shape.vertices) + len(getattr(shape, "faces", ()))
    if total > MAX_ELEMENTS:
        raise _too_large()


def _too_large() -> UserError:
    return UserError("The 3-D object has too many vertices and faces.", f"Use at most {MAX_ELEMENTS:,} in all.")
