"""NeuroPictor's published files, tensor for tensor, in diffusers' and transformers' classes.

The task file (``epoch_015.pth``) is the whole model's state, flat, with the names of the first Stable Diffusion's code
(here "LDM's"). Sizes are counted from it: levels, widths, blocks; attention heads are 64 wide everywhere but in the
encoder of maps, whose number of heads its authors keep in ``fMRI_AutoEncoder.yaml`` alone. Every tensor has to be asked
for by something, or to be of :data:`UNUSED`; what is missing and what is left over is said.

A file is a mapping from names to tensors; places in it are those of :mod:`models.ldm_names`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from models.errors import UserError
from models.full_brain_models import ENCODER_FILE, ENCODER_FOLDER, ENCODER_SETTINGS, TASK_FILE
from models.ldm_names import Place, autoencoder_place, unet_place, words_place
from models.nets.neuropictor import (
    ControlMapper,
    ControlMapperConfig,
    MapEncoder,
    MapEncoderConfig,
    SemanticHead,
    SemanticHeadConfig,
    side_of_square,
)
from models.neuropictor import LATENT_SCALE, SCHEDULE, NeuroPictor

ENCODER, SEMANTIC, CONTROL = "fmri_encoder.transformer.", "cond_stage.", "control_model."
GENERATOR, FIRST_STAGE, WORDS = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."
GROUPS = (ENCODER, SEMANTIC, CONTROL, GENERATOR, FIRST_STAGE, WORDS)
HEAD_WIDTH = 64
SHOWN = 6  # names in a refusal

# What a task file holds beside what makes pictures: what only the encoder's own training needs, the hint of pictures
# that the control never reads, the schedule of noise, the networks that measured it while it was trained, and of the
# words' transformer what comes behind its penultimate block, which is the last that is read.
UNUSED = re.compile(
    r"fmri_encoder\.transformer\.(decoder_.*|mask_token|pred\..*)"
    r"|control_model\.input_hint_block\..*"
    r"|betas|logvar|posterior_\w+|\w*alphas_cumprod\w*"
    r"|(loss_fn_alex|eff_model|inception_model)\..*"
    r"|cond_stage_model\.model\.(logit_scale|text_projection)"
)
HINT = "controlnet_cond_embedding."  # of diffusers' ControlNet

Weights = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


# ------------------------------------------------------------------------------------------------------------- loading


def load_neuropictor(folder: Path) -> NeuroPictor:
    """The task file in ``folder``, and the encoder's settings there or where its authors keep them; float32 on the CPU.

    Raises :class:`UserError` for files that are missing, or are not NeuroPictor's to the last tensor.
    """
    path = task_file(folder)
    return neuropictor_of(_read(path, "cpu"), _heads(folder), path.name).eval()


def neuropictor_skeleton(folder: Path) -> NeuroPictor:
    """The same on the meta device: of the task file nothing but names and sizes is read."""
    path = task_file(folder)
    return neuropictor_of(_read(path, "meta"), _heads(folder), path.name).eval()


def load_published_encoder(folder: Path) -> MapEncoder:
    """The encoder as it was trained on UK Biobank alone, ``checkpoint_120000.pth``, to train on from there.

    Raises as :func:`load_neuropictor` does.
    """
    stored = _read(folder / ENCODER_FILE, "cpu", "model")
    weights = {f"fmri_encoder.{name.removeprefix('module.')}": tensor for name, tensor in stored.items()}
    _require_groups(weights, (ENCODER,), ENCODER_FILE)
    heads = _heads(folder)
    with _counting(ENCODER_FILE):
        encoder = _encoder_of(weights, heads)
    fill([Part(ENCODER, encoder, _same)], weights, ENCODER_FILE)
    return encoder.eval()


def task_file(folder: Path) -> Path:
    """The only checkpoint of torch in ``folder`` but for the encoder's. Raises :class:`UserError` unless there is one.

    Beside one for each of four subjects its authors published some of all subjects; they differ in name and numbers.
    """
    found = [path for path in folder.glob("*.pth") if path.name != ENCODER_FILE]
    if len(found) != 1:
        raise UserError(
            f"'{folder}' has {len(found)} task files of NeuroPictor.",
            f"Put one there, such as finetune_single_sub/sub01/{TASK_FILE}, and {ENCODER_SETTINGS} beside it.",
        )
    return found[0]


def neuropictor_of(weights: Weights, heads: int, name: str) -> NeuroPictor:
    """Of a task file called ``name``, on the device of its tensors, which it shares; ``heads`` of the encoder."""
    _require_groups(weights, GROUPS, name)
    _require_schedule(weights, name)
    with _counting(name):
        encoder, semantic, control, unet, autoencoder, words = _modules_of(weights, heads)
    last = f"{WORDS}transformer.resblocks.{words.config.num_hidden_layers}."
    kept = {stored: tensor for stored, tensor in weights.items() if not stored.startswith(last)}
    fill(
        [
            Part(ENCODER, encoder, _same),
            Part(SEMANTIC, semantic, _same),
            Part(CONTROL, control, partial(_control_place, unet=unet)),
            Part(GENERATOR, unet, partial(_unet_place, unet=unet)),
            Part(FIRST_STAGE, autoencoder, partial(autoencoder_place, levels=len(autoencoder.encoder.down_blocks))),
            Part(WORDS, words, words_place),
        ],
        kept,
        name,
    )
    return NeuroPictor(encoder, semantic, control, unet, autoencoder, empty_context(words))


@torch.no_grad()
def empty_context(words: CLIPTextModel) -> Tensor:
    """The states of the prompt without words, (1, L, D): OpenCLIP's mark of the beginning, that of the end, zeros."""
    length, pieces = words.config.max_position_embeddings, words.config.vocab_size
    ids = torch.tensor([[pieces - 2, pieces - 1, *[0] * (length - 2)]], device=words.device)  # 49406, 49407, 0, ...
    places = torch.arange(length, device=words.device)[None]  # its own table of them is no weight, and stayed on meta
    states: Tensor = words.eval()(input_ids=ids, position_ids=places).last_hidden_state
    return states


