"""ImageBind: what the published code computes of tiny random tensors, from the published files' layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import ASTFeatureExtractor

from models import image_bind
from models.errors import UserError
from models.image_bind import (
    HUB_WEIGHTS,
    META_WEIGHTS,
    Block,
    ImageBind,
    ImageBindConfig,
    image_bind_of,
    load_image_bind,
    scaled,
    spectrograms,
)
from models.precision import Precision
from models.quantize import apply_precision
from models.quantized_layers import HalfConv2d, HalfEmbedding, HalfLinear, Int8Linear
from tests.test_bind import tones
from tests.tiny_image_bind import HEADS, HUGE, TINY, Sizes, Weights, image_bind_folder, published_shapes
from tests.tiny_published import noises

SIDE = TINY.patch * TINY.grid
CLIP = 32_000  # samples of 2 s
WORDS = ["rain", "a photo of rain on a roof", "Ein Hund, 犬!", "", "rain " * 90]
WIDE = Sizes((128, 1), (128, 1), (128, 1), output=128, pieces=TINY.pieces, patch=14, grid=2)  # wide enough for int8
PICTURE_BLOCK = "modality_trunks.vision.blocks.1"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("image_bind")
    image_bind_folder(made)
    return made


@pytest.fixture(scope="module")
def state(folder: Path) -> State:
    read: State = torch.load(folder / META_WEIGHTS, weights_only=True)
    return read


@pytest.fixture(scope="module")
def space(folder: Path) -> ImageBind:
    return load_image_bind(folder, HEADS)


def pictures(count: int = 3, size: int = SIDE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


# ---------------------------------------------------------------------------------------------- as the published code


def norm(state: State, name: str, x: Tensor, epsilon: float = 1e-6) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], epsilon)


def trunk(state: State, medium: str, tokens: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """(B, L, W) through all blocks, by torch's own attention, which the published code uses."""
    blocks = {name.split(".")[3] for name in state if name.startswith(f"modality_trunks.{medium}.blocks.")}
    for index in range(len(blocks)):
        block = f"modality_trunks.{medium}.blocks.{index}"
        seen = norm(state, f"{block}.norm_1", tokens).transpose(0, 1)
        attended, _ = F.multi_head_attention_forward(
            seen,
            seen,
            seen,
            seen.shape[-1],
            heads,
            state[f"{block}.attn.in_proj_weight"],
            state[f"{block}.attn.in_proj_bias"],
            state.get(f"{block}.attn.bias_k"),
            state.get(f"{block}.attn.bias_v"),
            False,
            0.0,
            state[f"{block}.attn.out_proj.weight"],
            state[f"{block}.attn.out_proj.bias"],
            training=False,
            need_weights=False,
            attn_mask=mask,
        )
        tokens = tokens + attended.transpose(0, 1)
        between = norm(state, f"{block}.norm_2", tokens)
        for layer in ("fc1", "fc2"):
            weight, bias = (state[f"{block}.mlp.{layer}.{kind}"] for kind in ("weight", "bias"))
            between = F.linear(F.gelu(between) if layer == "fc2" else between, weight, bias)
        tokens = tokens + between
    return tokens


def with_class(state: State, medium: str, patches: Tensor) -> Tensor:
    before = f"modality_preprocessors.{medium}"
    first = state[f"{before}.cls_token"].expand(len(patches), 1, -1)
    return torch.cat([first, patches], 1) + state[f"{before}.pos_embedding_helper.pos_embed"]


def picture_vectors(state: State, seen: Tensor) -> Tensor:
    """Of standardised pictures (B, 3, S, S), each a film of two frames."""
    film = seen[:, :, None].repeat(1, 1, 2, 1, 1)
    stem = state["modality_preprocessors.vision.rgbt_stem.proj.1.weight"]
    patches = F.conv3d(film, stem, stride=stem.shape[2:]).flatten(2).transpose(1, 2)
    tokens = norm(state, "modality_trunks.vision.pre_transformer_layer.0", with_class(state, "vision", patches))
    last = norm(state, "modality_heads.vision.0", trunk(state, "vision", tokens, HEADS.pictures))
    return F.normalize(last[:, 0] @ state["modality_heads.vision.2.weight"].T, dim=-1)


