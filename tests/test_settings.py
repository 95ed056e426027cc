"""Settings: where they come from, which wins, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.settings import Settings, load_settings
from models.errors import UserError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPACE_ID", raising=False)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SYNESTHETE_{name.upper()}", raising=False)


def test_defaults_serve_this_machine_only() -> None:
    settings = load_settings()
    assert (settings.profile, settings.host, settings.port) == ("lite", "127.0.0.1", 7860)
    assert settings.output_folder == Path("outputs") and settings.memory_budget_gb is None


def test_a_flag_beats_the_environment_which_beats_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SYNESTHETE_PORT=1001\nSYNESTHETE_PROFILE=full\nSYNESTHETE_HOST=::1\nOTHER=1\n")
    monkeypatch.setenv("SYNESTHETE_PORT", "1002")
    monkeypatch.setenv("SYNESTHETE_PROFILE", "lite")
    settings = load_settings(port="1003", profile=None)
    assert (settings.port, settings.profile, settings.host) == (1003, "lite", "::1")


def test_a_space_listens_to_its_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "someone/synesthete")
    assert load_settings().host == "0.0.0.0"
    assert load_settings(host="127.0.0.1").host == "127.0.0.1"


def test_local_weights_are_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNESTHETE_LOCAL_WEIGHTS", '{"crossflow": "/data/crossflow"}')
    assert load_settings().local_weights == {"crossflow": Path("/data/crossflow")}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 0), ("port", -1), ("port", 65536), ("port", "http"), ("port", 10**30),
        ("profile", "huge"), ("device", "tpu"), ("device", "cuda:x"), ("host", ""),
        ("memory_budget_gb", 0), ("memory_budget_gb", -1), ("memory_budget_gb", "nan"), ("memory_budget_gb", "inf"),
        ("max_queue", 0), ("max_upload_mb", "much" * 1000),
    ],
)  # fmt: skip
def test_a_bad_value_is_one_sentence_that_names_setting_and_flag(name: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        load_settings(**{name: value})
    assert f"'{name}'" in caught.value.sentence and len(caught.value.sentence) < 250
    assert f"--{name.replace('_', '-')}" in caught.value.hint


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', "x"])
def test_a_bad_table_in_the_environment_is_one_sentence(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SYNESTHETE_LOCAL_WEIGHTS", text)
    with pytest.raises(UserError, match="local_weights"):
        load_settings()


@given(st.integers(1, 65535))
def test_every_real_port_is_taken(port: int) -> None:
    assert load_settings(port=port).port == port


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description and field.description.endswith(".") for field in Settings.model_fields.values())


def test_nothing_is_reported_home() -> None:
    names = ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY")
    code = f"import app.settings, os; print(*(os.environ[name] for name in {names}))"
    root = Path(__file__).parent.parent
    printed = subprocess.run([sys.executable, "-c", code], cwd=root, env={}, capture_output=True, text=True, check=True)
    assert printed.stdout.split() == ["False", "1"]


def test_the_size_of_pictures_is_one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNESTHETE_CROSSFLOW_PIXELS", "512")
    assert load_settings(profile="full").catalog()["crossflow"].source.missing()[0].endswith("t2i_512px_clip_dimr.pth")
    monkeypatch.setenv("SYNESTHETE_CROSSFLOW_PIXELS", "300")
    with pytest.raises(UserError, match="crossflow_pixels"):
        load_settings()
