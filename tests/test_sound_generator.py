"""The sound generator at both sizes: sampling, windows, AudioLDM's own folders, files; and its two recipes."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from diffusers import AudioLDMPipeline, AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import ClapTextConfig, ClapTextModelWithProjection, SpeechT5HifiGan, SpeechT5HifiGanConfig

from models.errors import Cancelled, UserError
from models.mel import LITE_MEL
from models.nets.audio_autoencoder import load_audio_autoencoder
from models.nets.efficientnet_lite import EfficientNetLite2
from models.nets.vocoder import load_vocoder
from models.picture_text import PictureText, PictureTextConfig
from models.sound_generator import AUDIOLDM_FRAMES, NULL_CONDITION, SoundGenerator, blend_windows, load_sound_generator
from models.sound_text import SoundText
from training import loop, picture_sound, sound_diffusion, sound_generator
from training.picture_sound import Links, bare, kinds_of, load_links, rows_by_key
from training.pictures import Picture
from training.sound_diffusion import (
    CONFIG,
    SCHEDULE,
    Evaluation,
    Listener,
    diffusion_loss,
    mix,
    shifted,
    soften,
    spread_timesteps,
    velocity_errors,
)
from training.sound_text import audio_config
from training.sounds import Sound, Sounds, load_sounds

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
    "projection_class_embeddings_input_dim": 12,
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


def test_every_step_is_told_with_the_sound_so_far_and_the_run_can_be_ended() -> None:
    model, told = tiny(), []
    final = model.sample(vectors(2), 16, 5, 2, [0, 1], lambda step, clean: told.append((step, clean)))
    assert [step for step, _ in told] == [1, 2, 3, 4, 5]
    assert all(clean.shape == final.shape and clean.isfinite().all() for _, clean in told)
    torch.testing.assert_close(told[-1][1], final)
    steps = []

    def cancel(step: int, _: Tensor) -> None:
        steps.append(step)
        if step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        model.sample(vectors(2), 16, 5, 2, [0, 1], cancel)
    assert steps == [1, 2]


@settings(deadline=None, max_examples=8)
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


@settings(deadline=None, max_examples=15)
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
        timesteps, shares = tiny()._schedule(steps)
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


def audioldm_folder(folder: Path) -> AudioLDMPipeline:
    """A tiny checkpoint in the layout of ``cvssp/audioldm-s-full-v2``, but for tokenizer and the list of parts."""
    torch.manual_seed(0)
    parts = {
        "unet": UNet2DConditionModel(**{**AUDIOLDM_UNET, **SMALLER}),
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
            )
        ),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    small = ClapTextConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, projection_dim=12
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


# ------------------------------------------------------------------------------------------------- losses and changes


def test_the_generator_learns_a_batch() -> None:
    model = tiny().train()
    latents, conditions = torch.randn(4, 4, 16, 8).mul(0.2).add(1), vectors(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    values = []
    for _ in range(40):
        loss, _ = diffusion_loss(model, latents, conditions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[0] > 0.9 and np.mean(values[-10:]) < 0.6  # to guess nothing costs about 1


def test_the_velocity_of_training_is_that_of_sampling() -> None:
    model = Knowing(tiny().unet, DDIMScheduler(**SCHEDULE), torch.zeros(12), 16, 8)
    model.answer = torch.randn(1, 4, 16, 8)
    for step in (0, 500, 998, 999):
        error = velocity_errors(model, model.answer, vectors(1), torch.tensor([step]), torch.randn(1, 4, 16, 8))
        assert error.shape == (1,) and error.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_null_condition_learns_where_it_replaces_another(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound_diffusion, "NULL_SHARE", share)
    model = tiny()
    losses = []
    for conditions in (vectors(3), -vectors(3)):
        torch.manual_seed(2)
        loss, _ = diffusion_loss(model, torch.ones(3, 4, 16, 8), conditions)
        losses.append(loss.item())
    loss.backward()
    assert (losses[0] == losses[1]) == (share == 1)
    assert bool(model.null_condition.grad is not None and model.null_condition.grad.any()) == (share == 1)


def test_softened_conditions_are_near_unit_vectors() -> None:
    torch.manual_seed(0)
    before = vectors(500, 256)
    after = soften(before)
    torch.testing.assert_close(after.norm(dim=1), torch.ones(500))
    sines = (1 - (before * after).sum(1).square()).sqrt()
    assert 0.08 < sines.min() < 0.12 and 0.26 < sines.max() < 0.34


@given(st.integers(1, 64), st.floats(0, 1))
def test_time_steps_are_spread_over_the_schedule(count: int, offset: float) -> None:
    steps = spread_timesteps(count, torch.tensor(offset))
    assert steps.min() >= 0 and steps.max() < 1000
    assert count == 1 or steps.diff().sub(1000 / count).abs().max() < 1.1


def test_a_mixed_clip_holds_its_predecessor_and_all_have_one_peak() -> None:
    waveforms = torch.zeros(2, 8)
    waveforms[0, 2], waveforms[1, 5] = 0.5, 0.25
    mixed = mix(waveforms, torch.tensor([True, False]), torch.tensor([-20.0, 0.0]))
    torch.testing.assert_close(mixed[0, 5] / mixed[0, 2], torch.tensor(0.05))
    torch.testing.assert_close(mixed.amax(1), torch.full((2,), 0.89))
    assert mixed[1, 2] == 0
    assert mix(torch.zeros(1, 8), torch.tensor([True]), torch.zeros(1)).abs().max() == 0


def sound(row: int, name: str = "hum", emoji: tuple[str, ...] = (), stamp: str = "", loop: bool = False) -> Sound:
    return Sound(row, name, f"a {name}", emoji, stamp, loop, True, "train")


def test_loops_begin_anywhere_and_other_clips_at_their_beginning() -> None:
    clips = [np.arange(1, 51, dtype=np.int16), np.arange(1, 51, dtype=np.int16)]
    items = [sound(0, loop=True), sound(1)]
    starts = set()
    for seed in range(40):
        loop_clip, other = shifted(Sounds(clips, items), items, np.random.default_rng(seed)) * 32_768
        starts.add(int(loop_clip[0]))
        assert set(np.diff(loop_clip.numpy()).tolist()) == {1.0, -49.0}
        assert other[:50].tolist() == clips[1].tolist() and other[50:].abs().max() == 0
    assert len(starts) > 15


# --------------------------------------------------------------------------------------------------- linked pictures


def test_pictures_are_found_by_emoji_and_stamp() -> None:
    keys = [("🔔", True), ("🔔", False), ("", True), ("bells/one", True), ("bells/two", True)]
    pictures = [Picture(row, "bell", "emoji", (), False, "train") for row in range(6)]  # the last one is a shape
    rows = rows_by_key(keys, pictures, permissive_only=False)
    assert rows == {"🔔": [0, 1], "bells/one": [3], "bells/two": [4]}
    assert rows_by_key(keys, pictures, permissive_only=True)["🔔"] == [0]
    assert rows_by_key(keys, pictures[1:3], permissive_only=False) == {"🔔": [1]}

    item = sound(0, "bell", (bare("🔔\ufe0f") + "\ufe0f", "🛎️"), "bells/two")
    assert kinds_of(item, ["bells/one", "bells/two"], rows) == [[4], [3, 4], [0, 1]]
    assert kinds_of(sound(0, "bell", ("🛎️",)), [], rows) == []
    assert kinds_of(sound(0, "speech", ("🔔",), "bells/one"), ["bells/two"], rows) == [[0, 1]]


def test_a_random_picture_is_drawn_and_the_photograph_is_not_lost_among_emoji() -> None:
    links = Links(torch.eye(9), {7: [[0], list(range(1, 9))]})
    rng = np.random.default_rng(0)
    drawn = torch.cat([links.draw([sound(7)], rng) for _ in range(400)]).argmax(1)
    assert set(drawn.tolist()) == set(range(9))
    assert 150 < (drawn == 0).sum() < 250


# ------------------------------------------------------------------------------------------------------ whole recipes

NAMES = ("whistle", "bell", "hum", "agogo")  # bell and agogo are held-out classes


def tone(hertz: float) -> bytes:
    samples = 0.5 * np.sin(2 * np.pi * hertz * np.arange(8000) / 16_000)
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.float32), 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (128, 128), (shade, 255 - shade, 90)).save(file, format="PNG")
    return file.getvalue()


def write_tables(folder: Path) -> None:
    """40 tones, the first class without any picture; emoji in three styles, two stamps, one shape."""
    sounds = [
        {
            "class": NAMES[index % 4],
            "caption": f"a {NAMES[index % 4]}",
            "emoji": [] if index % 4 == 0 else ["🔔️"],
            "stamp": "hums/hum" if index % 8 == 2 else "",
            "loop": index % 3 == 0,
            "source": "tones",
            "path": f"tone{index}.wav",
            "licence_family": "permissive" if index % 8 < 4 else "gpl",
            "audio": tone(200 * (1 + index % 4) + index),
        }
        for index in range(40)
    ]
    emoji = [
        {
            "image": picture(60 * index),
            "caption": "hum",
            "style": style,
            "keywords": [],
            "more_keywords": [],
            "is_flag": False,
            "emoji": "🔔",
            "licence": licence,
        }
        for index, (style, licence) in enumerate(
            [("noto", "Apache-2.0"), ("openmoji", "CC-BY-SA-4.0"), ("fxemoji", "MIT")]
        )
    ]
    stamps = [
        {"image": picture(200 + index), "caption": "A hum.", "style": style, "name": "hum", "id": key}
        | {"licence_family": "gpl"}
        for index, (key, style) in enumerate([("hums/hum", "photo"), ("hums/other", "drawing")])
    ]
    tables = {"sounds16k": sounds, "emoji128": emoji, "stamps128": stamps}
    tables["shapes64"] = [{"icon": picture(9), "name": "chair"}]
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    classes = {name: {"stamps": ["hums/other"] if name == "hum" else []} for name in NAMES}
    (folder / "sounds_mapping.json").write_text(json.dumps({"classes": classes}))


def write_frozen(folder: Path) -> None:
    torch.manual_seed(0)
    autoencoder = AutoencoderTiny(
        in_channels=1,
        out_channels=1,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(0, 1, 1),
        num_decoder_blocks=(1, 1, 0),
        latent_channels=8,
    )
    autoencoder.save_pretrained(folder / "audio-autoencoder-lite")
    LITE_MEL.save(folder / "audio-autoencoder-lite")
    SoundText(audio_config(), LITE_MEL).save_pretrained(folder / "sound-text-lite")
    space = PictureText(PictureTextConfig(), EfficientNetLite2(), torch.randn(1000, 384))
    space.save_pretrained(folder / "picture-text-lite")
    for name in ("audio-autoencoder", "sound-text", "picture-text"):
        (folder / f"{name}-permissive-lite").symlink_to(folder / f"{name}-lite")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tables, frozen models of random weights, and recipes that take two steps of four clips with a tiny network."""
    write_tables(tmp_path)
    write_frozen(tmp_path / "assets" / "weights")
    for module in (loop, sound_diffusion):
        monkeypatch.setattr(module, "STATE", tmp_path / "state")
    for recipe in (sound_generator, picture_sound):
        monkeypatch.setattr(recipe, "BATCH", 4)
    sizes = {"block_out_channels": (8, 8, 8), "cross_attention_dim": (8, 8, 8), "norm_num_groups": 4}
    monkeypatch.setattr(sound_diffusion, "CONFIG", {**CONFIG, **sizes, "attention_head_dim": 1})
    monkeypatch.setattr(sound_diffusion, "STEPS", 2)
    monkeypatch.setattr(sound_diffusion, "SHOWN", 4)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, recipe: Callable[[], None], *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe", "--data", ".", "--steps", "2", *arguments])
    recipe()


