"""The full profile's models of pictures, words and sounds: tiny checkpoints in the Hub's own layout, ours, and none."""

from __future__ import annotations

import json
import re
import shutil
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from transformers import AutoTokenizer, ClapAudioConfig

from app.doctor import examine
from app.model_commands import fetch, list_models, verify
from app.recovery import events_of
from app.settings import Settings, load_settings
from models.bridges import MeanShift, WordsBridge
from models.captioner import PublishedCaptioner
from models.errors import UserError
from models.full_sound_models import (
    AUDIOLDM_GENERATOR,
    AUDIOLDM_WORDS,
    CLAP,
    DRAWS,
    clipsonic_models,
    description_models,
    sound_models,
)
from models.licences import accept_licence, is_accepted
from models.listening_captioner import ListeningCaptioner
from models.manager import ModelManager
from models.mel import LITE_MEL
from models.nets.audio_autoencoder import AudioAutoencoder
from models.nets.vocoder import HifiGanVocoder
from models.published_spaces import PublishedPictureText, PublishedSoundText
from models.sound_generator import SoundGenerator
from models.sound_text import SoundText
from models.sounding_things import sounding_things
from models.sources import Folder, Hub, Source, Together, Unpublished
from models.spec import ModelSpec
from pipelines.base import Runtime
from pipelines.clipsonic.pipeline import CLIPSonic
from pipelines.describe.pipeline import Describe, in_words
from pipelines.spaces import sound_vector
from pipelines.v2a_mapper.pipeline import V2AMapper
from tests.test_captioner import blip_folder
from tests.test_describe_pipeline import captioner, lines, tone, written
from tests.test_sound_generator import audioldm_folder
from tests.tiny_models import CPU, resident
from tests.tiny_published import SAMPLE_RATE, WIDTH, audioldm_tower, clap_folder, clip_folder
from tests.tiny_sounds import clip, picture, produced, sound_manager
from tests.weight_folders import refusal, resolve, weights_in, write_sums
from training.sound_text import audio_config

PLACES = {
    "openai/clip-vit-base-patch32": "clip",
    "sanchit-gandhi/clap-htsat-unfused-s-full-v2": "clap",
    "Salesforce/blip-image-captioning-base": "blip",
    "cvssp/audioldm-s-full-v2": "audioldm",
}
UNPUBLISHED = {"clipsonic-prior", "clipsonic-mean-shift", "clipsonic"}
RESTRICTED = {"sound-text", "v2a-mapper", "v2a-regression", "sound-generator", "audio-autoencoder", "vocoder"}
NO_SUCH = "No weights of 'clipsonic' have been published"


def full() -> dict[str, ModelSpec]:
    return {spec.key: spec for spec in (*description_models(), *sound_models(), *clipsonic_models())}


def hubs(source: Source) -> list[Hub]:
    if isinstance(source, Together):
        return [hub for one in source.sources for hub in hubs(one)]
    return [source] if isinstance(source, Hub) else []


def add_older_files(folder: Path) -> None:
    """What the published folders hold beside ``tokenizer.json``, from before there was one."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in model["vocab"]))
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", ()))
    (folder / "merges.txt").write_text("".join(f"{pair}\n" for pair in ("#version: 0.2", *merges)))
    special = AutoTokenizer.from_pretrained(folder).special_tokens_map
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def into_cache(cache: Path, hub: Hub, folder: Path) -> None:
    """The files that ``hub`` names, as if they had been fetched from a repository like ``folder``."""
    snapshot = cache / f"models--{hub.repo.replace('/', '--')}" / "snapshots" / hub.revision
    for name in (f"{hub.subfolder}/{name}".lstrip("/") for name in hub.files):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, snapshot / name)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``clip``, ``clap``, ``blip`` and ``audioldm``, tiny."""
    folder = tmp_path_factory.mktemp("repositories")
    clip_folder(folder / "clip", "bin", older=True)
    clap = clap_folder(folder / "clap", "bin")
    blip_folder(folder / "blip", "bin")
    audioldm_folder(folder / "audioldm", WIDTH)
    audioldm_tower(clap, folder / "audioldm")
    (folder / "audioldm" / "model_index.json").write_text('{"_class_name": "AudioLDMPipeline"}')
    for name in ("clip", "clap", "blip", "audioldm/tokenizer"):
        add_older_files(folder / name)
    return folder


