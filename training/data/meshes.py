"""Two small mesh formats that no library here reads: 0 A.D.'s PMD and SuperTuxKart's SPM, both little-endian binary.

PMD, as 0 A.D.'s ``source/graphics/ModelDef.cpp`` reads it: one mesh, in its bind pose, and named places where other
models are attached. SPM, as SuperTuxKart's ``src/graphics/sp_mesh_loader.cpp`` reads it: pieces with a texture each.
Both games have y up and count z away from the viewer, and so do the meshes that are read here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

PMD_VERSION = 4
SPM_VERSION, SPM_SKINNED, SPM_WHITE = 1, 1, 128
SPM_NORMALS, SPM_COLORS, SPM_TANGENTS = 1, 2, 4  # what each vertex has


@dataclass(frozen=True)
class Mesh:
    """Triangles. ``vertices`` (V, 3) float64, y up; ``faces`` (F, 3) indices; ``uv`` (V, 2), or None if untextured;
    ``texture``: a file's name, or empty; ``colors``: (V, 3) in [0, 1], which the texture is multiplied by, or None."""

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray | None = None
    texture: str = ""
    colors: np.ndarray | None = None


class Reader:
    """Reads ``data`` from its beginning. Every method raises :class:`ValueError` if the data ends too early."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def bytes(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise ValueError(f"the file ends at byte {len(self.data)}, {self.at + count - len(self.data)} too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack("<" + layout, self.bytes(struct.calcsize("<" + layout)))

    def records(self, layout: np.dtype | str, count: int) -> np.ndarray:
        layout = np.dtype(layout)
        return np.frombuffer(self.bytes(layout.itemsize * count), layout)


def _checked(mesh: Mesh) -> Mesh:
    if not len(mesh.faces):
        raise ValueError("the mesh has no faces")
    if mesh.faces.max() >= len(mesh.vertices):
        raise ValueError(f"a face has vertex {mesh.faces.max()} of {len(mesh.vertices)}")
    return mesh


# ---------------------------------------------------------------------------------------------------------------- PMD


@dataclass(frozen=True)
class Pmd:
    """``points``: name -> the (4, 4) place of what is attached there."""

    mesh: Mesh
    points: dict[str, np.ndarray]


def read_pmd(data: bytes) -> Pmd:
    """Raises :class:`ValueError` if ``data`` is no whole PMD file."""
    reader = Reader(data)
    if reader.bytes(4) != b"PSMD":
        raise ValueError("this is no PMD file")
    version, _, count, maps = reader.numbers("IIII")
    if version != PMD_VERSION:
        raise ValueError(f"this is a PMD file of version {version}, not of {PMD_VERSION}")
    vertex = [("position", "<f4", 3), ("normal", "<f4", 3), ("uv", "<f4", (maps, 2)), ("skin", "V20")]
    vertices = reader.records(np.dtype(vertex), count)
    (count,) = reader.numbers("I")
    faces = reader.records("<u2", 3 * count).reshape(-1, 3)
    (count,) = reader.numbers("I")
    bones = reader.records("<f4", 7 * count).reshape(-1, 7)
    (count,) = reader.numbers("I")
    points = {}
    for _ in range(count):
        (length,) = reader.numbers("I")
        name = reader.bytes(length).decode("latin-1")
        place = transform(reader.records("<f4", 7))
        (bone,) = reader.numbers("B")
        points[name] = transform(bones[bone]) @ place if bone < len(bones) else place
    uv = vertices["uv"][:, 0].astype(float) if maps else None
    return Pmd(_checked(Mesh(vertices["position"].astype(float), faces.astype(int), uv)), points)


def transform(state: np.ndarray) -> np.ndarray:
    """(4, 4) of a translation and a quaternion: (7,) x, y, z, then x, y, z, w."""
    x, y, z, w = state[3:].astype(float)
    matrix = np.eye(4)
    matrix[:3, :3] = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    matrix[:3, 3] = state[:3]
    return matrix


# ---------------------------------------------------------------------------------------------------------------- SPM


def read_spm(data: bytes) -> list[Mesh]:
    """The pieces of a mesh; one that has joints is in its bind pose. Raises :class:`ValueError` for no whole SPM."""
    reader = Reader(data)
    if reader.bytes(2) != b"SP":
        raise ValueError("this is no SPM file")
    head, has = reader.numbers("BB")
    if head >> 3 != SPM_VERSION:
        raise ValueError(f"this is an SPM file of version {head >> 3}, not of {SPM_VERSION}")
    reader.bytes(24)  # the bounding box
    (count,) = reader.numbers("H")
    textures = [(_spm_text(reader), _spm_text(reader)) for _ in range(count)]
    (groups,) = reader.numbers("H")
    pieces = []
    for _ in range(groups):
        (count,) = reader.numbers("H")
        pieces += [_spm_piece(reader, textures, has, skinned=head & 7 == SPM_SKINNED) for _ in range(count)]
    return pieces


def _spm_text(reader: Reader) -> str:
    (length,) = reader.numbers("B")
    return reader.bytes(length).decode("latin-1")


def _spm_piece(reader: Reader, textures: list[tuple[str, str]], has: int, skinned: bool) -> Mesh:
    count, indices, material = reader.numbers("IIH")
    if material >= len(textures):
        raise ValueError(f"a piece has texture {material} of {len(textures)}")
    texture, second = textures[material]
    fields: list[tuple] = [("position", "<f4", 3)]
    if has & SPM_NORMALS:
        fields.append(("normal", "V4"))
    after: list[tuple] = []
    if texture:
        after.append(("uv", "<f2", 2))
        if second:
            after.append(("second", "V4"))
        if has & SPM_TANGENTS:
            after.append(("tangent", "V4"))
    if skinned:
        after.append(("joints", "V16"))
    colors = None
    if has & SPM_COLORS:
        vertices, colors = _spm_colored(reader, np.dtype(fields), np.dtype(after), count)
    else:
        vertices = reader.records(np.dtype(fields + after), count)
    if indices % 3:
        raise ValueError(f"{indices} corners of faces are no whole number of triangles")
    faces = reader.records("<u2" if count > 255 else "u1", indices).reshape(-1, 3).astype(int)
    uv = vertices["uv"].astype(float) if texture else None
    return _checked(Mesh(vertices["position"].astype(float), faces, uv, texture, colors))


def _spm_colored(reader: Reader, before: np.dtype, after: np.dtype, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices whose colour is one byte if it is white, else four. Returns the records without it, and (V, 3)."""
    plain, colors = bytearray(), np.ones((count, 3))
    for index in range(count):
        plain += reader.bytes(before.itemsize)
        if reader.bytes(1)[0] != SPM_WHITE:
            colors[index] = np.frombuffer(reader.bytes(3), np.uint8) / 255
        plain += reader.bytes(after.itemsize)
    return np.frombuffer(bytes(plain), np.dtype(before.descr + after.descr)), colors
