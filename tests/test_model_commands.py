"""``python -m app models``: what is listed, fetched, verified and freed."""

from __future__ import annotations

import json
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from models.catalog import catalog
from tests.command_lines import Run, everything_local, files, free_port


def test_models_are_listed_with_what_is_missing(run: Run, painter_folder: Path) -> None:
    local = json.dumps({"crossflow": str(painter_folder)})
    code, out, _ = run("models", "--local-weights", local, "--json")
    rows = {row["key"]: row for row in json.loads(out)}
    assert code == 0 and rows["crossflow"]["missing"] == [] and rows["crossflow"]["bytes"] > 0
    assert run("models", "list", "--local-weights", local, "--json")[1] == out
    assert run("models", "--local-weights", local, "--json", "list")[1] == out
    (painter_folder / "model.safetensors").rename(painter_folder / "hidden")
    try:
        _, out, _ = run("models", "--local-weights", json.dumps({"crossflow": str(painter_folder)}))
    finally:
        (painter_folder / "hidden").rename(painter_folder / "model.safetensors")
    assert "missing: model.safetensors" in out


def test_the_full_profiles_restricted_models_are_marked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(Path("config").absolute()))
    code, out, _ = run("models", "--profile", "full")
    marked = [line for line in out.splitlines() if "restricts use, not accepted yet" in line]
    assert code == 0 and [line.split()[0] for line in marked][:3] == ["crossflow", "sound-text", "v2a-mapper"]
    assert "for research" in marked[0] and all("CC-BY-NC-SA" in line for line in marked[1:-1])
    assert marked[-1].startswith("neuropictor") and "name none" in marked[-1]


def test_fetch_asks_before_it_fetches_anything(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(Path("config").absolute()))
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(Path("cache").absolute()))
    code, out, err = run("models", "fetch", "--profile", "full")
    assert (code, out) == (2, "") and "for research" in err and "--accept-licence" in err and files() == []
    code, _, err = run("models", "fetch", "crossflow", "--profile", "full", "--accept-licence")
    assert code == 2 and "could not be fetched" in err and files() == ["config/synesthete/licences.json"]
    assert "could not be fetched" in run("models", "fetch", "crossflow", "--profile", "full")[2]


def test_fetch_names_what_is_here_and_its_licence(run: Run, painter_folder: Path) -> None:
    arguments = ("models", "fetch", "crossflow", "autoencoder", "--local-weights", everything_local(painter_folder))
    code, out, err = run(*arguments)
    assert (code, err) == (0, "") and [line.split()[:2] for line in out.splitlines()] == [
        ["crossflow", "here,"], ["autoencoder", "here,"],
    ]  # fmt: skip
    assert out.count("licence Apache-2.0") == 2
    rows = json.loads(run(*arguments, "--json")[1])
    assert [row["key"] for row in rows] == ["crossflow", "autoencoder"]
    assert rows[0]["folder"] == str(painter_folder) and len(rows[0]["checksum"]) == 64


def test_verify_hashes_again_and_ends_with_2_if_something_changed(
    run: Run, painter_folder: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(painter_folder, tmp_path / "own")
    local = json.dumps(json.loads(everything_local(painter_folder)) | {"autoencoder": str(own)})
    code, out, _ = run("models", "verify", "--local-weights", local)
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["ok"] * len(catalog("lite"))
    weights = own / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    code, out, err = run("models", "verify", "--local-weights", local, "--json")
    assert (code, err) == (2, "")
    rows = {row["key"]: row for row in json.loads(out)}
    assert rows["crossflow"]["status"] == "ok" and len(rows["crossflow"]["checksum"]) == 64
    assert rows["autoencoder"]["status"] == "damaged" and "own/model.safetensors" in rows["autoencoder"]["detail"]
    assert run("models", "verify", "crossflow", "--local-weights", local)[0] == 0


def test_verify_says_what_was_never_fetched(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(Path("cache").absolute()))
    code, out, _ = run("models", "verify", "autoencoder", "--profile", "full")
    assert code == 0 and out.startswith("missing  autoencoder")


class Stranger(BaseHTTPRequestHandler):
    """A server that is some other program."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


def test_free_says_where_no_app_answers(run: Run) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        for url in (f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{server.server_port}/", "http://"):
            code, out, err = run("models", "free", "--url", url)
            assert (code, out) == (2, "") and f"No Synesthete app answers at '{url}'" in err and err.count("\n") == 1
    finally:
        server.shutdown()
        server.server_close()
