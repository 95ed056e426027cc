"""ImageBind (arXiv 2305.05665) as it is published: pictures, words and sounds in one space.

Its pictures and words are OpenCLIP's ViT-H/14, kept frozen, and its sounds a ViT that sees Kaldi's filter bank. The
towers of depth, heat and motion stay in the file. The names of tensors are those of ``imagebind_huge`` in
``facebookresearch/ImageBind``; the weights are for non-commercial use only (CC BY-NC-SA 4.0 in its LICENSE and model
card, CC BY-NC 4.0 in its README).

Shapes: B things, L tokens, W a tower's width, D dimensions of the space, N samples, C clips, M bands, F frames.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from models.bind import SAMPLE_RATE, WINDOW, FilterBank, require_waveforms
from models.errors import UserError
from models.nets.attention import attention

EPSILON = 1e-6  # of the norms, but for that of the patches of sounds
COLOURS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's mean and deviation
FILTER_BANK = FilterBank(bands=128, frames=204, mean=-4.268, deviation=9.138)
STRIDE = 10  # of the patches of sounds, which overlap
CLIPS, CLIP = 3, 2 * SAMPLE_RATE  # how many are heard of a sound, and the samples of each


@dataclass(frozen=True)
class ImageBindConfig:
    """Attention heads of the towers, of which the tensors tell nothing."""

    pictures: int
    words: int
    sounds: int


HUGE = ImageBindConfig(pictures=16, words=16, sounds=12)


# -------------------------------------------------------------------------------------------------------------- towers


@dataclass(frozen=True)
class TowerSizes:
    """Of a tower: ``hidden`` of its MLPs, ``output`` of the space, ``positions`` of tokens."""

    width: int
    hidden: int
    output: int
    positions: int
    blocks: int
    heads: int


class Attention(nn.Module):
    """Of all tokens to each other; with ``extra`` also to a key and a value that are learned."""

    def __init__(self, width: int, heads: int, extra: bool) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads cannot share a width of {width}")
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.bias_k = nn.Parameter(torch.zeros(1, 1, width)) if extra else None
        self.bias_v = nn.Parameter(torch.zeros(1, 1, width)) if extra else None

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.in_proj(x).chunk(3, -1)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([y, more.to(y).expand(len(y), 1, -1)], 1) for y, more in ((k, self.bias_k), (v, self.bias_v))
            )
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        return self.out_proj(attention(q, k, v, mask).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, extra: bool) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, EPSILON)
        self.attn = Attention(width, heads, extra)
        self.norm_2 = nn.LayerNorm(width, EPSILON)
        layers = OrderedDict(fc1=nn.Linear(width, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, width))
        self.mlp = nn.Sequential(layers)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm_1(x), mask)
        return x + self.mlp(self.norm_2(x))


class Tower(nn.Module):
    """Tokens through blocks, and the state of one of them into the space."""

    def __init__(self, sizes: TowerSizes, extra: bool = False) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, sizes.positions, sizes.width))
        blocks = (Block(sizes.width, sizes.hidden, sizes.heads, extra) for _ in range(sizes.blocks))
        self.blocks = nn.ModuleList(blocks)
        self.norm_out = nn.LayerNorm(sizes.width, EPSILON)
        self.proj_out = nn.Linear(sizes.width, sizes.output, bias=False)

    def through(self, tokens: Tensor, place: Tensor | int, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, L, W) -> unit vectors (B, D) float32 of those in ``place``, (B,) or the same of all."""
        for block in self.blocks:
            tokens = block(tokens, mask)
        chosen = tokens[torch.arange(len(tokens), device=tokens.device), place]
        return F.normalize(self.proj_out(self.norm_out(chosen)).float(), dim=-1)


class PatchTower(Tower):
    """A ViT, of what ``patch_embed`` sees; ``patch_norm`` is of the patches, ``norm`` of all tokens."""

    def __init__(
        self, sizes: TowerSizes, patch_embed: nn.Conv2d, patch_norm: nn.Module, norm: nn.Module, extra: bool
    ) -> None:
        super().__init__(sizes, extra)
        self.patch_embed = patch_embed
        self.patch_norm = patch_norm
        self.class_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.norm = norm

    def forward(self, seen: Tensor) -> Tensor:
        patches = self.patch_norm(self.patch_embed(seen).flatten(2).transpose(1, 2))
        tokens = torch.cat([self.class_token.expand(len(seen), -1, -1), patches], 1)
        return self.through(self.norm(tokens + self.positions), 0)


