"""A random ImageBind of a few kilobytes under the names of the published file's tensors, and in their proportions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.image_bind import HUB_WEIGHTS, META_WEIGHTS, ImageBindConfig
from tests.tiny_published import PIECES, clip_tokenizer

Weights = Literal["pth", "safetensors"]
Shapes = dict[str, tuple[int, ...]]
HEADS = ImageBindConfig(pictures=2, words=4, sounds=3)
PRE, TRUNKS, LAST = "modality_preprocessors", "modality_trunks", "modality_heads"
SOUND_PATCHES = 12 * 19  # 128 bands and 204 frames, seen 16 at a time in steps of 10


@dataclass(frozen=True)
class Sizes:
    """(width, blocks) of the towers; of pictures ``patch`` is a side and ``grid`` how many there are beside another."""

    vision: tuple[int, int]
    text: tuple[int, int]
    audio: tuple[int, int]
    output: int
    pieces: int
    patch: int
    grid: int


TINY = Sizes((16, 3), (8, 2), (12, 2), output=10, pieces=len(PIECES), patch=6, grid=4)
HUGE = Sizes((1280, 32), (1024, 24), (768, 12), output=1024, pieces=49_408, patch=14, grid=16)


def published_shapes(sizes: Sizes) -> Shapes:
    """Of every tensor: of the media that are not read, a block of each and what is before and behind it."""
    vision, text, audio = (width for width, _ in (sizes.vision, sizes.text, sizes.audio))
    shapes: Shapes = {
        f"{PRE}.vision.cls_token": (1, 1, vision),
        f"{PRE}.vision.rgbt_stem.proj.1.weight": (vision, 3, 2, sizes.patch, sizes.patch),
        f"{PRE}.vision.pos_embedding_helper.pos_embed": (1, 1 + sizes.grid**2, vision),
        f"{PRE}.text.pos_embed": (1, 77, text),
        f"{PRE}.text.mask": (77, 77),
        f"{PRE}.text.token_embedding.weight": (sizes.pieces, text),
        f"{LAST}.text.proj.1.weight": (sizes.output, text),
        f"{PRE}.imu.pos_embed": (1, 9, 4),
        f"{PRE}.imu.cls_token": (1, 1, 4),
        f"{PRE}.imu.imu_stem.proj.weight": (4, 48),
        f"{LAST}.imu.3.weight": (sizes.output, 4),
    }
    norms = {f"{TRUNKS}.vision.pre_transformer_layer.0": vision, f"{LAST}.text.proj.0": text}
    norms |= {f"{PRE}.imu.imu_stem.norm_layer": 4, f"{LAST}.imu.0": 4}
    for medium, width, stem, patches in (
        ("audio", audio, "rgbt_stem", SOUND_PATCHES),
        ("depth", 4, "depth_stem", 9),
        ("thermal", 4, "rgbt_stem", 9),
    ):
        shapes[f"{PRE}.{medium}.cls_token"] = (1, 1, width)
        shapes[f"{PRE}.{medium}.{stem}.proj.weight"] = (width, 1, 16, 16)
        shapes[f"{PRE}.{medium}.pos_embedding_helper.pos_embed"] = (1, 1 + patches, width)
        norms[f"{PRE}.{medium}.{stem}.norm_layer"] = width
    for medium, width in (("vision", vision), ("audio", audio), ("depth", 4), ("thermal", 4)):
        shapes[f"{LAST}.{medium}.2.weight"] = (sizes.output, width)
        norms[f"{LAST}.{medium}.0"] = width
    for medium, (width, blocks) in {
        **{"vision": sizes.vision, "text": sizes.text, "audio": sizes.audio},
        **{"depth": (4, 1), "thermal": (4, 1), "imu": (4, 1)},
    }.items():
        for index in range(blocks):
            block = f"{TRUNKS}.{medium}.blocks.{index}"
            norms |= {f"{block}.norm_1": width, f"{block}.norm_2": width}
            shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
            for layer, out, into in (
                ("attn.out_proj", width, width),
                ("mlp.fc1", 4 * width, width),
                ("mlp.fc2", width, 4 * width),
            ):
                shapes |= {f"{block}.{layer}.weight": (out, into), f"{block}.{layer}.bias": (out,)}
            if medium not in ("vision", "text"):
                shapes |= {f"{block}.attn.bias_k": (1, 1, width), f"{block}.attn.bias_v": (1, 1, width)}
    for medium in ("text", "audio", "depth", "thermal", "imu"):
        shapes[f"modality_postprocessors.{medium}.1.log_logit_scale"] = ()
    return shapes | {f"{norm}.{kind}": (width,) for norm, width in norms.items() for kind in ("weight", "bias")}


def published_state(sizes: Sizes = TINY) -> dict[str, Tensor]:
    """Random tensors, so large that untrained towers tell things apart."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in published_shapes(sizes).items():
        inputs = math.prod(shape[1:]) if len(shape) > 1 else 4
        state[name] = 1.5 * inputs**-0.5 * torch.randn(shape, generator=generator)
    state[f"{PRE}.text.mask"] = torch.full((77, 77), float("-inf")).triu(1)
    return state


def image_bind_folder(folder: Path, weights: Weights = "pth", sizes: Sizes = TINY) -> dict[str, Tensor]:
    """Meta's file, or that of the Hub with what it has beside it; CLIP's tokenizer in both. Gives the tensors."""
    state = published_state(sizes)
    if weights == "pth":
        torch.save(state, folder / META_WEIGHTS)
    else:
        save_file(state, folder / HUB_WEIGHTS)
        (folder / "config.json").write_text('{"audio_drop_path": 0.1, "out_embed_dim": 1024}')
    clip_tokenizer().save_pretrained(folder)
    return state
