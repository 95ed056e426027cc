"""``emoji128.parquet``: emoji and icons in eight drawing styles, with captions. One row is one (concept, style).

Skin-tone variants are left out (the base picture is kept); country and region flags are kept, marked ``is_flag``.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from training.data.common import encode_webp, left_out, on_white, package_folder, read_json, write_table

RENDERED_SIZE = 512
"""Width and height at which an SVG is drawn before it is reduced."""

# Style -> (npm package, licence). The order is the order of rows within a concept.
STYLES = {
    "noto": ("@iconify-json/noto", "Apache-2.0"),
    "noto-blob": ("@iconify-json/noto-v1", "Apache-2.0"),
    "twemoji": ("@iconify-json/twemoji", "CC-BY-4.0"),
    "openmoji": ("@iconify-json/openmoji", "CC-BY-SA-4.0"),
    "fluent-flat": ("@iconify-json/fluent-emoji-flat", "MIT"),
    "fluent-color": ("@iconify-json/fluent-emoji", "MIT"),
    "fluent-3d": ("@lobehub/fluent-emoji-3d", "MIT"),
    "fxemoji": ("@iconify-json/fxemoji", "Apache-2.0"),
}
COMPONENT_GROUP = 2  # emojibase: skin tones and hair, which are no pictures of their own
# Of OpenMoji's own pictures, these subgroups are trademarks or not pictures of things ...
SKIPPED_EXTRAS = {"brand", "sdgs", "flags", "ui-element", "symbol-other", "subdivision-flag", "country-flag"}
# ... and of its drawings of Unicode characters that are no emoji, only these are.
UNICODE_EXTRAS = {"objects", "animals-nature", "food-drink"}
SHORTCODE_TABLES = ("github", "joypixels", "iamcal", "emojibase", "cldr")
DICTIONARY_COLUMNS = ["concept", "hexcode", "emoji", "style", "caption", "group", "subgroup", "licence"]


@dataclass(frozen=True)
class Concept:
    """What a picture shows. ``key``: its code points without the variation selector; ``label``: emojibase's name."""

    key: str
    hexcode: str
    emoji: str
    caption: str
    label: str
    keywords: list[str]
    more_keywords: list[str]
    group: str
    subgroup: str
    is_flag: bool
    order: int


def concept_key(hexcode: str) -> str:
    """A code-point sequence such as ``2764-FE0F``, lower case, without the variation selector FE0F."""
    return "-".join(point for point in hexcode.lower().split("-") if point != "fe0f")


def squeeze(name: str) -> str:
    """A name reduced to lower-case ASCII letters and digits, for comparing."""
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", name.lower()))


def slug(name: str) -> str:
    """A name as icon sets write it: lower case, no accents or apostrophes, hyphens between the words."""
    letters = unicodedata.normalize("NFKD", name.lower())
    plain = "".join(c for c in letters if not unicodedata.combining(c) and c not in "’'")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def read_concepts(work: Path) -> list[Concept]:
    """All concepts in Unicode's order, OpenMoji's own at the end."""
    emojibase = package_folder(work, "emojibase-data")
    concepts = {concept.key: concept for concept in _unicode_concepts(work, emojibase)}
    for concept in _openmoji_concepts(package_folder(work, "openmoji") / "data" / "openmoji.json"):
        concepts.setdefault(concept.key, concept)
    return sorted(concepts.values(), key=lambda concept: concept.order)


