"""A new subject on the page: what archives of pictures are taken, how a fit goes, and that the page then decodes."""

from __future__ import annotations

import io
import re
import threading
import zipfile
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image as PillowImage

from app.adapters import DECODER, SEEING, Fitted
from app.settings import load_settings
from app.studio import Saved, Studio
from app.ui.learning_curve import learning_curve
from app.ui.new_subject import TITLE, NewSubject
from app.ui.studio_tab import PipelinePanel
from models.errors import UserError
from models.nets import brain_fitting
from models.picture_text import PictureText
from pipelines.base import Progress, Registry
from pipelines.fmri import adapting
from pipelines.fmri.adapting import Curve
from pipelines.fmri.picture_archives import unpack
from pipelines.fmri.picture_files import picture_files
from pipelines.fmri.pipeline import FMRI
from pipelines.media import Text
from tests.tiny_models import another_being_built, resident
from tests.watched_pipelines import Flicker

COUNT, VOXELS = 60, 90


def picture(seed: int, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    PillowImage.fromarray(corners).resize((48, 48), PillowImage.Resampling.BICUBIC).save(file, form)
    return file.getvalue()


def packed(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Scans and an archive of what was seen."""
    folder = tmp_path_factory.mktemp("given")
    values = np.random.default_rng(0).normal(size=(COUNT, VOXELS)).astype(np.float32)
    np.savez(folder / "scans.npz", betas=values, image_id=np.arange(COUNT))
    files = {f"seen/{number}.webp": picture(number, "WEBP") for number in range(COUNT)}
    files |= {"__MACOSX/seen/._0.webp": b"x", "seen/.DS_Store": b"x"}
    return folder / "scans.npz", packed(folder / "seen.zip", files)


@pytest.fixture
def page(tmp_path: Path) -> tuple[Studio, NewSubject]:
    studio = Studio(load_settings(output_folder=tmp_path / "outputs"), Registry([FMRI()]))
    with gr.Blocks():
        panel = NewSubject(studio, PipelinePanel(studio, FMRI()))
    return studio, panel


def outcomes(panel: NewSubject, *given: Any) -> list[str]:
    return [updates[panel._outcome] for updates in panel._run(*given) if panel._outcome in updates]


def test_a_fit_tells_how_far_it_is_and_the_page_takes_the_decoder_up(
    page: tuple[Studio, NewSubject], given: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brain_fitting, "MOST_STEPS", 10)
    studio, panel = page
    scans, pictures = given
    before = studio.manager.record(DECODER).checksum
    said = outcomes(panel, [str(scans)], str(pictures), " Ann ")
    percents = [int(re.findall(r'valuenow="(\d+)"', html)[0]) for html in said[:-1]]
    assert len(percents) >= 4 and percents == sorted(percents) and "Fitting on all 60 pictures" in said[-2]
    assert "Ann is known now" in said[-1] and "must be z-scored" not in said[-1]
    assert studio.manager.record(DECODER).checksum != before
    with studio.manager.lease(DECODER) as decoder:
        assert decoder.subjects[-1] == "Ann" and decoder.adapter("Ann").voxels == VOXELS
    again = outcomes(panel, [str(scans)], str(pictures), "Ann")
    assert "is a subject already" in again[-1]


def test_what_sees_the_pictures_is_leased_and_it_is_said_by_whom(
    page: tuple[Studio, NewSubject], given: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brain_fitting, "MOST_STEPS", 1)
    studio, panel = page
    held: set[tuple[str, str]] = set()
    see = PictureText.embed_pictures

    def seen(*args: Any) -> Any:
        held.update((row.key, holder) for row in studio.manager.status() for holder in row.holders)
        return see(*args)

    monkeypatch.setattr(PictureText, "embed_pictures", seen)
    outcomes(panel, [str(given[0])], str(given[1]), "Ann")
    assert held == {(key, TITLE) for key in SEEING}
    assert set(resident(studio.manager)) == set(SEEING) and not any(row.holders for row in studio.manager.status())


def test_a_fit_waits_for_a_generation_and_a_generation_for_a_fit(
    page: tuple[Studio, NewSubject], given: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brain_fitting, "MOST_STEPS", 1)
    studio, panel = page
    flicker, begun, go_on = Flicker(), threading.Event(), threading.Event()
    studio.registry = Registry([FMRI(), flicker])

    def until_told() -> None:
        begun.set()
        assert go_on.wait(30)

    flicker.before_result = until_told
    generation = threading.Thread(target=lambda: list(studio.generate("flicker", [Text("a bee")], {})))
    generation.start()
    assert begun.wait(30)
    fit = (updates[panel._outcome] for updates in panel._run([str(given[0])], str(given[1]), "Ann"))
    assert "Reading the scans" in next(fit) and "Waiting for another generation" in next(fit)
    assert not any(row.holders for row in studio.manager.status())
    go_on.set()
    assert any("Looking at 60 pictures" in html for html in fit)
    waiting = studio.generate("flicker", [Text("a wasp")], {})
    first = next(waiting)
    assert isinstance(first, Progress) and "Waiting for another generation" in first.message
    *_, last = fit
    assert "Ann is known now" in last and isinstance(list(waiting)[-1], Saved)
    generation.join()


@pytest.mark.parametrize("stage", ["Looking at", "Fitting on 48"])
def test_a_fit_stops_in_the_middle_of_a_stage(
    stage: str, page: tuple[Studio, NewSubject], given: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    studio, panel = page
    monkeypatch.setattr(adapting, "AT_ONCE", 1)
    steps, stopped, said = [0], threading.Event(), ""

    def counted(holder: Any, name: str) -> None:
        whole = getattr(holder, name)

        def step(*args: Any, **kwargs: Any) -> Any:
            steps[0] += 1
            if stopped.is_set():
                at_stop.setdefault("steps", steps[0])
            return whole(*args, **kwargs)

        monkeypatch.setattr(holder, name, step)

    at_stop: dict[str, int] = {}
    counted(PictureText, "embed_pictures")
    counted(brain_fitting, "_loss")
    for updates in panel._run([str(given[0])], str(given[1]), "Ann"):
        stopped, said = updates.get(panel._stopped, stopped), updates[panel._outcome]
        if stage in said:
            stopped.set()
    assert "Stopped; nothing has changed." in said and steps[0] <= at_stop.get("steps", steps[0]) + 2
    assert not (studio.settings.output_folder / DECODER).exists()


def test_a_stopped_fit_changes_nothing(page: tuple[Studio, NewSubject], given: tuple[Path, Path]) -> None:
    studio, panel = page
    steps = panel._run([str(given[0])], str(given[1]), "Ann")
    next(steps)[panel._stopped].set()
    *_, last = steps
    assert "Stopped; nothing has changed." in last[panel._outcome]
    assert not (studio.settings.output_folder / DECODER).exists()


def test_a_fit_has_its_weights_while_another_model_is_built(
    page: tuple[Studio, NewSubject], given: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(brain_fitting, "MOST_STEPS", 1)
    with another_being_built(tmp_path):
        said = outcomes(page[1], [str(given[0])], str(given[1]), "Ann")
    assert "Ann is known now" in said[-1]


@pytest.mark.parametrize(
    ("scans", "pictures", "name", "problem"),
    [
        (False, True, "Ann", "The scans are missing."),
        (True, False, "Ann", "The pictures are missing."),
        (True, True, "  ", "The name is missing."),
        (True, True, "S1", "is a subject already"),
    ],
)
def test_what_is_missing_is_said_and_can_be_put_right(
    scans: bool, pictures: bool, name: str, problem: str, page: tuple[Studio, NewSubject], given: tuple[Path, Path]
) -> None:
    _, panel = page
    said = outcomes(panel, [str(given[0])] if scans else None, str(given[1]) if pictures else None, name)
    assert problem in re.sub(r"&#x27;", "'", said[-1]) and 'role="alert"' in said[-1]


def test_a_table_in_the_archive_says_which_picture_is_which(tmp_path: Path) -> None:
    files = {"apple.png": picture(1), "bell.png": picture(2), "seen.CSV": b"42,apple.png\n7,bell.png\n"}
    (tmp_path / "out").mkdir()
    assert unpack(packed(tmp_path / "a.zip", files), tmp_path / "out") == tmp_path / "out" / "seen.CSV"
    assert (tmp_path / "out" / "apple.png").read_bytes() == files["apple.png"]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"words.txt": b"x", "__MACOSX/._1.png": b"x"}, "No picture is in the archive"),
        ({"a/1.png": b"x", "b/1.png": b"x"}, "Two files in the archive are called '1.png'"),
        ({"1.png": b"x", "../2.png": b"x"}, "leads out of it"),
        ({"/etc/1.png": b"x"}, "leads out of it"),
        ({"1.png": b"x", "a.csv": b"x", "b.csv": b"x"}, "There are 2 tables"),
    ],
)
def test_odd_archives_are_refused(files: dict[str, bytes], problem: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=problem) as refused:
        unpack(packed(tmp_path / "a.zip", files), tmp_path / "out")
    assert refused.value.hint and not (tmp_path / "2.png").exists()


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/secret.png", "a/../../out2/1.png", "nul\0/../../../x.png"])
def test_a_table_in_an_archive_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    files = {"1.png": picture(1), "seen.csv": f"1,1.png\n2,{name}\n".encode()}
    with pytest.raises(UserError, match="names a file outside of it") as refused:
        unpack(packed(tmp_path / "a.zip", files), tmp_path / "out")
    assert refused.value.hint and "\n" not in refused.value.sentence
    table = tmp_path / "free.csv"  # whose table it is on the command line may name what they can read
    table.write_text(f"1,{tmp_path}/out/1.png\n")
    assert picture_files(table) == [(1, tmp_path / "out" / "1.png")]


@pytest.mark.parametrize("way", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_archives_packed_in_another_way_are_refused_whole_or_damaged(way: int, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with zipfile.ZipFile(tmp_path / "a.zip", "w", way) as archive:
        archive.writestr("1.png", picture(1))
    whole = (tmp_path / "a.zip").read_bytes()
    for data in (whole, whole[:60] + b"\xff" * 40 + whole[100:]):
        (tmp_path / "a.zip").write_bytes(data)
        with pytest.raises(UserError, match="packed in a way that is not read"):
            unpack(tmp_path / "a.zip", tmp_path / "out")


def test_what_is_no_archive_or_would_fill_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "no.zip").write_bytes(b"PK\3\4 no archive")
    with pytest.raises(UserError, match="no zip archive"):
        unpack(tmp_path / "no.zip", tmp_path / "out")
    whole = packed(tmp_path / "a.zip", {"1.png": picture(1)}).read_bytes()
    (tmp_path / "torn.zip").write_bytes(whole.replace(picture(1)[20:40], b"\0" * 20))
    with pytest.raises(UserError, match="no zip archive"):
        unpack(tmp_path / "torn.zip", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", bytes(3000))
    monkeypatch.setattr("pipelines.fmri.picture_archives.MOST_BYTES", 2000)
    with pytest.raises(UserError, match="too large"):
        unpack(tmp_path / "bomb.zip", tmp_path / "out")


def test_the_curve_is_drawn_as_it_is() -> None:
    rows = {
        50: {"adapter": {"top1": 0.1}, "shuffled": {"top1": 0.0}, "ridge": {"top1": 0.2}},
        150: {"adapter": {"top1": 0.4}, "shuffled": {"top1": 0.1}, "ridge": {"top1": 0.2}},
    }
    html = learning_curve(Fitted("A<b>", Path("folder"), Curve(30, rows, {"top1": 1 / 30}), z_scored=True))
    assert '<path class="adapter" d="M0.0 135.0L600.0 0.0"/>' in html
    assert '<path class="ridge" d="M0.0 90.0L600.0 90.0"/>' in html
    assert '<th scope="row">150</th><td>40%</td><td>20%</td><td>10%</td>' in html
    assert "A&lt;b&gt; is known now" in html and "A<b>" not in html and "must be z-scored" in html
    assert "By chance 3%" in html and "--local-weights" in html