def test_both_recipes_write_generators_one_from_the_other(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, sound_generator.main)
    weights = workplace / "assets" / "weights"
    first = load_sound_generator(weights / "sound-generator-lite")
    assert (weights / "sound-generator-lite" / "SHA256SUMS").exists()
    assert (first.window, first.bands, first.null_condition.shape) == (64, 16, (256,))
    assert first.scheduler.config.prediction_type == "v_prediction"

    run(monkeypatch, picture_sound.main)
    assert (weights / "clipsonic-lite" / "SHA256SUMS").exists()
    second = load_sound_generator(weights / "clipsonic-lite").state_dict()
    changed = {name for name, value in first.state_dict().items() if not torch.equal(value, second[name])}
    assert "unet.class_embedding.weight" in changed
    assert changed <= {"unet.class_embedding.weight", "unet.class_embedding.bias", "null_condition"}


def test_held_out_clips_are_measured_and_shown(workplace: Path) -> None:
    loaded, listener = load_sounds(workplace), Listener(permissive_only=False)
    evaluation = Evaluation(
        sound_diffusion.new_generator().eval(), listener, loaded, "checked", lambda _, vectors: vectors
    )
    with torch.no_grad():
        metrics, again = evaluation(2), evaluation(2)
    names = ("velocity", "relevance", "relevance_other", "relevance_ceiling")
    assert set(metrics) == {f"{split}_{name}" for split in ("heldout-file", "heldout-class") for name in names}
    assert all(np.isfinite(float(value)) for value in metrics.values()) and metrics == again
    assert (workplace / "state" / "checked" / "heldout-class-step2.png").exists()


