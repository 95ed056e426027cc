"""Precision policies: which layers of a model are held in how many bits, which precision fits, and prepared copies."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.checksums import hash_of
from models.modules import modules_of
from models.packing import BLOCK
from models.precision import Precision
from models.quantized_layers import (
    HALVES,
    Int8Linear,
    Layer,
    Nf4Linear,
    RoundingInt8Linear,
    bitsandbytes_works,
    hold_half,
)
from models.speeds import Speeds

log = logging.getLogger(__name__)

# ---------------------------------------------------------------------------------------- which layers
# The rule, whole:
# - float16, bfloat16: every linear layer, 2-d convolution and embedding of at least SMALL elements is held in 16 bits.
# - int8, nf4: of these the linear layers that are NARROW in no direction and FIRST_OR_LAST by no name are held in 8 or
#   4 bits, and the others in float16. Rows that are not whole blocks are held in int8 instead of nf4.
# - int8 rounds activations too, save in LANGUAGE_MODELS, a few of whose channels are far larger than the rest.
# - Everything else stays float32: norms, biases, lone parameters, layers of a class of their own.
SMALL = 16_384
NARROW = 128
FIRST_OR_LAST = re.compile(r"embed|proj_in|proj_out|pooler|lm_head|text_projection|visual_projection")
# What comes out of these exceeds the range of float16 in the larger T5 models, and transformers asks them for the type
# of their input.
WIDE_RANGE = re.compile(r"\bwo$")
LANGUAGE_MODELS = "PreTrainedModel"  # transformers' base class, by name because its import takes seconds

SLOWER = 1.1  # what may pass for equally fast
# Share of the float32 bytes of our models together, with what stays in more bits: a seventh of it is the backbone of
# picture-text-lite, whose convolutions are of a class of their own, and the captioners' (transformers' Conv1D).
SHARES: dict[Precision, float] = {"float32": 1.0, "float16": 0.6, "bfloat16": 0.6, "int8": 0.4, "nf4": 0.33}

BITS: dict[Precision, int] = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "nf4": 4}


def apply_precision(model: object, precision: Precision, device: torch.device) -> None:
    """Hold a float32 model in ``precision``, in place; its layers go on taking and giving what they did.

    ``device``: where the model will compute. Works on the meta device too, where only the shapes change.
    """
    if precision == "float32":
        return
    if precision == "nf4" or (precision == "int8" and device.type == "cuda"):
        bitsandbytes_works(device)  # its import takes seconds, which belong to the load
    language = {id(layer) for module in modules_of(model) for layer in _language_layers(module)}
    holders: defaultdict[Tensor, list[tuple[str, Layer]]] = defaultdict(list)
    for module in modules_of(model):
        for name, layer in module.named_modules():
            if isinstance(layer, Layer) and type(layer) in HALVES and layer.weight.numel() >= SMALL:
                holders[layer.weight].append((name, layer))
    while holders:  # each float32 weight is let go before the next is rounded
        weight, layers = holders.popitem()
        halves: dict[torch.dtype, Tensor] = {}  # layers that share their weight still do afterwards
        for name, layer in layers:
            kind = storage(name, layer, precision)
            if kind == "nf4":
                Nf4Linear.hold(layer)
            elif kind == "int8":
                (Int8Linear if id(layer) in language else RoundingInt8Linear).hold(layer)
            else:
                dtype = torch.bfloat16 if kind == "bfloat16" or _exceeds_float16(weight) else torch.float16
                hold_half(layer, halves.setdefault(dtype, weight.detach().to(dtype)))


def storage(name: str, layer: Layer, precision: Precision) -> Precision:
    """How one layer of at least :data:`SMALL` elements is held under ``precision``: the rule above."""
    rows, columns = layer.weight.shape[:2]
    roomy = isinstance(layer, nn.Linear) and min(rows, columns) >= NARROW
    if precision in ("int8", "nf4") and roomy and not FIRST_OR_LAST.search(name):
        return "int8" if columns % BLOCK else precision
    return "bfloat16" if precision == "bfloat16" or WIDE_RANGE.search(name) else "float16"


def _exceeds_float16(weight: Tensor) -> bool:
    return not weight.is_meta and bool(weight.detach().abs().max() > torch.finfo(torch.float16).max)


def _language_layers(module: nn.Module) -> Iterator[nn.Module]:
    for part in module.modules():
        if any(base.__name__ == LANGUAGE_MODELS for base in type(part).__mro__):
            yield from part.modules()


# ---------------------------------------------------------------------------------------- which precision


def bytes_at(float32_bytes: int, precision: Precision) -> int:
    """About what a model takes in ``precision`` that takes ``float32_bytes`` in float32; rather too much."""
    return math.ceil(float32_bytes * SHARES[precision])


def least_bytes_at(float32_bytes: int, precision: Precision) -> int:
    """What it takes at the very least: every weight held in so many bits."""
    return math.ceil(float32_bytes * BITS[precision] / BITS["float32"])


def choose_precision(largest_set_bytes: int, budget_bytes: int, speeds: Speeds) -> Precision:
    """What ``auto`` means: halved weights unless they cost speed, and less where the budget asks for it.

    ``largest_set_bytes``: float32 bytes of the models that one pipeline needs together. Among the visually lossless
    precisions it is the faster half, if that is at most :data:`SLOWER` times as slow as float32, else float32; then
    each smaller one in turn until the set fits ``budget_bytes``, and nf4 if nothing fits.
    """
    half: Precision = "float16" if speeds.float16 <= SLOWER * speeds.bfloat16 else "bfloat16"
    ladder: list[Precision] = ["float32", half, "int8", "nf4"]
    if getattr(speeds, half) <= SLOWER * speeds.float32:
        ladder.remove("float32")
    return next((p for p in ladder if bytes_at(largest_set_bytes, p) <= budget_bytes), "nf4")


# ---------------------------------------------------------------------------------------- prepared copies
TENSORS, DESCRIPTION, FORMAT = "model.safetensors", "prepared.json", 1


def save_prepared(model: object, folder: Path, precision: Precision) -> None:
    """Keep every parameter and buffer of a model in ``folder``, for :func:`load_prepared`; all of it or nothing.

    Replaces what is there. A folder that cannot be written is logged, and the model is prepared anew next time.
    """
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        names: dict[Tensor, str] = {}  # each tensor's first name
        same = {}
        for name, _, _, tensor in _tensors(model):
            if names.setdefault(tensor, name) != name:
                same[name] = names[tensor]
        save_file({name: tensor.detach().contiguous() for tensor, name in names.items()}, partial / TENSORS)
        description = {"format": FORMAT, "precision": precision, "same": same, "sha256": hash_of(partial / TENSORS)}
        (partial / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        log.warning("the prepared weights '%s' could not be kept (%s): they are made anew next time", folder, error)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_prepared(skeleton: object, folder: Path, precision: Precision, device: torch.device) -> bool:
    """Give a ``skeleton``, the model built on the meta device, the weights that :func:`save_prepared` kept.

    Returns whether it did. If the folder is missing, damaged or of another format, that is logged, the skeleton is of
    no more use, and the model is to be loaded and prepared anew.
    """
    apply_precision(skeleton, precision, device)
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if (description["format"], description["precision"]) != (FORMAT, precision):
            raise ValueError("it is of another format or precision")
        if hash_of(folder / TENSORS) != description["sha256"]:
            raise ValueError("it is not what was written")
        # Copies, because what is read from a file lies in its pages, and would go bad with it.
        stored = {name: tensor.clone() for name, tensor in load_file(folder / TENSORS).items()}
        places = list(_tensors(skeleton))
        values = {name: stored[description["same"].get(name, name)] for name, _, _, _ in places}
        if values.keys() != stored.keys() | description["same"].keys():
            raise ValueError("it holds other tensors")
        if changed := [name for name, _, _, tensor in places if values[name].shape != tensor.shape]:
            raise ValueError(f"'{changed[0]}' has another shape")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        log.warning("the prepared weights '%s' cannot be used (%r): they are made anew", folder, error)
        return False
    parameters: dict[Tensor, nn.Parameter] = {}
    for name, owner, attribute, tensor in places:
        value = values[name]
        if isinstance(tensor, nn.Parameter):
            value = parameters.setdefault(value, nn.Parameter(value, requires_grad=False))
        setattr(owner, attribute, value)
    return True


def _tensors(model: object) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """(unique name, owner, attribute, tensor) of every parameter and buffer, under every name that it has."""
    for index, module in enumerate(modules_of(model)):
        for path, owner in module.named_modules(remove_duplicate=False):
            own = (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False))
            for attribute, tensor in own:
                yield f"{index}.{path}.{attribute}", owner, attribute, tensor