def word_vectors(state: State, ids: Tensor) -> Tensor:
    """Of pieces (B, 77) with zeros behind the end."""
    embedded = state["modality_preprocessors.text.token_embedding.weight"][ids]
    tokens = embedded + state["modality_preprocessors.text.pos_embed"]
    states = trunk(state, "text", tokens, HEADS.words, state["modality_preprocessors.text.mask"])
    chosen = states[torch.arange(len(ids)), ids.argmax(-1)]
    return F.normalize(norm(state, "modality_heads.text.proj.0", chosen) @ state["modality_heads.text.proj.1.weight"].T)


def clip_vectors(state: State, clips: Tensor) -> Tensor:
    """Of spectrograms (B, 128, 204), before any mean."""
    stem = "modality_preprocessors.audio.rgbt_stem"
    patches = F.conv2d(clips[:, None], state[f"{stem}.proj.weight"], stride=10).flatten(2).transpose(1, 2)
    tokens = with_class(state, "audio", norm(state, f"{stem}.norm_layer", patches, 1e-5))
    last = norm(state, "modality_heads.audio.0", trunk(state, "audio", tokens, HEADS.sounds)[:, 0])
    return F.normalize(last @ state["modality_heads.audio.2.weight"].T, dim=-1)


def published_pieces(space: ImageBind, words: list[str]) -> Tensor:
    """(B, 77): 75 pieces at most between the beginning and the end, then zeros."""
    ids = torch.zeros(len(words), 77, dtype=torch.long)
    begin, end = TINY.pieces - 2, TINY.pieces - 1
    for row, text in zip(ids, words, strict=True):
        pieces = space.tokenizer(text, add_special_tokens=False).input_ids[:75]
        row[: len(pieces) + 2] = torch.tensor([begin, *pieces, end])
    return ids


def assert_same(vectors: Tensor, reference: Tensor) -> None:
    """As the reference, of unit length, and none near another: otherwise any two towers would agree."""
    torch.testing.assert_close(vectors, reference, atol=2e-6, rtol=0)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    assert vectors.dtype == torch.float32
    assert torch.pdist(vectors).min() > 0.01


def test_pictures_are_seen_as_the_published_code_sees_them(space: ImageBind, state: State) -> None:
    pixels = pictures()
    assert_same(space.embed_pictures(pixels), picture_vectors(state, scaled(pixels, SIDE)))


def test_words_are_read_as_the_published_code_reads_them(space: ImageBind, state: State) -> None:
    assert_same(space.embed_words(WORDS), word_vectors(state, published_pieces(space, WORDS)))


def test_sounds_are_heard_as_the_published_code_hears_them(space: ImageBind, state: State) -> None:
    sounds = noises(3, 5.0)
    clips = spectrograms(sounds)
    vectors = clip_vectors(state, clips.flatten(0, 1)).unflatten(0, (3, 3))
    assert_same(space.embed_sounds(sounds), F.normalize(vectors.mean(1), dim=-1))


@pytest.mark.parametrize("weights", ["pth", "safetensors"])
def test_both_files_are_the_same_model(tmp_path: Path, space: ImageBind, weights: Weights) -> None:
    image_bind_folder(tmp_path, weights)
    found = load_image_bind(tmp_path, HEADS)
    assert found.width == TINY.output and found.reads == "words" and found.sample_rate == 16_000
    assert not found.training and all(value.device.type == "cpu" for value in found.state_dict().values())
    assert torch.equal(found.embed_words(WORDS), space.embed_words(WORDS))


def test_the_published_sizes_are_those_of_the_published_towers() -> None:
    """OpenCLIP says 632.08 and 354.03 million of ViT-H/14; the filters of the second frame are added to the first's."""
    state = {name: torch.empty(shape, device="meta") for name, shape in published_shapes(HUGE).items()}
    found = image_bind_of(state, image_bind.HUGE, None, META_WEIGHTS)
    counts = [sum(value.numel() for value in part.parameters()) for part in (found.pictures, found.words, found.sounds)]
    assert counts == [632_076_800, 354_032_640, 86_235_648]
    assert (found.width, found.side) == (1024, 224)


