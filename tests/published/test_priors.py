"""XBind's two priors from their published folders, tiny and random: what diffusers and a plain loop compute."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableUnCLIPImg2ImgPipeline
from torch import Tensor
from torch.nn import functional as F

from models.errors import UserError
from models.latent_prior import standardised
from models.precision import Precision
from models.quantize import apply_precision
from models.stable_unclip import StableUnCLIP, load_stable_unclip
from models.zero123 import Zero123, load_zero123
from tests.tiny_models import CPU
from tests.tiny_priors import FACTOR, LATENT_SIDE, unclip_folder, zero123_folder
from tests.tiny_published import SIDE, WIDTH

PIXELS = LATENT_SIDE * FACTOR


@pytest.fixture(scope="module")
def unclip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unclip_folder(tmp_path_factory.mktemp("priors") / "unclip")


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zero123_folder(tmp_path_factory.mktemp("priors") / "zero123")


def noise_of(*seeds: int) -> Tensor:
    shape = (4, LATENT_SIDE, LATENT_SIDE)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def directions(count: int) -> Tensor:
    return F.normalize(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(3)), dim=1)


def pictures(count: int, side: int = PIXELS) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(4)) * 2 - 1


def theirs_of(model: StableUnCLIP) -> StableUnCLIPImg2ImgPipeline:
    """Diffusers' pipeline of the same parts; the feature extractor is not asked if vectors are given."""
    made = StableUnCLIPImg2ImgPipeline(
        feature_extractor=None,
        image_encoder=model.eyes,
        image_normalizer=model.normalizer,
        image_noising_scheduler=model.noising,
        tokenizer=model.tokenizer,
        text_encoder=model.reader,
        unet=model.unet,
        scheduler=DDIMScheduler.from_config(model.schedule.config, clip_sample=False),
        vae=model.vae,
    )
    made.set_progress_bar_config(disable=True)
    return made


# ------------------------------------------------------------------------------------------------------- Stable unCLIP


@pytest.mark.parametrize(("level", "words", "guidance"), [(0, "rain", 10.0), (400, "", 3.0), (0, "rain", 1.0)])
def test_unclip_draws_what_diffusers_draws(unclip: Path, level: int, words: str, guidance: float) -> None:
    model, vectors = load_stable_unclip(unclip), directions(2)
    asked, free = model.asked(vectors, words, level, [5, 6]), model.free(2)
    ours = [latents for _, latents in model.sample(asked, free, 5, guidance, [1, 2], LATENT_SIDE)]
    assert len(ours) == 5
    pipeline = theirs_of(model)
    drawn = torch.stack([torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)])
    told = pipeline.noise_image_embeddings(vectors * model.length, level, noise=drawn)
    assert asked.labels is not None
    torch.testing.assert_close(asked.labels, told, atol=1e-5, rtol=1e-5)
    for index in range(2):
        noised = asked.labels[index : index + 1]
        # Their noising draws its own noise: what ours gives is put in its place.
        pipeline.noise_image_embeddings = lambda image_embeds, **_: noised  # noqa: B023
        expected = pipeline(
            image_embeds=vectors[index : index + 1], prompt=words, num_inference_steps=5, guidance_scale=guidance,
            latents=noise_of(1 + index), output_type="latent",
        ).images  # fmt: skip
        torch.testing.assert_close(ours[-1][index : index + 1], expected, atol=1e-3, rtol=1e-3)
    assert (ours[-1][0] - ours[-1][1]).abs().max() > 0.1


def test_a_vector_gets_the_length_of_a_pictures(unclip: Path) -> None:
    model = load_stable_unclip(unclip)
    drawn = torch.randn(20_000, WIDTH) * model.normalizer.std.detach() + model.normalizer.mean.detach()
    assert drawn.square().sum(1).mean().sqrt().item() == pytest.approx(model.length, rel=0.02)
    labels = model.asked(directions(1), "", 0, [0]).labels
    assert labels is not None and labels[0, :WIDTH].norm().item() == pytest.approx(model.length, rel=0.1)


def test_vector_words_and_noise_all_count(unclip: Path) -> None:
    model = load_stable_unclip(unclip)

    def drawn(vector: int = 0, words: str = "", seed: int = 0, level: int = 0) -> Tensor:
        asked = model.asked(directions(2)[vector : vector + 1], words, level, [seed])
        *_, (_, latents) = model.sample(asked, model.free(1), 3, 5.0, [seed], LATENT_SIDE)
        return latents

    for other in (drawn(1), drawn(words="rain"), drawn(seed=1), drawn(level=500)):
        assert (drawn() - other).abs().max() > 1e-3
    assert torch.equal(drawn(), drawn())