def _read(path: Path, device: str, inside: str = "") -> dict[str, Tensor]:
    """Tensors by name, of which alone a file may consist; ``inside``: of what entry, if that is not the whole file."""
    if not path.exists():
        raise UserError(f"'{path}' is missing.", "Fetch the model again.")
    stored: Any = torch.load(path, map_location=device, weights_only=True, mmap=device == "cpu")
    stored = stored.get(inside) if inside and isinstance(stored, dict) else stored
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise UserError(f"'{path.name}' is no file of NeuroPictor's: it is no list of tensors.", _instead(path.name))
    return {name: value.float() if value.is_floating_point() else value for name, value in stored.items()}


def _heads(folder: Path) -> int:
    """Of the encoder: no tensor tells how many there are."""
    places = [folder, *(parent / ENCODER_FOLDER for parent in folder.parents[2:3])]  # from ckpt/NSD/KIND/SUBJECT
    settings = next((place / ENCODER_SETTINGS for place in places if (place / ENCODER_SETTINGS).exists()), None)
    if settings is None:
        raise UserError(
            f"'{folder}' has no {ENCODER_SETTINGS}, which alone says how many attention heads the encoder of maps has.",
            f"Put that of NeuroPictor's ckpt/{ENCODER_FOLDER} there.",
        )
    said = set(re.findall(r"\bnum_heads['\"]?\s*:\s*(\d+)", settings.read_text(encoding="utf-8", errors="replace")))
    if len(said) != 1:
        raise UserError(f"'{settings.name}' does not say how many attention heads there are.", "Fetch it again.")
    return int(said.pop())


