"""Edits of 3-D objects."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import trimesh
from pydantic import Field, field_validator

from models.errors import UserError
from pipelines.base import Params, Route
from pipelines.edits.base import Edit
from pipelines.edits.colour import rgb_of, turn_hue
from pipelines.edits.surfaces import simplified, smoothed
from pipelines.media import Mesh

OBJECT_TO_OBJECT = (Route(("mesh",), "mesh"),)
FEWEST_FACES = 4
AXES = {"x": (1, 0, 0), "y": (0, 1, 0), "z": (0, 0, 1)}


class MeshRotateParams(Params):
    axis: Literal["x", "y", "z"] = Field(
        "y", description="The axis to turn about: y stands upright, x points right and z to the viewer."
    )
    degrees: float = Field(90.0, ge=-360, le=360, description="Degrees, anticlockwise as seen from the axis' tip.")


class MeshRotate(Edit[Mesh, MeshRotateParams]):
    name = "mesh-rotate"
    title = "Rotate an object"
    summary = "Turn a 3-D object about its middle."
    routes = OBJECT_TO_OBJECT
    params_type = MeshRotateParams

    def change(self, given: Mesh, params: MeshRotateParams) -> Mesh:
        turn = trimesh.transformations.rotation_matrix(np.deg2rad(params.degrees), AXES[params.axis])[:3, :3]
        return _about_middle(given, turn)


class MeshScaleParams(Params):
    size: float = Field(0.0, ge=0, description="Metres of its longest side; 0 leaves it.")
    factor: float = Field(1.0, ge=0.1, le=10, description="Times that: 2 is twice as long, wide and high.")


class MeshScale(Edit[Mesh, MeshScaleParams]):
    name = "mesh-scale"
    title = "Scale an object"
    summary = "Make a 3-D object larger or smaller."
    routes = OBJECT_TO_OBJECT
    params_type = MeshScaleParams

    def change(self, given: Mesh, params: MeshScaleParams) -> Mesh:
        factor = params.factor
        if params.size:
            side = float(np.ptp(given.vertices.astype(np.float64), axis=0).max())
            if side == 0:
                raise UserError("The object is a single point, which cannot be given a size.", "Use another object.")
            factor *= params.size / side
        return _about_middle(given, factor * np.eye(3))


class MeshSimplifyParams(Params):
    num_faces: int = Field(0, ge=0, description="At most this many triangles; 0 leaves it to the share.")
    share: float = Field(0.5, gt=0, le=1, description="How much of its triangles to keep, where no number is given.")


class MeshSimplify(Edit[Mesh, MeshSimplifyParams]):
    name = "mesh-simplify"
    title = "Simplify an object"
    summary = "Give a 3-D object fewer triangles."
    routes = OBJECT_TO_OBJECT
    params_type = MeshSimplifyParams

    def change(self, given: Mesh, params: MeshSimplifyParams) -> Mesh:
        budget = params.num_faces or max(FEWEST_FACES, round(params.share * len(given.faces)))
        if budget >= len(given.faces):
            return given
        vertices, faces, chosen = simplified(given.vertices, given.faces, budget)
        if len(faces) == 0:
            raise UserError(f"The object cannot be made of {budget} triangles.", "Allow it some more.")
        colors = None if given.vertex_colors is None else given.vertex_colors[chosen]
        return replace(given, vertices=vertices, faces=faces, vertex_colors=colors)


class MeshSmoothParams(Params):
    num_iterations: int = Field(10, ge=1, le=200, description="How often it is smoothed over.")


class MeshSmooth(Edit[Mesh, MeshSmoothParams]):
    name = "mesh-smooth"
    title = "Smooth an object"
    summary = "Take the bumps out of a 3-D object's surface, without shrinking it."
    routes = OBJECT_TO_OBJECT
    params_type = MeshSmoothParams

    def change(self, given: Mesh, params: MeshSmoothParams) -> Mesh:
        return replace(given, vertices=smoothed(given.vertices, given.faces, params.num_iterations))


class MeshRecolourParams(Params):
    colour: str | None = Field(
        None, max_length=40, description="One colour for all of it, such as 'red' or '#c0392b'; else it keeps its own."
    )
    hue: float = Field(0.0, ge=-180, le=180, description="Degrees to turn all colours: 120 makes red things green.")

    @field_validator("colour")
    @classmethod
    def _known(cls, colour: str | None) -> str | None:
        if colour is not None:
            rgb_of(colour)
        return colour


class MeshRecolour(Edit[Mesh, MeshRecolourParams]):
    name = "mesh-recolour"
    title = "Recolour an object"
    summary = "Paint a 3-D object in one colour, or turn the colours that it has."
    routes = OBJECT_TO_OBJECT
    params_type = MeshRecolourParams

    def change(self, given: Mesh, params: MeshRecolourParams) -> Mesh:
        colors = given.vertex_colors
        if params.colour is not None:
            colors = np.full((len(given.vertices), 3), rgb_of(params.colour), np.uint8)
        if colors is None:
            raise UserError("The object has no colours of its own.", "Choose one colour for all of it.")
        return replace(given, vertex_colors=turn_hue(colors, params.hue))


def _about_middle(given: Mesh, matrix: np.ndarray) -> Mesh:
    """``matrix`` (3, 3) applied about the middle of the object's bounding box, so that it stays where it is."""
    vertices = given.vertices.astype(np.float64)
    middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    return replace(given, vertices=((vertices - middle) @ matrix.T + middle).astype(np.float32))
