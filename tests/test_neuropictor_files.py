"""NeuroPictor's published files: every name and size in them, and that it computes what the authors' code does."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel
from diffusers.loaders import single_file_utils as library
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from models.errors import UserError
from models.full_brain_models import NEUROPICTOR, neuropictor
from models.modules import bytes_of
from models.neuropictor import NeuroPictor
from models.neuropictor_files import (
    load_neuropictor,
    load_published_encoder,
    neuropictor_of,
    neuropictor_skeleton,
    task_file,
)
from models.quantize import apply_precision, load_prepared, save_prepared
from models.safety import refuse_names
from tests.tiny_models import CPU
from tests.tiny_neuropictor import (
    PUBLISHED,
    TINY,
    encoder_weights,
    settings_text,
    task_shapes,
    task_weights,
    write_neuropictor,
)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return task_weights()


@pytest.fixture(scope="module")
def model(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> NeuroPictor:
    return load_neuropictor(write_neuropictor(tmp_path_factory.mktemp("neuropictor"), weights))


def maps(count: int = 2) -> Tensor:
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(3))


def refused(weights: dict[str, Tensor]) -> str:
    with pytest.raises(UserError) as caught:
        neuropictor_of(weights, TINY.heads, "x.pth")
    assert "epoch_015.pth" in caught.value.hint
    return caught.value.sentence


# ------------------------------------------------------------------------------------------------------ published size


@pytest.fixture(scope="module")
def published() -> NeuroPictor:
    stored = {name: torch.empty(shape, device="meta") for name, shape in task_shapes(PUBLISHED).items()}
    return neuropictor_of(stored, PUBLISHED.heads, "epoch_015.pth")


def test_every_tensor_of_the_published_file_has_its_place(published: NeuroPictor) -> None:
    model = published
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    hint = sum(p.numel() for p in model.control.controlnet_cond_embedding.parameters())
    # Of Stable Diffusion 2.1-base and of its autoencoder; the encoder's and the heads' are those of the fact sheet.
    assert (counts["unet"], counts["autoencoder"]) == (865_910_724, 83_653_863)
    assert (counts["encoder"] // 10**6, counts["semantic"] // 10**5, hint // 10**5) == (302, 22, 48)
    assert sum(4 * tensor.numel() for tensor in (*model.parameters(), *model.buffers())) == neuropictor().bytes
    assert model.empty_context.shape == (1, 77, 1024) and model.side == 256


def test_sizes_are_counted_as_those_of_stable_diffusion(published: NeuroPictor) -> None:
    model = published
    for part in (model.unet, model.control):
        config = part.config
        assert list(config.block_out_channels) == [320, 640, 1280, 1280] and config.layers_per_block == 2
        assert list(config.down_block_types) == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
        assert list(config.attention_head_dim) == [5, 10, 20, 20] and config.use_linear_projection
        assert config.cross_attention_dim == 1024 and config.in_channels == 4
    assert model.unet.config.sample_size == 64 and next(iter(model.unet.config.up_block_types)) == "UpBlock2D"
    assert len(model.control.controlnet_down_blocks) == 12
    assert len(model.encoder.blocks) == 24 and model.encoder.config.heads == 16


def test_the_encoders_depth_is_counted() -> None:
    shapes = task_shapes(replace(PUBLISHED, blocks=12))
    model = neuropictor_of({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, 16, "x.pth")
    assert len(model.encoder.blocks) == 12


def test_the_entry_names_files_that_hold_no_code() -> None:
    spec = neuropictor()
    refuse_names(NEUROPICTOR.files)
    assert spec.restricted and spec.skeleton is not None and spec.source.repos == ("Fudan-fMRI/neuropictor",)
    assert spec.source.missing() == NEUROPICTOR.files


# -------------------------------------------------------------------------------------------------- against the library


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_generator_and_control_are_as_diffusers_converts_them(model: NeuroPictor, weights: dict[str, Tensor]) -> None:
    assert_same(model.unet.state_dict(), library.convert_ldm_unet_checkpoint(weights, model.unet.config))
    ours = {name: value for name, value in model.control.state_dict().items() if "cond_embedding" not in name}
    theirs = library.convert_controlnet_checkpoint(weights, model.control.config)
    assert_same(ours, {name: value for name, value in theirs.items() if "cond_embedding" not in name})


def test_the_autoencoder_is_as_diffusers_converts_it(model: NeuroPictor, weights: dict[str, Tensor]) -> None:
    theirs = library.convert_ldm_vae_checkpoint(dict(weights), model.autoencoder.config)
    assert_same(model.autoencoder.state_dict(), theirs)


def test_no_words_are_what_the_penultimate_block_says(model: NeuroPictor, weights: dict[str, Tensor]) -> None:
    config = CLIPTextConfig(
        vocab_size=TINY.pieces,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=TINY.words_blocks,
        num_attention_heads=1,
        max_position_embeddings=TINY.count,
        hidden_act="gelu",
    )
    whole = CLIPTextModel(config).eval()
    converted = library.convert_open_clip_checkpoint(whole, dict(weights))
    named = {name.removeprefix("text_model."): value for name, value in converted.items()}
    whole.load_state_dict({name: value for name, value in named.items() if name != "text_projection.weight"})
    ids = torch.tensor([[48, 49, *[0] * (TINY.count - 2)]])
    with torch.no_grad():
        said = whole(input_ids=ids, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(model.empty_context, whole.final_layer_norm(said))


# ------------------------------------------------------------------------------------ against the authors' code, retold


def layer(weights: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def encoded(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """What the authors' encoder makes of maps, by the names of their file: (B, S, W)."""
    name, width, heads = "fmri_encoder.transformer", TINY.width, TINY.heads
    places = weights[f"{name}.pos_embed"]
    patches = F.conv2d(x, *layer(weights, f"{name}.patch_embed.proj"), stride=TINY.patch).flatten(2).transpose(1, 2)
    whole = (weights[f"{name}.cls_token"] + places[:, :1]).expand(len(x), -1, -1)
    x = torch.cat([whole, patches + places[:, 1:]], 1)
    for number in range(TINY.blocks):
        block = f"{name}.blocks.{number}"
        seen = F.layer_norm(x, (width,), *layer(weights, f"{block}.norm1"))
        q, k, v = F.linear(seen, *layer(weights, f"{block}.attn.qkv")).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, *layer(weights, f"{block}.attn.proj"))
        seen = F.layer_norm(x, (width,), *layer(weights, f"{block}.norm2"))
        seen = F.gelu(F.linear(seen, *layer(weights, f"{block}.mlp.fc1")))
        x = x + F.linear(seen, *layer(weights, f"{block}.mlp.fc2"))
    return F.layer_norm(x, (width,), *layer(weights, f"{name}.norm"))


