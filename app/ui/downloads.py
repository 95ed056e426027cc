"""``/download/<id>/<format>``: what is in the gallery as a file with a name to keep, in any format of its medium."""

from __future__ import annotations

import io
import mimetypes
import zipfile
from pathlib import PurePath
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from app.studio import InternalError, Studio, reporting
from app.ui.markup import file_name, format_of
from models.errors import UserError
from pipelines.media import Artifact


def download_route(studio: Studio) -> Route:
    """A route for the web server beside the page's own. What is not in the format already is encoded, and not stored.

    Answers 404 for what is not in the gallery, 400 for a format that cannot hold it, with a sentence each.
    """

    def download(request: Request) -> Response:
        entry_id, known_as = request.path_params["id"], request.path_params["format"]
        status = 404
        try:
            with reporting():
                entry = studio.library.get(entry_id)
                name = file_name(entry, known_as)
                media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
                if known_as == format_of(entry) and not entry.missing:
                    return FileResponse(entry.path, media_type=media_type, filename=name)
                artifact = studio.library.load(entry_id)
                status = 400
                name, data = _encoded(artifact, name, known_as)
                media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        except UserError as error:
            return PlainTextResponse(str(error), status)
        except InternalError as error:
            return PlainTextResponse(str(error), 500)
        headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"}
        return Response(data, media_type=media_type, headers=headers)

    return Route("/download/{id}/{format}", download)


def _encoded(artifact: Artifact, name: str, known_as: str) -> tuple[str, bytes]:
    """The artifact as a file called ``name``, which ends in ``.<known_as>``; what would be several files as a ZIP.

    Returns the file's name and bytes. Raises :class:`UserError` if the artifact has no such format.
    """
    formats = [suffix.removeprefix(".") for suffix in artifact.suffixes]
    if known_as not in formats:
        raise UserError(
            f"There is no format '{known_as[:20]}' for {artifact.medium}.", f"Choose one of {', '.join(formats)}."
        )
    files = artifact.files(name)
    if len(files) == 1:
        return name, files[name]
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, data in files.items():
            archive.writestr(zipfile.ZipInfo(part), data, zipfile.ZIP_DEFLATED)  # without the time of day
    return f"{PurePath(name).stem}.zip", stored.getvalue()
