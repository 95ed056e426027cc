"""Weights from a Hub: fetched once, gone on with where it broke, or refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from models.sources import Hub
from tests.weight_folders import refusal, resolve

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"


BROKEN_AT = 15_000_000
LARGE = "sub/model.safetensors"


@dataclass
class Served:
    """``plan``: what becomes of the next downloads of the large file: "break" in the middle, "refuse", or serve it."""

    url: str
    files: dict[str, bytes]
    requests: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    plan: list[str] = field(default_factory=list)
    claimed_size: int | None = None


@pytest.fixture
def hub() -> Iterator[Served]:
    """A server that speaks as much of the Hub's protocol as a download needs."""
    served = Served("", {"sub/config.json": b"{}", LARGE: torch.arange(6_250_000).numpy().tobytes()[:25_000_000]})

    class Handler(BaseHTTPRequestHandler):
        def respond(self, with_body: bool) -> None:
            served.requests.append(self.path)
            name = self.path.removeprefix(f"/someone/painter/resolve/{COMMIT}/")
            data = served.files.get(name)
            wish = served.plan.pop(0) if with_body and name == LARGE and served.plan else "serve"
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            start = int(asked[1]) if asked else 0
            if with_body and name == LARGE:
                served.ranges.append(self.headers.get("Range"))
            self.send_response(404 if data is None else 503 if wish == "refuse" else 206 if asked else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            if data is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("ETag", f'"{hashlib.sha256(data or b"").hexdigest()}"')
            if served.claimed_size is not None:
                self.send_header("X-Linked-Size", str(served.claimed_size))
            rest = b"" if wish == "refuse" else (data or b"")[start:]
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{start + len(rest) - 1}/{len(data or b'')}")
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            if with_body:
                self.wfile.write(rest[:BROKEN_AT] if wish == "break" else rest)

        def do_HEAD(self) -> None:
            self.respond(False)

        def do_GET(self) -> None:
            self.respond(True)

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    yield served
    server.shutdown()
    server.server_close()


@pytest.fixture
def painter(hub: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """Two files of the server, to be fetched in this process into an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return Hub("someone/painter", COMMIT, ("config.json", "model.safetensors"), "sub")


RESOLVE = """
import json, sys
from models.errors import UserError
from models.sources import Hub
source = Hub("someone/painter", sys.argv[1], tuple(sys.argv[2:]), "sub")
steps = []
answer = {"missing": source.missing()}
try:
    files = source.resolve(lambda fraction, message: steps.append(fraction))
    answer |= {"checksum": files.checksum, "names": sorted(path.name for path in files.folder.iterdir())}
except UserError as error:
    answer |= {"sentence": error.sentence, "hint": error.hint}
print(json.dumps(answer | {"steps": steps}))
"""


def limit_files(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def resolve_in_a_new_process(url: str, cache: Path, *names: str, file_limit: int | None = None) -> dict[str, Any]:
    """The Hub's client reads its address and cache folder when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    environment |= {} if url else {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", RESOLVE, COMMIT, *names],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True,
        preexec_fn=(lambda: limit_files(file_limit)) if file_limit else None,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(result.stdout)
    assert "\r" not in result.stderr, "no progress bar of its own"
    return answer


def test_files_of_a_hub_are_fetched_once_and_then_need_no_network(hub: Served, tmp_path: Path) -> None:
    names = ("config.json", "model.safetensors")
    first = resolve_in_a_new_process(hub.url, tmp_path, *names)
    assert first["names"] == list(names) == first["missing"]
    assert first["steps"] == sorted(first["steps"]) and first["steps"][-1] == 1.0 and len(set(first["steps"])) > 3
    asked = len(hub.requests)
    offline = resolve_in_a_new_process("http://127.0.0.1:9", tmp_path, *names)
    assert offline["checksum"] == first["checksum"] and offline["missing"] == []
    assert len(hub.requests) == asked
    refused = resolve_in_a_new_process(hub.url, tmp_path, "config.json", "no-such-file")
    assert "no 'sub/no-such-file' of someone/painter" in refused["sentence"]


def test_a_hub_that_may_not_be_asked_is_one_sentence(tmp_path: Path) -> None:
    answer = resolve_in_a_new_process("", tmp_path, "config.json")
    assert "could not be fetched" in answer["sentence"] and "lite profile" in answer["hint"]


def test_a_fetch_that_breaks_goes_on_where_it_stopped(hub: Served, painter: Hub) -> None:
    hub.plan = ["break", "refuse"]
    error = refusal(painter)
    assert "'sub/model.safetensors' of someone/painter" in error.sentence and "are kept" in error.sentence
    assert "goes on from there" in error.hint
    assert painter.missing() == ("model.safetensors",)
    kept = int(re.sub(r"\D", "", hub.ranges[1] or ""))
    assert 0 < kept <= BROKEN_AT

    hub.ranges.clear()
    hub.files["sub/config.json"] = b"{} "  # would only be seen if it were fetched once more
    shares: list[float] = []
    files = painter.resolve(lambda share, message: shares.append(share))
    assert hub.ranges == [f"bytes={kept}-"]
    assert shares == sorted(shares) and kept / 25_000_002 - 0.01 < shares[0] < 0.9 and shares[-1] == 1.0
    assert (files.folder / "model.safetensors").read_bytes() == hub.files[LARGE]
    assert list(files.folder.parents[3].glob("blobs/*.part")) == []


def test_a_connection_that_comes_back_soon_is_not_even_noticed(hub: Served, painter: Hub) -> None:
    hub.plan = ["break", "serve"]
    files = resolve(painter)
    assert (files.folder / "model.safetensors").read_bytes() == hub.files[LARGE]
    assert hub.ranges[0] is None and hub.ranges[1] is not None


def test_a_part_that_does_not_fit_the_rest_is_thrown_away(hub: Served, painter: Hub) -> None:
    blobs = Path(constants.HF_HUB_CACHE) / "models--someone--painter" / "blobs"
    blobs.mkdir(parents=True)
    part = blobs / f"{hashlib.sha256(hub.files[LARGE]).hexdigest()}.part"
    part.write_bytes(b"?" * 1000)
    assert "arrived damaged" in refusal(painter).sentence and not part.exists()
    part.write_bytes(bytes(30_000_000))  # longer than the whole
    assert (resolve(painter).folder / "model.safetensors").read_bytes() == hub.files[LARGE]


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(hub: Served, painter: Hub) -> None:
    hub.claimed_size = 10**17
    error = refusal(painter)
    assert "200000000.00 GB" in error.sentence and "HF_HOME" in error.hint and hub.ranges == []


def test_a_cache_that_is_harmed_is_told_with_the_file_to_delete(hub: Served, painter: Hub) -> None:
    stored = (resolve(painter).folder / "model.safetensors").resolve()
    stored.write_bytes(b"!" + hub.files[LARGE][1:])
    error = refusal(painter)
    assert "model.safetensors' of someone/painter is damaged" in error.sentence and str(stored) in error.hint
    stored.unlink()
    assert (resolve(painter).folder / "model.safetensors").read_bytes() == hub.files[LARGE]


def test_code_on_a_hub_is_refused_by_its_list_and_by_its_config(hub: Served, painter: Hub) -> None:
    listed = replace(painter, files=(*painter.files, "modeling_painter.py"))
    assert "'modeling_painter.py'" in refusal(listed).sentence and hub.requests == []
    hub.files["sub/config.json"] = b'{"auto_map": {"AutoModel": "modeling_painter.Painter"}}'
    assert "auto_map" in refusal(replace(painter, files=("config.json",))).sentence


def test_what_answers_but_is_no_hub_is_one_sentence(hub: Served, painter: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    assert "could not be fetched" in refusal(painter).sentence
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(painter).sentence


def test_a_full_disk_is_told_and_keeps_what_arrived(hub: Served, tmp_path: Path) -> None:
    names = ("config.json", "model.safetensors")
    full = resolve_in_a_new_process(hub.url, tmp_path, *names, file_limit=12_000_000)
    assert "no space left on the disk to fetch 'sub/model.safetensors'" in full["sentence"]
    assert "are kept" in full["sentence"] and "goes on" in full["hint"]
    hub.ranges.clear()
    assert resolve_in_a_new_process(hub.url, tmp_path, *names)["names"] == list(names)
    assert len(hub.ranges) == 1 and int(re.sub(r"\D", "", hub.ranges[0] or "")) > 10_000_000