class WordTower(Tower):
    """CLIP's: every token sees those before it, and the text is what the token of its end makes of them."""

    def __init__(self, sizes: TowerSizes, pieces: int) -> None:
        super().__init__(sizes)
        self.token_embed = nn.Embedding(pieces, sizes.width)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        before = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        tokens = self.token_embed(ids) + self.positions[:, :length]
        return self.through(tokens, ids.argmax(1), before)  # the highest number, where it stands first


# --------------------------------------------------------------------------------------------------------------- space


class ImageBind(nn.Module):
    """The space of pictures, words and sounds, of ``width`` dimensions.

    All vectors are of unit length: the temperatures by which the published model multiplies those of words and sounds
    after that are not applied.
    """

    reads: ClassVar[Literal["words"]] = "words"
    hears: ClassVar[Literal["waveforms"]] = "waveforms"
    sample_rate: ClassVar[int] = SAMPLE_RATE
    samples: ClassVar[int] = 10 * SAMPLE_RATE  # of a sound that are heard at once: clips are few

    def __init__(self, pictures: PatchTower, words: WordTower, sounds: PatchTower, tokenizer: Any) -> None:
        super().__init__()
        self.pictures = pictures
        self.words = words
        self.sounds = sounds
        self.tokenizer = tokenizer
        self.width = pictures.proj_out.out_features
        self.side = pictures.patch_embed.kernel_size[0] * math.isqrt(pictures.positions.shape[1] - 1)

    @torch.no_grad()
    def embed_pictures(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] of any size -> unit vectors (B, D) float32; the middle square is seen.

        Raises :class:`ValueError` for other shapes. What is far from a square is cut beforehand, or takes much memory.
        """
        return self.pictures(scaled(pixels, self.side))

    @torch.no_grad()
    def embed_words(self, words: Sequence[str]) -> Tensor:
        """Texts -> unit vectors (B, D) float32; of a long one, what fits into 77 tokens counts."""
        most = self.words.positions.shape[1]
        batch = self.tokenizer(list(words), padding=True, truncation=True, max_length=most, return_tensors="pt")
        return self.words(batch.input_ids.to(self.words.positions.device))

    @torch.no_grad()
    def embed_sounds(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, N) in [-1, 1] at 16 kHz -> unit vectors (B, D) float32: the mean of the clips'. What is shorter
        than 25 ms ends in silence.

        Raises :class:`ValueError` for other shapes and samples that are not finite.
        """
        require_waveforms(waveforms)
        waveforms = F.pad(waveforms, (0, max(0, WINDOW - waveforms.shape[1])))
        clips = spectrograms(waveforms.float())
        vectors = self.sounds(clips.flatten(0, 1)[:, None]).unflatten(0, clips.shape[:2])
        return F.normalize(vectors.mean(1), dim=-1)


