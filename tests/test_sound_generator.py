"""The sound generator at both sizes: sampling, windows, AudioLDM's own folders, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AudioLDMPipeline, AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import ClapTextConfig, ClapTextModelWithProjection, SpeechT5HifiGan, SpeechT5HifiGanConfig

from models.ddim import noise_levels
from models.errors import UserError
from models.nets.audio_autoencoder import load_audio_autoencoder
from models.nets.vocoder import load_vocoder
from models.sound_generator import AUDIOLDM_FRAMES, NULL_CONDITION, SoundGenerator, blend_windows, load_sound_generator
from training.sound_diffusion import (
    CONFIG,
    SCHEDULE,
)

TINY = {
    **CONFIG,
    "sample_size": (16, 8),
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16, 16),
    "cross_attention_dim": (8, 16, 16),
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "projection_class_embeddings_input_dim": 12,
}
# unet/ and scheduler/ of AudioLDM's published folders
AUDIOLDM_UNET = {
    "sample_size": 128,
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": (128, 256, 384, 640),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": (128, 256, 384, 640),
    "class_embed_type": "simple_projection",
    "projection_class_embeddings_input_dim": 512,
    "class_embeddings_concat": True,
}
AUDIOLDM_SCHEDULE = {
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
SMALLER = {
    "block_out_channels": (8, 8, 16, 16),
    "cross_attention_dim": (8, 8, 16, 16),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


def tiny() -> SoundGenerator:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**TINY)
    return SoundGenerator(unet, DDIMScheduler(**SCHEDULE), 0.3 * torch.randn(12), 16, 8).eval()


def vectors(count: int, dimensions: int = 12) -> Tensor:
    return F.normalize(torch.randn(count, dimensions, generator=torch.Generator().manual_seed(5)), dim=1)


# ----------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("frames", [16, 37])
def test_a_sound_depends_on_its_condition_and_seed_alone(frames: int) -> None:
    model, conditions = tiny(), vectors(4)
    together = model.sample(conditions, frames, 5, 2.5, [3, 1, 4, 1])
    assert together.shape == (4, 4, frames, 8)
    alone = [model.sample(conditions[i : i + 1], frames, 5, 2.5, [seed]) for i, seed in enumerate([3, 1, 4, 1])]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)
    assert torch.equal(model.sample(conditions, frames, 5, 2.5, [3, 1, 4, 1]), together)
    assert not torch.allclose(model.sample(conditions[:1], frames, 5, 2.5, [2]), alone[0], atol=1e-2)
    assert not torch.allclose(model.sample(conditions[2:3], frames, 5, 2.5, [3]), alone[0], atol=1e-4)


def test_guidance_leads_away_from_the_null_condition() -> None:
    model, conditions = tiny(), vectors(1)
    plain = model.sample(conditions, 16, 4, 1, [0])
    with torch.no_grad():
        model.unet.class_embedding.weight.mul_(3)  # an untrained network hardly listens
    guided, unguided = (model.sample(conditions, 16, 4, guidance, [0]) for guidance in (3, 1))
    assert not torch.allclose(unguided, plain)
    assert not torch.allclose(guided, unguided)
    torch.testing.assert_close(model.sample(conditions, 16, 4, 0, [0]), of_null(model))
    with torch.no_grad():
        model.null_condition.add_(1)
    torch.testing.assert_close(model.sample(conditions, 16, 4, 1, [0]), unguided)
    assert not torch.allclose(model.sample(conditions, 16, 4, 3, [0]), guided)


def of_null(model: SoundGenerator) -> Tensor:
    """What the null condition alone gives with seed 0: it is no unit vector, so it takes the condition's place."""
    unit = SoundGenerator(model.unet, model.scheduler, torch.zeros(12), model.window, model.bands)
    shown = F.normalize(model.null_condition.detach(), dim=0)
    scale = model.null_condition.norm().item()
    with torch.no_grad():
        model.unet.class_embedding.weight.mul_(scale)
        found = unit.sample(shown[None], 16, 4, 1, [0])
        model.unet.class_embedding.weight.div_(scale)
    return found


def test_every_step_gives_the_sound_so_far_and_nothing_is_computed_before_it_is_asked_for() -> None:
    model = tiny()
    final = model.sample(vectors(2), 16, 5, 2, [0, 1])
    told = list(model.denoise(vectors(2), 16, 5, 2, [0, 1]))
    assert len(told) == 5 and all(clean.shape == final.shape and clean.isfinite().all() for clean, _ in told)
    torch.testing.assert_close(told[-1][0], final)
    torch.testing.assert_close(told[-1][1], final, atol=0, rtol=0)
    calls = []
    model.unet.register_forward_hook(lambda *_: calls.append(1))
    stages = model.denoise(vectors(2), 16, 5, 2, [0, 1])
    next(stages)
    next(stages)
    assert len(calls) == 2