# ------------------------------------------------------------------------------------------------------ what is seen


@pytest.mark.parametrize("size", [(SIDE, SIDE), (61, 40), (40, 45), (52, 40), (17, 23)])
def test_pictures_are_scaled_and_cut_as_torchvision_does_by_pillow(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    height, width = (SIDE * length // min(size) for length in size)
    small = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
    top, left = (round((length - SIDE) / 2.0) for length in (height, width))
    square = np.asarray(small.crop((left, top, left + SIDE, top + SIDE)), dtype=np.float32) / 255
    reference = (square - (0.48145466, 0.4578275, 0.40821073)) / (0.26862954, 0.26130258, 0.27577711)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    difference = (scaled(pixels, SIDE)[0].permute(1, 2, 0) - torch.from_numpy(reference)).abs()
    assert difference.max() < 0.02  # one of 256 levels, where a value lies just between two
    assert (difference > 1e-5).float().mean() < 0.02


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (0, 3, 8, 8), (1, 3, 0, 8)])
def test_other_shapes_of_pictures_are_refused(space: ImageBind, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        space.embed_pictures(torch.zeros(shape))


def test_no_vector_depends_on_the_rest_of_the_batch(space: ImageBind) -> None:
    alone = torch.cat([space.embed_pictures(pictures()[index][None]) for index in range(3)])
    torch.testing.assert_close(space.embed_pictures(pictures()), alone, atol=1e-6, rtol=0)
    alone = torch.cat([space.embed_words([text]) for text in WORDS])
    torch.testing.assert_close(space.embed_words(WORDS), alone, atol=1e-6, rtol=0)
    sounds = noises(3, 3.0)
    alone = torch.cat([space.embed_sounds(sound[None]) for sound in sounds])
    torch.testing.assert_close(space.embed_sounds(sounds), alone, atol=1e-5, rtol=0)


def test_what_comes_after_the_end_of_a_text_does_not_matter(space: ImageBind) -> None:
    ids = published_pieces(space, WORDS[:3])
    behind = torch.arange(77) > ids.argmax(1)[:, None]
    others = torch.where(behind, torch.randint(TINY.pieces - 2, ids.shape), ids)
    with torch.no_grad():
        torch.testing.assert_close(space.words(others), space.words(ids), atol=1e-6, rtol=0)
        assert (space.words(others.roll(1, 1)) - space.words(ids)).abs().max() > 0.01


def test_of_a_long_text_only_the_beginning_counts(space: ImageBind) -> None:
    long = "rain " * 75
    vectors = space.embed_words([long, long + "a dog barks", "rain " * 74])
    torch.testing.assert_close(vectors[0], vectors[1])
    assert (vectors[0] - vectors[2]).abs().max() > 1e-4


# ----------------------------------------------------------------------------------------------------- what is heard


def kaldi_clip(sound: Tensor) -> Tensor:
    """(N,) of 2 s at most -> (128, 204): by transformers' class for the spectrograms that ImageBind's code follows.

    It divides by two deviations, where ImageBind divides by one.
    """
    extractor = ASTFeatureExtractor(num_mel_bins=128, max_length=204, mean=-4.268, std=9.138 / 2)
    return extractor(sound.numpy(), sampling_rate=16_000, return_tensors="pt")["input_values"][0].T.float()


def test_a_long_sound_is_heard_at_its_beginning_middle_and_end() -> None:
    sound = noises(1, 7.0)[0]
    spare = len(sound) - CLIP
    reference = torch.stack([kaldi_clip(sound[start : start + CLIP]) for start in (0, spare // 2, spare)])
    clips = spectrograms(sound[None])[0]
    torch.testing.assert_close(clips, reference, atol=2e-3, rtol=0)
    assert (clips[0] - clips[1]).abs().max() > 0.1


@pytest.mark.parametrize("samples", [400, 9_000, CLIP])
def test_a_short_sound_is_one_clip_that_ends_in_zeros(samples: int) -> None:
    sound = noises(1, samples / 16_000)[0]
    clips = spectrograms(sound[None])[0]
    assert clips.shape == (1, 128, 204)
    torch.testing.assert_close(clips[0], kaldi_clip(sound), atol=2e-3, rtol=0)
    frames = 1 + (samples - 400) // 160
    torch.testing.assert_close(clips[0, :, frames:], torch.full((128, 204 - frames), 4.268 / 9.138))


def test_just_over_a_clip_three_are_heard() -> None:
    assert spectrograms(noises(1, 2.0)[:, :CLIP]).shape[1] == 1
    assert spectrograms(F.pad(noises(1, 2.0), (0, 1))).shape == (1, 3, 128, 204)


@pytest.mark.parametrize("waveforms", [torch.zeros(1, 0), torch.zeros(16_000), torch.zeros(0, 16_000)])
def test_other_shapes_of_sounds_are_refused(space: ImageBind, waveforms: Tensor) -> None:
    with pytest.raises(ValueError, match="N >= 1"):
        space.embed_sounds(waveforms)


def test_sounds_with_numbers_that_are_not_finite_are_refused(space: ImageBind) -> None:
    sound = tones(torch.tensor([440.0]), 16_000)
    sound[0, 5] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        space.embed_sounds(sound)


# ------------------------------------------------------------------------------------------------------------ loading


def changed(folder: Path, change: Any, weights: Weights = "pth") -> Path:
    state = image_bind_folder(folder, weights)
    change(state)
    if weights == "pth":
        torch.save(state, folder / META_WEIGHTS)
    else:
        save_file(state, folder / HUB_WEIGHTS)
    return folder


@pytest.mark.parametrize("weights", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "name",
    [
        f"{PICTURE_BLOCK}.mlp.fc2.bias",
        "modality_trunks.audio.blocks.0.attn.bias_k",
        "modality_preprocessors.vision.cls_token",
        "modality_preprocessors.vision.rgbt_stem.proj.1.weight",  # by which sizes are counted
        "modality_heads.text.proj.1.weight",
    ],
)
def test_a_file_that_lacks_a_tensor_is_refused(tmp_path: Path, name: str, weights: Weights) -> None:
    with pytest.raises(UserError, match=f"lacks '{name}'.*nielsr/imagebind-huge"):
        load_image_bind(changed(tmp_path, lambda state: state.pop(name), weights), HEADS)


def test_a_file_that_lacks_a_block_is_refused(tmp_path: Path) -> None:
    def without_block(state: State) -> None:
        for name in [name for name in state if name.startswith(PICTURE_BLOCK)]:
            state.pop(name)

    with pytest.raises(UserError, match=f"lacks '{PICTURE_BLOCK}.* and 11 more"):
        load_image_bind(changed(tmp_path, without_block), HEADS)


def test_tensors_that_belong_to_nothing_are_refused(tmp_path: Path) -> None:
    extra = "modality_trunks.text.blocks.0.layer_scale_gamma1"
    with pytest.raises(UserError, match=f"belongs to nothing, '{extra}'"):
        load_image_bind(changed(tmp_path, lambda state: state.update({extra: torch.ones(1)})), HEADS)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("modality_preprocessors.audio.pos_embedding_helper.pos_embed", (1, 9, 12), "in another size '{}'"),
        ("modality_preprocessors.vision.rgbt_stem.proj.1.weight", (16, 3, 6, 6), "do not fit together"),
    ],
)
def test_tensors_of_other_sizes_are_refused(tmp_path: Path, name: str, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=said.format(name)):
        load_image_bind(changed(tmp_path, lambda state: state.update({name: torch.zeros(shape)})), HEADS)


def test_the_tensors_of_the_other_media_are_ignored(tmp_path: Path, space: ImageBind) -> None:
    others = ("depth", "thermal", "imu")

    def without_others(state: State) -> None:
        for name in [name for name in state if name.split(".")[1] in others]:
            state.pop(name)

    found = load_image_bind(changed(tmp_path, without_others), HEADS)
    assert not [name for name in space.state_dict() if any(other in name for other in others)]
    assert torch.equal(found.embed_pictures(pictures()), space.embed_pictures(pictures()))


@pytest.mark.parametrize("name", [META_WEIGHTS, HUB_WEIGHTS])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    image_bind_folder(tmp_path, "pth" if name == META_WEIGHTS else "safetensors")
    whole = (tmp_path / name).read_bytes()
    for content in (whole[: len(whole) // 2], b"<html>404</html>", b""):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            load_image_bind(tmp_path, HEADS)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    image_bind_folder(tmp_path)
    torch.save({"state": torch.zeros(3)}, tmp_path / META_WEIGHTS)
    with pytest.raises(UserError, match="is not ImageBind's"):
        load_image_bind(tmp_path, HEADS)
    torch.save({"state": {"deeper": torch.zeros(3)}}, tmp_path / META_WEIGHTS)
    with pytest.raises(UserError, match="no list of tensors"):
        load_image_bind(tmp_path, HEADS)


def test_a_folder_without_weights_or_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no weights.*{META_WEIGHTS}"):
        load_image_bind(tmp_path)
    image_bind_folder(tmp_path)
    for path in [path for path in tmp_path.iterdir() if path.name != META_WEIGHTS]:
        path.unlink()
    with pytest.raises(UserError, match=r"no tokenizer.*clip-vit-large-patch14"):
        load_image_bind(tmp_path, HEADS)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    table = "modality_preprocessors.text.token_embedding.weight"
    with pytest.raises(UserError, match=f"knows {TINY.pieces} pieces of words, and ImageBind {TINY.pieces + 1}"):
        load_image_bind(changed(tmp_path, lambda state: state.update({table: torch.zeros(TINY.pieces + 1, 8)})), HEADS)


def test_heads_that_do_not_fit_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="5 heads cannot share a width of 16"):
        load_image_bind(folder, ImageBindConfig(pictures=5, words=4, sounds=3))


# ---------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(("precision", "least"), [("bfloat16", 0.999), ("float16", 0.9999), ("int8", 0.995)])
def test_fewer_bits_give_nearly_the_same_vectors(tmp_path: Path, precision: Precision, least: float) -> None:
    image_bind_folder(tmp_path, sizes=WIDE)
    heads = ImageBindConfig(pictures=4, words=4, sounds=4)
    whole, rounded = load_image_bind(tmp_path, heads), load_image_bind(tmp_path, heads)
    apply_precision(rounded, precision, torch.device("cpu"))
    inside = Int8Linear if precision == "int8" else HalfLinear
    for tower in (rounded.pictures, rounded.words, rounded.sounds):
        block = tower.blocks[0]
        assert isinstance(block, Block)
        attention, mlp = block.attn, block.mlp
        assert all(isinstance(layer, inside) for layer in (attention.in_proj, attention.out_proj, mlp.fc1, mlp.fc2))
        assert isinstance(tower.proj_out, HalfLinear)  # the last layer, in 16 bits at least
    assert isinstance(rounded.words.token_embed, HalfEmbedding)
    assert isinstance(rounded.pictures.patch_embed, HalfConv2d) and isinstance(rounded.sounds.patch_embed, HalfConv2d)
    for media in (lambda model: model.embed_pictures(pictures(size=28)), lambda model: model.embed_words(WORDS)):
        assert F.cosine_similarity(media(whole), media(rounded)).min() > least
    sounds = noises(2, 3.0)
    assert F.cosine_similarity(whole.embed_sounds(sounds), rounded.embed_sounds(sounds)).min() > least
    with torch.autocast("cpu", torch.bfloat16):
        under = rounded.embed_sounds(sounds)
    assert under.dtype == torch.float32
    assert F.cosine_similarity(whole.embed_sounds(sounds), under).min() > 0.99
