"""SuperTuxKart's models: SPM files, whose textures and materials lie beside them or in the folder of all textures.

Every file has a licence of its own. A model is used only if it and its textures are under CC0 or another permissive
licence, CC BY or CC BY-SA.
"""

from __future__ import annotations

import functools
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from training.data.licences import FAMILIES, family, holders_of, licence_of
from training.data.meshes import read_spm
from training.data.surfaces import Part, opaque

ROOT = "usr/share/games/supertuxkart/data"
TEXTURES = "textures"
CUT_OUT = {"alphatest", "alphablend", "grass", "foliage", "unlit"}  # shaders that heed a texture's alpha
USED = FAMILIES[: FAMILIES.index("sharealike") + 1]


class Karts:
    """Those of the package unpacked in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / ROOT

    def names(self) -> list[str]:
        """Of all models, as paths without ending: ``library/stklib_carrot_a/stklib_carrot_a_main``."""
        return sorted(path.relative_to(self.root).with_suffix("").as_posix() for path in self.root.rglob("*.spm"))

    def licence(self, name: str) -> str | None:
        """Of a model and its textures, or None if one of them may not be used."""
        folder = (self.root / name).parent
        textures = (self._texture_path(folder, mesh.texture) for mesh in read_spm(self._data(name)))
        paths = [self.root / f"{name}.spm", *(path for path in textures if path)]
        found = [licence_of(self.folder, path.relative_to(self.folder).as_posix(), {}) for path in paths]
        return " and ".join(dict.fromkeys(found)) if all(family(licence) in USED for licence in found) else None

    def creator(self, name: str) -> str:
        """Who holds the copyright of a model, as the package says."""
        return holders_of(self.folder, f"{ROOT}/{name}.spm")

    def parts(self, name: str) -> list[Part]:
        """The pieces of the model ``name``. Karts drive away from the viewer in the files; here they come."""
        mirror = (-1, 1, 1) if name.startswith("karts/") else (1, 1, -1)
        folder = (self.root / name).parent
        parts = []
        for mesh in read_spm(self._data(name)):
            corners = (mesh.vertices * mirror)[mesh.faces]
            path = self._texture_path(folder, mesh.texture)
            if path is None or mesh.uv is None:
                parts.append(Part(corners))
                continue
            texture = np.asarray(Image.open(path).convert("RGBA"))
            if _shaders(folder, self.root / TEXTURES).get(path.name, "") not in CUT_OUT:
                texture = opaque(texture)
            uv = mesh.uv * [1, -1] + [0, 1]  # its v is 0 at the first row
            tint = None if mesh.colors is None else mesh.colors[mesh.faces]
            parts.append(Part(corners, texture, uv[mesh.faces], tint=tint))
        return parts

    def _data(self, name: str) -> bytes:
        return (self.root / f"{name}.spm").read_bytes()

    def _texture_path(self, folder: Path, name: str) -> Path | None:
        candidates = (place / name for place in (folder, self.root / TEXTURES))
        return next((path for path in candidates if name and path.is_file()), None)


@functools.cache
def _shaders(*folders: Path) -> dict[str, str]:
    """The file name of a texture -> the shader that draws it; the first of ``folders`` that says one counts."""
    shaders: dict[str, str] = {}
    for folder in reversed(folders):
        path = folder / "materials.xml"
        if path.is_file():
            for material in ElementTree.parse(path).getroot().iter("material"):
                shaders[material.get("name") or ""] = material.get("shader") or ""
    return shaders