def test_eyes_see_as_clip_does_and_gradients_come_back(unclip: Path) -> None:
    model = load_stable_unclip(unclip)
    pixels = pictures(2, SIDE).requires_grad_()
    vectors = model.embed_pictures(pixels)
    seen = standardised(pixels.detach(), SIDE, model.reading)
    mean, deviation = (torch.tensor(model.reading[key])[:, None, None] for key in ("image_mean", "image_std"))
    torch.testing.assert_close(seen, (pixels.detach() / 2 + 0.5 - mean) / deviation)
    with torch.no_grad():
        expected = F.normalize(model.eyes(pixel_values=seen).image_embeds, dim=1)
    torch.testing.assert_close(vectors, expected)
    vectors[0, 0].backward()
    assert pixels.grad is not None and pixels.grad[0].abs().max() > 0 and not pixels.grad[1].any()
    with pytest.raises(ValueError, match="expected"):
        model.embed_pictures(torch.zeros(1, 3, 8, 9))


def test_pictures_become_the_autoencoders_latents_and_come_back(unclip: Path) -> None:
    model, pixels = load_stable_unclip(unclip), pictures(1).requires_grad_()
    latents = model.encode(pixels)
    with torch.no_grad():
        torch.testing.assert_close(latents, 0.18215 * model.vae.encode(pixels).latent_dist.mode())
        torch.testing.assert_close(model.decode(latents), model.vae.decode(latents / 0.18215).sample.clamp(-1, 1))
    latents.sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().min() >= 0 and pixels.grad.any()


@pytest.mark.parametrize("time", [0.02, 0.5, 0.98])
def test_an_estimate_is_the_clean_and_the_noise_that_make_the_noisy(unclip: Path, time: float) -> None:
    model, latents = load_stable_unclip(unclip), noise_of(1, 2)
    asked, free = model.asked(directions(2), "rain", 0, [0, 1]), model.free(2)
    clean, noise = model.estimate(latents, time, asked, free, 4.0)
    share = model.share(time)
    torch.testing.assert_close(share**0.5 * clean + (1 - share) ** 0.5 * noise, latents, atol=1e-4, rtol=1e-4)
    one, _ = model.estimate(latents[1:], time, asked[1:], free[1:], 4.0)
    torch.testing.assert_close(one, clean[1:], atol=1e-4, rtol=1e-4)
    without, _ = model.estimate(latents, time, free, free, 1.0)
    with_it, _ = model.estimate(latents, time, asked, free, 1.0)
    torch.testing.assert_close(clean, without + 4 * (with_it - without), atol=1e-3, rtol=1e-3)


# --------------------------------------------------------------------------------------------------------- Zero-1-to-3


def plainly(model: Zero123, shown: Tensor, turned: float, raised: float, steps: int, seed: int) -> Tensor:
    """The published way, one view, with diffusers' own steps: conditions joined, zeros for the free half, scale 3."""
    seen = F.interpolate(shown, (PIXELS, PIXELS), mode="bilinear", antialias=True)
    vector = model.eyes(pixel_values=standardised(seen, SIDE, model.reading)).image_embeds
    camera = torch.tensor([[-raised, torch.sin(torch.tensor(turned)), torch.cos(torch.tensor(turned)), 0.0]])
    token = model.camera.proj(torch.cat([vector, camera], 1))[:, None]
    image = model.vae.encode(seen).latent_dist.mode()  # not scaled
    schedule = DDIMScheduler.from_config(model.schedule.config)
    schedule.set_timesteps(steps)
    latents = noise_of(seed)
    for timestep in schedule.timesteps:
        inputs = torch.cat([torch.cat([latents] * 2), torch.cat([torch.zeros_like(image), image])], 1)
        states = torch.cat([torch.zeros_like(token), token])
        free, told = model.unet(inputs, timestep, states).sample.chunk(2)
        latents = schedule.step(free + 3.0 * (told - free), timestep, latents).prev_sample
    return latents


@torch.no_grad()
def test_zero123_shows_what_the_published_way_shows(zero: Path) -> None:
    model, shown = load_zero123(zero), pictures(1, 24)
    turned, raised = torch.tensor([0.0, 1.5, -0.7]), torch.tensor([0.0, 0.2, -0.1])
    asked = model.asked(model.look(shown), turned, raised)
    *_, (_, views) = model.sample(asked, model.free(3), 4, 3.0, [7, 8, 9], LATENT_SIDE)
    for index, (angle, rise) in enumerate(zip(turned.tolist(), raised.tolist(), strict=True)):
        expected = plainly(model, shown, angle, rise, 4, 7 + index)
        torch.testing.assert_close(views[index : index + 1], expected, atol=1e-3, rtol=1e-3)


