"""``shapes64.parquet``: named 3D models of Sweet Home 3D's furniture libraries as coloured 64^3 voxel shells.

Points are sampled on the surface by area, with their texture or material colour, and binned into a grid over the
model's cube (its longest side is 0.9 of the cube; z up); the colours of a voxel are averaged. Glass is left out.
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from training.data.common import encode_webp, left_out, on_white, package_folder, write_table
from training.data.containers import LIBRARIES

SOURCE = "sweethome3d-furniture"
CATALOGUE = "PluginFurnitureCatalog"
RESOLUTION = 64
POINTS = 150_000  # on one model
MIN_POINTS = 200  # on one of its parts
FILLED_SHARE = 0.9
MIN_ALPHA = 0.3  # glass has less
FLAT_SHARE = 0.02  # a shape thinner than this share of its longest side is flat
GREY = (0.7, 0.7, 0.7, 1.0)
ICON_WEBP = {"quality": 92}


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


@dataclass(frozen=True)
class Voxels:
    """``occupied``: (64^3,) bool, index (z*64 + y)*64 + x; ``colors``: (number of occupied, 3) float in [0, 1]."""

    occupied: np.ndarray
    colors: np.ndarray
    is_flat: bool


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


def sample_surface(path: Path, rotation: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """About :data:`POINTS` points (N, 3) on a model's surface, by area, and their colours (N, 4) RGBA in [0, 1]."""
    import trimesh

    rng = np.random.default_rng(0)
    parts = [part for part in trimesh.load_scene(path).geometry.values() if len(getattr(part, "faces", ()))]
    areas = np.nan_to_num(np.array([part.area for part in parts])) + 1e-12
    points, colors = [], []
    for part, share in zip(parts, areas / areas.sum(), strict=True):
        corners = np.asarray(part.vertices)[part.faces]
        faces, weights = _sample_faces(corners, max(MIN_POINTS, int(POINTS * share)), rng)
        points.append((corners[faces] * weights).sum(1))
        colors.append(_colors(part, faces, weights))
    sampled = np.concatenate(points)
    return (sampled if rotation is None else sampled @ rotation.T), np.concatenate(colors)


def _sample_faces(corners: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``count`` random places on triangles (F, 3, 3): face indices (count,) and barycentric weights (count, 3, 1)."""
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    areas = np.nan_to_num(areas) + 1e-18
    faces = rng.choice(len(corners), count, p=areas / areas.sum())
    root, split = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    return faces, np.concatenate([1 - root, root * (1 - split), root * split], 1)[..., None]


def _colors(part: Any, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(N, 4) RGBA of the texture at these places, else of the part's material, else grey."""
    material = getattr(part.visual, "material", None)
    texture, uv = getattr(material, "image", None), getattr(part.visual, "uv", None)
    if texture is not None and uv is not None and len(uv) == len(part.vertices):
        pixels = np.asarray(texture.convert("RGBA"), np.float32) / 255
        height, width = pixels.shape[:2]
        at = np.mod((np.asarray(uv)[part.faces[faces]] * weights).sum(1), 1)
        return pixels[((1 - at[:, 1]) * (height - 1)).astype(int), (at[:, 0] * (width - 1)).astype(int)]
    main_color = getattr(material, "main_color", None)
    color = np.array(GREY, np.float32) if main_color is None else np.asarray(main_color, np.float32) / 255
    return np.tile(color, (len(faces), 1))


def voxelize(points: np.ndarray, colors: np.ndarray) -> Voxels:
    """Bin surface points (N, 3; y up) with their colours (N, 4) into the grid."""
    keep = (colors[:, 3] > MIN_ALPHA) & np.isfinite(points).all(1)
    points, colors = points[keep], colors[keep, :3]
    low, high = points.min(0), points.max(0)
    side = (high - low).max()
    centred = (points - (low + high) / 2) / (side / 2) * FILLED_SHARE
    z_up = centred[:, [0, 2, 1]] * [1, -1, 1]
    x, y, z = np.clip(((z_up + 1) / 2 * RESOLUTION).astype(int), 0, RESOLUTION - 1).T
    cells = (z * RESOLUTION + y) * RESOLUTION + x
    counts = np.bincount(cells, minlength=RESOLUTION**3)
    occupied = counts > 0
    sums = [np.bincount(cells, channel, RESOLUTION**3)[occupied] for channel in colors.T]
    is_flat = bool(((high - low) / side).min() < FLAT_SHARE)
    return Voxels(occupied, np.stack(sums, 1) / counts[occupied, None], is_flat)


def row(model: Model) -> dict[str, Any] | None:
    """The table's row of one model; None if its files are broken.

    ``mask`` holds the packed occupancy, ``rgb`` the colours of the occupied voxels in the same order, both compressed.
    """
    try:
        voxels = voxelize(*sample_surface(model.model, model.rotation))
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
        "icon": encode_webp(icon, ICON_WEBP),
        "flat": voxels.is_flat,
        "voxels": int(voxels.occupied.sum()),
        "mask": zlib.compress(np.packbits(voxels.occupied).tobytes(), 9),
        "rgb": zlib.compress((voxels.colors * 255).round().astype(np.uint8).tobytes(), 9),
    }


def build(work: Path, out: Path) -> None:
    """Write ``shapes64.parquet`` to ``out`` from the libraries in ``work``."""
    logging.getLogger("trimesh").setLevel(logging.ERROR)  # it warns of every missing texture
    libraries = sorted((package_folder(work, SOURCE) / LIBRARIES).iterdir())
    models = [model for library in libraries for model in read_catalogue(library)]
    with ProcessPoolExecutor() as pool:
        rows = [found for found in pool.map(row, models, chunksize=8) if found]
    write_table(pa.Table.from_pylist(rows), out / "shapes64.parquet")
