"""3-D objects shown in other media: turning around in a clip, and from six sides in one picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont
from pydantic import Field, field_validator

from models.errors import UserError
from pipelines.base import Event, Params, Pipeline, Produced, Progress, Route, Runtime, is_preview, provenance
from pipelines.edits.base import Edit
from pipelines.edits.colour import rgb_of
from pipelines.formats.mesh_views import Frame, MeshViews
from pipelines.media import Artifact, Image, Mesh, Video

FRAME_RATE = 20.0  # Hz: in whole hundredths of a second, which is how a GIF counts
FIRST_AZIMUTH = 30.0  # degrees: from the front, a little from the right
# Name, azimuth and elevation in degrees; opposite sides stand one below the other.
SIX_VIEWS = (
    (("front", 0, 0), ("right", 90, 0), ("top", 0, 90)),
    (("back", 180, 0), ("left", 270, 0), ("bottom", 0, -90)),
)
LABEL = 0.09  # height of a view's name, of the view's
LUMINANCE = (0.299, 0.587, 0.114)


class ShowingParams(Params):
    background: str = Field("white", max_length=40, description="A colour such as 'white', 'black' or '#c0392b'.")

    @field_validator("background")
    @classmethod
    def _known(cls, background: str) -> str:
        rgb_of(background)
        return background


class TurntableParams(ShowingParams):
    seconds: float = Field(3.0, ge=1, le=10, description="Seconds of one whole turn.")
    elevation: float = Field(
        20.0, ge=-90, le=90, description="Degrees from which it is seen: 0 is from its own height, 90 from above."
    )
    side: int = Field(384, ge=64, le=768, multiple_of=2, description="Pixels across and down.")

    @property
    def num_frames(self) -> int:
        return round(self.seconds * FRAME_RATE)


class MeshTurntable(Pipeline):
    """It takes seconds, so it tells how far it is; no :class:`Edit`."""

    name = "mesh-turntable"
    title = "Turn an object around"
    summary = "Show a 3-D object from all around, in a clip that loops."
    routes = (Route(("mesh",), "video"),)
    params_type = TurntableParams
    models: ClassVar[tuple[str, ...]] = ()
    is_edit = True
    uses_chance = False

    def effort(self, inputs: Sequence[Artifact], params: Params) -> float:
        params = cast(TurntableParams, params)
        return float(params.num_frames * params.side)

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        params = cast(TurntableParams, params)
        total = len(inputs) * params.num_frames
        for number, item in enumerate(inputs):
            [given] = item
            views = _views_of(_on_axis(cast(Mesh, given)))
            frame, background = views.turning_frame(params.elevation), rgb_of(params.background)
            frames = np.empty((params.num_frames, params.side, params.side, 3), np.uint8)
            for index, azimuth in enumerate(np.linspace(0, 360, params.num_frames, endpoint=False)):
                runtime.raise_if_cancelled()
                turned = FIRST_AZIMUTH + float(azimuth)
                frames[index] = views.drawn(params.side, turned, params.elevation, frame, background)
                done = number * params.num_frames + index + 1
                preview = Image(frames[index]) if is_preview(done, total) else None
                yield Progress(done, total, "Turning it around", preview)
            made_by = provenance(self, item, params, runtime.models)
            yield Produced(Video(frames, FRAME_RATE, provenance=made_by))


class ViewSheetParams(ShowingParams):
    side: int = Field(320, ge=64, le=1024, description="Pixels across and down of each of the six views.")


class MeshViewSheet(Edit[Any, ViewSheetParams]):
    name = "mesh-views"
    title = "Six views of an object"
    summary = "Show a 3-D object from the front, back, left, right, top and bottom in one picture, at one scale."
    routes = (Route(("mesh",), "image"),)
    params_type = ViewSheetParams

    def change(self, given: Mesh, params: ViewSheetParams) -> Image:
        views, background = _views_of(given), rgb_of(params.background)
        extent = float(np.ptp(views.vertices, axis=0).max())
        rows = []
        for row in SIX_VIEWS:
            tiles = []
            for name, azimuth, elevation in row:
                frame = Frame(views.frame(azimuth, elevation).middle, extent)
                tiles += [_labelled(views.drawn(params.side, azimuth, elevation, frame, background), name, background)]
            rows.append(np.concatenate(tiles, axis=1))
        return Image(np.concatenate(rows))


def _labelled(view: np.ndarray, name: str, background: tuple[int, ...]) -> np.ndarray:
    """``view`` (S, S, 3) with its name below, in black or white, whichever is better read."""
    side = len(view)
    height = max(12, round(LABEL * side))
    tile = PillowImage.new("RGB", (side, side + height), background)
    tile.paste(PillowImage.fromarray(view))
    ink = "black" if np.dot(background, LUMINANCE) > 127 else "white"
    middle, font = (side / 2, side + 0.4 * height), ImageFont.load_default(0.65 * height)
    ImageDraw.Draw(tile).text(middle, name, ink, font, anchor="mm")
    return np.asarray(tile)


def _on_axis(given: Mesh) -> Mesh:
    """With the middle of its bounding box in the origin, about which it is turned; from any place it looks the same."""
    vertices = given.vertices.astype(np.float64)
    return replace(given, vertices=(vertices - (vertices.min(0) + vertices.max(0)) / 2).astype(np.float32))


def _views_of(given: Mesh) -> MeshViews:
    views = MeshViews(given.vertices, given.faces, given.vertex_colors)
    if not views.face_normals.any():
        raise UserError("The object has no surface: all its triangles are lines or points.", "Use another object.")
    return views