def _instead(name: str) -> str:
    kept = f"{ENCODER_FOLDER}/{ENCODER_FILE}" if name == ENCODER_FILE else f"NSD/finetune_single_sub/sub01/{TASK_FILE}"
    return f"Use NeuroPictor's ckpt/{kept}, or one like it."


# ------------------------------------------------------------------------------------------------------------- filling


@dataclass(frozen=True)
class Part:
    """``module`` on the meta device, and where each of its tensors stands in the file, behind ``prefix``."""

    prefix: str
    module: nn.Module
    place: Callable[[str], Place]


def fill(parts: Iterable[Part], weights: Weights, name: str) -> None:
    """Give every part its tensors, and every tensor but those of :data:`UNUSED` to exactly one part.

    Raises :class:`UserError`, of what is missing, left over, or of another size, with the file's names.
    """
    asked, missing, differing = set[str](), [], []
    for part in parts:
        state = {}
        for own, expected in part.module.state_dict().items():
            stored, third = part.place(own)
            source = part.prefix + stored
            asked.add(source)
            if source not in weights:
                missing.append(source)
                continue
            found = weights[source] if third is None else weights[source].chunk(3)[third]
            if found.shape == (*expected.shape, 1, 1):  # a convolution of single pixels, now a linear layer
                found = found.flatten(1)
            if found.shape != expected.shape:
                differing.append(f"{source} {tuple(found.shape)} instead of {tuple(expected.shape)}")
            state[own] = found
        if not missing and not differing:
            part.module.load_state_dict(state, strict=True, assign=True)
    left_over = [source for source in weights if source not in asked and not UNUSED.fullmatch(source)]
    wrong = (("lacks", list(dict.fromkeys(missing))), ("has what belongs to nothing", left_over))
    said = [f"it {how}: {_listed(names)}" for how, names in (*wrong, ("has other sizes", differing)) if names]
    if said:
        raise UserError(f"'{name}' is no file of NeuroPictor's: {'; '.join(said)}.", _instead(name))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _require_groups(weights: Weights, groups: Iterable[str], name: str) -> None:
    empty = [group.rstrip(".") for group in groups if not any(stored.startswith(group) for stored in weights)]
    if empty:
        raise UserError(f"'{name}' is no file of NeuroPictor's: it has nothing of {', '.join(empty)}.", _instead(name))


def _require_schedule(weights: Weights, name: str) -> None:
    """Where the file has one. It is written down here too, and another would give pictures, but wrong ones."""
    stored, ours = weights.get("alphas_cumprod"), DDIMScheduler(**SCHEDULE).alphas_cumprod
    if stored is None or stored.is_meta:
        return
    if stored.shape != ours.shape or not torch.allclose(stored, ours, rtol=1e-4):
        raise UserError(f"'{name}' was trained with another schedule of noise than NeuroPictor's.", _instead(name))


# -------------------------------------------------------------------------------------------------------------- places


def _same(own: str) -> Place:
    return own, None


def _unet_place(own: str, unet: UNet2DConditionModel) -> Place:
    attended = tuple("Attn" in kind for kind in unet.config.up_block_types)
    return unet_place(own, unet.config.layers_per_block, attended)


def _control_place(own: str, unet: UNet2DConditionModel) -> Place:
    if own.startswith(HINT):
        return f"fmri_mapper.{own.removeprefix(HINT)}", None
    return _unet_place(own, unet)


# ------------------------------------------------------------------------------------------------------------ counting


