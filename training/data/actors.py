"""0 A.D.'s actors: descriptions of how meshes, textures and attached props make an animal, a tree or a building.

They lie in one zip archive, converted for the game. An actor has groups of variants; one variant of each group is
chosen, and a later one overrides what earlier ones say. A material whose name says so cuts out what is transparent in
its texture; in any other the texture's alpha is no transparency, but marks team colours.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from training.data.meshes import Mesh, read_pmd
from training.data.surfaces import GREY, Part, opaque

ARCHIVE = "usr/share/games/0ad/mods/public/public.zip"
ACTORS, VARIANTS, MESHES, SKINS = "art/actors/", "art/variants/", "art/meshes/", "art/textures/skins/"
CUT_OUT = ("basic_trans", "alphatest")  # materials that show nothing where the texture is transparent
TINTED = "objectcolor"  # a material that shows the actor's colour where the texture is transparent
NOT_SHOWN = ("particle/", "props/structures/decals/", "props/units/blood", "units/", "geology/decal")  # of props
NO_POINT = ("garrisoned", "projectile", "loaded-projectile")  # where nothing is attached in peace
KEPT = 32  # textures
DEEPEST = 4  # a prop of a prop of a prop


@dataclass
class Look:
    """What the chosen variants of an actor say. ``props``: attachpoint -> actors."""

    mesh: str = ""
    texture: str = ""
    color: tuple[float, ...] | None = None
    props: dict[str, list[str]] = field(default_factory=dict)


class Actors:
    """Those of the package unpacked in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.archive = zipfile.ZipFile(folder / ARCHIVE)
        self.files = set(self.archive.namelist())
        self.textures: dict[str, np.ndarray] = {}

    def names(self) -> list[str]:
        """Of all actors, as paths without ending: ``fauna/elephant_asian``."""
        found = (name for name in self.files if name.startswith(ACTORS) and name.endswith(".xml"))
        return sorted(name.removeprefix(ACTORS).removesuffix(".xml") for name in found)

    def parts(self, name: str, number: int = 0, depth: int = 0) -> list[Part]:
        """What the actor ``name`` consists of, in its look ``number``. Raises :class:`ValueError` if that is nothing.

        Props that are no part of the thing (dirt, smoke, people, flags) are left out.
        """
        root = self._xml(ACTORS + name + ".xml")
        look, material = self.look(root, number), (root.findtext("material") or "").strip()
        parts, points = [], {"root": np.eye(4)}
        if look.mesh:
            found = read_pmd(self.archive.read(MESHES + look.mesh + ".cached.pmd"))
            points |= found.points
            parts.append(self._part(found.mesh, look, material))
        for point, actors in look.props.items():
            if depth < DEEPEST and point in points and point not in NO_POINT:
                for actor in actors:
                    if not actor.startswith(NOT_SHOWN) and ACTORS + actor in self.files:
                        parts += self._attached(actor.removesuffix(".xml"), number, depth + 1, points[point])
        if not parts and not depth:
            raise ValueError(f"the actor {name} has no mesh")
        return parts

    def _attached(self, name: str, number: int, depth: int, place: np.ndarray) -> list[Part]:
        turn, move = place[:3, :3], place[:3, 3]
        mirror = np.array([1, 1, -1.0])  # of the coordinates of parts and of the files
        return [
            Part(((part.corners * mirror) @ turn.T + move) * mirror, part.texture, part.uv, part.color)
            for part in self.parts(name, number, depth)
        ]

    def looks(self, name: str) -> int:
        """How many looks of the actor differ in their mesh."""
        root = self._xml(ACTORS + name + ".xml")
        most = max((len(group.findall("variant")) for group in root.findall("group")), default=1)
        return len({self.look(root, number).mesh for number in range(most)})

    def look(self, root: ElementTree.Element, number: int) -> Look:
        """The look of an actor if of each group the variant ``number`` of those that just happen is chosen."""
        look = Look()
        for group in root.findall("group"):
            variants = list(group.findall("variant"))
            common = [variant for variant in variants if float(variant.get("frequency") or 0) > 0] or variants[:1]
            if common:
                self._apply(common[number % len(common)], look)
        return look

    def _apply(self, variant: ElementTree.Element, look: Look, depth: int = 0) -> None:
        parent = VARIANTS + (variant.get("file") or "")
        if variant.get("file") and parent in self.files and depth < DEEPEST:
            self._apply(self._xml(parent), look, depth + 1)
        look.mesh = (variant.findtext("mesh") or look.mesh).strip()
        for texture in variant.findall("textures/texture"):
            if texture.get("name") == "baseTex":
                look.texture = texture.get("file") or ""
        color = variant.findtext("color")
        if color:
            look.color = tuple(float(value) / 255 for value in color.split())
        props: dict[str, list[str]] = {}
        for prop in variant.findall("props/prop"):
            props.setdefault(prop.get("attachpoint") or "root", []).append(prop.get("actor") or "")
        look.props |= props

    def _part(self, mesh: Mesh, look: Look, material: str) -> Part:
        corners = (mesh.vertices * [1, 1, -1])[mesh.faces]
        texture = self._texture(look.texture)
        if texture is None or mesh.uv is None:
            return Part(corners, color=(*(look.color or GREY[:3]), 1.0))
        if material.startswith(TINTED) and look.color:
            own = texture[..., 3:] / 255
            tinted = texture[..., :3] * (own + (1 - own) * np.array(look.color))
            texture = np.concatenate([tinted.round().astype(np.uint8), texture[..., 3:]], 2)
        if not material.startswith(CUT_OUT):
            texture = opaque(texture)
        return Part(corners, texture, mesh.uv[mesh.faces])

    def _texture(self, name: str) -> np.ndarray | None:
        """(H, W, 4) uint8; the last ones are kept, as buildings share theirs."""
        if name not in self.textures:
            path = SKINS + name + ".cached.dds"
            if path not in self.files:
                return None
            if len(self.textures) == KEPT:
                self.textures.pop(next(iter(self.textures)))
            self.textures[name] = np.asarray(Image.open(io.BytesIO(self.archive.read(path))).convert("RGBA"))
        return self.textures[name]

    def _xml(self, path: str) -> ElementTree.Element:
        return ElementTree.fromstring(self.archive.read(path))