def test_where_the_camera_goes_counts_as_zero123_was_trained(zero: Path) -> None:
    """Polar angle from the top, then sine and cosine of the azimuth, then how much farther: nothing."""
    model = load_zero123(zero)
    seen = model.look(pictures(1))
    with torch.no_grad():
        model.camera.proj.weight.zero_()
        model.camera.proj.weight[:4, WIDTH:] = torch.eye(4)
        model.camera.proj.bias.zero_()
    asked = model.asked(seen, torch.tensor([torch.pi / 2]), torch.tensor([0.3]))
    torch.testing.assert_close(asked.states[0, 0, :4], torch.tensor([-0.3, 1.0, 0.0, 0.0]), atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------------ precision and loading


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8", "nf4"])
@pytest.mark.parametrize("kind", ["unclip", "zero"])
def test_in_any_precision_estimates_are_near_and_gradients_come_back(
    kind: str, precision: Precision, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SMALL", "NARROW"):  # so that layers of this size are held in less
        monkeypatch.setattr(f"models.quantize.{name}", 16)
    folder: Path = request.getfixturevalue(kind)

    def told(held: Precision) -> tuple[Tensor, Tensor]:
        model = load_stable_unclip(folder) if kind == "unclip" else load_zero123(folder)
        apply_precision(model, held, CPU)
        pixels = pictures(1).requires_grad_()
        if isinstance(model, StableUnCLIP):
            asked, free = model.asked(directions(1), "rain", 0, [0]), model.free(1)
            model.embed_pictures(pixels)[0, 0].backward()
            assert pixels.grad is not None and pixels.grad.any() and pixels.grad.isfinite().all()
        else:
            asked, free = model.asked(model.look(pixels), torch.tensor([1.0]), torch.tensor([0.1])), model.free(1)
        latents = model.encode(pixels)
        [slope] = torch.autograd.grad(latents.square().sum(), pixels)
        return model.estimate(latents.detach(), 0.5, asked, free, 3.0)[0], slope

    exact, held = told("float32"), told(precision)
    for one, other in zip(exact, held, strict=True):
        assert other.any() and F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.9


def test_either_kind_of_file_is_loaded(unclip: Path, zero: Path, tmp_path: Path) -> None:
    pairs = (
        (load_stable_unclip(unclip), load_stable_unclip(unclip_folder(tmp_path / "one", safetensors=False))),
        (load_zero123(zero), load_zero123(zero123_folder(tmp_path / "other", safetensors=False))),
    )
    for first, second in pairs:
        assert first.state_dict().keys() == second.state_dict().keys()
        for name, value in first.state_dict().items():
            torch.testing.assert_close(second.state_dict()[name], value)


@pytest.mark.parametrize(
    ("kind", "name", "content", "words"),
    [
        ("unclip", "model_index.json", {"_class_name": "StableDiffusionPipeline"}, "are no Stable unCLIP"),
        ("unclip", "model_index.json", None, "is missing"),
        ("unclip", "scheduler/scheduler_config.json", None, "is missing"),
        ("unclip", "image_normalizer/diffusion_pytorch_model.safetensors", None, "no StableUnCLIPImageNormalizer"),
        ("unclip", "feature_extractor/preprocessor_config.json", None, "is missing"),
        ("zero", "model_index.json", {"_class_name": "StableUnCLIPImg2ImgPipeline"}, "are no Zero-1-to-3"),
        ("zero", "clip_camera_projection/diffusion_pytorch_model.safetensors", None, "no CameraProjection"),
        ("zero", "unet/diffusion_pytorch_model.safetensors", None, "no UNet2DConditionModel"),
    ],
)
def test_other_folders_are_refused(
    kind: str, name: str, content: Any, words: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(request.getfixturevalue(kind), tmp_path / "other"))
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=words):
        (load_stable_unclip if kind == "unclip" else load_zero123)(folder)


def test_parts_of_different_models_are_refused(unclip: Path, zero: Path, tmp_path: Path) -> None:
    for kind, folder, load in (("unclip", unclip, load_stable_unclip), ("zero", zero, load_zero123)):
        mixture = Path(shutil.copytree(folder, tmp_path / kind))
        shutil.rmtree(mixture / "unet")
        shutil.copytree((zero if kind == "unclip" else unclip) / "unet", mixture / "unet")
        with pytest.raises(UserError, match="do not"):
            load(mixture)