def test_the_permissive_recipes_hear_and_see_permissive_media_only(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_sounds(workplace)
    everything, permissive = (load_links(workplace, loaded, only) for only in (False, True))
    hum = next(item.row for item in loaded.items if item.stamp)
    assert [len(kind) for kind in everything.kinds[hum]] == [1, 1, 2]
    assert [len(kind) for kind in permissive.kinds[hum]] == [2]
    held_out = next(item.row for item in loaded.select("heldout-file") if item.name == "hum")
    [[unseen]] = everything.kinds[held_out]  # in one style the picture is held out as well
    assert all(unseen not in kind for kind in everything.kinds[hum])
    assert permissive.kinds[held_out] == permissive.kinds[hum][-1:]
    assert all(item.name != "whistle" for item in loaded.items if item.row in everything.kinds)
    torch.testing.assert_close(permissive.vectors.norm(dim=1), torch.ones(2))

    heard: set[int] = set()

    def listen(sounds: Sounds, items: list[Sound], rng: np.random.Generator) -> Tensor:
        heard.update(item.row for item in items)
        return shifted(sounds, items, rng)

    monkeypatch.setattr(sound_generator, "shifted", listen)
    run(monkeypatch, sound_generator.main, "--permissive-only")
    assert heard and all(loaded.items[row].permissive and loaded.items[row].split == "train" for row in heard)
    weights = workplace / "assets" / "weights"
    assert (weights / "sound-generator-permissive-lite" / "config.json").exists()
    assert not (weights / "sound-generator-lite").exists()
