"""Brain scans that are damaged, or made to do harm: each is refused in a plain sentence and costs little memory."""

from __future__ import annotations

import base64
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.cifti2 import cifti2_axes

from models.errors import UserError
from pipelines.formats.scans import hdf5 as hdf5_reader
from tests.media_examples import assert_plain, few
from tests.scan_files import (
    GRID,
    MASK,
    VERTICES,
    VOXELS,
    cifti,
    cortex,
    gifti,
    gifti_array,
    gifti_text,
    hdf5,
    mask_file,
    mgh,
    nifti,
    normal,
    npy,
    npz,
    peak_of,
    read,
    refuse,
    session,
    zlib_packed,
)

FEW_MEGABYTES = 8


# More than there is.


def claim(path: Path, shape: tuple[int, ...], behind: bytes = b"", packed: bool = False) -> Path:
    """A NIfTI header of float32, and not what it promises."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header["vox_offset"] = 352
    data = header.binaryblock + bytes(4) + behind
    path.write_bytes(zlib_packed(data) if packed else data)
    return path


@pytest.mark.parametrize("trials", [None, (0, 3), (29_990, 29_999)])
def test_headers_that_claim_terabytes_cost_nothing(trials: tuple[int, int] | None, tmp_path: Path) -> None:
    shape = (1000, 1000, 1000, 30_000)
    plain, packed = claim(tmp_path / "it.nii", shape), claim(tmp_path / "it.nii.gz", shape, bytes(10**6), True)
    mask = mask_file(tmp_path / "mask.nii")
    assert peak_of(lambda: refuse("E1", plain, mask, trials=trials)) < FEW_MEGABYTES
    assert peak_of(lambda: refuse("E2", packed, mask, trials=trials)) < FEW_MEGABYTES
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (30_000, 10**9)})
    (tmp_path / "it.npy").write_bytes(head.getvalue() + bytes(1000))
    refuse("E1", tmp_path / "it.npy", trials=trials)
    with zipfile.ZipFile(tmp_path / "it.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("betas.npy", head.getvalue() + bytes(1000))
    assert peak_of(lambda: refuse("E2", tmp_path / "it.npz", trials=trials)) < FEW_MEGABYTES
    dims = struct.pack(">7i", 1, 10**6, 10**6, 10**3, 1, 3, 0)
    (tmp_path / "it.mgh").write_bytes(dims + bytes(1000))
    refuse("E1", tmp_path / "it.mgh", trials=trials)


def test_bombs_are_unpacked_only_as_far_as_they_are_asked_for(tmp_path: Path) -> None:
    much = bytes(100 * 2**20)
    mask = npy(tmp_path / "mask.npy", MASK)
    claim(tmp_path / "it.nii.gz", (*GRID, 3), much, packed=True)
    with zipfile.ZipFile(tmp_path / "long header.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("betas.npy", b"\x93NUMPY\2\0" + struct.pack("<I", len(much)) + much)
    packed = zlib.compress(much, 9)
    for name in "lh.gii", "rh.gii":
        (tmp_path / name).write_text(gifti_text(gifti_array(VERTICES, base64.b64encode(packed).decode())))
    for code, paths in (
        ("E6", (tmp_path / "it.nii.gz", mask)),
        ("E1", (tmp_path / "long header.npz",)),
        ("E6", (tmp_path / "lh.gii", tmp_path / "rh.gii")),
    ):
        assert peak_of(partial(refuse, code, *paths)) < FEW_MEGABYTES


def test_hdf5_may_fill_only_the_memory_of_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "it.hdf5", "w") as file:
        betas = file.create_dataset("betas", (750, *GRID[::-1]), "i2", chunks=(1, *GRID[::-1]), compression="gzip")
        betas[0] = session()[..., 0].T
        betas.id.write_direct_chunk((1, 0, 0, 0), zlib.compress(bytes(400 * 2**20), 1))
    mask = npy(tmp_path / "mask.npy", MASK)
    monkeypatch.setattr(hdf5_reader, "MAX_MEMORY", 300 * 2**20)
    assert read(tmp_path / "it.hdf5", mask, trials=(0, 1)).values.shape == (1, VOXELS)
    refuse("E1", tmp_path / "it.hdf5", mask, trials=(1, 2))


# Archives with something else in them.


@pytest.mark.parametrize("name", ["../betas.npy", "a/betas.npy", "/betas.npy", "c:\\betas.npy", "..npy"])
def test_paths_inside_archives_are_refused(name: str, tmp_path: Path) -> None:
    npz(tmp_path / "it.npz", normal(2, 976))
    with zipfile.ZipFile(tmp_path / "it.npz", "a") as archive:
        archive.writestr(name, (tmp_path / "it.npz").read_bytes()[:100])
    assert "path" in refuse("E1", tmp_path / "it.npz").sentence
    assert {path.name for path in tmp_path.iterdir()} == {"it.npz"}


def test_archives_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "it.npz"
    np.savez(path, scores=normal(3))
    assert "scores" in refuse("E1", path).sentence
    for method in zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2:
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("betas.npy", npy(tmp_path / "it.npy", normal(2, 976)).read_bytes())
        assert "packed" in refuse("E1", path).sentence
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(100):
            archive.writestr(f"{index}.npy", b"")
    assert "parts" in refuse("E1", path).sentence


# HDF5 that leads elsewhere.


def linked(path: Path, kind: str) -> Path:
    source = hdf5(path.with_name("source.hdf5"), session())
    raw = path.with_name("raw.bin")
    raw.write_bytes(session().tobytes())
    with h5py.File(path, "w") as file:
        match kind:
            case "external link":
                file["betas"] = h5py.ExternalLink(str(source), "/betas")
            case "soft link":
                file["other"] = session().T
                file["betas"] = h5py.SoftLink("/other")
            case "external storage":
                file.create_dataset("betas", (750, *GRID[::-1]), "i2", external=[(str(raw), 0, h5py.h5f.UNLIMITED)])
            case "virtual":
                layout = h5py.VirtualLayout((750, *GRID[::-1]), "i2")
                layout[:] = h5py.VirtualSource(str(source), "betas", (750, *GRID[::-1]))
                file.create_virtual_dataset("betas", layout)
            case "group":
                file.create_group("betas")
            case "nothing":
                file["other"] = session().T
            case "filter":
                file.create_dataset("betas", (750, *GRID[::-1]), "i2", compression=32_015, allow_unknown_filter=True)
            case "objects":
                file.create_dataset("betas", (750, 1, 1, 1), h5py.string_dtype())
    return path


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("external link", "link"),
        ("soft link", "link"),
        ("external storage", "other files"),
        ("virtual", "other files"),
        ("group", "no dataset"),
        ("nothing", "other"),
        ("filter", "filter 32015"),
        ("objects", "objects"),
    ],
)
def test_hdf5_that_leads_elsewhere_is_refused(kind: str, word: str, tmp_path: Path) -> None:
    assert word in refuse("E1", linked(tmp_path / "it.hdf5", kind), mask_file(tmp_path / "mask.nii")).sentence


@pytest.mark.parametrize("shape", [(750, 5), (700, 2, 2, 2), (750, 2, 2, 750), (2, 750, 2, 2), (750,)])
def test_betas_without_an_axis_of_a_session_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "it.hdf5", "w") as file:
        file.create_dataset("betas", shape, "i2")
    assert "750 trials" in refuse("E5", tmp_path / "it.hdf5").sentence


# GIFTI and CIFTI-2 that lead elsewhere, or grow.


def test_xml_defines_no_entities_and_keeps_its_numbers(tmp_path: Path) -> None:
    laughs = "".join(f'<!ENTITY a{index} "{f"&a{index - 1};" * 10}">' for index in range(1, 12))
    before = f'<!DOCTYPE GIFTI [<!ENTITY a0 "ha">{laughs}]>'
    path = tmp_path / "lh.gii"
    path.write_text(gifti_text(gifti_array(VERTICES, "&a11;", "ASCII"), before=before))
    assert "entities" in refuse("E1", path).sentence
    outside = gifti_array(VERTICES, "", "ExternalFileBinary").replace('FileName=""', 'FileName="/etc/passwd"')
    path.write_text(gifti_text(outside))
    assert "another file" in refuse("E1", path).sentence
    path.write_text(gifti_text(""))
    refuse("E1", path)
    form = gifti_array(VERTICES, "").replace("INTENT_NONE", "INTENT_POINTSET")
    path.write_text(gifti_text(form))
    assert "form" in refuse("E1", path).sentence
    for dims in 10**12, -5:
        path.write_text(gifti_text(gifti_array(dims, "")))
        refuse("E2" if dims > 0 else "E1", path)


def test_cifti_that_promises_more_places_than_it_has(tmp_path: Path) -> None:
    some = np.arange(100)
    path = cifti(tmp_path / "it.dscalar.nii", normal(2, 200), cortex([some, some]))
    data = path.read_bytes()
    for old, new in (b'IndexCount="100"', b'IndexCount="9e9"'), (b'IndexCount="100"', b'IndexCount="999"'):
        path.write_bytes(data.replace(old, new))
        assert peak_of(lambda: refuse("E1", path)) < FEW_MEGABYTES
    parcels = cifti2_axes.ParcelsAxis.from_brain_models([("one", cortex([some, some]))])
    cifti(path, normal(2, 1), parcels)
    assert "parcels" in refuse("E1", path).sentence


# Damage.


def whole_files(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Of every format the files of one scan; the first of them will be damaged."""
    mask = mask_file(folder / "mask.nii")
    some = np.arange(100)
    right = {"gii": gifti(folder / "rh.gii", normal(1, VERTICES)), "mgz": mgh(folder / "rh.mgz", normal(1, VERTICES))}
    return {
        "npy": (npy(folder / "it.npy", normal(2, 976)),),
        "npz": (npz(folder / "it.npz", normal(2, VOXELS), mask=MASK, subject="S1", image_id=[1, 2]),),
        "nii": (nifti(folder / "it.nii", normal(*GRID, 3)), mask),
        "nii.gz": (nifti(folder / "it.nii.gz", normal(*GRID, 3)), mask),
        "hdf5": (hdf5(folder / "it.hdf5", session(), chunks=(50, 4, 5, 6)), mask),
        "packed hdf5": (hdf5(folder / "packed.hdf5", session(), chunks=(50, 4, 5, 6), compression="gzip"), mask),
        "cifti": (cifti(folder / "it.dscalar.nii", normal(2, 200), cortex([some, some])),),
        "gii": (gifti(folder / "lh.gii", normal(1, VERTICES)), right["gii"]),
        "mgz": (mgh(folder / "lh.mgz", normal(1, VERTICES)), right["mgz"]),
    }