@pytest.fixture(scope="module")
def fetched(repositories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the Hub with all that is published."""
    cache = tmp_path_factory.mktemp("cache")
    for spec in full().values():
        for hub in hubs(spec.source):
            into_cache(cache, hub, repositories / PLACES[hub.repo])
    return cache


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bundled weights with our captioner of sounds and its space, tiny."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    config = ClapAudioConfig.from_dict({**audio_config().to_dict(), "projection_dim": WIDTH})
    SoundText(config, LITE_MEL).save_pretrained(folder / "sound-text-lite")
    captioner(0.0, WIDTH).save_pretrained(folder / "sound-captioner-lite")
    for weights in folder.iterdir():
        write_sums(weights)
    return folder


@pytest.fixture(autouse=True)
def places(fetched: Path, ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(fetched))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("models.sources.ASSETS", ours)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def loaded(key: str) -> object:
    spec = full()[key]
    return spec.load(resolve(spec.source).folder)


def manager_of_all() -> ModelManager:
    return ModelManager(full(), CPU, 10**12)


# ------------------------------------------------------------------------------------------------------------ entries


def test_the_entries_are_what_the_three_pipelines_lease() -> None:
    keys = [spec.key for spec in (*description_models(), *sound_models(), *clipsonic_models())]
    assert len(keys) == len(set(keys))
    assert {*keys, "sentence-encoder"} == {*Describe.models, *V2AMapper.models, *CLIPSonic.models}
    assert set(Describe.models) == {spec.key for spec in description_models()}


def test_places_are_pinned_and_what_restricts_use_is_marked() -> None:
    for key, spec in full().items():
        for hub in hubs(spec.source):
            assert re.fullmatch("[0-9a-f]{40}", hub.revision) and "/" not in hub.files[0]
        assert spec.key == key and spec.profile == "full" and spec.licence
        assert spec.source.missing() == (("published weights",) if key in UNPUBLISHED else ())
        assert not spec.restricted or spec.source.repos
    assert {key for key, spec in full().items() if spec.restricted} == RESTRICTED
    assert {key for key, spec in full().items() if not spec.source.published} == UNPUBLISHED
    for key in ("v2a-mapper", "v2a-regression"):
        assert "ours" in full()[key].note and "without training" in full()[key].note


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("picture-text", PublishedPictureText),
        ("sound-text", PublishedSoundText),
        ("picture-captioner", PublishedCaptioner),
        ("sound-captioner", ListeningCaptioner),
        ("v2a-mapper", WordsBridge),
        ("sound-generator", SoundGenerator),
        ("audio-autoencoder", AudioAutoencoder),
        ("vocoder", HifiGanVocoder),
    ],
)
def test_models_are_loaded_from_what_the_hub_would_have_fetched(key: str, kind: type) -> None:
    assert isinstance(loaded(key), kind)


def test_the_list_says_that_the_bridge_is_ours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(Settings, "catalog", lambda self: full())
    list_models(load_settings(), Namespace(json=False))
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(rows) == set(full())
    assert "(ours, by way of words and without training: V2A-Mapper's own was never published)" in rows["v2a-mapper"]
    assert "missing: published weights" in rows["clipsonic"] and rows["vocoder"].endswith("here")


def test_words_of_another_clap_are_refused_once_audioldm_is_here(
    repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    clap_folder(tmp_path / "clap", "bin", seed=1)
    add_older_files(tmp_path / "clap")
    into_cache(tmp_path, CLAP, tmp_path / "clap")
    assert isinstance(loaded("sound-text"), PublishedSoundText)
    into_cache(tmp_path, AUDIOLDM_WORDS, repositories / "audioldm")
    with pytest.raises(UserError, match="not the one that the sound generator"):
        loaded("sound-text")


def test_the_generator_takes_a_silent_sentence_from_the_published_clap() -> None:
    generator, sounds = loaded("sound-generator"), loaded("sound-text")
    assert isinstance(generator, SoundGenerator) and isinstance(sounds, PublishedSoundText)
    torch.testing.assert_close(generator.null_condition.detach(), sounds.embed_words([""])[0], atol=1e-5, rtol=0)
    assert set(AUDIOLDM_WORDS.files) <= set(AUDIOLDM_GENERATOR.files)


def test_a_picture_sounds_once_the_licences_are_accepted() -> None:
    manager = manager_of_all()
    with pytest.raises(UserError, match=r"'v2a-mapper' \(openai/.*, sanchit-gandhi/.*\) restricts its use"):
        produced(manager, V2AMapper(), picture(0), steps=1)
    for key in RESTRICTED:
        accept_licence(full()[key])
    made = [produced(manager, V2AMapper(), picture(0), steps=1, mapper=way)[0] for way in ("generative", "regression")]
    assert all(one.samples.shape == (1, SAMPLE_RATE // 2) and np.isfinite(one.samples).all() for one in made)
    assert np.abs(made[0].samples - made[1].samples).max() > 1e-5
    used = {"picture-text", "v2a-mapper", "v2a-regression", "sound-generator", "audio-autoencoder", "vocoder"}
    assert set(resident(manager)) == used


# -------------------------------------------------------------------------------------------------- describing sounds


def test_a_sound_is_described_by_our_captioner_and_the_space_that_it_brings() -> None:
    manager = manager_of_all()
    texts = [written(manager, tone(hertz), nearest=3)[0] for hertz in (150, 3000)]
    assert resident(manager) == ["sound-captioner"] and all(row.leases == 0 for row in manager.status())
    for hertz, text in zip((150, 3000), texts, strict=True):
        with manager.lease("sound-captioner") as both:
            vector = sound_vector(both.space, tone(hertz), Runtime(manager))
            [expected] = both.captioner.describe([vector], 3)
        assert text.text == in_words(None, expected) and len(expected.nearest) == 3
        assert text.provenance is not None and [model.key for model in text.provenance.models] == ["sound-captioner"]
    assert texts[0].text != texts[1].text


def test_a_clip_is_described_by_one_captioner_for_each_sense(tmp_path: Path) -> None:
    def listening() -> ListeningCaptioner:
        model = loaded("sound-captioner")
        assert isinstance(model, ListeningCaptioner)
        return model

    manager = sound_manager(
        tmp_path, instead={"sound-captioner": listening, "picture-captioner": partial(captioner, 0)}
    )
    seen_and_heard = lines(manager, replace(clip(), audio=tone(440)))
    assert len(seen_and_heard) == 3 and seen_and_heard[2] == f"Heard: {lines(manager, tone(440))[1]}"
    assert set(resident(manager)) == {"picture-text", "picture-captioner", "sound-captioner"}


def test_only_a_captioner_of_vectors_can_listen(fetched: Path) -> None:
    with pytest.raises(UserError, match="reads pictures"):
        full()["sound-captioner"].load(resolve(full()["picture-captioner"].source).folder)


# ---------------------------------------------------------------------------------------------------- bridge by words


def test_the_published_spaces_are_joined_by_what_they_call_the_same_things() -> None:
    pictures, sounds = loaded("picture-text"), loaded("sound-text")
    assert isinstance(pictures, PublishedPictureText) and isinstance(sounds, PublishedSoundText)
    for key, draws in (("v2a-mapper", DRAWS), ("v2a-regression", 0)):
        bridge = loaded(key)
        assert isinstance(bridge, WordsBridge) and bridge.draws == draws
        for row in (0, 17, -1):
            thing = sounding_things()[row]
            seen, heard = pictures.embed_words([f"a photo of {thing}"]), sounds.embed_words([f"the sound of {thing}"])
            torch.testing.assert_close(bridge.seen[row], seen[0], atol=1e-4, rtol=0)
            torch.testing.assert_close(bridge.heard[row], heard[0], atol=1e-4, rtol=0)


def test_the_things_are_named_once_and_plainly() -> None:
    things = sounding_things()
    assert len(things) == len(set(things)) > 300
    assert all(re.fullmatch(r"[A-Za-z]+([ -][a-zA-Z]+){0,6}", thing) for thing in things)


def test_a_trained_bridge_of_ones_own_is_loaded_instead(tmp_path: Path) -> None:
    MeanShift(WIDTH).save_pretrained(tmp_path / "own")
    load = full()["v2a-mapper"].load
    assert isinstance(load(tmp_path / "own"), MeanShift)
    with pytest.raises(UserError, match="no bridge"):
        load(weights_in(tmp_path / "other"))


# ---------------------------------------------------------------------------------------------------- several places


def test_a_model_of_several_places_is_known_by_all_of_them(tmp_path: Path) -> None:
    one, two = (Folder(weights_in(tmp_path / name)) for name in ("one", "two"))
    (two.path / "config.json").write_text('{"size": 2}')
    write_sums(two.path)
    both, shares = Together((one, two)), list[float]()
    files = both.resolve(lambda share, said: shares.append(share))
    assert files.folder == one.path and shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1
    assert resolve(Together((two, one))).checksum != files.checksum == resolve(both).checksum
    (two.path / "config.json").write_text('{"size": 3}')
    write_sums(two.path)
    assert resolve(both).checksum != files.checksum
    (two.path / "model.safetensors").unlink()
    assert both.missing() == ("model.safetensors",) and both.origin == ""
    assert "two/model.safetensors' is missing" in refusal(both).sentence


def test_every_repository_of_a_restricted_model_is_accepted() -> None:
    bridge, space = full()["v2a-mapper"], full()["sound-text"]
    assert bridge.source.origin == "openai/clip-vit-base-patch32 and sanchit-gandhi/clap-htsat-unfused-s-full-v2"
    accept_licence(space)
    assert is_accepted(space) and not is_accepted(bridge)
    accept_licence(bridge)
    assert is_accepted(bridge) and is_accepted(full()["v2a-regression"]) and not is_accepted(full()["vocoder"])


# --------------------------------------------------------------------------------------------------- never published


def test_what_nobody_has_published_says_so_and_what_to_do() -> None:
    for key in UNPUBLISHED:
        error = refusal(full()[key].source)
        assert error.sentence == f"No weights of '{key}' have been published."
        assert "lite profile" in error.hint and f'--local-weights \'{{"{key}": "FOLDER"}}\'' in error.hint
        recipe = re.search(r"python -m training\.(\w+)", error.hint)
        assert recipe and f"{key}-lite" in Path("training", f"{recipe[1]}.py").read_text()


def test_commands_leave_out_what_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    chosen = {key: full()[key] for key in ("clipsonic", "picture-text")}
    monkeypatch.setattr(Settings, "catalog", lambda self: chosen)
    settings = load_settings(device="cpu", output_folder=tmp_path)
    all_of_them = Namespace(keys=[], json=False, accept_licence=False)
    assert fetch(settings, all_of_them) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["picture-text"]
    with pytest.raises(UserError, match=NO_SUCH):
        fetch(settings, Namespace(keys=["clipsonic"], json=False, accept_licence=False))
    assert verify(settings, all_of_them) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("missing  clipsonic ") and NO_SUCH in first and second.startswith("ok ")
    checks = {check.name: check for check in examine(settings)}
    assert checks["model clipsonic"].status == "warn" and NO_SUCH in checks["model clipsonic"].detail
    assert checks["model picture-text"].status == "ok"


def test_a_run_that_needs_it_ends_before_anything_else_is_fetched(tmp_path: Path) -> None:
    manager, sonic = sound_manager(tmp_path), CLIPSonic()
    manager.specs["clipsonic"] = replace(manager.specs["clipsonic"], source=Unpublished("clipsonic", "training.x"))
    with pytest.raises(UserError, match=NO_SUCH):
        list(events_of(sonic, [picture(0)], sonic.parse_params({}), Runtime(manager), manager))
    assert resident(manager) == []
