"""Archives inside packages: Qt resource files, 0 A.D.'s zip, Sweet Home 3D libraries, OpenTTD's sound file."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

SOUND_SUFFIXES = (".wav", ".ogg", ".oga", ".mp3", ".flac", ".au", ".aiff", ".opus")
PICTURE_SUFFIXES = (".webp", ".svg", ".svgz", ".png")

# Where the contents go, below the package's folder. The first is part of a sound's `path` in the table.
SOUNDS, PICTURES, LIBRARIES = "unz", "img", "libraries"

_QT_COMPRESSED_ZLIB, _QT_FOLDER, _QT_COMPRESSED_ZSTD = 1, 2, 4


def unpack_containers(folder: Path) -> None:
    """Unpack every archive that the builders read out of one package, into the same package's folder."""
    for path in sorted(folder.rglob("*.rcc")):
        for name, content in qt_resources(path.read_bytes()):
            if name.lower().endswith(SOUND_SUFFIXES):
                _write(folder / SOUNDS / name, content)
            elif name.lower().endswith(PICTURE_SUFFIXES):
                _write(folder / PICTURES / name, content)
    for path in sorted(folder.rglob("*.sh3f")):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder / LIBRARIES / path.stem)
    for path in sorted(folder.rglob("mods/public/public.zip")):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder / SOUNDS, [name for name in archive.namelist() if _is_0ad_effect(name)])


def _is_0ad_effect(name: str) -> bool:
    return name.startswith("audio/") and name.endswith(".ogg") and not name.startswith(("audio/music", "audio/voice"))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def qt_resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file in a binary Qt resource file (.rcc); nothing if ``data`` is not one."""
    if data[:4] != b"qres":
        return
    version, tree, contents, names = struct.unpack(">4I", data[4:20])
    node_size = 14 if version == 1 else 22

    def name_of(offset: int) -> str:
        start = names + offset
        (length,) = struct.unpack(">H", data[start : start + 2])
        return data[start + 6 : start + 6 + 2 * length].decode("utf-16-be")  # after the length and a hash

    def walk(node: int, parents: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
        start = tree + node * node_size
        name_offset, flags = struct.unpack(">IH", data[start : start + 6])
        path = (*parents, name_of(name_offset)) if node else ()  # the root has no name
        if flags & _QT_FOLDER:
            count, first_child = struct.unpack(">II", data[start + 6 : start + 14])
            for child in range(first_child, first_child + count):
                yield from walk(child, path)
        else:
            (offset,) = struct.unpack(">I", data[start + 10 : start + 14])
            yield "/".join(path), _qt_content(data, contents + offset, flags)

    yield from walk(0, ())


def _qt_content(data: bytes, start: int, flags: int) -> bytes:
    (length,) = struct.unpack(">I", data[start : start + 4])
    content = data[start + 4 : start + 4 + length]
    if flags & _QT_COMPRESSED_ZLIB:
        return zlib.decompress(content[4:])  # after the length of the original
    if flags & _QT_COMPRESSED_ZSTD:
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(content)
    return content


def opensfx_sounds(path: Path) -> list[tuple[str, bytes]]:
    """(name, WAV bytes) of every sound in OpenTTD's ``opensfx.cat``; the name says author and licence."""
    data = path.read_bytes()
    mask = 0x7FFFFFFF  # the highest bit of an offset is a flag
    count = (struct.unpack("<I", data[:4])[0] & mask) // 8  # the first sound begins where the index ends
    sounds = []
    for offset, length in struct.iter_unpack("<2I", data[: count * 8]):
        start = offset & mask
        name = data[start + 1 : start + 1 + data[start]].decode("latin1").strip("\0").replace('"', "")
        wav = data.find(b"RIFF", start)
        sounds.append((name, data[wav : wav + length]))
    return sounds
