"""The brain decoder at its published size: its parts, its recipe on files in NSD's layout, and the full profile."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from app.adapters import fit_subject
from models.autoencoder import load_autoencoder
from models.catalog import catalog
from models.errors import UserError
from models.manager import ModelManager
from models.nets.brain_decoder import load_brain_decoder
from models.nets.brain_subjects import SubjectDecoder
from models.nets.token_decoder import PUBLISHED, TokenDecoder, load_subject_decoder, prior_schedule, scaled
from models.published_spaces import PublishedPictureText, load_picture_space
from models.spec import ModelSpec
from pipelines.base import Runtime
from pipelines.fmri.pipeline import FMRI, OF_MEASURED_SUBJECT, FMRIParams, looked_up, read
from pipelines.formats.scans.files import Z_SCORED
from pipelines.formats.scans.subjects import SUBJECTS
from pipelines.media import BrainScan
from tests.tiny_nsd import OWN, REPEATS, SHARED, TINY, write_nsd
from tests.tiny_published import clip_folder
from training import brain_decoder, brain_simulator, loop, token_decoder
from training.brain_simulator import SCALE, Subject, Trials
from training.nsd import NSD, Answers
from training.publish import write_sums
from training.token_decoder import Spaces, Targets, contrast, decoding_loss, mixed, prior_loss, targets_of

V = 120


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, tuple[Subject, Trials]]]:
    folder = tmp_path_factory.mktemp("nsd")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("S1", "S2"):
            patch.setitem(brain_simulator.VOXELS, name, V)
        return folder, write_nsd(folder, V)


@pytest.fixture(scope="module")
def nsd(seen: tuple[Path, object]) -> NSD:
    return NSD(seen[0])


@pytest.fixture(scope="module")
def answers(nsd: NSD) -> list[Answers]:
    return [nsd.answers(number) for number in (1, 2)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``clip`` and ``autoencoder``."""
    folder = tmp_path_factory.mktemp("models")
    clip_folder(folder / "clip")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    autoencoder = AutoencoderKL(**blocks, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4)
    autoencoder.save_pretrained(folder / "autoencoder")
    return folder


@pytest.fixture(scope="module")
def spaces(models: Path) -> Spaces:
    clip = load_picture_space(models / "clip")
    assert isinstance(clip, PublishedPictureText)
    return Spaces(clip, load_autoencoder(models / "autoencoder"))


def tiny_decoder(seed: int = 0) -> TokenDecoder:
    torch.manual_seed(seed)
    decoder = TokenDecoder(TINY)
    for name, voxels in (("subj01", 40), ("subj02", 30)):
        decoder.add_subject(name, f"mask of {name}", torch.full((voxels,), 0.5), torch.full((voxels,), 2.0))
    return decoder.eval()


# --------------------------------------------------------------------------------------------------------------- sizes


def test_the_published_size_has_the_published_parameters() -> None:
    """In millions, as the fact sheet has them of STTM's code (section 3.2)."""
    voxels = {int(one.name[1:]): one.voxels for one in SUBJECTS if one.dataset == "NSD"}
    with torch.device("meta"):
        decoder = TokenDecoder(PUBLISHED)
        for number in (1, 2, 5, 7):
            decoder.adapters[f"subj{number:02d}"] = decoder.new_adapter(voxels[number], "")
        decoder.low_level.adapters["subj01"] = decoder.new_adapter(voxels[1], "")

    def millions(module: nn.Module) -> float:
        return sum(parameter.numel() for parameter in module.parameters()) / 1e6

    adapters = [millions(adapter) for adapter in decoder.adapters.values()]
    assert adapters == pytest.approx([81.2, 75.3, 70.2, 68.7], abs=0.05)
    assert millions(decoder.core) == pytest.approx(204, abs=0.5)
    assert millions(decoder.projector) == pytest.approx(7.4, abs=0.05)
    assert millions(decoder.prior) == pytest.approx(57, abs=0.5)
    scans = torch.zeros(2, voxels[1], device="meta")
    features = decoder.core.features(decoder.adapters["subj01"](scans))
    brain = decoder.core.tokens(features)
    assert features.shape == (2, 4096) and brain.shape == decoder.projector(brain).shape == (2, 257, 768)
    steps = torch.zeros(2, dtype=torch.long, device="meta")
    assert decoder.prior(brain, steps, brain).shape == (2, 257, 768)
    assert decoder.low_level("subj01", scans, features).shape == (2, 4, 64, 64)
    assert decoder.low_level.to_grid.out_features == 16_384 == 64 * decoder.low_level.side**2
    assert (len(decoder.core.blocks), len(decoder.prior.layers.layers), PUBLISHED.timesteps) == (4, 6, 100)


