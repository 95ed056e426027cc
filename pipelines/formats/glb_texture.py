"""GLB with its colours in a texture, for programs that show no colours of vertices.

Each corner of a face has a place of its own on the texture, so each is a vertex of the file. Which of ours it is, and
in what colour, stands in two attributes of our own, by which the object comes back as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import trimesh
from PIL import Image
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from pipelines.formats.glb_colors import HIDDEN, linear_of
from pipelines.formats.mesh_views import smooth_normals
from pipelines.formats.obj import MOST_TEXTURED, baked

TEXTURED = ".textured.glb"
_NUMBER = "_VERTEX"  # of ours, of a vertex of the file; as a float, exact up to 2**24
LINEAR, CLAMP = 9729, 33071  # of glTF's samplers; smaller copies of the texture would mix what lies side by side


def textured_glb(vertices: np.ndarray, faces: np.ndarray, vertex_colors: np.ndarray, metadata: dict[str, str]) -> bytes:
    """``vertices``: (V, 3); ``faces``: (F, 3), at most ``MOST_TEXTURED``; ``vertex_colors``: (V, 3) uint8, sRGB.

    Raises :class:`ValueError` for more faces.
    """
    if len(faces) > MOST_TEXTURED:
        raise ValueError(f"{len(faces)} faces are more than {MOST_TEXTURED}")
    texture, places = baked(vertex_colors[faces].astype(np.float32))
    loose = np.setdiff1d(np.arange(len(vertices)), faces)  # of no face
    numbers = np.concatenate([faces.ravel(), loose])
    _, corners = smooth_normals(vertices.astype(np.float64), faces)
    normals = np.concatenate([corners.reshape(-1, 3), np.zeros((len(loose), 3))])
    normals[np.linalg.norm(normals, axis=1) < 0.5] = (0, 1, 0)  # of no face, or of one without area
    material = PBRMaterial(
        name="colours", baseColorTexture=Image.fromarray(texture), metallicFactor=0.0, roughnessFactor=1.0
    )
    uv = np.concatenate([places.reshape(-1, 2), np.zeros((len(loose), 2))])
    mesh: Any = trimesh.Trimesh(
        vertices[numbers],
        np.arange(faces.size).reshape(-1, 3),
        vertex_normals=normals,
        visual=TextureVisuals(uv=uv, material=material),
        vertex_attributes={_NUMBER: numbers.astype(np.float32), HIDDEN: linear_of(vertex_colors[numbers])},
        metadata=metadata,
        process=False,
    )
    return bytes(mesh.export(file_type="glb", include_normals=True, tree_postprocessor=_sample_as_it_is))


def _sample_as_it_is(tree: dict[str, Any]) -> None:
    tree["samplers"] = [{"magFilter": LINEAR, "minFilter": LINEAR, "wrapS": CLAMP, "wrapT": CLAMP}]
    for texture in tree["textures"]:
        texture["sampler"] = 0


def put_together(scene: trimesh.Scene) -> None:
    """Gives the surfaces of a loaded file of ours the vertices and faces that they had, and leaves others as they are.

    Their colours must have been read (:func:`pipelines.formats.glb_colors.show_colors`).
    """
    for shape in scene.geometry.values():
        if not isinstance(shape, trimesh.Trimesh) or _NUMBER not in shape.vertex_attributes:
            continue
        numbers = np.asarray(shape.vertex_attributes.pop(_NUMBER)).ravel()
        visual: Any = shape.visual
        if len(numbers) != len(shape.vertices) or visual.kind != "vertex":
            continue
        known, first, ours = np.unique(numbers, return_index=True, return_inverse=True)
        if not np.array_equal(known, np.arange(len(known))):
            continue
        vertices, colors = np.asarray(shape.vertices)[first], visual.vertex_colors[first]
        shape.faces = ours[shape.faces]
        shape.vertices = vertices
        shape.visual = trimesh.visual.ColorVisuals(shape, vertex_colors=colors)
