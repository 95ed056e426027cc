"""``/view/<id>``: a picture of a 3-D object in the gallery, for where it cannot be turned around."""

from __future__ import annotations

import io
from functools import lru_cache

import PIL.Image
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from app.library import Library
from app.studio import InternalError, Studio, reporting
from models.errors import UserError
from pipelines.formats.mesh_views import mesh_view
from pipelines.media import Mesh

SIDE = 320  # pixels
VIEWS_KEPT = 256
FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable"}  # an id never means another object


def view_route(studio: Studio) -> Route:
    """A route for the web server beside the page's own. Answers 404 for what is not in the gallery and for what is no
    object, with a sentence each."""

    def view(request: Request) -> Response:
        try:
            with reporting():
                studio.library.get(request.path_params["id"])  # what was removed is not shown from memory
                drawn = _drawn(studio.library, request.path_params["id"])
        except UserError as error:
            return PlainTextResponse(str(error), 404)
        except InternalError as error:
            return PlainTextResponse(str(error), 500)
        return Response(drawn, media_type="image/webp", headers=FOR_EVER)

    return Route("/view/{id}", view)


@lru_cache(maxsize=VIEWS_KEPT)
def _drawn(library: Library, entry_id: str) -> bytes:
    mesh = library.load(entry_id)
    if not isinstance(mesh, Mesh):
        raise UserError(f"This is no 3-D object but {mesh.medium}.", "Open it itself.")
    stored = io.BytesIO()
    PIL.Image.fromarray(mesh_view(mesh.vertices, mesh.faces, mesh.vertex_colors, SIDE)).save(stored, "WEBP", quality=90)
    return stored.getvalue()
