"""The Ask tab in a real browser: what a person says, sees, changes and gets."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image as PillowImage
from playwright.sync_api import Locator, Page, Route, expect

from pipelines.media import load_artifact
from tests.browser.servers import Server
from tests.browser.test_page import assert_fits, assert_readable, tab

HEIC = Path(__file__).parent.parent / "golden" / "on_its_side.heic"

CHAIN = "a picture of a bell, then a sound of it"


def open_ask(page: Page, server: Server) -> None:
    page.goto(server.url)
    expect(box(page)).to_be_visible()


def box(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Your request")


def say(page: Page, words: str) -> None:
    box(page).fill(words)
    page.keyboard.press("Enter")


def attach(page: Page, *paths: Path) -> None:
    page.locator(".composer input[type=file]").set_input_files(paths)
    expect(page.locator(".composer .thumbnail-item")).to_have_count(len(paths))


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).last.click()


def turn(page: Page, number: int) -> Locator:
    return page.get_by_role("article", name=f"Turn {number}", exact=True)


def picture(page: Page, number: int) -> Locator:
    """The picture ``@number``."""
    return page.locator(f'.piece[data-number="{number}"] .frame img')


def editor(page: Page) -> Locator:
    return page.locator(".editor")


def run_slowly(page: Page, words: str) -> None:
    """Ask for a picture, and for the same in a hundred steps of a tenth of a second."""
    say(page, words)
    expect(picture(page, 1)).to_be_visible()
    press(page, "Change")
    editor(page).get_by_label("number input for Steps").fill("100")
    editor(page).get_by_role("button", name="Run").click()
    expect(page.locator(".underway img.preview")).to_be_visible()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    PillowImage.fromarray(np.full((32, 32, 3), (200, 80, 40), np.uint8)).save(path)
    return path


def test_that_a_request_is_being_read_is_shown_until_it_is_answered(page: Page, tiny_server: Server) -> None:
    open_ask(page, tiny_server)
    held: list[Route] = []
    page.route("**/run/predict*", lambda route: route.continue_() if held else held.append(route))
    say(page, "a green bird")
    expect(page.get_by_text("Reading your request")).to_be_visible()
    expect(box(page)).to_have_value("a green bird")
    expect(turn(page, 1)).to_have_count(0)
    held[0].continue_()
    expect(picture(page, 1)).to_be_visible()
    expect(page.get_by_text("Reading your request")).to_have_count(0)


def test_from_words_to_a_picture_and_on_from_there(page: Page, tiny_server: Server, tmp_path: Path) -> None:
    open_ask(page, tiny_server)
    expect(page.get_by_role("log")).to_have_count(1)  # before anything is said, so that what comes is announced
    say(page, "draw a red apple")
    expect(turn(page, 1)).to_contain_text("Here is the picture of a red apple (@1)")
    expect(turn(page, 1)).to_contain_text("read by rules")
    expect(box(page)).to_have_value("")
    with page.expect_download() as caught:
        turn(page, 1).get_by_role("link", name="Download").click()
    caught.value.save_as(tmp_path / "apple.png")
    recipe = load_artifact(tmp_path / "apple.png").provenance
    assert recipe and recipe.inputs[0]["text"] == "a red apple"

    say(page, "another one")
    expect(picture(page, 2)).to_be_visible()
    assert picture(page, 1).get_attribute("src") != picture(page, 2).get_attribute("src")
    say(page, "undo")
    expect(turn(page, 3)).to_contain_text("Back to the picture of a red apple (@1).")
    expect(turn(page, 3).locator("img")).to_have_attribute("src", picture(page, 1).first.get_attribute("src") or "")

    turn(page, 2).get_by_role("button", name="Remix").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a red apple")


def test_a_picture_without_words_gets_a_question_with_buttons(page: Page, tiny_server: Server, photo: Path) -> None:
    open_ask(page, tiny_server)
    attach(page, photo)
    box(page).press("Enter")
    expect(turn(page, 1).locator(".asked img")).to_be_visible()
    expect(turn(page, 1)).to_contain_text("What shall become of")
    press(page, "Make a sound of it")
    expect(turn(page, 2).locator("audio")).to_have_js_property("duration", 0.5)
    expect(turn(page, 2)).to_contain_text("photo.png (@1)")


def test_two_that_fit_are_shown_and_one_is_chosen(page: Page, tiny_server: Server) -> None:
    open_ask(page, tiny_server)
    page.get_by_role("button", name="a red apple").click()
    expect(picture(page, 1)).to_be_visible()
    say(page, "draw a red car")
    expect(picture(page, 2)).to_be_visible()
    say(page, "go back to the red one")
    expect(turn(page, 3).locator(".chip img")).to_have_count(2)
    turn(page, 3).get_by_role("button", name="a red apple").click()
    expect(turn(page, 4)).to_contain_text("This is the picture of a red apple (@1).")


def test_stop_ends_a_long_run_and_nothing_typed_is_lost(page: Page, tiny_server: Server) -> None:
    open_ask(page, tiny_server)
    run_slowly(page, "draw a long one")
    say(page, "draw a short one")
    expect(page.get_by_role("alert")).to_contain_text("One thing at a time")
    expect(box(page)).to_have_value("draw a short one")
    page.get_by_role("button", name="Stop").click()
    expect(turn(page, 2)).to_contain_text("Stopped.")
    box(page).press("Enter")
    # Were the long one still running, this would take ten seconds more.
    expect(turn(page, 3)).to_contain_text("Here is the picture of a short one", timeout=7_000)
    expect(turn(page, 2).get_by_role("button", name="Go on")).to_be_visible()


def test_a_failed_step_is_told_and_tried_again(page: Page, start: Callable[[str], Server]) -> None:
    server = start("tiny")
    server.folder.mkdir(exist_ok=True)
    deaf = server.folder / "deaf"
    deaf.touch()
    open_ask(page, server)
    say(page, CHAIN)
    expect(turn(page, 1)).to_contain_text("Nothing could be heard. Listen again.")
    expect(turn(page, 1)).to_contain_text("But the sound could not be made.")
    expect(picture(page, 1)).to_be_visible()
    deaf.unlink()
    press(page, "Try again")
    expect(turn(page, 1).locator("sound-player")).to_be_visible()
    expect(turn(page, 1)).not_to_contain_text("could not")
    expect(page.locator(".piece")).to_have_count(2)


def test_a_plan_is_changed_by_controls_and_as_json(page: Page, tiny_server: Server) -> None:
    open_ask(page, tiny_server)
    say(page, CHAIN)
    expect(turn(page, 1).locator(".plan li")).to_have_count(2)
    run = turn(page, 1).get_by_role("button", name="Run")
    if run.is_visible():
        run.click()
    expect(turn(page, 1).locator("sound-player")).to_be_visible()
    press(page, "Change")
    editor(page).get_by_label("Words").fill("a gong")
    editor(page).get_by_role("button", name="Drop this step").last.click()
    expect(editor(page).locator(".editor-step")).to_have_count(1)
    expect(editor(page).get_by_label("Words")).to_have_value("a gong")

    editor(page).get_by_role("button", name="As JSON").click()
    json = editor(page).get_by_label("The plan")
    expect(json).to_have_value(re.compile('"text:a gong"'))
    right = json.input_value()
    wrong = right.replace("tiny-paint", "tiny-nothing")
    json.fill(wrong)
    editor(page).get_by_role("button", name="Take this over").click()
    expect(editor(page).get_by_role("alert")).to_contain_text("There is no pipeline called 'tiny-nothing'")
    expect(json).to_have_value(wrong)
    json.fill(right.replace("a gong", "a drum"))
    editor(page).get_by_role("button", name="Take this over").click()
    expect(editor(page).get_by_label("Words")).to_have_value("a drum")

    editor(page).get_by_label("Words").fill(" ")
    editor(page).get_by_role("button", name="Run").click()
    expect(editor(page).get_by_role("alert")).to_contain_text("Step 1 has no words.")
    editor(page).get_by_label("Words").fill("two drums")
    editor(page).get_by_role("button", name="Run").click()
    expect(turn(page, 2)).to_contain_text("Here is the picture of two drums (@3)")
    expect(editor(page)).to_have_count(0)


def test_a_file_that_cannot_be_used_is_told_and_everything_stays(
    page: Page, tiny_server: Server, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG and no more")
    open_ask(page, tiny_server)
    attach(page, broken)
    box(page).fill("a sound\nof this")
    box(page).press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("'broken.png' is damaged")
    page.wait_for_timeout(1000)  # what comes after each request has nothing to do after this one
    expect(page.get_by_role("alert")).to_contain_text("'broken.png' is damaged")
    expect(box(page)).to_have_value("a sound\nof this")
    expect(page.locator(".composer .thumbnail-item")).to_have_count(1)
    expect(page.get_by_role("article")).to_have_count(0)


def test_the_keyboard_is_enough(page: Page, tiny_server: Server) -> None:
    open_ask(page, tiny_server)
    box(page).focus()
    page.keyboard.type("draw a cat")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and nothing else")
    page.keyboard.press("Enter")
    expect(turn(page, 1).locator(".asked p")).to_have_text("draw a cat\nand nothing else")
    expect(picture(page, 1)).to_be_visible()
    full_size = turn(page, 1).get_by_role("button", name="Full size")
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.innerText") == "Full size":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").locator(".stage.result img")).to_be_visible()
    expect(page.get_by_role("dialog").get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(full_size).to_be_focused()


def test_every_tab_has_a_talk_of_its_own_and_no_words_are_markup(
    open_tab: Callable[..., Page], tiny_server: Server
) -> None:
    hostile = "draw <img src=x onerror='window.hit=1'> ${window.hit=1} {{x}} شمس 🍎"
    first, second = open_tab(), open_tab()
    open_ask(first, tiny_server)
    open_ask(second, tiny_server)
    say(first, hostile)
    expect(turn(first, 1).locator(".asked p")).to_have_text(hostile)
    expect(picture(first, 1)).to_be_visible()
    say(second, "draw a cat")
    expect(picture(second, 1)).to_have_attribute("alt", "a cat")
    expect(second.get_by_role("article")).to_have_count(1)
    assert first.evaluate("window.hit") is None


def test_a_script_asks_about_a_file(tiny_server: Server, photo: Path) -> None:
    client = Client(tiny_server.url, verbose=False)
    answer = client.predict(prompt="a sound of this picture", files=[handle_file(photo)], api_name="/ask")
    assert (answer["act"], answer["outputs"], answer["errors"]) == ("new", ["audio"], [])
    assert answer["reply"].startswith("Here is the sound of ") and "(@2), in " in answer["reply"]
    [made] = answer["results"]
    assert load_artifact(made["file"]).medium == "audio" and made["provenance"]["pipeline"] == "tiny-listen"
    assert client.predict(prompt="draw a cat", api_name="/ask")["results"][0]["number"] == 1
    with pytest.raises(AppError, match="longer than a million"):
        client.predict(prompt="x" * 1_000_001, api_name="/ask")


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(
    open_tab: Callable[..., Page], tiny_server: Server, photo: Path, width: int, scheme: str
) -> None:
    page = open_tab(viewport={"width": width, "height": 844}, color_scheme=scheme)
    open_ask(page, tiny_server)
    assert_fits(page, width)
    assert_readable(page)
    attach(page, photo)
    say(page, "a sound of this picture")
    expect(turn(page, 1).locator("sound-player")).to_be_visible()
    say(page, "draw " + "w" * 150)
    expect(picture(page, 3)).to_be_visible()
    turn(page, 2).get_by_text("Details").click()
    assert_fits(page, width)
    assert_readable(page)
    page.evaluate("window.scrollTo(0, 0)")
    expect(box(page)).to_be_in_viewport()
    press(page, "Change")
    expect(editor(page)).to_be_visible()
    assert_fits(page, width)
    assert_readable(page)
    editor(page).get_by_role("button", name="Close").click()
    turn(page, 2).get_by_role("button", name="Full size").click()
    expect(page.get_by_role("dialog").locator(".stage.result img")).to_be_visible()
    assert_readable(page)


def test_what_was_deleted_cannot_be_opened_and_the_page_stays_usable(page: Page, tiny_server: Server) -> None:
    open_ask(page, tiny_server)
    say(page, "a picture of a stork")
    expect(picture(page, 1)).to_be_visible()
    tab(page, "Gallery")
    page.locator(".shelf .tiles button").first.click()
    page.locator(".opened").get_by_text("Delete", exact=True).click()
    page.locator(".opened").get_by_role("button", name="Yes, delete").click()
    expect(page.locator(".opened")).to_be_hidden()
    tab(page, "Ask")
    turn(page, 1).get_by_role("button", name="Full size").click()
    expect(page.get_by_text("gallery").last).to_be_visible()
    page.wait_for_timeout(500)  # what follows the answer
    expect(page.locator(".lightbox")).to_be_hidden()
    assert not page.locator(".ask").evaluate("talk => talk.inert")
    say(page, "a picture of a crane")
    expect(picture(page, 2)).to_be_visible()


def test_a_picture_that_browsers_do_not_show_has_a_tile_and_is_read(page: Page, tiny_server: Server) -> None:
    open_ask(page, tiny_server)
    attach(page, HEIC)
    tile = page.locator(".composer .thumbnail-item img")
    expect(tile).to_have_attribute("src", re.compile("^data:image/svg.*HEIC"))
    assert tile.evaluate("image => image.complete && image.naturalWidth > 0")
    say(page, "make it brighter")
    expect(turn(page, 1).locator(".brought img")).to_be_visible()
    brought = turn(page, 1).locator(".brought img")
    assert brought.evaluate("image => image.naturalWidth / image.naturalHeight") == pytest.approx(1.5, abs=0.01)
