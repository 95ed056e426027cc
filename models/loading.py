"""From files to a model that is ready to compute, and back to free memory."""

from __future__ import annotations

import ctypes
import errno
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from weakref import ref

import torch
from torch import nn

from models.errors import OutOfMemory, UserError
from models.modules import BUILDING, modules_of
from models.precision import Precision
from models.quantize import apply_precision, load_prepared, save_prepared
from models.resident import move
from models.sources import Files
from models.spec import ModelSpec
from models.speeds import cache_folder

# Quantizing a model of this size takes long enough to be worth a copy of the result on disk.
PREPARED_FROM_BYTES = 500_000_000


def build(spec: ModelSpec, files: Files, precision: Precision, device: torch.device) -> object:
    """The model in ``precision`` on ``device``, ready for inference.

    Raises :class:`UserError` for weights that are not numbers, and whatever the model's own loader raises.
    """
    with BUILDING:
        return _build(spec, files, precision, device)


def _build(spec: ModelSpec, files: Files, precision: Precision, device: torch.device) -> object:
    prepared = _prepared_folder(files.checksum, precision)
    skeleton = spec.skeleton if spec.bytes >= PREPARED_FROM_BYTES and precision in ("int8", "nf4") else None
    if skeleton and prepared.is_dir():
        model = skeleton(files.folder)
        if load_prepared(model, prepared, precision, device):
            return _ready(model, device)
    model = spec.load(files.folder)
    _check_numbers(spec.key, model)
    apply_precision(model, precision, device)
    if skeleton:
        save_prepared(model, prepared, precision)
    return _ready(model, device)


def _ready(model: object, device: torch.device) -> object:
    for module in modules_of(model):
        module.eval().requires_grad_(False)
    if device.type == "cpu":
        _take_out_of_files(model)
    move(model, device)
    return model


def _take_out_of_files(model: object) -> None:
    """Copy weights that lie in the pages of a file: they would change with it, and be gone if it were cut short."""
    copies: dict[int, torch.UntypedStorage] = {}  # tensors that share memory still do afterwards
    for module in modules_of(model):
        for tensor in (*module.parameters(), *module.buffers()):
            held = tensor.untyped_storage()
            if not held.resizable():  # memory that torch did not allocate
                if held.data_ptr() not in copies:
                    copies[held.data_ptr()] = held.clone()
                copy = copies[held.data_ptr()]
                tensor.data = torch.empty(0, dtype=tensor.dtype).set_(
                    copy, tensor.storage_offset(), tensor.size(), tensor.stride()
                )


def _check_numbers(key: str, model: object) -> None:
    for module in modules_of(model):
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise UserError(
                    f"The weights of '{key}' are broken: '{name}' holds values that are not numbers.",
                    "Put the right files there, or fetch them again.",
                )


def _prepared_folder(checksum: str, precision: Precision) -> Path:
    return cache_folder() / "prepared" / f"{checksum[:24]}-{precision}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on an accelerator or on the host, in whichever of the ways libraries say it."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = ("allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    bare = isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    return bare or isinstance(error, (MemoryError, torch.OutOfMemoryError, OutOfMemory))


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def trim_heap(device: torch.device, dropped: Sequence[ref[nn.Module]] | None = None) -> None:
    """Give the memory of dropped models back to the system, those in reference cycles included.

    ``dropped``: their parts (``modules.watched``); ``None``: whatever there is. Cycles are looked for only if one of
    them is still there, because that takes 0.2 s beside the libraries that models are built with, and loads take less.
    """
    if dropped is None or any(part() is not None for part in dropped):
        gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.accelerator.empty_host_cache()  # pinned blocks, which would be kept for later
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # another C library keeps no such heap
            return
