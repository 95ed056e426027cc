"""What somebody attached: it is kept bit for bit while there is anything made from it, and a remix begins with it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.assistant import Assistant
from app.library import Library
from app.library_index import INDEX_NAME
from app.settings import Settings
from app.studio import Saved, Studio
from app.ui import build
from app.ui.host import Host
from app.ui.inputs import artifact_of, component_for, value_of
from app.ui.talk import Talk
from models.errors import UserError
from pipelines.base import EXAMPLES
from pipelines.media import Artifact, Audio, BrainScan, Image, Provenance, Text, Video, load_artifact, suffixes_of
from tests.edit_examples import REGISTRY, clip
from tests.library_examples import made, picture
from tests.media_examples import every_file, examples, few
from tests.media_files import clip_file, shades, sound_file, tone
from tests.scan_files import AFFINE, cifti, cortex, gifti, hdf5, mgh, nifti, normal, npz, session

DAY = 86_400


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    library = Library(tmp_path / "outputs")
    yield library
    library.close()


def recalled(library: Library, artifact: Artifact) -> Artifact:
    """What the library gives for the artifact's hash, which is one of that hash."""
    again = library.load_by_hash(artifact.content_hash())
    assert type(again) is type(artifact) and replace(again).content_hash() == artifact.content_hash()
    return again


def inputs_in(library: Library) -> list[Path]:
    return [path for path in library.folder.glob("inputs/*/*") if path.is_file()]


def assert_kept(library: Library, path: Path, medium: str | None = None) -> None:
    """A file that was attached is kept as it is, and taken out again it is what it was, in a component too."""
    attached = load_artifact(path, medium)
    assert library.keep_input(attached) is attached
    again = recalled(library, attached)
    assert library.keep_input(again) is again
    shown = artifact_of(again.medium, value_of(again), "it")
    assert shown.content_hash() == attached.content_hash()


# Every medium


def written(folder: Path) -> dict[str, tuple[Path, str | None]]:
    """Files of other programs, by a name for each, and as which medium they are attached."""
    frames = shades(5, 63, 47)
    rng = np.random.default_rng(0)
    still = PIL.Image.fromarray(rng.integers(0, 256, (33, 31, 3), np.uint8))
    found: dict[str, tuple[Path, str | None]] = {}

    def put(name: str, write: Callable[[Path], Any], medium: str | None = None) -> None:
        path = folder / name
        write(path)
        found[f"{name} as {medium}" if medium else name] = (path, medium)

    def put_bytes(name: str, data: bytes) -> None:
        put(name, lambda path: path.write_bytes(data))

    for name in ("it.jpg", "it.bmp", "it.tiff", "it.avif", "it.webp"):
        put(name, still.save)
    put("moving.gif", lambda path: still.save(path, save_all=True, append_images=[still.rotate(90)], duration=70))
    put("moving.gif", lambda path: None, "image")
    for name, codec in (
        ("it.mp4", ("mp4", "libx264")),
        ("it.mov", ("mov", "libx264")),
        ("it.webm", ("webm", "libvpx-vp9")),
        ("it.mkv", ("matroska", "libx264")),
        ("it.avi", ("avi", "mpeg4")),
    ):
        sound = tone(0.3) if name in ("it.mp4", "it.mov", "it.mkv") else None
        size = 64 if codec[1] != "libvpx-vp9" else 48
        put_bytes(name, clip_file(codec, shades(5, size, 48), sound=sound))
    put("it.mp4", lambda path: None, "audio")
    put("odd.mp4", lambda path: Video(np.array(frames), 23.976).save(path))
    for name, codec in (
        ("it.mp3", ("mp3", "libmp3lame")),
        ("it.m4a", ("ipod", "aac")),
        ("it.opus", ("ogg", "libopus")),
    ):
        put_bytes(name, sound_file(codec, tone(0.4)))
    put_bytes("bom.txt", b"\xef\xbb\xbfa red apple\r\n")
    put("it.npy", lambda path: np.save(path, normal(3, 50)))
    put("betas.npz", lambda path: npz(path, normal(3, 50)))
    put("surface.npz", lambda path: npz(path, normal(2 * 10_242)))
    put("raw.nii", lambda path: nifti(path, session((3, 4, 5))[..., :2]))
    put("it.hdf5", lambda path: hdf5(path, session((3, 4, 5))))
    put("one.mgh", lambda path: mgh(path, normal(1, 10_242)))
    put("lh.one.mgh", lambda path: mgh(path, normal(1, 10_242)))
    put("rh.one.mgz", lambda path: mgh(path, normal(2, 10_242)))
    put("it.func.gii", lambda path: gifti(path, normal(1, 10_242), "CortexLeft"))
    vertices = [np.arange(32_492), np.arange(5, 32_492)]
    put("91k.dscalar.nii", lambda path: cifti(path, normal(1, 64_979), cortex(vertices, 32_492)))
    return found