def _unicode_concepts(work: Path, emojibase: Path) -> Iterator[Concept]:
    meta = read_json(emojibase / "meta" / "groups.json")
    emojilib = read_json(package_folder(work, "emojilib") / "dist" / "emoji-en-US.json")
    cldr = read_json(package_folder(work, "cldr-annotations-full") / "annotations" / "en" / "annotations.json")
    annotations = cldr["annotations"]["annotations"]
    for entry in read_json(emojibase / "en" / "data.json"):
        if entry.get("group") in (None, COMPONENT_GROUP):  # None: the letters that flags are made of
            continue
        emoji, bare = entry["emoji"], entry["emoji"].replace("\ufe0f", "")
        annotation = annotations.get(emoji, annotations.get(bare, {}))
        keywords = list(dict.fromkeys(entry.get("tags", []) + annotation.get("default", [])))
        words = emojilib.get(emoji, emojilib.get(bare, []))
        group = meta["groups"][str(entry["group"])]
        yield Concept(
            key=concept_key(entry["hexcode"]),
            hexcode=entry["hexcode"],
            emoji=emoji,
            caption=(annotation.get("tts") or [entry["label"]])[0],
            label=entry["label"],
            keywords=keywords,
            more_keywords=further_keywords(words, keywords),
            group=group,
            subgroup=meta["subgroups"].get(str(entry.get("subgroup")), ""),
            is_flag=group == "flags",
            order=entry.get("order", 0),
        )


def further_keywords(words: list[str], keywords: list[str]) -> list[str]:
    """Emojilib's words as plain text, without those that say nothing (``:)``) or stand in ``keywords`` already."""
    texts = [word.replace("_", " ") for word in words if re.search("[a-z]", word)]
    return [text for text in texts if text not in keywords]


def _openmoji_concepts(path: Path) -> Iterator[Concept]:
    """OpenMoji's own pictures: those that are no emoji of Unicode."""
    for entry in read_json(path):
        group, subgroup = entry["group"], entry["subgroups"]
        if not group.startswith("extras-") or subgroup in SKIPPED_EXTRAS or entry.get("skintone"):
            continue
        if group == "extras-unicode" and subgroup not in UNICODE_EXTRAS:
            continue
        tags = f"{entry.get('tags', '')},{entry.get('openmoji_tags', '')}".split(",")
        yield Concept(
            key=concept_key(entry["hexcode"]),
            hexcode=entry["hexcode"],
            emoji="",
            caption=entry["annotation"],
            label=entry["annotation"],
            keywords=list(dict.fromkeys(tag.strip() for tag in tags if tag.strip())),
            more_keywords=[],
            group="extras-openmoji",
            subgroup=subgroup,
            is_flag=False,
            order=100_000 + int(entry.get("order") or 0),
        )


class IconSet:
    """One Iconify package: SVG drawings by ``names``; ``name_of``: concept key -> name, if the set has code points."""

    def __init__(self, folder: Path) -> None:
        self._data = read_json(folder / "icons.json")
        self._aliases: dict[str, Any] = self._data.get("aliases", {})
        self.names = {*self._data["icons"], *self._aliases}
        characters = folder / "chars.json"
        entries = read_json(characters) if characters.exists() else {}
        self.name_of = {concept_key(hexcode): name for hexcode, name in entries.items()}

    def svg(self, name: str) -> str | None:
        """The drawing as an SVG document, or None if there is none of that name."""
        icons = self._data["icons"]
        passed: set[str] = set()
        while name not in icons and name in self._aliases and name not in passed:
            passed.add(name)
            name = self._aliases[name]["parent"]
        if name not in icons:
            return None
        icon = icons[name]
        width = icon.get("width", self._data.get("width", 16))
        height = icon.get("height", self._data.get("height", 16))
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{width}" height="{height}" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
        )