def told(weights: dict[str, Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
    def branch(convolutions: str, linear: str, norm: str) -> Tensor:
        x = F.conv1d(tokens, *layer(weights, f"cond_stage.{convolutions}.0"))
        x = F.conv1d(x, *layer(weights, f"cond_stage.{convolutions}.1"))
        x = F.linear(x, *layer(weights, f"cond_stage.{linear}"))
        return F.layer_norm(x, (TINY.context,), *layer(weights, f"cond_stage.{norm}"))

    captions = branch("channel_mapper", "dim_mapper", "norm")
    extra = branch("extra_clip", "extra_clip.2", "extra_clip.3")
    return captions + F.conv1d(extra, *layer(weights, "cond_stage.extra_clip_out"), padding=1), captions


def hint(weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    name = "control_model.fmri_mapper"
    x = F.conv1d(tokens, *layer(weights, f"{name}.channel_mapper.0"))
    x = F.conv1d(x, *layer(weights, f"{name}.channel_mapper.1"))
    x = F.silu(F.linear(x, *layer(weights, f"{name}.dim_mapper.0")))
    x = F.conv1d(x, *layer(weights, f"{name}.out"), padding=1)
    return x.reshape(len(x), TINY.unet[0], TINY.latent_side, TINY.latent_side)


@torch.no_grad()
def test_maps_are_read_as_the_authors_read_them(model: NeuroPictor, weights: dict[str, Tensor]) -> None:
    tokens = model.encoder(maps())
    torch.testing.assert_close(tokens, encoded(weights, maps()), atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(model.semantic(tokens), told(weights, tokens), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    grid = model.control.controlnet_cond_embedding(tokens)
    torch.testing.assert_close(grid, hint(weights, tokens), atol=1e-5, rtol=1e-4)


class Given(torch.nn.Module):
    def __init__(self, grid: Tensor) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, _: Tensor) -> Tensor:
        return self.grid


@torch.no_grad()
def noise_in(model: NeuroPictor, weights: dict[str, Tensor], latents: Tensor, step: int, context: Tensor) -> Tensor:
    """By a ControlNet that diffusers converted, whose hint is the grid that the authors' mapper makes."""
    control = ControlNetModel.from_config(model.control.config)
    control.load_state_dict(library.convert_controlnet_checkpoint(weights, control.config), strict=False)
    control.controlnet_cond_embedding = Given(hint(weights, encoded(weights, maps())))
    said = control(latents, step, context, torch.zeros(2, 3, 8, 8))
    made: Tensor = model.unet(
        latents,
        step,
        context,
        down_block_additional_residuals=said.down_block_res_samples,
        mid_block_additional_residual=said.mid_block_res_sample,
    ).sample
    return made


@torch.no_grad()
def authors_samples(model: NeuroPictor, weights: dict[str, Tensor], x: Tensor, steps: int, scale: float) -> Tensor:
    """Their DDIM: every ``1000 // steps``-th noise level from the second on, and at last the first one."""
    told_so, _ = told(weights, encoded(weights, maps()))
    silent = model.empty_context.expand(2, -1, -1)
    shares = weights["alphas_cumprod"].double()
    chosen = [1 + number for number in range(0, 1000, 1000 // steps)]
    after = [float(shares[0]), *(float(shares[level]) for level in chosen[:-1])]
    for level, next_share in reversed([*zip(chosen, after, strict=True)]):
        share = float(shares[level])
        free, guided = (noise_in(model, weights, x, level, context) for context in (silent, told_so))
        noise = free + scale * (guided - free)
        clean = (x - (1 - share) ** 0.5 * noise) / share**0.5
        x = next_share**0.5 * clean + (1 - next_share) ** 0.5 * noise
    return x


def test_pictures_are_sampled_as_the_authors_sample_them(model: NeuroPictor, weights: dict[str, Tensor]) -> None:
    start = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (7, 8)])
    *_, (_, latents) = model.denoise(maps(), steps=5, guidance=5.0, control_scale=1.0, seeds=(7, 8))
    theirs = authors_samples(model, weights, start, 5, 5.0)
    assert theirs.std() > 0.1
    torch.testing.assert_close(latents, theirs, atol=2e-3 * float(theirs.abs().max()), rtol=1e-3)


# ------------------------------------------------------------------------------------------------------------ refusals

LACKING = (
    "model.diffusion_model.output_blocks.2.1.conv.weight",
    "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_out.0.bias",
    "control_model.zero_convs.4.0.bias",
    "control_model.middle_block_out.0.weight",
    "control_model.fmri_mapper.out.bias",
    "first_stage_model.decoder.mid.attn_1.q.weight",
    "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_bias",
    "fmri_encoder.transformer.blocks.1.attn.qkv.bias",
    "cond_stage.extra_clip_out.weight",
)


@pytest.mark.parametrize("name", LACKING)
def test_a_missing_tensor_is_named(weights: dict[str, Tensor], name: str) -> None:
    said = refused({stored: value for stored, value in weights.items() if stored != name})
    assert said == f"'x.pth' is no file of NeuroPictor's: it lacks: {name}."


@pytest.mark.parametrize("name", ["model.diffusion_model.out.0.weight", "cond_stage.dim_mapper.weight"])
def test_a_missing_tensor_that_sizes_are_counted_by_is_named_too(weights: dict[str, Tensor], name: str) -> None:
    assert name in refused({stored: value for stored, value in weights.items() if stored != name})


def test_nothing_is_dropped_in_silence(weights: dict[str, Tensor]) -> None:
    extra = ("control_model.lora.weight", "model_ema.decay", "fmri_encoder.transformer.blocks.1.attn.gate", "adapter")
    said = refused({**weights, **{name: torch.zeros(3) for name in extra}})
    assert said == f"'x.pth' is no file of NeuroPictor's: it has what belongs to nothing: {', '.join(extra)}."


def test_only_a_few_of_many_are_listed(weights: dict[str, Tensor]) -> None:
    said = refused({**weights, **{f"other.{number}": torch.zeros(1) for number in range(50)}})
    assert "other.0, other.1, other.2, other.3, other.4, other.5 and 44 more" in said


def test_another_size_is_named_with_the_right_one(weights: dict[str, Tensor]) -> None:
    said = refused({**weights, "cond_stage.norm.weight": torch.ones(32)})
    assert said.endswith("it has other sizes: cond_stage.norm.weight (32,) instead of (64,).")


@pytest.mark.parametrize("group", ["fmri_encoder", "cond_stage", "control_model"])
def test_a_file_without_a_whole_part_is_no_task_file(weights: dict[str, Tensor], group: str) -> None:
    said = refused({name: value for name, value in weights.items() if not name.startswith(f"{group}.")})
    assert re.search(rf"it has nothing of {group}\b", said)


def test_what_the_encoder_was_trained_with_may_be_there(weights: dict[str, Tensor]) -> None:
    beside = {
        "fmri_encoder.transformer.decoder_blocks.0.norm1.weight": torch.ones(3),
        "fmri_encoder.transformer.decoder_pred.bias": torch.ones(3),
        "inception_model.fc.weight": torch.ones(3),
    }
    neuropictor_of({**weights, **beside}, TINY.heads, "x.pth")


def test_another_schedule_is_refused(weights: dict[str, Tensor]) -> None:
    said = refused({**weights, "alphas_cumprod": weights["alphas_cumprod"] ** 2})
    assert "another schedule" in said


def test_tensors_that_do_not_fit_together_are_refused(weights: dict[str, Tensor]) -> None:
    name = "control_model.fmri_mapper.dim_mapper.0.weight"
    assert "no square" in refused({**weights, name: torch.zeros(60, TINY.width)})


def test_files_that_are_missing_or_none_of_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 0 task files"):
        load_neuropictor(tmp_path)
    torch.save({"epoch": 3, "weights": {}}, tmp_path / "epoch_015.pth")
    with pytest.raises(UserError, match="it is no list of tensors"):
        load_neuropictor(tmp_path)
    torch.save({}, tmp_path / "epoch_015.pth")
    with pytest.raises(UserError, match=r"has no fMRI_AutoEncoder\.yaml, which alone says how many"):
        load_neuropictor(tmp_path)
    (tmp_path / "fMRI_AutoEncoder.yaml").write_text("Model: {depth: 3}")
    with pytest.raises(UserError, match="does not say how many attention heads"):
        load_neuropictor(tmp_path)
    (tmp_path / "fMRI_AutoEncoder.yaml").write_text("Model: {'num_heads': 4}")
    with pytest.raises(UserError, match="it has nothing of fmri_encoder"):
        load_neuropictor(tmp_path)
    torch.save({}, tmp_path / "epoch_020.pth")
    with pytest.raises(UserError, match="has 2 task files"):
        task_file(tmp_path)


def test_the_settings_are_found_where_the_authors_keep_them(weights: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write_neuropictor(tmp_path / "ckpt" / "NSD" / "finetune_single_sub" / "sub01", weights)
    kept = tmp_path / "ckpt" / "fMRI2fMRI_UKB"
    kept.mkdir()
    (folder / "fMRI_AutoEncoder.yaml").rename(kept / "fMRI_AutoEncoder.yaml")
    assert load_neuropictor(folder).encoder.config.heads == TINY.heads


# ------------------------------------------------------------------------------------------------ encoder, and prepared


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_the_encoders_own_file_is_read(prefix: str, tmp_path: Path) -> None:
    stored = {name.replace("module.", prefix): value for name, value in encoder_weights().items()}
    torch.save({"model": stored, "optimizer": {"lr": 1.0}}, tmp_path / "checkpoint_120000.pth")
    (tmp_path / "fMRI_AutoEncoder.yaml").write_text(settings_text(TINY.heads))
    encoder = load_published_encoder(tmp_path)
    named = {f"fmri_encoder.{name.removeprefix(prefix)}": value for name, value in stored.items()}
    with torch.no_grad():
        torch.testing.assert_close(encoder(maps()), encoded(named, maps()), atol=1e-5, rtol=1e-4)
    lacking = {name: value for name, value in stored.items() if not name.endswith("blocks.0.norm2.bias")}
    torch.save({"model": lacking}, tmp_path / "checkpoint_120000.pth")
    with pytest.raises(
        UserError, match=r"it lacks: fmri_encoder\.transformer\.blocks\.0\.norm2\.bias\. Use .*_120000\.pth"
    ):
        load_published_encoder(tmp_path)


def test_a_prepared_copy_computes_the_same(weights: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write_neuropictor(tmp_path / "files", weights)
    model = load_neuropictor(folder)
    apply_precision(model, "int8", CPU)
    save_prepared(model, tmp_path / "prepared", "int8")
    again = neuropictor_skeleton(folder)
    assert all(tensor.is_meta for tensor in again.state_dict().values())
    assert load_prepared(again, tmp_path / "prepared", "int8", CPU)
    made = [next(iter(one.denoise(maps(), 2, 3.0, 1.0, (0, 1))))[0] for one in (model, again.eval())]
    assert torch.equal(*made) and bytes_of(model) == bytes_of(again) < 4 * sum(v.numel() for v in weights.values())


def test_what_is_loaded_is_whole_and_does_not_change_the_file(
    model: NeuroPictor, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    assert not any(tensor.is_meta for tensor in model.state_dict().values()) and not model.training
    saved = copy.deepcopy(model.autoencoder.config)
    model.autoencoder.save_pretrained(tmp_path)
    again = AutoencoderKL.from_pretrained(tmp_path)
    assert again.config.block_out_channels == saved.block_out_channels
    assert_same(again.state_dict(), model.autoencoder.state_dict())
