"""Where the tensors of diffusers' and transformers' Stable Diffusion stand in a checkpoint of its first code ("LDM").

A place is a name in the checkpoint, without what stands before all names of a network, and which third of that tensor
it is; ``None``: all of it. Every function takes a name of the class's own.
"""

from __future__ import annotations

import re

Place = tuple[str, int | None]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "controlnet_mid_block": "middle_block_out.0",
}
AUTOENCODER = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
WORDS = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "self_attn": "attn",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def unet_place(own: str, layers: int, attended: tuple[bool, ...]) -> Place:
    """Of UNet2DConditionModel and ControlNetModel, with ``layers`` on each level of the way down.

    LDM counts blocks through all levels: down, those layers and one that halves the grid; up, one layer more, the last
    of which doubles it, behind the attention of levels that are ``attended``, from the coarsest on.
    """
    if found := re.fullmatch(r"controlnet_down_blocks\.(\d+)\.(.*)", own):
        return f"zero_convs.{found[1]}.0.{found[2]}", None
    if found := re.fullmatch(r"mid_block\.attentions\.0\.(.*)", own):
        return f"middle_block.1.{found[1]}", None
    if found := re.fullmatch(r"mid_block\.resnets\.(\d)\.(.*)", own):
        return f"middle_block.{2 * int(found[1])}.{_renamed(found[2], RESNET)}", None
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", own)
    if not found:
        return _renamed(own, UNET), None
    level, kind, within = int(found[2]), found[3], (layers + 1) * int(found[2]) + int(found[4])
    if kind == "downsamplers":
        return f"input_blocks.{within + layers + 1}.0.op.{found[5].removeprefix('conv.')}", None
    if kind == "upsamplers":
        return f"output_blocks.{within + layers}.{1 + attended[level]}.{found[5]}", None
    blocks = f"input_blocks.{within + 1}" if found[1] == "down" else f"output_blocks.{within}"
    if kind == "attentions":
        return f"{blocks}.1.{found[5]}", None
    return f"{blocks}.0.{_renamed(found[5], RESNET)}", None


def autoencoder_place(own: str, levels: int) -> Place:
    """Of AutoencoderKL, whose levels of the way up LDM counts the other way round."""
    named = _renamed(own, AUTOENCODER)
    named = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", named)
    named = re.sub(r"up_blocks\.(\d+)\.", lambda found: f"up.{levels - 1 - int(found[1])}.", named)
    return re.sub(r"resnets\.", "block.", named), None


def words_place(own: str) -> Place:
    """Of CLIPTextModel, in OpenCLIP's names, which has queries, keys and values in one tensor."""
    if found := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", own):
        return f"transformer.resblocks.{found[1]}.attn.in_proj_{found[3]}", "qkv".index(found[2])
    return _renamed(own, WORDS), None


def _renamed(name: str, table: dict[str, str]) -> str:
    """Every part of the name that is a key of ``table``, whole words only, replaced."""
    for ours, theirs in table.items():
        name = re.sub(rf"(?<![\w]){re.escape(ours)}(?![\w])", theirs, name)
    return name
