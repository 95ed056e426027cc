"""Models of diffusers' and transformers' classes from published folders, strictly.

Either library would fill in at random what the files lack.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch

from models.errors import UserError

NAMES = "model", "diffusion_pytorch_model"  # of the files of either library, whole or in parts


def pretrained(kind: Any, folder: Path) -> Any:
    """A model of the class ``kind``; float32 on the CPU, for inference.

    Weights may be safetensors or ``.bin`` files, of which tensors alone are read. Raises :class:`UserError` if there is
    no such model, or not all of it.
    """
    asked: dict[str, Any] = {"local_files_only": True, "output_loading_info": True}
    asked |= {"use_safetensors": any(any(folder.glob(f"{name}*.safetensors")) for name in NAMES)}
    asked |= {"dtype" if kind.__module__.startswith("transformers") else "torch_dtype": torch.float32}
    try:
        model, report = kind.from_pretrained(folder, **asked)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"'{folder}' holds no {kind.__name__} that can be loaded: {error}", "Fetch it again."
        ) from error
    lacking = sorted({name for name, _ in model.named_parameters()} & set(report["missing_keys"]))
    if lacking:
        raise UserError(
            f"The weights in '{folder}' lack {len(lacking)} tensors, such as '{lacking[0]}'.", "Fetch the model again."
        )
    return model.eval()


def read_config(path: Path) -> dict[str, Any]:
    """Raises :class:`UserError` if it is not there, or damaged."""
    if not path.exists():
        raise UserError(f"'{path}' is missing.", "Fetch the model again.")
    try:
        values = json.loads(path.read_text())
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(f"'{path}' is damaged.", "Fetch the model again.")
    return cast(dict[str, Any], values)
