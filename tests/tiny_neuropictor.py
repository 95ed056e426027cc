"""Names and sizes of NeuroPictor's published files, by their authors' code, and random files of a few megabytes.

The names are written down here as that code makes them, level by level, so that nothing of ours is used to check ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]


@dataclass(frozen=True)
class Sizes:
    """Of a task file; ``unet`` and ``autoencoder``: the channels of every level."""

    unet: tuple[int, ...]
    layers: int
    context: int
    count: int  # tokens of a prompt
    latent_side: int
    autoencoder: tuple[int, ...]
    autoencoder_layers: int
    words_blocks: int
    pieces: int
    width: int  # of a map's tokens
    patches: int
    patch: int
    blocks: int
    heads: int
    bottleneck: int


# The encoder's depth stands nowhere in the authors' repository.
PUBLISHED = Sizes(
    unet=(320, 640, 1280, 1280),
    layers=2,
    context=1024,
    count=77,
    latent_side=64,
    autoencoder=(128, 256, 512, 512),
    autoencoder_layers=2,
    words_blocks=24,
    pieces=49_408,
    width=1024,
    patches=256,
    patch=16,
    blocks=24,
    heads=16,
    bottleneck=2048,
)
TINY = Sizes(
    unet=(64, 128),
    layers=2,
    context=64,
    count=9,
    latent_side=8,
    autoencoder=(32, 64),
    autoencoder_layers=1,
    words_blocks=3,
    pieces=50,
    width=32,
    patches=16,
    patch=8,
    blocks=3,
    heads=4,
    bottleneck=24,
)


def _layer(name: str, *shape: int) -> Named:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _resnet(name: str, inside: int, outside: int, time: int) -> Named:
    yield from _layer(f"{name}.in_layers.0", inside)
    yield from _layer(f"{name}.in_layers.2", outside, inside, 3, 3)
    yield from _layer(f"{name}.emb_layers.1", outside, time)
    yield from _layer(f"{name}.out_layers.0", outside)
    yield from _layer(f"{name}.out_layers.3", outside, outside, 3, 3)
    if inside != outside:
        yield from _layer(f"{name}.skip_connection", outside, inside, 1, 1)


def _transformer(name: str, width: int, context: int) -> Named:
    yield from _layer(f"{name}.norm", width)
    yield from _layer(f"{name}.proj_in", width, width)
    block = f"{name}.transformer_blocks.0"
    for attention, keys in (("attn1", width), ("attn2", context)):
        yield f"{block}.{attention}.to_q.weight", (width, width)
        yield f"{block}.{attention}.to_k.weight", (width, keys)
        yield f"{block}.{attention}.to_v.weight", (width, keys)
        yield from _layer(f"{block}.{attention}.to_out.0", width, width)
    yield from _layer(f"{block}.ff.net.0.proj", 8 * width, width)
    yield from _layer(f"{block}.ff.net.2", width, 4 * width)
    for number in (1, 2, 3):
        yield from _layer(f"{block}.norm{number}", width)
    yield from _layer(f"{name}.proj_out", width, width)


def _unet(sizes: Sizes, control: bool) -> Named:
    """The deepest level alone has no attention."""
    first, time, deepest = sizes.unet[0], 4 * sizes.unet[0], len(sizes.unet) - 1
    yield from _layer("time_embed.0", time, first)
    yield from _layer("time_embed.2", time, time)
    yield from _layer("input_blocks.0.0", first, 4, 3, 3)
    skips, number, inside = [first], 1, first
    for level, width in enumerate(sizes.unet):
        for _ in range(sizes.layers):
            yield from _resnet(f"input_blocks.{number}.0", inside, width, time)
            if level < deepest:
                yield from _transformer(f"input_blocks.{number}.1", width, sizes.context)
            skips.append(width)
            number, inside = number + 1, width
        if level < deepest:
            yield from _layer(f"input_blocks.{number}.0.op", width, width, 3, 3)
            skips.append(width)
            number += 1
    yield from _resnet("middle_block.0", inside, inside, time)
    yield from _transformer("middle_block.1", inside, sizes.context)
    yield from _resnet("middle_block.2", inside, inside, time)
    if control:
        for index, width in enumerate(skips):
            yield from _layer(f"zero_convs.{index}.0", width, width, 1, 1)
        yield from _layer("middle_block_out.0", inside, inside, 1, 1)
        return
    number = 0
    for level, width in reversed([*enumerate(sizes.unet)]):
        for layer in range(sizes.layers + 1):
            yield from _resnet(f"output_blocks.{number}.0", inside + skips.pop(), width, time)
            inside = width
            if level < deepest:
                yield from _transformer(f"output_blocks.{number}.1", width, sizes.context)
            if level and layer == sizes.layers:
                yield from _layer(f"output_blocks.{number}.{1 + (level < deepest)}.conv", width, width, 3, 3)
            number += 1
    yield from _layer("out.0", first)
    yield from _layer("out.2", 4, first, 3, 3)


def _autoencoder(sizes: Sizes) -> Named:
    def resnet(name: str, inside: int, outside: int) -> Named:
        yield from _layer(f"{name}.norm1", inside)
        yield from _layer(f"{name}.conv1", outside, inside, 3, 3)
        yield from _layer(f"{name}.norm2", outside)
        yield from _layer(f"{name}.conv2", outside, outside, 3, 3)
        if inside != outside:
            yield from _layer(f"{name}.nin_shortcut", outside, inside, 1, 1)

    def middle(name: str, width: int) -> Named:
        yield from resnet(f"{name}.block_1", width, width)
        yield from _layer(f"{name}.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            yield from _layer(f"{name}.attn_1.{part}", width, width, 1, 1)
        yield from resnet(f"{name}.block_2", width, width)

    levels = sizes.autoencoder
    yield from _layer("encoder.conv_in", levels[0], 3, 3, 3)
    inside = levels[0]
    for level, width in enumerate(levels):
        for layer in range(sizes.autoencoder_layers):
            yield from resnet(f"encoder.down.{level}.block.{layer}", inside, width)
            inside = width
        if level < len(levels) - 1:
            yield from _layer(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    yield from middle("encoder.mid", inside)
    yield from _layer("encoder.norm_out", inside)
    yield from _layer("encoder.conv_out", 8, inside, 3, 3)
    yield from _layer("decoder.conv_in", inside, 4, 3, 3)
    yield from middle("decoder.mid", inside)
    for level, width in reversed([*enumerate(levels)]):
        for layer in range(sizes.autoencoder_layers + 1):
            yield from resnet(f"decoder.up.{level}.block.{layer}", inside, width)
            inside = width
        if level:
            yield from _layer(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    yield from _layer("decoder.norm_out", inside)
    yield from _layer("decoder.conv_out", 3, inside, 3, 3)
    yield from _layer("quant_conv", 8, 8, 1, 1)
    yield from _layer("post_quant_conv", 4, 4, 1, 1)


def _words(sizes: Sizes) -> Named:
    width = sizes.context
    yield "positional_embedding", (sizes.count, width)
    yield "text_projection", (width, width)
    yield "logit_scale", ()
    for number in range(sizes.words_blocks):
        block = f"transformer.resblocks.{number}"
        yield from _layer(f"{block}.ln_1", width)
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from _layer(f"{block}.attn.out_proj", width, width)
        yield from _layer(f"{block}.ln_2", width)
        yield from _layer(f"{block}.mlp.c_fc", 4 * width, width)
        yield from _layer(f"{block}.mlp.c_proj", width, 4 * width)
    yield "token_embedding.weight", (sizes.pieces, width)
    yield from _layer("ln_final", width)


def _block(name: str, width: int) -> Named:
    yield from _layer(f"{name}.norm1", width)
    yield from _layer(f"{name}.attn.qkv", 3 * width, width)
    yield from _layer(f"{name}.attn.proj", width, width)
    yield from _layer(f"{name}.norm2", width)
    yield from _layer(f"{name}.mlp.fc1", 4 * width, width)
    yield from _layer(f"{name}.mlp.fc2", width, 4 * width)


def _encoder(sizes: Sizes, whole: bool) -> Named:
    """``whole``: with the decoder that it was trained with, which the task file lacks."""
    width, tokens = sizes.width, 1 + sizes.patches
    yield "cls_token", (1, 1, width)
    yield "pos_embed", (1, tokens, width)
    yield "mask_token", (1, 1, width // 2)
    yield from _layer("patch_embed.proj", width, 1, sizes.patch, sizes.patch)
    for number in range(sizes.blocks):
        yield from _block(f"blocks.{number}", width)
    yield from _layer("norm", width)
    yield from _layer("pred", sizes.bottleneck, width)
    if whole:
        yield "decoder_pos_embed", (1, tokens, width // 2)
        yield from _layer("decoder_embed", width // 2, sizes.bottleneck)
        yield from _block("decoder_blocks.0", width // 2)
        yield from _layer("decoder_norm", width // 2)
        yield from _layer("decoder_pred", sizes.patch**2, width // 2)


def _semantic(sizes: Sizes) -> Named:
    tokens = 1 + sizes.patches
    for mapper in ("channel_mapper", "extra_clip"):
        yield from _layer(f"{mapper}.0", tokens // 2, tokens, 1)
        yield from _layer(f"{mapper}.1", sizes.count, tokens // 2, 1)
    for linear, norm in (("dim_mapper", "norm"), ("extra_clip.2", "extra_clip.3")):
        yield from _layer(linear, sizes.context, sizes.width)
        yield from _layer(norm, sizes.context)
    yield from _layer("extra_clip_out", sizes.count, sizes.count, 3)


def _mapper(sizes: Sizes) -> Named:
    tokens, channels = 1 + sizes.patches, sizes.unet[0]
    yield from _layer("channel_mapper.0", 2 * tokens, tokens, 1)
    yield from _layer("channel_mapper.1", channels, 2 * tokens, 1)
    yield from _layer("dim_mapper.0", sizes.latent_side**2, sizes.width)
    yield from _layer("out", channels, channels, 3)


def _hint(sizes: Sizes) -> Named:
    widths = (3, 16, 16, 32, 32, 96, 96, 256, sizes.unet[0])
    for index, (inside, outside) in enumerate(pairwise(widths)):
        yield from _layer(str(2 * index), outside, inside, 3, 3)


SCHEDULE = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "logvar",
)
METRICS = ("loss_fn_alex.net.slice1.0.weight", "eff_model.features.0.0.weight", "inception_model.Mixed_5b.x.weight")


def task_shapes(sizes: Sizes) -> dict[str, Shape]:
    """Every tensor of a task file, by its name."""
    groups = {
        "model.diffusion_model": _unet(sizes, control=False),
        "first_stage_model": _autoencoder(sizes),
        "cond_stage_model.model": _words(sizes),
        "control_model": _unet(sizes, control=True),
        "control_model.fmri_mapper": _mapper(sizes),
        "control_model.input_hint_block": _hint(sizes),
        "fmri_encoder.transformer": _encoder(sizes, whole=False),
        "cond_stage": _semantic(sizes),
    }
    named = {f"{group}.{name}": shape for group, names in groups.items() for name, shape in names}
    return named | dict.fromkeys(SCHEDULE, (1000,)) | dict.fromkeys(METRICS, (4, 3, 3, 3))


def task_weights(sizes: Sizes = TINY, seed: int = 0) -> dict[str, Tensor]:
    """Random, so that no two tensors are equal, nothing is silent that is so at first, and nothing explodes."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in task_shapes(sizes).items():
        spread = 0.5 / max(1, int(np.prod(shape[1:]))) ** 0.5 if len(shape) > 1 else 0.1
        made[name] = spread * torch.randn(shape, generator=generator)
        if len(shape) == 1 and name.endswith("weight"):  # of a norm
            made[name] += 1
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    made["betas"] = torch.from_numpy(betas).float()
    made["alphas_cumprod"] = torch.from_numpy(np.cumprod(1 - betas)).float()
    return made


def encoder_weights(sizes: Sizes = TINY, seed: int = 1) -> dict[str, Tensor]:
    """As in the encoder's own file, where it was trained on several devices."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"module.transformer.{name}": 0.1 * torch.randn(shape, generator=generator)
        for name, shape in _encoder(sizes, whole=True)
    }


def settings_text(heads: int) -> str:
    return f"Data:\n  patch_size: 16\n  image_size: [256, 256]\nModel:\n  num_heads: {heads}\n  encoder_depth: 24\n"


def write_neuropictor(folder: Path, weights: dict[str, Tensor] | None = None, sizes: Sizes = TINY) -> Path:
    """A task file and the encoder's settings."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(task_weights(sizes) if weights is None else weights, folder / "epoch_015.pth")
    (folder / "fMRI_AutoEncoder.yaml").write_text(settings_text(sizes.heads))
    return folder