def scaled(pixels: Tensor, side: int) -> Tensor:
    """What the network sees of pictures (B, 3, H, W) in [-1, 1]: (B, 3, side, side), standardised, of 256 levels.

    As torchvision scales and cuts pictures of Pillow's: where an odd number of pixels is cut off, that is rounded to
    the even half, whereas transformers (:mod:`models.published_spaces`) always rounds down.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.numel():
        raise ValueError(f"expected (B, 3, H, W), not {tuple(pixels.shape)}")
    height, width = pixels.shape[2:]
    size = [side * length // min(height, width) for length in (height, width)]
    levels = (pixels.float() + 1) * 127.5
    for stage in ([height, size[1]], size):  # Pillow scales the rows first, and rounds to whole levels each time
        levels = F.interpolate(levels, stage, mode="bicubic", antialias=True).add(0.5).floor().clamp(0, 255)
    top, left = (round((length - side) / 2) for length in size)
    mean, deviation = (levels.new_tensor(value)[:, None, None] for value in COLOURS)
    return (levels[..., top : top + side, left : left + side] / 255 - mean) / deviation


def spectrograms(waveforms: Tensor) -> Tensor:
    """Waveforms (B, N) at 16 kHz, N >= 400 -> (B, C, M, F) float32: the beginning, the middle and the end, 2 s of each.

    A sound of 2 s at most is one clip. The frames that a clip has too few are zeros, which is not silence.
    """
    spare = max(0, waveforms.shape[1] - CLIP)
    starts = [spare * index // (CLIPS - 1) for index in range(CLIPS if spare else 1)]
    clips = torch.stack([waveforms[:, start : start + CLIP] for start in starts], 1)
    bands = FILTER_BANK.bands_of(clips.flatten(0, 1))
    padded = F.pad(bands, (0, 0, 0, FILTER_BANK.frames - bands.shape[1])).transpose(1, 2)
    return (padded.unflatten(0, clips.shape[:2]) - FILTER_BANK.mean) / FILTER_BANK.deviation


# ------------------------------------------------------------------------------------------------------------- loading

META_WEIGHTS, HUB_WEIGHTS = "imagebind_huge.pth", "model.safetensors"
WHOLE = f"Put Meta's {META_WEIGHTS} there, or the {HUB_WEIGHTS} of nielsr/imagebind-huge."
WORDS = "Put the tokenizer of openai/clip-vit-large-patch14 beside ImageBind's weights."
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")  # either will do
# Where the parts of the towers stand in the file. What is inside of blocks is called the same, but for ``in_proj``.
PLACES = {
    "pictures.class_token": "modality_preprocessors.vision.cls_token",
    "pictures.positions": "modality_preprocessors.vision.pos_embedding_helper.pos_embed",
    "pictures.patch_embed": "modality_preprocessors.vision.rgbt_stem.proj.1",
    "pictures.norm": "modality_trunks.vision.pre_transformer_layer.0",
    "pictures.blocks": "modality_trunks.vision.blocks",
    "pictures.norm_out": "modality_heads.vision.0",
    "pictures.proj_out": "modality_heads.vision.2",
    "words.token_embed": "modality_preprocessors.text.token_embedding",
    "words.positions": "modality_preprocessors.text.pos_embed",
    "words.blocks": "modality_trunks.text.blocks",
    "words.norm_out": "modality_heads.text.proj.0",
    "words.proj_out": "modality_heads.text.proj.1",
    "sounds.class_token": "modality_preprocessors.audio.cls_token",
    "sounds.positions": "modality_preprocessors.audio.pos_embedding_helper.pos_embed",
    "sounds.patch_embed": "modality_preprocessors.audio.rgbt_stem.proj",
    "sounds.patch_norm": "modality_preprocessors.audio.rgbt_stem.norm_layer",
    "sounds.blocks": "modality_trunks.audio.blocks",
    "sounds.norm_out": "modality_heads.audio.0",
    "sounds.proj_out": "modality_heads.audio.2",
}
# The other media, the temperatures, and a triangle that says which tokens see which.
UNUSED = re.compile(
    r"modality_\w+\.(depth|thermal|imu)\..*|modality_postprocessors\..*|modality_preprocessors\.text\.mask"
)


def load_image_bind(folder: Path, config: ImageBindConfig = HUGE, words: Path | None = None) -> ImageBind:
    """Meta's ``imagebind_huge.pth`` or the ``model.safetensors`` of ``nielsr/imagebind-huge``; float32 on the CPU.

    Beside it or in the folder ``words``, CLIP's tokenizer as of ``openai/clip-vit-large-patch14``. Sizes are counted
    from the tensors, but for ``config``. Raises :class:`UserError` for files that are missing, damaged, or not
    ImageBind's to the last tensor.
    """
    path = next((folder / name for name in (META_WEIGHTS, HUB_WEIGHTS) if (folder / name).exists()), None)
    if path is None:
        raise UserError(f"'{folder}' has no weights of ImageBind.", WHOLE)
    tokenizer = _tokenizer(words or folder)
    model = image_bind_of(_read(path), config, tokenizer, path.name)
    pieces = model.words.token_embed.num_embeddings
    if len(tokenizer) != pieces:
        raise UserError(
            f"The tokenizer in '{folder}' knows {len(tokenizer)} pieces of words, and ImageBind {pieces}.", WORDS
        )
    return model


def image_bind_of(stored: Mapping[str, Tensor], config: ImageBindConfig, tokenizer: Any, name: str) -> ImageBind:
    """Of the tensors of a file called ``name``, on their device; raises as :func:`load_image_bind` does."""
    try:
        with torch.device("meta"):
            model = ImageBind(*_towers(stored, config), tokenizer)
    except KeyError as error:
        raise UserError(f"'{name}' is not ImageBind's: it lacks '{error.args[0]}'.", WHOLE) from error
    except ValueError as error:
        raise UserError(f"'{name}' is not ImageBind's: its tensors do not fit together ({error}).", WHOLE) from error
    places = {own: place(own) for own in model.state_dict()}
    _require_none(name, "lacks", [there for there in places.values() if there not in stored])
    left_over = stored.keys() - set(places.values())
    _require_none(name, "has what belongs to nothing,", [there for there in left_over if not UNUSED.fullmatch(there)])
    weights = {own: stored[there].float() for own, there in places.items()}
    # Pictures are seen as films of two frames that are the same, so both halves of the filters see the same too.
    weights["pictures.patch_embed.weight"] = weights["pictures.patch_embed.weight"].sum(2)
    others = [places[own] for own, value in model.state_dict().items() if value.shape != weights[own].shape]
    _require_none(name, "has in another size", others)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def place(own: str) -> str:
    """What the file calls one of our tensors."""
    tower, part, *rest = own.split(".")
    return ".".join([PLACES[f"{tower}.{part}"], *rest]).replace(".in_proj.", ".in_proj_")


def _towers(stored: Mapping[str, Tensor], config: ImageBindConfig) -> tuple[PatchTower, WordTower, PatchTower]:
    width, _, _, height, across = stored[place("pictures.patch_embed.weight")].shape
    positions = stored[place("pictures.positions")].shape[1]
    pictures = PatchTower(
        _sizes(stored, "pictures", positions, config.pictures),
        nn.Conv2d(3, width, (height, across), (height, across), bias=False),
        nn.Identity(),
        nn.LayerNorm(width, EPSILON),
        extra=False,
    )
    pieces, _ = stored[place("words.token_embed.weight")].shape
    words = WordTower(_sizes(stored, "words", stored[place("words.positions")].shape[1], config.words), pieces)
    width, _, height, across = stored[place("sounds.patch_embed.weight")].shape
    rows, columns = ((FILTER_BANK.bands - height) // STRIDE + 1, (FILTER_BANK.frames - across) // STRIDE + 1)
    sounds = PatchTower(
        _sizes(stored, "sounds", 1 + rows * columns, config.sounds),
        nn.Conv2d(1, width, (height, across), STRIDE, bias=False),
        nn.LayerNorm(width),
        nn.Identity(),
        extra=True,
    )
    return pictures, words, sounds


def _sizes(stored: Mapping[str, Tensor], tower: str, positions: int, heads: int) -> TowerSizes:
    output, width = stored[place(f"{tower}.proj_out.weight")].shape
    hidden, _ = stored[place(f"{tower}.blocks.0.mlp.fc1.weight")].shape
    before = f"{PLACES[f'{tower}.blocks']}."
    blocks = {name.removeprefix(before).split(".")[0] for name in stored if name.startswith(before)}
    return TowerSizes(width, hidden, output, positions, len(blocks), heads)


def _require_none(name: str, what: str, places: list[str]) -> None:
    if places:
        others = f" and {len(places) - 1} more" if len(places) > 1 else ""
        raise UserError(f"'{name}' is not ImageBind's: it {what} '{min(places)}'{others}.", WHOLE)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".pth":
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:
            with safe_open(path, "pt") as file:
                stored = {name: file.get_tensor(name) for name in file.keys() if not UNUSED.fullmatch(name)}  # noqa: SIM118
    except (UnpicklingError, EOFError, RuntimeError, SafetensorError) as error:
        raise UserError(f"'{path}' is damaged, or no file of tensors.", WHOLE) from error
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise UserError(f"'{path}' is no list of tensors.", WHOLE)
    return stored


def _tokenizer(folder: Path) -> CLIPTokenizer:
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise UserError(f"'{folder}' has no tokenizer.", WORDS)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
