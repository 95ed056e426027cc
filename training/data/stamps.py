"""``stamps128.parquet``: named cut-out photos and drawings, 128x128 on white.

From tuxpaint-stamps-default (an English sentence for each stamp), gcompris-qt-data and scratch (the name of the file is
the caption).
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import math
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from training.data.common import (
    encode_webp,
    folders_below,
    left_out,
    on_white,
    package_folder,
    sentence_of,
    write_table,
)
from training.data.containers import PICTURES
from training.data.licences import family, is_free, licence_of

MARGIN = 0.04  # around a cut-out, as a share of its longer side
DRAWN_SIZE = 512  # small SVGs are drawn at least so large before they are reduced

# Folder below GCompris's activities -> group; the first that fits counts.
GCOMPRIS_GROUPS = {
    "lang/resource": "words",
    "categorization/resource/images/tools": "tools",
    "categorization/resource/images/others": "objects",
    "categorization/resource/images/monuments": "monuments",
    "categorization/resource/images/fishes": "fish",
    "categorization/resource/images/renewable": "energy",
    "explore_farm_animals/resource/animals": "animals",
    "explore_world_animals/resource/animals": "animals",
    "instruments/resource": "instruments",
    "explore_monuments/resource": "monuments",
    "solar_system/resource": "space",
}
GCOMPRIS_SKIPPED = re.compile(  # parts of the screen, and pictures whose name says nothing
    r"^(background|back|board|bg|bar|button|question|check|cross|score|arrow|map|instruments?|empty|alphabets|numbers"
    r"|fishes?\d*$|fish\d+|monument\d|dam\d*$|.*_mirror)",
    re.I,
)
SCRATCH_FOLDERS = (
    "Costumes/Animals",
    "Costumes/Fantasy",
    "Costumes/Things",
    "Costumes/Transportation",
    "Backgrounds/Indoors",
    "Backgrounds/Nature",
    "Backgrounds/Outdoors",
    "Backgrounds/Sports",
)
SCENE_GROUPS = {"monuments", "energy", "animals", "indoors", "nature", "outdoors", "sports"}

CAPTIONS = {
    "solar": "solar panels",
    "dam": "a dam",
    "geothermal": "a geothermal power station",
    "blackslate": "a blackboard",
    "erasers": "an eraser",
    "buffetset": "buffet dishes",
    "partyhat": "a party hat",
    "sunglass f": "sunglasses",
    "weighing machine": "a weighing scale",
    "magiccarpet": "a magic carpet",
    "palmtree": "a palm tree",
    "flute traversiere": "a flute",
    "cub": "a lion cub",
    "beachball": "a beach ball",
    "tennisball": "a tennis ball",
}
COLOURS = {
    "red", "blue", "green", "yellow", "black", "white", "pink", "mauve", "brown", "gray", "orange color", "purple",
}  # fmt: skip
NUMBERS = {
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
}  # fmt: skip
WITHOUT_ARTICLE = {"hair", "skin", "teeth", "eyes", "fruit", "dad", "color"}


@dataclass(frozen=True)
class Stamp:
    """One picture file. ``style``: photo, drawing or letter; ``has_sound``, ``has_voice``: what comes with it."""

    source: str
    id: str
    path: Path
    caption: str
    group: str
    style: str
    has_sound: bool = False
    has_voice: bool = False

    @property
    def name(self) -> str:
        """A short noun, from the name of the file."""
        return words(re.sub(r"-(svg|svgz|webp|png|gif)$", "", self.id.rsplit("/", 1)[1]))


def words(name: str) -> str:
    """A file's name as words: no numbering or variant letter, no hyphens or camel case, lower case."""
    name = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    name = re.sub(r"[-_](a|b|c|d|e)$", "", name)
    name = re.sub(r"[-_ ]*\d+$", "", name)
    return re.sub(r"[-_\s]+", " ", name).strip().lower()


