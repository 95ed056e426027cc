"""Weights from folders and from this repository: verified, or refused in one sentence."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import checksums, sources
from models.errors import UserError
from models.sources import Bundled, FirstOf, Folder, Source, read_sums
from models.spec import bytes_in_memory
from tests.weight_folders import refusal, resolve, weights_in, write_sums


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


def test_the_parts_of_a_model_in_folders_of_their_own_count_and_are_looked_at(tmp_path: Path) -> None:
    folder = weights_in(tmp_path / "painter-lite")
    (folder / "SHA256SUMS").unlink()
    without, size = resolve(Folder(folder)).checksum, bytes_in_memory(folder)
    part = weights_in(folder / "unet")
    (part / "SHA256SUMS").unlink()
    (folder / ".git").mkdir()
    (folder / ".git" / "program.py").write_text("raise SystemExit")  # hidden, and never read
    first = resolve(Folder(folder)).checksum
    assert first != without and bytes_in_memory(folder) == 2 * size > 0
    whole = (part / "model.safetensors").read_bytes()
    (part / "model.safetensors").write_bytes(whole[:-1] + b"?")
    assert resolve(Folder(folder)).checksum not in (first, without)
    (part / "unet.py").write_text("raise SystemExit")
    with pytest.raises(UserError, match=r"unet/unet\.py"):
        resolve(Folder(folder))


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