@pytest.mark.parametrize(("artifact", "suffix"), every_file())
def test_what_is_attached_in_a_format_of_ours_is_kept_as_it_is(
    artifact: Artifact, suffix: str, library: Library, tmp_path: Path
) -> None:
    path = tmp_path / f"it{suffix}"
    path.write_bytes(artifact.encode(suffix))
    assert_kept(library, path)
    assert [kept.read_bytes() for kept in inputs_in(library)] == [path.read_bytes()]


def test_what_is_attached_in_a_format_of_others_is_kept_as_it_is(library: Library, tmp_path: Path) -> None:
    files = written(tmp_path)
    for path, medium in files.values():
        assert_kept(library, path, medium)
    sides = [load_artifact(tmp_path / name) for name in ("one.mgh", "lh.one.mgh", "rh.one.mgz")]
    spaces = [recalled(library, scan).space for scan in sides if isinstance(scan, BrainScan)]  # type: ignore[attr-defined]
    assert spaces == ["fsaverage5, one hemisphere", "fsaverage5 left", "fsaverage5 right"]


def test_every_example_is_kept_as_it_is(library: Library) -> None:
    endings = tuple(end for kind in ("image", "scan") for end in suffixes_of(kind))
    paths = [path for path in EXAMPLES.rglob("*") if path.name.endswith(endings) and path.name != "mask.nii.gz"]
    assert len(paths) > 20
    for path in paths:
        assert_kept(library, path)