def _modules_of(
    weights: Weights, heads: int
) -> tuple[MapEncoder, SemanticHead, ControlNetModel, UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """All parts, on the meta device, of the sizes that the tensors have."""
    encoder = _encoder_of(weights, heads)
    tokens, width = encoder.config.tokens, encoder.config.width
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    channels, hidden, _ = shapes[f"{CONTROL}fmri_mapper.channel_mapper.1.weight"]
    cells, _ = shapes[f"{CONTROL}fmri_mapper.dim_mapper.0.weight"]
    mapper = ControlMapperConfig(channels, side_of_square(cells), hidden)
    count, between, _ = shapes[f"{SEMANTIC}channel_mapper.1.weight"]
    head = SemanticHeadConfig(count, shapes[f"{SEMANTIC}dim_mapper.weight"][0], between)
    config = _unet_config(_behind(shapes, GENERATOR), mapper.side)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        control = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
        control.controlnet_cond_embedding = ControlMapper(tokens, width, mapper)  # instead of that of pictures
        semantic = SemanticHead(tokens, width, head)
        autoencoder = AutoencoderKL(**_autoencoder_config(_behind(shapes, FIRST_STAGE)))
        words = CLIPTextModel(_words_config(_behind(shapes, WORDS)))
    return encoder, semantic, control, unet, autoencoder, words


def _encoder_of(weights: Weights, heads: int) -> MapEncoder:
    width, _, patch, _ = weights[f"{ENCODER}patch_embed.proj.weight"].shape
    patches = weights[f"{ENCODER}pos_embed"].shape[1] - 1
    blocks = {name.split(".")[3] for name in weights if name.startswith(f"{ENCODER}blocks.")}
    with torch.device("meta"):
        return MapEncoder(MapEncoderConfig(patch * side_of_square(patches), patch, width, len(blocks), heads))


def _unet_config(shapes: Shapes, side: int) -> dict[str, Any]:
    halving = sorted(int(name.split(".")[1]) for name in shapes if name.endswith(".0.op.weight"))
    layers = halving[0] - 1
    firsts = [1 + level * (layers + 1) for level in range(len(halving) + 1)]
    channels = [shapes[f"input_blocks.{first}.0.out_layers.3.weight"][0] for first in firsts]
    attended = [f"input_blocks.{first}.1.norm.weight" in shapes for first in firsts]
    context = f"input_blocks.{firsts[attended.index(True)]}.1.transformer_blocks.0.attn2.to_k.weight"
    return {
        "sample_size": side,
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "layers_per_block": layers,
        "block_out_channels": channels,
        "down_block_types": ["CrossAttnDownBlock2D" if seen else "DownBlock2D" for seen in attended],
        "up_block_types": ["CrossAttnUpBlock2D" if seen else "UpBlock2D" for seen in reversed(attended)],
        "attention_head_dim": [width // HEAD_WIDTH for width in channels],  # diffusers means how many by this name
        "cross_attention_dim": shapes[context][1],
        "use_linear_projection": True,
    }


def _autoencoder_config(shapes: Shapes) -> dict[str, Any]:
    levels = 1 + sum(name.endswith(".downsample.conv.weight") for name in shapes)
    layers = sum(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name) is not None for name in shapes)
    return {
        "block_out_channels": [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": layers,
        "latent_channels": shapes["post_quant_conv.weight"][0],
        "scaling_factor": LATENT_SCALE,
    }


def _words_config(shapes: Shapes) -> CLIPTextConfig:
    """Without the last block, because only what the one before it says is read."""
    pieces, width = shapes["token_embedding.weight"]
    blocks = {name.split(".")[2] for name in shapes if name.startswith("transformer.resblocks.")}
    return CLIPTextConfig(
        vocab_size=pieces,
        bos_token_id=pieces - 2,
        eos_token_id=pieces - 1,
        hidden_size=width,
        intermediate_size=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        num_hidden_layers=len(blocks) - 1,
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=shapes["positional_embedding"][0],
        hidden_act="gelu",
    )


def _behind(shapes: Shapes, prefix: str) -> Shapes:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


@contextmanager
def _counting(name: str) -> Iterator[None]:
    """Raises :class:`UserError` where the tensors that sizes are counted by are missing or make no sense."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"'{name}' is no file of NeuroPictor's: it lacks: {error.args[0]}.", _instead(name)) from error
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"'{name}' is no file of NeuroPictor's: its tensors do not fit together ({error}).", _instead(name)
        ) from error
