"""NSD's HDF5: of the dataset ``betas`` only the chosen trials are read, in a process of its own."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from pipelines.formats.scans.files import RAW, UNKNOWN, Label, ScanError, ScanFile, check_numbers, check_shape

MAX_MEMORY = 2**30  # bytes that the other process may hold

_CHILD = Path(__file__).with_name("hdf5_child.py")
_MAX_SECONDS = 180


def inspect_hdf5(file: io.BufferedIOBase) -> ScanFile:
    """(X, Y, Z, 750); files whose axes stand the other way round, as MATLAB writes them, are turned."""
    found, _ = _ask(file)
    shape, dtype, axis = tuple(map(int, found["shape"])), np.dtype(found["dtype"]), found["axis"]
    check_numbers(dtype)
    check_shape(shape)

    def read(start: int, stop: int) -> np.ndarray:
        some = [*shape]
        some[axis] = stop - start
        numbers = np.frombuffer(_ask(file, start, stop)[1], dtype).reshape(some)
        return numbers.T if axis == 0 else numbers

    # NSD's integers are 300 times the percent signal change.
    label = Label(units=RAW if dtype.kind == "i" and dtype.itemsize == 2 else UNKNOWN)
    return ScanFile("HDF5", "volume", shape if axis else shape[::-1], 3, dtype, read, label=label)


def _ask(file: io.BufferedIOBase, *trials: int) -> tuple[dict[str, Any], memoryview]:
    """The answer of :mod:`pipelines.formats.scans.hdf5_child`, and the numbers behind it."""
    if isinstance(file, io.BytesIO):
        with tempfile.TemporaryFile() as copy:
            file.seek(0)
            shutil.copyfileobj(file, cast(IO[bytes], copy))
            return _run(cast(io.BufferedIOBase, copy), *trials)
    return _run(file, *trials)


def _run(file: io.BufferedIOBase, *trials: int) -> tuple[dict[str, Any], memoryview]:
    file.seek(0)
    done = subprocess.run(
        [sys.executable, "-P", str(_CHILD), *map(str, (MAX_MEMORY, *trials))],
        stdin=file.fileno(),
        capture_output=True,
        timeout=_MAX_SECONDS,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # each would hold memory of its own
        check=False,
    )
    if done.returncode:
        raise ValueError(done.stderr.decode(errors="replace")[-500:] or f"it ended with {done.returncode}")
    end = done.stdout.index(b"\n") + 1
    answer = json.loads(done.stdout[:end])
    if "refused" in answer:
        raise ScanError(*answer["refused"])
    return answer, memoryview(done.stdout)[end:]