@few
@given(
    artifact=st.one_of(
        st.sampled_from(examples()),
        st.builds(
            lambda *clip_of: clip(*clip_of), st.integers(0, 9), st.integers(1, 5), st.sampled_from([0.7, 12, 23.976])
        ),
        st.builds(
            lambda shape, space, placed: BrainScan(
                normal(*shape), space, "S1", affine=AFFINE.astype(np.float32) if placed and len(shape) > 2 else None
            ),
            st.sampled_from(
                [(7,), (2, 7), (3, 4, 5), (3, 4, 5, 2), (2, 40_000), (40_000,), (2, 10_242), (1, 256, 256)]
            ),
            st.sampled_from(["unknown", "MNI152", "fsaverage5 left"]),
            st.booleans(),
        ),
    )
)
def test_what_comes_from_no_file_is_kept_as_what_is_returned(
    artifact: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> None:
    library = Library(tmp_path_factory.mktemp("library"))
    kept = library.keep_input(artifact)
    recalled(library, kept)
    if isinstance(artifact, Video):
        assert len(kept.frames) == len(artifact.frames)  # type: ignore[attr-defined]
    elif not isinstance(artifact, BrainScan) or artifact.space != "unknown":
        assert kept is artifact
    library.close()


@pytest.mark.parametrize("count", [64_984, 81_924])
def test_a_whole_cortex_is_attached_and_used(count: int, tiny_studio: Studio, tmp_path: Path) -> None:
    if count == 64_984:
        path = cifti(tmp_path / "it.dscalar.nii", normal(2, count), cortex([np.arange(32_492)] * 2, 32_492))
    else:
        path = tmp_path / "it.npy"
        np.save(path, normal(count))
    talk = Talk()
    Host(Assistant(tiny_studio)).take(talk, "what is this?", [str(path)])
    scan = tiny_studio.library.load_by_hash(talk.conversation.hashes[1])
    assert isinstance(scan, BrainScan) and scan.values.shape[-1] == count
    made_here = replace(scan, subject="S1")  # from no file
    assert tiny_studio.library.keep_input(made_here) is made_here
    recalled(tiny_studio.library, made_here)
    entry = tiny_studio.library.add(scan.with_provenance(made()), "a cortex")
    assert tiny_studio.library.load(entry.id).content_hash() == scan.content_hash()


# What was made of it


@pytest.mark.parametrize("from_file", [True, False], ids=["file", "arrays"])
def test_a_remix_of_a_clip_begins_with_the_very_frames(
    from_file: bool, tiny_settings: Settings, tiny_studio: Studio, tmp_path: Path
) -> None:
    studio = Studio(tiny_settings, REGISTRY, tiny_studio.manager)
    given = Video(np.array(shades(5, 63, 47)), 12.0, Audio(tone(0.3), 48_000))
    if from_file:
        (tmp_path / "it.mkv").write_bytes(clip_file(("matroska", "libx264"), shades(5), sound=tone(0.2)))
        given = load_artifact(tmp_path / "it.mkv", "video")  # type: ignore[assignment]
    [first] = [event for event in studio.generate("video-reverse", [given], {}) if isinstance(event, Saved)]
    name, inputs, params = studio.remix(first.entry.id)
    parents = first.entry.provenance.parents
    assert tuple(item.content_hash() for item in inputs) == parents
    assert not from_file or parents == (given.content_hash(),)
    shown = artifact_of("video", component_for("video", "Clip").postprocess(value_of(inputs[0])).path, "Clip")
    [again] = [event for event in studio.generate(name, [shown], params) if isinstance(event, Saved)]
    assert again.artifact.content_hash() == first.artifact.content_hash()
    assert again.entry.content_hash == first.entry.content_hash
    assert recalled(studio.library, studio.library.load(first.entry.id)).provenance == first.entry.provenance


def test_a_clip_that_was_made_is_not_kept_again_as_what_another_was_made_from(
    tiny_settings: Settings, tiny_studio: Studio
) -> None:
    studio = Studio(tiny_settings, REGISTRY, tiny_studio.manager)
    [first] = [event for event in studio.generate("video-reverse", [clip()], {}) if isinstance(event, Saved)]
    before = inputs_in(studio.library)
    loaded = studio.library.load(first.entry.id)
    assert loaded.content_hash() == first.entry.content_hash
    [second] = [event for event in studio.generate("video-reverse", [loaded], {}) if isinstance(event, Saved)]
    assert inputs_in(studio.library) == before
    [given] = studio.remix(second.entry.id)[1]
    assert given.content_hash() == loaded.content_hash()


def test_a_file_that_holds_something_else_by_now_is_not_what_was_asked_for(library: Library) -> None:
    entry = library.add(picture(), "x")
    kept = library.keep_input(picture(seed=1))
    others = [entry.path, *inputs_in(library)]
    for path in others:
        path.write_bytes(picture(seed=7).encode(".png"))
    for content_hash in (entry.content_hash, kept.content_hash()):
        with pytest.raises(UserError, match="not in the gallery any more"):
            library.load_by_hash(content_hash)
    assert len(others) == 2


def test_what_a_sidecar_says_goes_into_what_is_kept(library: Library, tmp_path: Path) -> None:
    picture().save(tmp_path / "it.png")
    plain = picture().with_provenance(None).encode(".png")
    (tmp_path / "it.png").write_bytes(plain)
    sidecar = picture().sidecar(plain)
    (tmp_path / "it.png.json").write_bytes(sidecar)
    attached = library.keep_input(load_artifact(tmp_path / "it.png"))
    assert attached.provenance == recalled(library, attached).provenance == made()


def test_with_another_provenance_it_is_the_same_and_with_other_contents_it_is_not(tmp_path: Path) -> None:
    Image(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "it.webp")
    loaded = Image.load(tmp_path / "it.webp")
    assert loaded.source == (".webp", (tmp_path / "it.webp").read_bytes())
    before = loaded.content_hash()
    said = loaded.with_provenance(made())
    assert isinstance(said, Image) and said.pixels is loaded.pixels and said.source == loaded.source
    assert said.content_hash() == before and loaded.provenance is None
    other = replace(loaded, pixels=np.ones((4, 4, 3), np.uint8))
    assert other.source is None and other.content_hash() != before


# How long it stays


def age(library: Library, seconds: float) -> None:
    """Have everything that was attached been used so long ago for the last time."""
    library._connection.execute("UPDATE inputs SET used = used - ?", (seconds,))


def from_hash(content_hash: str) -> Provenance:
    given: dict[str, Any] = {"medium": "image", "hash": content_hash}
    return made().model_copy(update={"inputs": (given,), "parents": (content_hash,)})


def test_what_nothing_was_made_from_goes_after_a_day_and_the_rest_with_what_was_made(library: Library) -> None:
    used, unused = library.keep_input(picture(seed=1)), library.keep_input(picture(seed=2))
    entries = [library.add(picture(seed=seed).with_provenance(from_hash(used.content_hash())), "x") for seed in (3, 4)]
    age(library, DAY - 60)
    library.sweep(older_than=0)
    assert len(inputs_in(library)) == 2
    age(library, 120)
    library.keep_input(unused)  # attached once more
    library.sweep()
    assert len(inputs_in(library)) == 2
    age(library, DAY + 60)
    library.close()
    library = Library(library.folder)
    recalled(library, used)
    with pytest.raises(UserError, match="Attach it again"):
        library.load_by_hash(unused.content_hash())
    library.remove(entries[0].id)
    recalled(library, used)
    library.remove(entries[1].id)
    assert inputs_in(library) == []
    recalled(library, library.keep_input(used))


def test_a_sweep_takes_old_temporary_files_of_inputs_and_nothing_that_the_index_does_not_know(library: Library) -> None:
    kept = library.keep_input(picture(seed=1))
    library.close()
    (library.folder / INDEX_NAME).rename(library.folder / "elsewhere")
    folder = inputs_in(library)[0].parent
    for name, seconds in ((".old.tmp", 4000), (".new.tmp", 10)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (time.time() - seconds,) * 2)
    library = Library(library.folder)
    names = {path.name for path in folder.iterdir()}
    assert ".new.tmp" in names and ".old.tmp" not in names and len(names) == 2
    recalled(library, kept)
    library.close()


def test_the_page_leaves_nothing_in_the_temporary_folder_but_its_cache_which_is_swept(
    tiny_studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    shown = [Path(value_of(artifact)) for artifact in examples() if not isinstance(artifact, Text)]
    assert all(path.is_relative_to(tmp_path / "gradio") for path in shown)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("synesthete-")] == []
    frequency, oldest = build(tiny_studio).delete_cache or (0, 0)
    assert 0 < frequency <= oldest <= DAY


def test_a_clip_of_another_program_is_shown_as_it_is(tmp_path: Path) -> None:
    component = component_for("video", "Clip")
    path = tmp_path / "it.mov"
    path.write_bytes(clip_file(("mov", "libx264"), shades(2)))
    assert component.postprocess(str(path)).path == str(path) and component.postprocess(None) is None