def caption_of(name: str) -> str:
    """A noun with its article; a few names say it badly and have their caption in a table."""
    if name in CAPTIONS:
        return CAPTIONS[name]
    if name in COLOURS:
        return name.replace(" color", "") + " paint"
    if name in NUMBERS:
        return "the number " + name
    is_plural = name.endswith("s") and not name.endswith(("ss", "us", "is"))
    if is_plural or name in WITHOUT_ARTICLE:
        return name
    return ("an " if name[0] in "aeiou" else "a ") + name


def tuxpaint_stamps(package: Path) -> Iterator[Stamp]:
    """Every stamp with a sentence; where there is a drawing and a photo of one name, the drawing."""
    root = package / "usr/share/tuxpaint/stamps"
    for folder, names in folders_below(root):
        for path in (folder / name for name in names):
            stem, suffix = path.stem, path.suffix
            is_drawn_too = suffix == ".png" and f"{stem}.svg" in names
            if suffix not in (".png", ".svg") or stem.endswith("_mirror") or is_drawn_too:
                continue
            sentence = path.with_name(stem + ".txt")
            caption = sentence_of(sentence) if sentence.exists() else ""
            if not caption:
                continue
            stamp_id = path.relative_to(root).with_name(stem).as_posix()
            yield Stamp(
                source=package.name,
                id=stamp_id,
                path=path,
                caption=caption,
                group=stamp_id.rsplit("/", 1)[0],
                style=_tuxpaint_style(stamp_id, suffix),
                has_sound=f"{stem}.ogg" in names or f"{stem}.wav" in names,
                has_voice=f"{stem}_desc.ogg" in names or f"{stem}_desc.wav" in names,
            )


def _tuxpaint_style(stamp_id: str, suffix: str) -> str:
    if "alphabets" in stamp_id or "/math" in stamp_id:
        return "letter"
    return "drawing" if suffix == ".svg" or "cartoon" in stamp_id else "photo"


def gcompris_stamps(package: Path) -> Iterator[Stamp]:
    """The pictures of things in GCompris's activities on words, animals, monuments, instruments and so on."""
    for folder, names in folders_below(package / PICTURES):
        _, found, activity = folder.as_posix().rpartition("/activities/")
        group = next((group for start, group in GCOMPRIS_GROUPS.items() if found and activity.startswith(start)), None)
        if group is None:
            continue
        for path in (folder / name for name in names):
            name, is_drawing = words(path.stem), path.suffix.startswith(".svg")
            if GCOMPRIS_SKIPPED.match(path.stem) or path.stem.startswith("lang"):
                continue
            if len(name) < 3 or "farm animals" in name:
                continue
            if group == "monuments" and is_drawing:
                continue
            yield Stamp(
                source=package.name,
                id=f"gcompris/{activity}/{path.stem}",
                path=path,
                caption=f"the {name}" if group == "monuments" else caption_of(name),
                group=group,
                style="drawing" if is_drawing else "photo",
            )


def scratch_stamps(package: Path) -> Iterator[Stamp]:
    """Scratch's costumes (drawings) and backgrounds (photos)."""
    for folder in SCRATCH_FOLDERS:
        for path in sorted((package / "usr/share/scratch/Media" / folder).iterdir()):
            if path.suffix.lower() not in (".png", ".gif", ".jpg") or re.match(r"(fantasy|wild|gobo)\d", path.stem):
                continue
            name = words(path.stem)
            if len(name) >= 3:
                yield Stamp(
                    source=package.name,
                    id=f"scratch/{folder}/{path.stem}",
                    path=path,
                    caption=caption_of(name),
                    group=folder.split("/")[1].lower(),
                    style="photo" if folder.startswith("Backgrounds") else "drawing",
                )


def with_unique_ids(stamps: Iterable[Stamp]) -> Iterator[Stamp]:
    """The second stamp of one id (a drawing and a photo of one name) gets its file's ending into its id."""
    seen = set()
    for stamp in stamps:
        if stamp.id in seen:
            stamp = dataclasses.replace(stamp, id=stamp.id + stamp.path.suffix.replace(".", "-"))
        seen.add(stamp.id)
        yield stamp


