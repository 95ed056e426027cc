"""A process of its own that reads the dataset ``betas`` of the HDF5 file on its standard input, and nothing else.

The library of HDF5 crashes on some damaged files, and unpacks to any size: here, that ends this process alone.

Arguments: how many bytes of memory it may hold, and the first trial and the one after the last; without those only the
header is read. On its standard output: a line of JSON, then the numbers in C order, the axes as they are stored.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np

SESSION = 750  # trials
MAX_SECONDS = 120  # of computing; a session in 700,000 parts takes a quarter of it


class Refused(Exception):  # noqa: N818 - becomes a ScanError in the other process
    """Its arguments are those of :class:`pipelines.formats.scans.files.ScanError`."""


def describe(file: io.RawIOBase | io.BufferedIOBase) -> dict[str, Any]:
    """``shape``, ``dtype`` and which ``axis`` counts the trials, the first or the last."""
    with _betas(file) as dataset:
        shape: tuple[int, ...] = dataset.shape or ()
        ends = [shape[0], shape[3]] if len(shape) == 4 else []
        if ends.count(SESSION) != 1 or SESSION in shape[1:3]:
            sizes = " x ".join(map(str, shape[:8]))
            raise Refused(
                "E5",
                f"'betas' has the shape {sizes}, not X x Y x Z x {SESSION} trials.",
                "Use the betas of one NSD session in the volume.",
            )
        return {"shape": shape, "dtype": dataset.dtype.str, "axis": 3 * ends.index(SESSION)}


def read(file: io.RawIOBase | io.BufferedIOBase, start: int, stop: int) -> np.ndarray:
    """These trials; of the others nothing is unpacked but what is stored together with them."""
    with _betas(file) as dataset:
        chosen = slice(start, stop)
        return np.ascontiguousarray(dataset[chosen] if dataset.shape[0] == SESSION else dataset[..., chosen])


@contextmanager
def _betas(file: io.RawIOBase | io.BufferedIOBase) -> Iterator[Any]:
    with h5py.File(file, "r") as root:
        link = root.get("betas", getlink=True)
        if link is None:
            found = ", ".join(list(root)[:5])[:100]
            raise Refused("E1", f"The file has no dataset 'betas' (it has {found!r}).", "Name the scan 'betas'.")
        if not isinstance(link, h5py.HardLink):
            raise Refused("E1", "'betas' is a link to another place, which is never followed.", "Save the data itself.")
        dataset = root["betas"]
        if not isinstance(dataset, h5py.Dataset):
            raise Refused("E1", "'betas' is no dataset.", "Save the scan as a dataset of that name.")
        # Asked before the shape, because that would open the files that a virtual dataset consists of.
        if dataset.is_virtual or dataset.external:
            raise Refused(
                "E1", "'betas' keeps its numbers in other files, which are never opened.", "Save them inside."
            )
        settings = dataset.id.get_create_plist()
        codes = [settings.get_filter(index)[0] for index in range(settings.get_nfilters())]
        missing = [code for code in codes if not h5py.h5z.filter_avail(code)]
        if missing:
            raise Refused(
                "E1", f"'betas' is packed with filter {missing[0]}, which is missing here.", "Save it with gzip."
            )
        yield dataset


def _limit(memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {resource.RLIMIT_DATA: memory, resource.RLIMIT_CPU: MAX_SECONDS, resource.RLIMIT_CORE: 0}
    for what, most in limits.items():
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main(memory: int, *trials: int) -> None:
    _limit(memory)
    numbers = None
    with open(0, "rb", buffering=0, closefd=False) as file:
        try:
            if trials:
                numbers = read(file, *trials)
                answer: dict[str, Any] = {"shape": numbers.shape}
            else:
                answer = describe(file)
        except Refused as error:
            answer = {"refused": error.args}
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    if numbers is not None:
        sys.stdout.buffer.write(numbers.data.cast("B"))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
