"""GIFTI: numbers on the vertices of one hemisphere, in XML. Its text is decoded only where asked for.

nibabel would follow the names of other files in it and unpack without a limit, so the few elements that matter are
read here.
"""

from __future__ import annotations

import base64
import io
import math
import re
import zlib
from dataclasses import dataclass, field
from typing import Any, Literal, cast
from xml.parsers import expat

import numpy as np
from nibabel.nifti1 import data_type_codes

from pipelines.formats.scans.files import (
    VERTICES,
    ScanError,
    ScanFile,
    check_amount,
    check_numbers,
    check_shape,
    hemisphere_space,
    surface_of,
)

_GEOMETRY = ("NIFTI_INTENT_POINTSET", "NIFTI_INTENT_TRIANGLE")
_SIDES = {"CortexLeft": "left", "CortexRight": "right"}
_MAX_ARRAYS = 10_000


def known_surfaces() -> str:
    return ", ".join(f"{count:,} ({name})" for count, name in VERTICES.items())


def refuse_entities(parser: Any) -> None:
    """Names for pieces of text can stand for each other until they fill the memory; no scan needs them."""

    def refuse(*_: object) -> None:
        raise ScanError("E1", "The file defines XML entities, which are never expanded.", "Export it again.")

    parser.EntityDeclHandler = refuse


def side_of_name(name: str) -> str | None:
    """ "left" or "right", from names such as ``lh.betas.mgh``, ``sub-1.R.func.gii`` and ``it_hemi-L.gii``."""
    found = re.findall(r"(?:^|[._ -])(lh|rh|l|r|left|right)(?=[._ -])", name.lower())
    sides = {"left" if word.startswith("l") else "right" for word in found}
    return sides.pop() if len(sides) == 1 else None


def space_called(space: str, name: str) -> str:
    """``space``, with the side that the ``name`` of a file says where one hemisphere does not say which it is."""
    surface = surface_of(space)
    return hemisphere_space(surface[0], side_of_name(name)) if surface and surface[1] is None else space


def inspect_gifti(file: io.BufferedIOBase) -> ScanFile:
    """(N, V): one array (V,) for each trial, or a single one (V, N)."""
    parts = _Reader(file, range(0))
    arrays = parts.arrays
    if not arrays:
        raise ScanError("E1", "The GIFTI file has no numbers in it.", "Use one with values on vertices.")
    if any(array.intent in _GEOMETRY for array in arrays):
        raise ScanError("E1", "The GIFTI file has the form of a surface, not values on it.", "Use a .func.gii.")
    lengths = {array.dims[:1] + tuple(size for size in array.dims[1:] if size != 1) for array in arrays}
    single = len(arrays) == 1 and len(arrays[0].dims) == 2
    if len(lengths) > 1 or (not single and any(len(length) != 1 for length in lengths)):
        raise ScanError("E1", "The arrays in the GIFTI file differ in shape.", "Use one array for each trial.")
    for array in arrays:
        check_shape(array.dims)
        check_amount(math.prod(array.dims))
        check_numbers(array.dtype)
    shape = arrays[0].dims[::-1] if single else (len(arrays), arrays[0].dims[0])

    def read(start: int, stop: int) -> np.ndarray:
        chosen = range(1) if single else range(start, stop)
        numbers = [array.numbers() for array in _Reader(file, chosen).arrays[chosen.start : chosen.stop]]
        return numbers[0][:, start:stop].T if single else np.stack([row.ravel() for row in numbers])

    return ScanFile("GIFTI", "hemisphere", shape, 0, arrays[0].dtype, read, side=parts.side)


@dataclass
class _Array:
    intent: str
    dims: tuple[int, ...]
    dtype: np.dtype
    order: Literal["C", "F"]
    encoding: str
    text: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, attributes: dict[str, str]) -> _Array:
        if attributes.get("Encoding") == "ExternalFileBinary" or attributes.get("ExternalFileName"):
            raise ScanError("E1", "The GIFTI file keeps its numbers in another file.", "Save them inside it.")
        count = int(attributes["Dimensionality"])
        dims = tuple(int(attributes[f"Dim{axis}"]) for axis in range(min(count, 4)))
        byte_order = ">" if attributes.get("Endian") == "BigEndian" else "<"
        return cls(
            attributes.get("Intent", ""),
            dims,
            np.dtype(cast(Any, data_type_codes.dtype[attributes["DataType"]])).newbyteorder(byte_order),
            "F" if attributes.get("ArrayIndexingOrder") == "ColumnMajorOrder" else "C",
            attributes["Encoding"],
        )

    def numbers(self) -> np.ndarray:
        text, count = "".join(self.text), math.prod(self.dims)
        size = count * self.dtype.itemsize
        match self.encoding:
            case "ASCII":
                found = np.array(text.split(maxsplit=count)[:count], np.float64)
            case "Base64Binary":
                found = np.frombuffer(base64.b64decode(text)[:size], self.dtype)
            case "GZipBase64Binary":
                found = np.frombuffer(zlib.decompressobj().decompress(base64.b64decode(text), size), self.dtype)
            case _:
                raise ValueError(f"the encoding {self.encoding} is not known")
        return found.reshape(self.dims, order=self.order)


class _Reader:
    """Goes through the file once. ``arrays``: all of them, with the text of those in ``chosen``; ``side``: if told."""

    def __init__(self, file: io.BufferedIOBase, chosen: range) -> None:
        self.arrays: list[_Array] = []
        self.side: str | None = None
        self._chosen = chosen
        self._within = ""
        self._name, self._value = "", ""
        parser = expat.ParserCreate()
        refuse_entities(parser)
        parser.buffer_text = True
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        file.seek(0)
        parser.ParseFile(file)

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        self._within = name
        if name == "MD":
            self._name, self._value = "", ""
        if name == "DataArray":
            if len(self.arrays) == _MAX_ARRAYS:
                raise ScanError("E2", f"The GIFTI file has more than {_MAX_ARRAYS:,} arrays.", "Save fewer trials.")
            self.arrays.append(_Array.of(attributes))

    def _text(self, text: str) -> None:
        match self._within:
            case "Data" if len(self.arrays) - 1 in self._chosen:
                self.arrays[-1].text.append(text)
            case "Name":
                self._name = (self._name + text)[:100]
            case "Value":
                self._value = (self._value + text)[:100]

    def _end(self, name: str) -> None:
        self._within = ""
        if name == "MD" and self._name.strip() == "AnatomicalStructurePrimary":
            self.side = self.side or _SIDES.get(self._value.strip())
