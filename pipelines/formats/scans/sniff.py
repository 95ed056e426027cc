"""What a file is, by its first bytes and never by its name."""

from __future__ import annotations

import gzip
import io

from pipelines.formats.scans.arrays import inspect_npy, inspect_npz
from pipelines.formats.scans.cifti import INTENTS, inspect_cifti
from pipelines.formats.scans.files import MAX_FILE_BYTES, MAX_LAZY_BYTES, ScanError, ScanFile, damage_is_plain
from pipelines.formats.scans.hdf5 import inspect_hdf5
from pipelines.formats.scans.surfaces import inspect_gifti
from pipelines.formats.scans.volumes import (
    begins_mgh,
    begins_nifti,
    inspect_mgh,
    inspect_nifti,
    read_nifti_header,
)

ACCEPTED = (
    "Accepted are .npy, .npz, NSD's .hdf5, NIfTI with its mask, CIFTI-2 (.dscalar.nii, .dtseries.nii), and both "
    "hemispheres as GIFTI or MGH."
)

_HEAD_BYTES = 4096
_HDF5, _GZIP = b"\x89HDF\r\n\x1a\n", b"\x1f\x8b"
# How other files begin that people may take for a scan.
_OTHERS = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"%PDF", "a PDF"),
    (b"RIFF", "a sound or a clip"),
    (b"MATLAB", "a MATLAB 5 file"),
    (b"\x80", "a Python pickle, which is never opened"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"7z\xbc\xaf", "a 7z archive"),
)


def inspect(file: io.BufferedIOBase, name: str = "") -> ScanFile:
    """The header of an open file, checked; ``name``: what errors call it.

    Raises :class:`ScanError` for a file that is too large, damaged or of another kind.
    """
    with damage_is_plain(name):
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(_HEAD_BYTES)
        most = MAX_LAZY_BYTES if head.startswith(_HDF5) else MAX_FILE_BYTES
        if size > most:
            raise ScanError(
                "E2",
                f"The file is larger than {most // 2**20} MB.",
                "Save fewer trials in it, or apply the mask first.",
            )
        return _reader(file, head).named(name)


def _reader(file: io.BufferedIOBase, head: bytes) -> ScanFile:
    if head.startswith(b"\x93NUMPY"):
        return inspect_npy(file)
    if head.startswith(b"PK\3\4"):
        return inspect_npz(file)
    if head.startswith(_HDF5):
        return inspect_hdf5(file)
    if head.lstrip(b"\xef\xbb\xbf \r\n").startswith(b"<") and b"<GIFTI" in head:
        return inspect_gifti(file)
    packed = head.startswith(_GZIP)
    if packed:
        file.seek(0)
        file = gzip.GzipFile(fileobj=file)
        head = file.read(_HEAD_BYTES)
    if begins_nifti(head):
        nifti = read_nifti_header(file, head)
        is_cifti = int(nifti.header["intent_code"]) in INTENTS
        return inspect_cifti(file, nifti) if is_cifti else inspect_nifti(file, nifti)
    if begins_mgh(head):
        return inspect_mgh(file, head)
    raise ScanError("E1", f"This is no scan that can be read: it is {_describe(head, packed)}.", ACCEPTED)


def _describe(head: bytes, packed: bool) -> str:
    if not head:
        return "empty"
    found = next((what for start, what in _OTHERS if head.startswith(start)), None)
    if head[257:262] == b"ustar":
        found = "a tar archive"
    elif head[344:347] == b"ni1":
        found = "half of a NIfTI pair (.hdr and .img)"
    elif found is None:
        found = "text" if all(byte >= 32 or byte in b"\t\r\n" for byte in head) else "of an unknown kind"
    return f"packed with gzip, and {found} inside" if packed else found
