"""``shapes64.parquet``: named 3D models of Sweet Home 3D's furniture libraries as coloured 64^3 voxel shells."""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from training.data.common import left_out, on_white, package_folder, write_table
from training.data.containers import LIBRARIES
from training.data.surfaces import Part, sample, shape_columns, voxelize

SOURCE = "sweethome3d-furniture"
CATALOGUE = "PluginFurnitureCatalog"
TABLE = "shapes64.parquet"


@dataclass(frozen=True)
class Model:
    """A catalogue entry. ``names``: language -> name; ``size_cm``: width, depth, height; ``rotation``: (3, 3)."""

    library: str
    id: str
    name: str
    names: dict[str, str]
    tags: str
    category: str
    creator: str
    licence: str
    size_cm: tuple[float, ...]
    rotation: np.ndarray | None
    is_door_or_window: bool
    model: Path
    icon: Path


def parse_properties(text: str) -> dict[str, str]:
    """The entries of a Java .properties file: ``key = value``, \\uXXXX escapes, lines continued by a backslash."""
    entries = {}
    for line in text.replace("\\\n", "").splitlines():
        match = re.match(r"\s*([^#!=:\s][^=:\s]*)\s*[=:]\s*(.*)", line)
        if match:
            key, value = match.groups()
            entries[key] = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), value).strip()
    return entries


def read_catalogue(library: Path) -> list[Model]:
    """The models of one unzipped library, with their names in every language that it has."""
    (catalogue,) = library.rglob(f"{CATALOGUE}.properties")
    entries: dict[str, dict[str, str]] = defaultdict(dict)  # number of the model ("" for the library) -> key -> value
    for key, value in _read_properties(catalogue).items():
        name, _, number = key.partition("#")
        entries[number][name] = value
    languages = {
        path.stem.removeprefix(f"{CATALOGUE}_"): _read_properties(path)
        for path in sorted(catalogue.parent.glob(f"{CATALOGUE}_*.properties"))
    }
    models: list[Model] = []
    while "name" in entries[str(len(models) + 1)]:
        number = str(len(models) + 1)
        names = {code: texts[f"name#{number}"] for code, texts in languages.items() if f"name#{number}" in texts}
        licence = entries[""].get("license", "")
        models.append(_model(library.name, catalogue.parent, entries[number], names, licence))
    return models


def _read_properties(path: Path) -> dict[str, str]:
    return parse_properties(path.read_text(encoding="latin-1"))


def _model(library: str, root: Path, own: dict[str, str], names: dict[str, str], licence: str) -> Model:
    """``own``: what the catalogue says of this model; ``licence``: that of the whole library."""
    rotation = own.get("modelRotation")
    return Model(
        library=library,
        id=own.get("id") or own["name"],
        name=own["name"],
        names=names,
        tags=own.get("tags", ""),
        category=own.get("category", ""),
        creator=own.get("creator", ""),
        licence=own.get("license") or licence,
        size_cm=tuple(float(own.get(side) or 0) for side in ("width", "depth", "height")),
        rotation=np.array([float(value) for value in rotation.split()]).reshape(3, 3) if rotation else None,
        is_door_or_window=own.get("doorOrWindow") == "true",
        model=root / own.get("model", "").lstrip("/"),
        icon=root / own.get("icon", "").lstrip("/"),
    )


def read_parts(path: Path, rotation: np.ndarray | None = None) -> list[Part]:
    """The pieces of a model file that trimesh reads, each with its texture, else its material's colour, else grey."""
    import trimesh

    pieces = [piece for piece in trimesh.load_scene(path).geometry.values() if len(getattr(piece, "faces", ()))]
    return [_part(piece, rotation) for piece in pieces]


def _part(piece: Any, rotation: np.ndarray | None) -> Part:
    vertices = np.asarray(piece.vertices)
    corners = (vertices if rotation is None else vertices @ rotation.T)[piece.faces]
    material, uv = getattr(piece.visual, "material", None), getattr(piece.visual, "uv", None)
    image = getattr(material, "image", None)
    if image is not None and uv is not None and len(uv) == len(vertices):
        return Part(corners, np.asarray(image.convert("RGBA")), np.asarray(uv)[piece.faces])
    color = getattr(material, "main_color", None)
    return Part(corners) if color is None else Part(corners, color=tuple(np.asarray(color) / 255))


def row(model: Model) -> dict[str, Any] | None:
    """The table's row of one model; None if its files are broken."""
    try:
        voxels = voxelize(*sample(read_parts(model.model, model.rotation)))
        icon = on_white(Image.open(model.icon).convert("RGBA"), reducing_gap=None)
    except Exception as error:
        left_out(f"{model.library} {model.name}", error)
        return None
    return {
        "library": model.library,
        "id": model.id,
        "name": model.name,
        "tags": model.tags,
        "category": model.category,
        "creator": model.creator,
        "licence": model.licence,
        "size_cm": list(model.size_cm),
        "is_door_or_window": model.is_door_or_window,
        "names": json.dumps(model.names, ensure_ascii=False),
        **shape_columns(voxels, icon),
    }


def build(work: Path, out: Path) -> None:
    """Write ``shapes64.parquet`` to ``out`` from the libraries in ``work``."""
    logging.getLogger("trimesh").setLevel(logging.ERROR)  # it warns of every missing texture
    libraries = sorted((package_folder(work, SOURCE) / LIBRARIES).iterdir())
    models = [model for library in libraries for model in read_catalogue(library)]
    with ProcessPoolExecutor() as pool:
        rows = [found for found in pool.map(row, models, chunksize=8) if found]
    write_table(pa.Table.from_pylist(rows), out / TABLE)
