"""3-D objects (GLB, OBJ, PLY), by trimesh."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
import trimesh

from models.errors import UserError

MAX_ELEMENTS = 8 * 2**20  # vertices, faces, or values of any other kind in a file
MAX_NODES = 10_000

_KEY = "synesthete"
_COMPRESSIONS = {"KHR_draco_mesh_compression", "EXT_meshopt_compression"}


def encode_mesh(
    vertices: np.ndarray, faces: np.ndarray, vertex_colors: np.ndarray | None, suffix: str, note: str | None
) -> bytes:
    """``vertices``: (V, 3) float32; ``faces``: (F, 3) int32; ``vertex_colors``: (V, 3) uint8 or ``None``."""
    mesh: Any = trimesh.Trimesh(
        vertices, faces, vertex_colors=vertex_colors, process=False, metadata={_KEY: note} if note else None
    )
    if suffix == ".obj":
        return str(mesh.export(file_type="obj", digits=10, header=None)).encode()
    return bytes(mesh.export(file_type=suffix[1:]))


def decode_mesh(data: bytes, suffix: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, str | None]:
    """Vertices, faces, vertex colours and note of all parts of the file together, in the scene's frame."""
    if suffix == ".glb":
        _check_glb(data)
    options: dict[str, Any] = {"maintain_order": True} if suffix == ".obj" else {}
    # Without a resolver nothing outside the file is opened, whatever the file refers to.
    scene = trimesh.load_scene(
        io.BytesIO(data), file_type=suffix[1:], process=False, skip_materials=True, resolver=None, **options
    )
    _check_instances(scene)
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
    elements = sum(accessor["count"] for accessor in header.get("accessors", []))
    if elements > MAX_ELEMENTS or len(header.get("nodes", [])) > MAX_NODES:
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