def load(path: Path) -> Image.Image:
    """A picture file or an SVG (.svg, .svgz) as RGBA."""
    if path.suffix.lower() not in (".svg", ".svgz"):
        return Image.open(path).convert("RGBA")
    content = path.read_bytes()
    return draw_svg(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)


def draw_svg(content: bytes) -> Image.Image:
    import resvg_py

    text = content.decode("utf8", "replace")
    try:
        image = _open(resvg_py.svg_to_bytes(svg_string=text, skip_system_fonts=True))
    except ValueError:  # no usable size in the file: the other renderer copes
        import cairosvg

        return _open(cairosvg.svg2png(bytestring=content, output_width=DRAWN_SIZE))
    if max(image.size) < DRAWN_SIZE:
        zoom = DRAWN_SIZE / max(image.size)
        image = _open(resvg_py.svg_to_bytes(svg_string=text, zoom=zoom, skip_system_fonts=True))
    return image


def _open(png: Any) -> Image.Image:
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def fit(image: Image.Image, is_scene: bool) -> Image.Image | None:
    """An RGBA picture cropped to what is drawn and centred on a 128x128 white square; None if it is blank.

    Of an opaque picture of a scene, the middle square is taken, unless it stands on white.
    """
    pixels = np.asarray(image)
    opaque = pixels[..., 3] > 8
    if not opaque.any():
        return None
    is_cut_out = bool(opaque.mean() < 0.98)
    if is_cut_out:
        ys, xs = np.nonzero(opaque)
        image = image.crop((int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1))
    elif is_scene and not _has_white_edge(pixels):
        image = _middle_square(image)
    side = math.ceil(max(image.size) * (1 + 2 * MARGIN)) if is_cut_out else max(image.size)
    square = on_white(image, side)
    return square if np.asarray(square).std() > 2 else None


def _has_white_edge(pixels: np.ndarray) -> bool:
    """Whether at least half of the outermost pixels of an (H, W, 4) picture are nearly white."""
    edge = np.concatenate([pixels[0, :, :3], pixels[-1, :, :3], pixels[:, 0, :3], pixels[:, -1, :3]])
    return bool((edge.min(1) > 235).mean() >= 0.5)


def _middle_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def render(stamp: Stamp) -> bytes | None:
    """128x128 WebP bytes; None if nothing is drawn or the file is broken."""
    try:
        square = fit(load(stamp.path), stamp.group in SCENE_GROUPS)
    except Exception as error:
        left_out(stamp.id, error)
        return None
    return encode_webp(square) if square else None


def row(stamp: Stamp, licence: str, image: bytes) -> dict[str, Any]:
    return {
        "id": stamp.id,
        "source": stamp.source,
        "name": stamp.name,
        "caption": stamp.caption,
        "group": stamp.group,
        "style": stamp.style,
        "has_sound": stamp.has_sound,
        "has_voice": stamp.has_voice,
        "licence": licence,
        "licence_family": family(licence),
        "image": image,
    }


def rows(stamps: Iterable[Stamp], work: Path) -> list[dict[str, Any]]:
    """The table's rows of the stamps that are freely licensed and can be drawn."""
    licensed = []
    for stamp in stamps:
        package = package_folder(work, stamp.source)
        licence = licence_of(package, stamp.path.relative_to(package).as_posix(), by_hand={})
        if is_free(licence):
            licensed.append((stamp, licence))
    with ProcessPoolExecutor() as pool:
        images = pool.map(render, (stamp for stamp, _ in licensed), chunksize=8)
        return [row(stamp, licence, image) for (stamp, licence), image in zip(licensed, images, strict=True) if image]


def build(work: Path, out: Path) -> None:
    """Write ``stamps128.parquet`` to ``out`` from the packages in ``work``."""
    stamps = [
        *tuxpaint_stamps(package_folder(work, "tuxpaint-stamps-default")),
        *gcompris_stamps(package_folder(work, "gcompris-qt-data")),
        *scratch_stamps(package_folder(work, "scratch")),
    ]
    table = pa.Table.from_pylist(rows(with_unique_ids(stamps), work))
    write_table(table, out / "stamps128.parquet", row_group_size=512)
