"""Models as the manager sees them: a module, or an object whose attributes are modules (tokenizer and encoder)."""

from __future__ import annotations

import threading
import weakref

from torch import nn

BUILDING = threading.RLock()
"""Held by whoever makes modules. While transformers, diffusers or accelerate build one they patch ``nn.Module`` and
torch's initialisers, for every thread: what another makes meanwhile has no numbers."""


def modules_of(model: object) -> list[nn.Module]:
    """A model is a module itself, or an object whose attributes are."""
    if isinstance(model, nn.Module):
        return [model]
    return [value for value in vars(model).values() if isinstance(value, nn.Module)]


def watched(model: object) -> list[weakref.ref[nn.Module]]:
    """Weak references to every part of a model, which tell whether it has left memory."""
    return [weakref.ref(part) for module in modules_of(model) for part in module.modules()]


def bytes_of(model: object) -> int:
    """Bytes of a model's parameters and buffers; storage that several of them share counts once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for module in modules_of(model)
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(storages.values())
