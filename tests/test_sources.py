"""Weights from folders, from this repository and from a Hub: verified, or refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from models import sources
from models.catalog import bytes_in_memory, catalog
from models.errors import UserError
from models.machine import choose_device, container_room, memory_budget
from models.sources import Bundled, Folder, Hub, Source, read_sums

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def resolve(source: Source) -> sources.Files:
    return source.resolve(lambda fraction, message: None)


def weights_in(folder: Path) -> Path:
    """A folder of two files and their sums."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file({"w": torch.arange(100.0)}, folder / "model.safetensors")
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("config.json", "model.safetensors")
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))
    return folder


def test_a_checksum_depends_on_names_and_contents_only(tmp_path: Path) -> None:
    one, same = weights_in(tmp_path / "one"), weights_in(tmp_path / "two")
    assert resolve(Folder(one)).checksum == resolve(Folder(same)).checksum
    (same / "SHA256SUMS").unlink()
    (same / "MODEL_CARD.md").write_text("A card says nothing of the weights.")
    plain = weights_in(tmp_path / "three")
    (plain / "SHA256SUMS").unlink()
    sources._verified.cache_clear()
    assert resolve(Folder(plain)).checksum == resolve(Folder(same)).checksum == resolve(Folder(one)).checksum
    (plain / "config.json").rename(plain / "other.json")
    sources._verified.cache_clear()
    sources._checksum_of_files.cache_clear()
    assert resolve(Folder(plain)).checksum != resolve(Folder(one)).checksum


@pytest.mark.parametrize("harm", ["missing", "truncated", "changed", "empty"])
def test_harmed_weights_are_named_and_can_be_restored(tmp_path: Path, harm: str) -> None:
    folder = weights_in(tmp_path / "painter-lite")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": whole[:-1], "changed": whole[:-1] + b"?", "empty": b""}[harm])
    with pytest.raises(UserError) as caught:
        resolve(Folder(folder))
    assert "painter-lite/model.safetensors" in caught.value.sentence
    assert ("missing" if harm == "missing" else "damaged") in caught.value.sentence
    assert Folder(folder).missing() == (("model.safetensors",) if harm == "missing" else ())
    path.write_bytes(whole)
    assert resolve(Folder(folder)).folder == folder


def test_bundled_weights_name_the_command_that_restores_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "ASSETS", tmp_path / "assets" / "weights")
    for harm in (lambda folder: (folder / "SHA256SUMS").unlink(), lambda folder: (folder / "config.json").unlink()):
        folder = weights_in(sources.ASSETS / "painter-lite")
        harm(folder)
        with pytest.raises(UserError) as caught:
            resolve(Bundled("painter-lite"))
        assert "git checkout -- assets/weights/painter-lite" in caught.value.hint
    weights_in(sources.ASSETS / "painter-lite")
    assert resolve(Bundled("painter-lite")).folder == sources.ASSETS / "painter-lite"
    with pytest.raises(UserError):
        resolve(Bundled("nobody"))


@given(st.text(max_size=200))
def test_any_list_of_checksums_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("sums")
    (folder / "SHA256SUMS").write_text(text, encoding="utf-8")
    try:
        sums = read_sums(folder)
    except UserError:
        return
    assert all(len(digest) == 64 and Path(name).name == name for name, digest in sums.items())


def test_a_list_of_checksums_cannot_reach_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  ../secret\n")
    with pytest.raises(UserError, match="damaged"):
        resolve(Folder(tmp_path))


@dataclass
class Served:
    url: str
    files: dict[str, bytes]
    requests: list[str]


@pytest.fixture
def hub() -> Iterator[Served]:
    """A server that speaks as much of the Hub's protocol as a download needs."""
    served = Served("", {"sub/config.json": b"{}", "sub/model.bin": bytes(25_000_000)}, [])

    class Handler(BaseHTTPRequestHandler):
        def respond(self, with_body: bool) -> None:
            served.requests.append(self.path)
            data = served.files.get(self.path.removeprefix(f"/someone/painter/resolve/{COMMIT}/"))
            self.send_response(404 if data is None else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            if data is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("ETag", f'"{hashlib.sha256(data or b"").hexdigest()}"')
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if with_body:
                self.wfile.write(data or b"")

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


def resolve_in_a_new_process(url: str, cache: Path, *names: str) -> dict[str, Any]:
    """The Hub's client reads its address and cache folder when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    environment |= {} if url else {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", RESOLVE, COMMIT, *names],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(result.stdout)
    assert "\r" not in result.stderr, "no progress bar of its own"
    return answer


def test_files_of_a_hub_are_fetched_once_and_then_need_no_network(hub: Served, tmp_path: Path) -> None:
    names = ("config.json", "model.bin")
    first = resolve_in_a_new_process(hub.url, tmp_path, *names)
    assert first["names"] == list(names) == first["missing"]
    assert first["steps"] == sorted(first["steps"]) and first["steps"][-1] == 1.0 and len(set(first["steps"])) > 3
    asked = len(hub.requests)
    offline = resolve_in_a_new_process("http://127.0.0.1:9", tmp_path, *names)
    assert offline["checksum"] == first["checksum"] and offline["missing"] == []
    assert len(hub.requests) == asked
    refused = resolve_in_a_new_process(hub.url, tmp_path, "config.json", "no-such-file")
    assert "'no-such-file' of someone/painter" in refused["sentence"]


def test_a_hub_that_may_not_be_asked_is_one_sentence(tmp_path: Path) -> None:
    answer = resolve_in_a_new_process("", tmp_path, "config.json")
    assert "could not be fetched" in answer["sentence"] and "lite profile" in answer["hint"]


def test_both_profiles_have_the_same_models_and_pinned_places() -> None:
    lite, full = catalog("lite"), catalog("full")
    assert list(lite) == list(full)
    for key in lite:
        assert lite[key].key == full[key].key == key
        assert isinstance(lite[key].source, Bundled) and isinstance(full[key].source, Hub)
        assert full[key].bytes > 100e6 and lite[key].licence and full[key].licence


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


def cgroups(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_memory_left_in_a_container_is_read_from_both_versions_of_control_groups(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/pod/task\n")
    root = tmp_path / "two"
    cgroups(root, {
        "pod/task/memory.max": "max\n", "pod/task/memory.current": "50\n",
        "pod/memory.max": "1000\n", "pod/memory.current": "600\n", "pod/memory.stat": "anon 500\ninactive_file 100\n",
    })  # fmt: skip
    assert container_room(own, root) == [500]
    own.write_text("4:cpu,cpuacct:/\n3:memory:/pod\n0::/\n")
    root = tmp_path / "one"
    cgroups(root, {
        "memory/pod/memory.limit_in_bytes": "1000\n", "memory/pod/memory.usage_in_bytes": "700\n",
        "memory/pod/memory.stat": "cache 1\ntotal_inactive_file 200\n",
    })  # fmt: skip
    assert container_room(own, root) == [500]
    assert container_room(tmp_path / "no such file", root) == []


def test_the_budget_of_this_machine_is_below_its_memory() -> None:
    assert 0 <= memory_budget(torch.device("cpu")) < 2**50


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UserError, match="cuda:99"):
        choose_device("cuda:99")