KINDS = ("npy", "npz", "nii", "nii.gz", "hdf5", "packed hdf5", "cifti", "gii", "mgz")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, ...]]:
    return cache(whole_files)(tmp_path_factory.mktemp("scans")).__getitem__


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_scans_are_refused(kind: str, whole: Callable[[str], tuple[Path, ...]], tmp_path: Path) -> None:
    first, *others = whole(kind)
    data = first.read_bytes()
    assert len(read(first, *others, trials=(0, 1)).values) == 1

    @settings(few, max_examples=4 if "hdf5" in kind else 15)  # which starts processes
    @given(share=st.floats(0, 0.99))
    def check(share: float) -> None:
        (tmp_path / first.name).write_bytes(data[: int(share * len(data))])
        refuse("E1", tmp_path / first.name, *others, trials=None if "hdf5" not in kind else (700, 750))

    check()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # what decoders say about damage
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_scans_are_read_or_refused(kind: str, whole: Callable[[str], tuple[Path, ...]], tmp_path: Path) -> None:
    first, *others = whole(kind)

    @settings(few, max_examples=4 if "hdf5" in kind else 15)
    @given(
        flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=20),
        head=st.booleans(),
    )
    def check(flips: list[tuple[float, int]], head: bool) -> None:
        data = bytearray(first.read_bytes())
        for place, value in flips:  # in the header, or anywhere
            data[int(place * min(len(data), 2000 if head else len(data)))] = value
        (tmp_path / first.name).write_bytes(data)
        try:
            read(tmp_path / first.name, *others, trials=(0, 1))
        except UserError as error:
            assert_plain(error)

    check()