@pytest.mark.parametrize("done", [0.0, 0.9])
def test_a_step_of_the_recipe_fits_the_published_size(done: float) -> None:
    """Forward and backward, but for the numbers."""
    voxels = {"subj01": 15_724, "subj02": 14_278}
    with torch.device("meta"):
        decoder = TokenDecoder(PUBLISHED).train()
        for name, count in voxels.items():
            for adapters in (decoder.adapters, decoder.low_level.adapters):
                adapters[name] = decoder.new_adapter(count, "")
        scans = [(name, torch.zeros(3, count)) for name, count in voxels.items()]
        targets = Targets(torch.zeros(6, 257, 768), torch.zeros(6, 768), torch.zeros(6, 4, 64, 64))
    loss, _ = decoding_loss(decoder, scans, targets, done)
    loss.backward()
    assert loss.shape == ()
    by_chance = ("low_level.adapters.", "low_level.blocks.", "low_level.no_scan")  # one of two ways in each step
    assert all(p.grad is not None for name, p in decoder.named_parameters() if not name.startswith(by_chance))


# ------------------------------------------------------------------------------------------------------------ decoding


def test_scans_are_decoded_each_by_itself() -> None:
    decoder, scans = tiny_decoder(), torch.randn(70, 40)
    decoded = decoder.decode("subj01", scans)
    assert decoded.semantic.shape == (70, 16) and decoded.low_level.shape == (70, 4, 8, 8)
    torch.testing.assert_close(decoded.semantic.norm(dim=1), torch.ones(70))
    alone = decoder.decode("subj01", scans[50:51])
    torch.testing.assert_close(alone.semantic, decoded.semantic[50:51])
    torch.testing.assert_close(alone.low_level, decoded.low_level[50:51])
    torch.testing.assert_close(decoder.vectors("subj01", scans), decoded.semantic)
    assert decoder.recognise(30) == "subj02"
    with pytest.raises(UserError, match="30 voxels do not match subj01, who has 40"):
        decoder.decode("subj01", torch.zeros(1, 30))


