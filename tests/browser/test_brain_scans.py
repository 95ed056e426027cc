"""Brain scans in a real browser: seen as soon as they are attached, decoded, and with regions left out."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest
from playwright.sync_api import Locator, Page, expect

from app.ui.new_subject import SUBJECT
from pipelines.fmri.canvas import BLANK
from pipelines.fmri.pipeline import FMRI, GUIDED, LOOKED_UP, OF_SIMULATION
from tests.browser.servers import Server
from tests.browser.test_ask import attach, open_ask, say, turn
from tests.browser.test_page import generate, stage, tab

SCANS = Path("assets/examples/scans")
FIT_MS = 480_000  # a fit takes 20 s of a core that nobody else uses


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server("real", tmp_path_factory.mktemp("scans") / "outputs")
    yield started
    started.stop()


def open_panel(page: Page, server: Server) -> None:
    page.goto(server.url)
    tab(page, "Studio")
    tab(page, FMRI.title)


def look(page: Page) -> Locator:
    return page.locator(".scan-look:visible img")


def pixels_of(shown: Locator) -> np.ndarray:
    """Of a picture that stands in the page itself."""
    data = str(shown.get_attribute("src")).partition("base64,")[2]
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def share_of_blank(shown: Locator) -> float:
    return float((np.abs(pixels_of(shown).astype(int) - BLANK).max(-1) < 6).mean())


def choose(page: Page, name: str) -> None:
    page.get_by_role("radio", name=name, exact=True).check(force=True)  # its own words lie above it


@pytest.mark.parametrize("width", [1440, 390])
def test_an_example_is_seen_on_the_cortex_then_decoded_with_its_badge(
    open_tab: Callable[..., Page], server: Server, width: int
) -> None:
    page = open_tab(viewport={"width": width, "height": 900})
    open_panel(page, server)
    page.get_by_role("button", name="S6 placard").click()
    expect(look(page)).to_have_attribute("alt", re.compile(r"S6, mean of 3 trials. Simulated brain \(sim-v1\)"))
    box = look(page).bounding_box()
    assert box is not None and 300 < box["width"] <= width, "it is as wide as its column, and no wider"
    assert share_of_blank(look(page)) < 0.01

    choose(page, "early")
    expect(look(page)).not_to_have_attribute("src", str(look(page).get_attribute("src")))
    assert share_of_blank(look(page)) > 0.08
    choose(page, "none")
    generate(page)
    made = page.locator(".stage.result:visible .frame img")
    expect(made).to_be_visible()
    expect(stage(page).locator(".badge")).to_have_text(f"{OF_SIMULATION} {GUIDED}")
    expect(look(page)).to_be_visible()

    choose(page, "nearest pictures")
    generate(page)
    expect(stage(page).locator(".badge")).to_have_text(f"{OF_SIMULATION} {LOOKED_UP}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_uploads_are_drawn_or_refused_at_once(page: Page, server: Server, tmp_path: Path) -> None:
    open_panel(page, server)
    values = np.zeros((12, 14, 10), np.float32)
    values[3:9, 3:11, 2:8] = np.random.default_rng(0).normal(size=(6, 8, 6))
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "volume.nii.gz")
    upload = page.locator(".inputs:visible input[type=file]")
    upload.set_input_files(tmp_path / "volume.nii.gz")
    expect(look(page)).to_have_attribute("alt", re.compile("Slices along the third axis"))
    choose(page, "ventral")
    told = page.locator(".scan-look:visible [role=alert]")
    expect(told).to_contain_text("Which voxels of this brain lie in which region is not known")
    generate(page)
    expect(stage(page)).to_have_attribute("role", "alert")

    page.reload()
    tab(page, "Studio")
    tab(page, FMRI.title)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    for name, content, sentence in (
        ("broken.nii.gz", b"\x1f\x8b" + b"no scan" * 9, "is damaged, or not of a kind that is read"),
        ("objects.npy", (tmp_path / "objects.npy").read_bytes(), "Python objects, which are never opened"),
    ):
        (tmp_path / name).write_bytes(content)
        upload.set_input_files(tmp_path / name)
        expect(told).to_contain_text(sentence)
        page.get_by_role("button", name="Remove").or_(page.get_by_label("Clear")).first.click()
        expect(told).to_have_count(0)


def test_in_the_conversation_an_attached_scan_has_a_face(page: Page, server: Server) -> None:
    open_ask(page, server)
    attach(page, SCANS / "S6-placard.npz")
    say(page, "what was this person looking at?")
    face = turn(page, 1).locator(".brought img")
    expect(face).to_be_visible()
    drawn = pixels_of(face)
    assert drawn.shape[0] == drawn.shape[1] and drawn.std() > 20, "the cortex in colour"


def test_a_new_subject_is_fitted_and_decoded_on_the_page(page: Page, server: Server) -> None:
    open_panel(page, server)
    page.get_by_role("button", name="A new subject").click()
    page.get_by_role("button", name=f"{SUBJECT}: 150 simulated pairs").click()
    expect(page.get_by_label("Name of the new subject")).to_have_value(SUBJECT)
    page.get_by_role("button", name="Fit", exact=True).click()
    expect(page.get_by_role("progressbar", name="Progress")).to_be_visible()
    fitted = page.locator(".fitted")
    expect(fitted).to_contain_text(f"{SUBJECT} is known now", timeout=FIT_MS)
    shares = [
        [int(cell.strip("%")) for cell in row.split()[1:]] for row in fitted.locator("tbody tr").all_inner_texts()
    ]
    adapter, _, shuffled = shares[-1]
    assert len(shares) == 2 and adapter > shuffled

    page.get_by_role("button", name=f"{SUBJECT}: a scan to decode then").click()
    expect(look(page)).to_have_attribute("alt", re.compile(f"{SUBJECT}, mean of 3 trials"))
    choose(page, "nearest pictures")
    generate(page)
    expect(stage(page).locator(".badge")).to_have_text(f"{OF_SIMULATION} {LOOKED_UP}")