@settings(max_examples=8)
@given(st.integers(1, 60), st.integers(1, 4))
def test_sounds_have_any_length(frames: int, steps: int) -> None:
    latents = tiny().sample(vectors(1), frames, steps, 2, [0])
    assert latents.shape == (1, 4, frames, 8) and latents.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditions": 2 * vectors(1)}, "no unit vectors"),
        ({"conditions": torch.full((1, 12), torch.nan)}, "no unit vectors"),
        ({"conditions": vectors(1, 11)}, r"\(1, 11\)"),
        ({"conditions": vectors(1)[0]}, r"\(12,\)"),
        ({"seeds": [1, 2]}, r"\(2 > 0, 12\)"),
        ({"conditions": vectors(1)[:0], "seeds": []}, r"\(0, 12\)"),
        ({"frames": 0}, "one frame"),
        ({"steps": 0}, "1 to 999 steps"),
        ({"steps": 1000}, "1 to 999 steps"),
    ],
)
def test_what_cannot_be_sampled_is_refused(changes: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"conditions": vectors(1), "frames": 16, "steps": 2, "guidance": 2, "seeds": [0]}
    with pytest.raises(ValueError, match=message):
        tiny().sample(**{**values, **changes})  # type: ignore[arg-type]


class Knowing(SoundGenerator):
    """Predicts without an error, since it is told the clean latents ``answer``."""

    answer: Tensor

    def forward(self, noisy: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        share = self.scheduler.alphas_cumprod[timesteps]
        noise = (noisy - share.sqrt() * self.answer) / (1 - share).sqrt()
        if self.scheduler.config.prediction_type == "epsilon":
            return noise
        return share.sqrt() * noise - (1 - share).sqrt() * self.answer


@settings(max_examples=15)
@given(st.integers(5, 300))
def test_perfect_predictions_lead_to_the_answer_whatever_the_number_of_steps(steps: int) -> None:
    """Also if the steps don't divide the schedule, which diffusers' own step takes lightly."""
    unet = tiny().unet
    for schedule, tolerance in ((SCHEDULE, 1e-4), (AUDIOLDM_SCHEDULE, 0.2)):  # AudioLDM's leaves a little noise
        model = Knowing(unet, DDIMScheduler(**schedule), torch.zeros(12), 16, 8)
        model.answer = torch.randn(1, 4, 16, 8, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(model.sample(vectors(1), 16, steps, 1, [0]), model.answer, atol=tolerance, rtol=0)


def test_our_schedule_begins_in_pure_noise_and_ends_clean() -> None:
    for steps in (1, 7, 20, 333):
        timesteps, shares = noise_levels(tiny().scheduler, steps)
        assert timesteps[0] == 999 and shares[0] == pytest.approx(0, abs=1e-12) and shares[-1] == 1
        assert len(shares) == steps + 1 and shares == sorted(shares)


def test_the_networks_have_the_sheets_sizes() -> None:
    with torch.device("meta"):
        lite, published = UNet2DConditionModel(**CONFIG), UNet2DConditionModel(**AUDIOLDM_UNET)
    assert sum(parameter.numel() for parameter in lite.parameters()) == pytest.approx(11.5e6, rel=0.02)
    assert sum(parameter.numel() for parameter in published.parameters()) == pytest.approx(185.0e6, rel=0.002)


# ------------------------------------------------------------------------------------------------------------ windows


@given(st.integers(1, 90), st.integers(2, 24))
def test_windows_cover_everything_and_leave_what_agrees(frames: int, window: int) -> None:
    latents = torch.randn(2, 3, frames, 4)
    seen = []

    def predict(part: Tensor) -> Tensor:
        seen.append(part.shape[2])
        return 2 * part

    torch.testing.assert_close(blend_windows(predict, latents, window), 2 * latents)
    assert set(seen) == {min(frames, window)}


@given(st.integers(17, 90))
def test_windows_that_disagree_leave_no_seam(frames: int) -> None:
    """Each window says its own number, which is one more than its neighbour's: their blend never jumps."""
    said = 0.0

    def predict(part: Tensor) -> Tensor:
        nonlocal said
        said += 1
        return torch.full_like(part, said)

    blended = blend_windows(predict, torch.zeros(1, 1, frames, 2), 16)[0, 0, :, 0]
    assert blended[0] == 1 and blended[-1] == said
    assert blended.diff().min() >= 0 and blended.diff().max() <= 0.25


# -------------------------------------------------------------------------------------------------------------- files


def audioldm_folder(folder: Path, width: int = 12) -> AudioLDMPipeline:
    """A tiny checkpoint in the layout of ``cvssp/audioldm-s-full-v2``, but for tokenizer and the list of parts."""
    torch.manual_seed(0)
    parts = {
        "unet": UNet2DConditionModel(**{**AUDIOLDM_UNET, **SMALLER, "projection_class_embeddings_input_dim": width}),
        "scheduler": DDIMScheduler(**AUDIOLDM_SCHEDULE),
        "vae": AutoencoderKL(
            in_channels=1,
            out_channels=1,
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            block_out_channels=[8, 8, 16],
            latent_channels=8,
            norm_num_groups=4,
            scaling_factor=0.9,
        ),
        "vocoder": SpeechT5HifiGan(
            SpeechT5HifiGanConfig(
                model_in_dim=64,
                sampling_rate=16_000,
                upsample_initial_channel=32,
                upsample_rates=[5, 4, 2, 2, 2],
                upsample_kernel_sizes=[16, 16, 8, 4, 4],
                resblock_kernel_sizes=[3],
                resblock_dilation_sizes=[[1, 3, 5]],
                normalize_before=False,
                initializer_range=0.2,  # with its own, an untrained one is silent
            )
        ),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    small = ClapTextConfig(
        vocab_size=9,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        projection_dim=width,
    )
    return AudioLDMPipeline(**parts, text_encoder=ClapTextModelWithProjection(small), tokenizer=None)


def test_audioldms_folders_sound_as_in_diffusers_own_pipeline(tmp_path: Path) -> None:
    pipeline = audioldm_folder(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    conditions, null = vectors(2), vectors(3)[2]
    model = load_sound_generator(tmp_path, null)
    assert (model.window, model.bands, model.channels) == (AUDIOLDM_FRAMES, 16, 8)
    told: list[Tensor] = []
    latents = model.sample(conditions, 8, 7, 2.5, [4, 9])
    noise = [torch.randn(8, 8, 16, generator=torch.Generator().manual_seed(seed)) for seed in (4, 9)]
    waveforms = pipeline(
        prompt_embeds=conditions,
        negative_prompt_embeds=null.expand(2, 12),
        latents=torch.stack(noise),
        num_inference_steps=7,
        guidance_scale=2.5,
        audio_length_in_s=0.32,
        output_type="pt",
        callback=lambda step, timestep, state: told.append(state),
    ).audios
    torch.testing.assert_close(latents, told[-1], atol=1e-4, rtol=1e-4)
    mels = load_audio_autoencoder(tmp_path / "vae").decode(latents)
    with torch.no_grad():
        ours = load_vocoder(tmp_path / "vocoder")(mels)
    torch.testing.assert_close(ours, waveforms, atol=1e-4, rtol=1e-3)


def test_the_null_condition_of_audioldm_may_lie_beside_it(tmp_path: Path) -> None:
    audioldm_folder(tmp_path)
    with pytest.raises(UserError, match="empty sentence"):
        load_sound_generator(tmp_path)
    save_file({"null_condition": vectors(1)[0]}, tmp_path / NULL_CONDITION)
    torch.testing.assert_close(load_sound_generator(tmp_path).null_condition.detach(), vectors(1)[0])
    with pytest.raises(UserError, match=r"shape \(11,\).*12 dimensions"):
        load_sound_generator(tmp_path, vectors(1, 11)[0])
    (tmp_path / "vocoder" / "config.json").unlink()
    with pytest.raises(UserError, match=r"vocoder/config\.json' is missing"):
        load_sound_generator(tmp_path)


def test_our_files_give_the_generator_back(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "first")
    assert model.unet.dtype == torch.float32
    loaded = load_sound_generator(tmp_path / "first")
    assert (loaded.window, loaded.bands) == (16, 8)
    assert loaded.scheduler.to_json_string() == model.scheduler.to_json_string()
    expected = model.sample(vectors(1), 16, 4, 2, [0])
    torch.testing.assert_close(loaded.sample(vectors(1), 16, 4, 2, [0]), expected, atol=0.05, rtol=0)
    loaded.save_pretrained(tmp_path / "second")
    for path in (tmp_path / "first").iterdir():
        assert (tmp_path / "second" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("file", "entry", "value", "message"),
    [
        ("config.json", "_class_name", "UNet2DModel", "no sound generator"),
        ("config.json", "class_embed_type", None, "no sound generator"),
        ("config.json", "class_embeddings_concat", False, "no sound generator"),
        ("scheduler_config.json", "prediction_type", "sample", "another kind"),
        ("scheduler_config.json", "clip_sample", True, "another kind"),
    ],
)
def test_other_networks_are_refused(tmp_path: Path, file: str, entry: str, value: object, message: str) -> None:
    tiny().save_pretrained(tmp_path)
    config = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps({**config, entry: value}))
    with pytest.raises(UserError, match=message):
        load_sound_generator(tmp_path)