def test_the_prior_learns_what_the_brain_tells_and_samples_it() -> None:
    decoder = tiny_decoder()
    torch.manual_seed(1)
    brain, tokens = torch.randn(2, 17, 16), torch.randn(2, 17, 16)
    tokens = tokens / tokens[:, :1].norm(dim=-1, keepdim=True)
    optimizer = torch.optim.Adam(decoder.prior.parameters(), 5e-3)
    decoder.prior.train()
    for _ in range(250):
        rows = torch.randint(2, (16,))
        loss = prior_loss(decoder, brain[rows], tokens[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    decoder.eval()
    made = decoder.picture_tokens(brain, 3)
    torch.testing.assert_close(made[:, 0].norm(dim=-1), torch.ones(2))
    likeness = nn.functional.normalize(made.flatten(1), dim=1) @ nn.functional.normalize(tokens.flatten(1), dim=1).T
    assert likeness.diagonal().min() > 0.8 and likeness.diagonal().min() > likeness[0, 1] + 0.3
    assert torch.equal(made, decoder.picture_tokens(brain, 3))
    assert scaled(tokens)[:, 0].norm(dim=-1) == pytest.approx(torch.full((2,), 4.0))
    assert prior_schedule(10).alphas_cumprod[0] > 0.9 > 0.05 > prior_schedule(10).alphas_cumprod[-1]


# ----------------------------------------------------------------------------------------------------------------- NSD


def test_the_sessions_of_nsd_are_averaged_and_z_scored(
    seen: tuple[Path, dict[int, tuple[Subject, Trials]]], answers: list[Answers]
) -> None:
    for one, (_, trials) in zip(answers, seen[1].values(), strict=True):
        assert one.values.shape == (OWN, V) and one.test_values.shape == (SHARED, V)
        assert set(one.test_pictures) == set(range(SHARED)) and len(set(one.pictures)) == OWN
        betas = trials.betas.astype(np.float32) / SCALE
        assert (trials.image_id == one.pictures[7]).sum() == REPEATS
        raw = one.values[7] * one.std + one.mean
        np.testing.assert_allclose(raw, betas[trials.image_id == one.pictures[7]].mean(0), atol=1e-4)
        raw = one.test_values[3] * one.std + one.mean
        np.testing.assert_allclose(raw, betas[trials.image_id == one.test_pictures[3]].mean(0), atol=1e-4)
        torch.testing.assert_close(one.values.std(0), torch.ones(V), atol=1e-4, rtol=0)
    assert not set(answers[0].pictures) & set(answers[1].pictures)
    assert answers[0].subject == "subj01" and len(answers[0].mask_hash) == 64


def test_pictures_and_captions_go_by_their_numbers(nsd: NSD) -> None:
    pictures = nsd.pictures(np.array([40, 3, 40]))
    assert pictures.shape == (3, 3, 32, 32) and torch.equal(pictures[0], pictures[2])
    assert not torch.equal(pictures[0], pictures[1]) and pictures.abs().max() <= 1
    assert nsd.captions(40) == ["a thing number 40", "rain"]


def test_what_is_missing_of_nsd_is_said(seen: tuple[Path, object], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"'nsddata/experiments/nsd/nsd_expdesign\.mat' is not in the folder of NSD"):
        NSD(tmp_path)
    with pytest.raises(SystemExit, match=r"subj05/func1pt8mm/roi/nsdgeneral\.nii\.gz' is not"):
        NSD(seen[0]).answers(5)


# -------------------------------------------------------------------------------------------------------------- recipe


def test_targets_are_clips_tokens_a_caption_and_latents(nsd: NSD, spaces: Spaces) -> None:
    numbers = np.array([40, 3])
    found = targets_of(nsd, spaces, numbers, TINY)
    assert found.tokens.shape == (2, 17, 16) and found.latents.shape == (2, 4, 8, 8)
    # The class token is the vector that CLIP has of the picture.
    torch.testing.assert_close(found.tokens[:, 0], spaces.clip.embed_pictures(nsd.pictures(numbers)))
    torch.testing.assert_close(found.words.norm(dim=1), torch.ones(2))
    with pytest.raises(SystemExit, match="has 17 tokens of 16 numbers, not 257 of 768"):
        spaces.check(PUBLISHED)
    with pytest.raises(SystemExit, match="latents have 4 channels, not 8"):
        spaces.check(replace(TINY, latents=(8, 8, 8)))


def test_the_contrast_is_least_where_scans_find_their_pictures() -> None:
    true = torch.randn(16, 40)
    own = torch.eye(16)
    assert contrast(true, true, own, 0.05) < 0.1 < contrast(true.roll(1, 0), true, own, 0.05)
    assert contrast(true, true, None, 0.05) < contrast(true.roll(1, 0), true, None, 0.05)
    values, shares = mixed(true)
    torch.testing.assert_close(values, shares @ true)
    torch.testing.assert_close(shares.sum(1), torch.ones(16))


@pytest.mark.parametrize("done", [0.0, 0.9])
def test_every_part_learns(done: float) -> None:
    """In either half of the training all weights get a gradient, and the loss falls."""
    decoder = tiny_decoder().train()
    torch.manual_seed(2)
    scans = [("subj01", torch.randn(8, 40)), ("subj02", torch.randn(8, 30))]
    tokens = torch.randn(16, 17, 16)
    tokens = tokens / tokens[:, :1].norm(dim=-1, keepdim=True)
    targets = Targets(tokens, nn.functional.normalize(torch.randn(16, 16), dim=1), torch.randn(16, 4, 8, 8))
    optimizer = torch.optim.AdamW(decoder.parameters(), 3e-3)
    found: list[dict[str, float]] = []
    reached: set[str] = set()
    for _ in range(60):
        loss, parts = decoding_loss(decoder, scans, targets, done)
        optimizer.zero_grad()
        loss.backward()
        reached |= {name for name, p in decoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        optimizer.step()
        found.append({name: torch.as_tensor(value).item() for name, value in parts.items()})
    assert reached == {name for name, _ in decoder.named_parameters()}
    for part in ("contrast", "prior", "low_level"):
        first, last = (np.mean([row[part] for row in rows]) for rows in (found[:8], found[-8:]))
        assert last < first, part


@pytest.fixture(scope="module")
def trained(nsd: NSD, answers: list[Answers], spaces: Spaces, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps of the recipe, four of them with mixed scans; saved as the recipe saves."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "STATE", folder / "state")
        patch.setattr(signal, "signal", lambda *_: None)
        decoder = token_decoder.train_decoder(nsd, answers, spaces, TINY, steps=12, batch=6)
    found = token_decoder.measured(nsd, answers, spaces, decoder)
    assert set(found) == {f"subj0{n}_{what}" for n in (1, 2) for what in ("top1", "prior_cosine")}
    decoder.save_pretrained(folder / "weights")
    write_sums(folder / "weights")
    return folder / "weights"


def test_the_recipe_asks_for_what_it_needs(monkeypatch: pytest.MonkeyPatch, models: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["brain_decoder", "--size", "published", "--clip", str(models / "clip")])
    with pytest.raises(SystemExit, match="needs --nsd and --autoencoder and --out too"):
        brain_decoder.main()
    others = ["--nsd", str(tmp_path), "--autoencoder", str(models / "autoencoder"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*sys.argv, *others])
    with pytest.raises(SystemExit, match="use clip-vit-large-patch14"):
        brain_decoder.main()


# -------------------------------------------------------------------------------------------------------- full profile


def spec_of(folder: Path) -> ModelSpec:
    return catalog("full", {"brain-decoder": folder})["brain-decoder"]


def loaded(folder: Path) -> SubjectDecoder:
    spec = spec_of(folder)
    decoder = spec.load(spec.source.resolve(lambda share, said: None).folder)
    assert isinstance(decoder, SubjectDecoder)
    return decoder


def test_the_full_profile_loads_what_the_recipe_saved(trained: Path, answers: list[Answers]) -> None:
    decoder = loaded(trained)
    assert isinstance(decoder, TokenDecoder) and decoder.config == TINY and not decoder.training
    assert decoder.subjects == ("subj01", "subj02") and len(decoder.sentences) == 2 * OWN
    assert decoder.adapter("subj02").mask_hash == answers[1].mask_hash
    saved = load_file(trained / "model.safetensors")
    assert saved.keys() == decoder.state_dict().keys()
    assert all(torch.equal(saved[name].float(), value) for name, value in decoder.state_dict().items())
    betas = answers[0].test_values * answers[0].std + answers[0].mean
    torch.testing.assert_close(decoder.standardised("subj01", betas), answers[0].test_values, atol=0.02, rtol=0.02)
    [near] = decoder.nearest(decoder.decode("subj01", answers[0].test_values[:1]).semantic, 3)
    assert all(concept.sentence.startswith("a thing number") for concept in near)


def test_only_whole_and_undamaged_weights_are_loaded(trained: Path, tmp_path: Path) -> None:
    weights = load_file(trained / "model.safetensors")

    def folder(name: str, changed: dict[str, Tensor], **config: Any) -> Path:
        made = tmp_path / name
        made.mkdir()
        values = json.loads((trained / "config.json").read_text())
        (made / "config.json").write_text(json.dumps({**values, **config}))
        save_file(changed, made / "model.safetensors")
        return made

    one = "prior.no_brain"
    missing = folder("missing", {name: value for name, value in weights.items() if name != one})
    with pytest.raises(UserError, match=rf"not those that its config\.json tells of.*{one}"):
        loaded(missing)
    with pytest.raises(UserError, match=r"Unexpected key.*extra"):
        loaded(folder("extra", {**weights, "extra": torch.zeros(1)}))
    with pytest.raises(UserError, match=r"size mismatch for adapters\.subj01"):
        loaded(folder("narrow", weights, width=40))
    for name, change in (("other", {"depth": 3}), ("wordy", {"width": "x"}), ("listed", {"subjects": ["subj01"]})):
        with pytest.raises(UserError, match="no brain decoder"):
            loaded(folder(name, weights, **change))
    damaged = folder("damaged", weights)
    write_sums(damaged)
    save_file({**weights, one: weights[one] + 1}, damaged / "model.safetensors")
    with pytest.raises(UserError, match=r"'damaged/model\.safetensors' is damaged"):
        loaded(damaged)
    with pytest.raises(UserError, match="are missing"):
        loaded(tmp_path / "nowhere")
    with pytest.raises(UserError, match="Choose it in the full profile"):
        load_brain_decoder(trained)


def test_without_weights_it_is_said_how_to_have_some() -> None:
    spec = catalog("full")["brain-decoder"]
    with pytest.raises(UserError) as refusal:
        spec.source.resolve(lambda share, said: None)
    assert "No weights of 'brain-decoder' have been published" in str(refusal.value)
    assert "python -m training.brain_decoder --size published" in str(refusal.value)
    assert "--local-weights" in str(refusal.value)
    assert isinstance(load_subject_decoder(Path("assets/weights/brain-decoder-lite")), SubjectDecoder)


def test_a_scan_is_read_by_it_and_called_measured(
    trained: Path, answers: list[Answers], models: Path, tmp_path: Path
) -> None:
    specs = {key: spec for key, spec in catalog("full", {"brain-decoder": trained}).items() if key in FMRI.models}
    manager = ModelManager(specs, torch.device("cpu"), 10**9)
    runtime = Runtime(manager)
    scan = BrainScan(answers[1].test_values[0].numpy(), "voxels", "subj02", Z_SCORED)
    reading = read(scan, FMRIParams(), runtime)
    assert reading.sentence.startswith("a thing number") and reading.words.startswith("Perhaps a thing number")
    assert OF_MEASURED_SUBJECT in reading.badge and "simulated" not in reading.words
    assert reading.look is not None and reading.look.shape == (1, 4, 8, 8)
    with pytest.raises(UserError, match="known pictures do not mean the same by vectors"):
        looked_up(scan, FMRIParams(), runtime)
    with pytest.raises(UserError, match="fitted to the small brain decoder"):
        fit_subject(manager, runtime, [], models, "Ann", tmp_path / "out")
