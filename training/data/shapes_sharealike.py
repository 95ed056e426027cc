"""``shapes64-sharealike.parquet``: animals, plants, buildings, ships, people and things out of free games.

Its columns are those of ``shapes64.parquet``, its licences mostly CC BY-SA: whoever makes something of it shares that
alike, so it is a table of its own. Names come from the files' names by the rules in ``shape_names.json``, which were
written by hand while looking at pictures of the models: of the rules for a source, the first whose pattern matches the
whole path of a model gives its name and category. A rule without a name leaves out what it matches, and so does having
none: foundations, ruins, parts of things (heads, sails, tree tops), decals, markers, and what has no plain English
name. Then left out are

- models under another licence than CC0, CC BY or CC BY-SA, or with such a texture, and files that cannot be read,
- flat ones, and those of fewer than :data:`MIN_VOXELS` voxels,
- those that fill the same voxels as an earlier one of their name, or of any name in the same colours,
- all but the first :data:`MOST` of a name.

What of a building or a plant lies below the ground is pressed up to it.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from training.data.actors import Actors
from training.data.common import left_out, package_folder, read_json, write_table
from training.data.icons import draw_icon
from training.data.karts import Karts
from training.data.surfaces import Part, sample, shape_columns, voxelize

TABLE = "shapes64-sharealike.parquet"
NAMES = Path(__file__).parent / "shape_names.json"
ACTORS, KARTS = "0ad-data", "supertuxkart-data"
SOURCES = (ACTORS, KARTS)
ACTOR_LICENCE = "CC-BY-SA-3.0"
MOST = 3  # of a name
MIN_VOXELS = 150
GROUNDED = {"Buildings", "Plants"}


@dataclass(frozen=True)
class Model:
    """One look of one model. ``path``: in the package ``source``, without ending."""

    source: str
    path: str
    look: int
    name: str
    tags: str
    category: str
    creator: str
    licence: str


# -------------------------------------------------------------------------------------------------------------- names


class Rules:
    """The names of the models of one source. ``rules``: (pattern, name or None, category) in their order.

    A name may hold ``{words}`` and ``{civ}``: what the pattern's groups of that name match, with spaces, and for the
    latter the adjective that ``civilisations`` has for it; the rest of the name is then another word for the thing.
    """

    def __init__(self, rules: Iterable[tuple[str, str | None, str]], civilisations: dict[str, str]) -> None:
        self.rules = [(re.compile(pattern), name, category) for pattern, name, category in rules]
        self.civilisations = civilisations

    def find(self, path: str) -> tuple[str, str, str] | None:
        """Name, tags and category of a model, or None if it is left out."""
        for pattern, name, category in self.rules:
            match = pattern.fullmatch(path)
            if match:
                return self._filled(name, match.groupdict(""), category) if name else None
        return None

    def _filled(self, name: str, groups: dict[str, str], category: str) -> tuple[str, str, str]:
        words, civilisation = groups.get("words", "").replace("_", " "), groups.get("civ", "")
        filled = name.format(words=words, civ=self.civilisations.get(civilisation, ""))
        plain = name.format(words=words, civ="").strip()
        return filled, plain if civilisation and plain != filled else "", category


def read_rules(source: str) -> Rules:
    content = read_json(NAMES)
    return Rules(content["rules"][source], content["civilisations"])


# ------------------------------------------------------------------------------------------------------------- models


@functools.cache
def _opened(source: str, folder: Path) -> Actors | Karts:
    return Actors(folder) if source == ACTORS else Karts(folder)


def models_of(source: str, folder: Path) -> Iterator[Model]:
    """What the rules name in a package, in the order of its paths."""
    opened, rules = _opened(source, folder), read_rules(source)
    for path in opened.names():
        found = rules.find(path)
        if found and isinstance(opened, Actors):
            model = Model(source, path, 0, *found, creator="Wildfire Games", licence=ACTOR_LICENCE)
            yield from (replace(model, look=number) for number in range(min(MOST, opened.looks(path))))
        elif found and isinstance(opened, Karts):
            licence = opened.licence(path)
            if licence:
                yield Model(source, path, 0, *found, creator=opened.creator(path), licence=licence)


def parts_of(model: Model, folder: Path) -> list[Part]:
    opened = _opened(model.source, folder)
    parts = opened.parts(model.path, model.look) if isinstance(opened, Actors) else opened.parts(model.path)
    return [_grounded(part) for part in parts] if model.category in GROUNDED else parts


def _grounded(part: Part) -> Part:
    return replace(part, corners=part.corners.clip([-np.inf, 0, -np.inf], np.inf))


def row(work: Path, model: Model) -> dict[str, Any] | None:
    """The table's row of one model; None if its files are broken."""
    try:
        parts = parts_of(model, package_folder(work, model.source))
        corners = np.concatenate([part.corners.reshape(-1, 3) for part in parts])
        columns = shape_columns(voxelize(*sample(parts)), draw_icon(parts))
    except Exception as error:
        left_out(f"{model.source} {model.path}", error)
        return None
    width, height, depth = (corners.max(0) - corners.min(0)) * 100
    return {
        "library": model.source,
        "id": f"{model.path}#{model.look}",
        "name": model.name,
        "tags": model.tags,
        "category": model.category,
        "creator": model.creator,
        "licence": model.licence,
        "size_cm": [round(float(size), 1) for size in (width, depth, height)],
        "is_door_or_window": False,
        "names": json.dumps({}),
        **columns,
    }


def choose(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what is flat, tiny or there already, and at most :data:`MOST` of a name."""
    chosen, counts = [], Counter[str]()
    seen: set[tuple[Any, bytes]] = set()
    for found in rows:
        name, mask = found["name"], found["mask"]
        is_new = seen.isdisjoint(keys := {(name, mask), (found["rgb"], mask)})
        if is_new and not found["flat"] and found["voxels"] >= MIN_VOXELS and counts[name] < MOST:
            seen |= keys
            counts[name] += 1
            chosen.append(found)
    return chosen


def build(work: Path, out: Path) -> None:
    """Write ``shapes64-sharealike.parquet`` to ``out`` from the packages in ``work``."""
    models = [model for source in SOURCES for model in models_of(source, package_folder(work, source))]
    # Each process opens the archive itself: an inherited one is read at a place in the file that all of them move.
    with ProcessPoolExecutor(initializer=_opened.cache_clear) as pool:
        rows = [found for found in pool.map(partial(row, work), models, chunksize=8) if found]
    write_table(pa.Table.from_pylist(choose(rows)), out / TABLE)
