"""Low-rank adapters (LoRA, arXiv 2106.09685) beside frozen layers: there only while they are switched on.

So one model in memory both reads requests, adapted to that, and answers in words as it was made. The layers may be
quantized: an adapter adds to what a layer gives and never touches its weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Adapter(nn.Module):
    """``x -> W x + scale * B A x`` for the layers ``names`` of a model: A (rank, in) and B (out, rank)."""

    def __init__(self, names: Sequence[str], sizes: Sequence[tuple[int, int]], rank: int, alpha: float) -> None:
        super().__init__()
        self.names, self.rank, self.alpha = tuple(names), rank, alpha
        self.down = nn.ParameterList([torch.empty(rank, inside) for inside, _ in sizes])
        self.up = nn.ParameterList([torch.zeros(outside, rank) for _, outside in sizes])
        for matrix in self.down:
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
        self._on: ContextVar[bool] = ContextVar("adapter", default=False)  # a thread's own: models are shared

    def fits(self, model: nn.Module) -> bool:
        """Whether ``model`` has all the layers that this adapter was made for, in their sizes."""
        layers = dict(model.named_modules())
        sizes = [(up.shape[0], down.shape[1]) for up, down in zip(self.up, self.down, strict=True)]
        found = [layers.get(name) for name in self.names]
        return sizes == [(getattr(layer, "out_features", 0), getattr(layer, "in_features", 0)) for layer in found]

    def attach(self, model: nn.Module) -> None:
        """Let the layers of ``model``, which it fits, call on this adapter."""
        for index, name in enumerate(self.names):
            model.get_submodule(name).register_forward_hook(self._hook(index))

    @contextmanager
    def on(self) -> Iterator[None]:
        token = self._on.set(True)
        try:
            yield
        finally:
            self._on.reset(token)

    def save(self, folder: Path) -> None:
        """In peft's layout: ``adapter_config.json`` and ``adapter_model.safetensors``, float16."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": sorted({name.rpartition(".")[2] for name in self.names}),
            "bias": "none",
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        tensors = {}
        for name, down, up in zip(self.names, self.down, self.up, strict=True):
            tensors[PREFIX + name + DOWN] = down.detach().half().contiguous()
            tensors[PREFIX + name + UP] = up.detach().half().contiguous()
        save_file(tensors, folder / "adapter_model.safetensors")

    def _hook(self, index: int):  # type: ignore[no-untyped-def]
        def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not self._on.get():
                return output
            down, up = self.down[index], self.up[index]
            return output + self.alpha / self.rank * (inputs[0].to(down.dtype) @ down.T @ up.T).to(output.dtype)

        return add


def new_adapter(model: nn.Module, layers: Sequence[int], rank: int, alpha: float) -> Adapter:
    """For the linear layers :data:`TARGETS` of the blocks ``layers`` (numbers) of a Llama-like model."""
    chosen = {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.rpartition(".")[2] in TARGETS
        and any(f".layers.{number}." in name for number in layers)
    }
    return Adapter(list(chosen), list(chosen.values()), rank, alpha)


def load_adapter(folder: Path) -> Adapter:
    """An adapter in peft's layout, float32; raises ``KeyError`` or ``OSError`` where it is none."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    names = sorted(name.removeprefix(PREFIX).removesuffix(DOWN) for name in tensors if name.endswith(DOWN))
    downs = [tensors[PREFIX + name + DOWN].float() for name in names]
    ups = [tensors[PREFIX + name + UP].float() for name in names]
    sizes = [(down.shape[1], up.shape[0]) for down, up in zip(downs, ups, strict=True)]
    adapter = Adapter(names, sizes, config["r"], config["lora_alpha"])
    for place, value in zip([*adapter.down, *adapter.up], [*downs, *ups], strict=True):
        place.data.copy_(value)
    return adapter.requires_grad_(False)