class Drawings:
    """Finds the drawing of a concept in each style."""

    def __init__(self, work: Path) -> None:
        folders = {style: package_folder(work, package) for style, (package, _) in STYLES.items()}
        self._pictures = folders.pop("fluent-3d") / "assets"
        self._sets = {style: IconSet(folder) for style, folder in folders.items()}
        self._fxemoji_names = {squeeze(name): name for name in sorted(self._sets["fxemoji"].names)}
        self._shortcodes = read_shortcodes(package_folder(work, "emojibase-data") / "en" / "shortcodes")

    def find(self, concept: Concept, style: str) -> str | Path | None:
        """An SVG document, the path of a picture, or None if the style lacks the concept."""
        if style == "fluent-3d":
            paths = (self._pictures / f"{name}.webp" for name in (concept.hexcode.lower(), concept.key))
            return next((path for path in paths if path.exists()), None)
        name = self._name(concept, style)
        if not name or name.endswith(("-low", "-high")):
            return None
        return self._sets[style].svg(name)

    def _name(self, concept: Concept, style: str) -> str | None:
        """The icon's name. Fluent colour has the names of Fluent flat; two old sets have no code points at all."""
        if style == "fluent-color":
            return self._sets["fluent-flat"].name_of.get(concept.key)
        if style == "noto-blob":
            noto = self._sets["noto"].name_of.get(concept.key)
            names = (noto, slug(concept.label), slug(concept.caption))
            return next((name for name in names if name and name in self._sets["noto-blob"].names), None)
        if style == "fxemoji":
            return None if concept.is_flag else self._fxemoji_name(concept)
        return self._sets[style].name_of.get(concept.key)

    def _fxemoji_name(self, concept: Concept) -> str | None:
        """FxEmoji has old names, of Unicode or of some chat program: any name that fits will do."""
        names = [concept.label, concept.caption, *self._shortcodes.get(concept.key, [])]
        if len(concept.emoji.replace("\ufe0f", "")) == 1:
            names.append(unicodedata.name(concept.emoji[0], ""))
        return next((self._fxemoji_names[key] for key in map(squeeze, names) if key in self._fxemoji_names), None)


def read_shortcodes(folder: Path) -> dict[str, list[str]]:
    """Concept key -> the names that chat programs have for it."""
    shortcodes: dict[str, list[str]] = {}
    for table in SHORTCODE_TABLES:
        path = folder / f"{table}.json"
        entries = read_json(path) if path.exists() else {}
        for hexcode, names in entries.items():
            shortcodes.setdefault(concept_key(hexcode), []).extend([names] if isinstance(names, str) else names)
    return shortcodes


def render(what: str, drawing: str | Path) -> bytes | None:
    """128x128 WebP bytes of an SVG document or a picture file; None if nothing was drawn. ``what``: for the report."""
    import resvg_py

    try:
        if isinstance(drawing, Path):
            image = Image.open(drawing)
        else:
            png = resvg_py.svg_to_bytes(
                svg_string=drawing, width=RENDERED_SIZE, height=RENDERED_SIZE, skip_system_fonts=True
            )
            image = Image.open(io.BytesIO(bytes(png)))
        square = on_white(image.convert("RGBA"))
    except Exception as error:
        left_out(what, error)
        return None
    return encode_webp(square) if np.asarray(square).std() >= 1.0 else None


def row(concept: Concept, style: str, image: bytes) -> dict[str, Any]:
    return {
        "concept": concept.key,
        "hexcode": concept.hexcode,
        "emoji": concept.emoji,
        "style": style,
        "caption": concept.caption,
        "keywords": concept.keywords,
        "more_keywords": concept.more_keywords,
        "group": concept.group,
        "subgroup": concept.subgroup,
        "is_flag": concept.is_flag,
        "licence": STYLES[style][1],
        "image": image,
    }


def build(work: Path, out: Path) -> None:
    """Write ``emoji128.parquet`` to ``out`` from the packages in ``work``."""
    drawings = Drawings(work)
    found = [(concept, style, drawings.find(concept, style)) for concept in read_concepts(work) for style in STYLES]
    jobs = [(concept, style, drawing) for concept, style, drawing in found if drawing]
    with ProcessPoolExecutor() as pool:
        whats = (f"{concept.key} {style}" for concept, style, _ in jobs)
        images = pool.map(render, whats, (drawing for _, _, drawing in jobs), chunksize=32)
        rows = [row(concept, style, image) for (concept, style, _), image in zip(jobs, images, strict=True) if image]
    write_table(
        pa.Table.from_pylist(rows),
        out / "emoji128.parquet",
        compression_level=19,
        row_group_size=2048,
        use_dictionary=DICTIONARY_COLUMNS,
    )
