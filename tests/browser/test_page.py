"""The page in a real browser: what a person does, sees and gets."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client
from PIL import Image as PillowImage
from playwright.sync_api import Locator, Page, expect

from pipelines.media import load_artifact
from tests.browser.servers import Server


def open_page(page: Page, server: Server) -> None:
    page.goto(server.url)
    tab(page, "Studio")
    expect(prompt(page)).to_be_visible()


def prompt(page: Page) -> Locator:
    return page.get_by_label("Prompt", exact=True)


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def generate(page: Page, words: str | None = None) -> None:
    if words is not None:
        prompt(page).fill(words)
    page.get_by_role("button", name="Generate").click()


def setting(page: Page, name: str) -> Locator:
    """The box of a setting that also has a slider."""
    return page.get_by_label(f"number input for {name}")


def stage(page: Page) -> Locator:
    return page.locator(".stage:visible")


def picture(page: Page) -> Locator:
    return page.locator(".stage.result:visible .frame img")


def download(page: Page, path: Path) -> bytes:
    with page.expect_download() as caught:
        stage(page).get_by_role("link", name="Download").click()
    caught.value.save_as(path)
    return path.read_bytes()


# Sees every state of the page; polling would miss the short ones.
WATCH_PROGRESS = """() => {
    const seen = (window.seen = { steps: [], previews: [] });
    const note = (list, value) => value !== undefined && value !== list.at(-1) && list.push(value);
    new MutationObserver(() => {
        const bar = document.querySelector("[role=progressbar]");
        note(seen.steps, bar ? Number(bar.getAttribute("aria-valuenow")) : undefined);
        note(seen.previews, document.querySelector("img.preview")?.src);
    }).observe(document.body, { subtree: true, childList: true, attributes: true });
}"""


@pytest.mark.parametrize("kind", ["tiny", "real"])
def test_from_words_to_a_picture_that_can_be_made_again(
    page: Page, start: Callable[[str], Server], tmp_path: Path, kind: str
) -> None:
    server = start(kind)
    open_page(page, server)
    page.evaluate(WATCH_PROGRESS)
    generate(page, "a red apple")
    expect(picture(page)).to_be_visible()
    seen = page.evaluate("window.seen")
    assert len(seen["steps"]) >= 3 and seen["steps"] == sorted(seen["steps"]), "no progress was shown"
    assert len(seen["previews"]) >= 2, "no previews were shown"

    first = download(page, tmp_path / "first.png")
    with PillowImage.open(tmp_path / "first.png") as image:
        assert np.asarray(image).std() > 5, "the picture is blank"
    recipe = load_artifact(tmp_path / "first.png").provenance
    seed = page.get_by_label("Seed", exact=True).input_value()
    assert recipe and recipe.inputs[0]["text"] == "a red apple" and recipe.seed == int(seed)

    server.restart()
    open_page(page, server)
    tab(page, "Gallery")
    page.get_by_role("button", name="a red apple, picture").click()
    expect(picture(page)).to_be_visible()
    page.get_by_role("button", name="Remix").click()

    expect(prompt(page)).to_have_value("a red apple")
    expect(page.get_by_label("Seed", exact=True)).to_have_value(seed)
    generate(page)
    expect(picture(page)).to_be_visible()
    assert download(page, tmp_path / "second.png") == first


def test_the_keyboard_is_enough(page: Page, tiny_server: Server) -> None:
    open_page(page, tiny_server)
    for _ in range(15):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "TEXTAREA":
            break
    page.keyboard.type("typed blindly")
    page.keyboard.press("Enter")
    expect(picture(page)).to_have_attribute("alt", "typed blindly")

    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("(document.activeElement.innerText || '').trim()"))
    assert {"Generate", "Download", "Remix", "Details", "Roll"} <= reached


def test_an_empty_prompt_gets_a_sentence_and_nothing_is_lost(page: Page, tiny_server: Server) -> None:
    open_page(page, tiny_server)
    setting(page, "Strength").fill("1.5")
    generate(page, "   ")
    expect(stage(page)).to_have_attribute("role", "alert")
    expect(stage(page)).to_contain_text("The prompt is empty.")
    expect(stage(page)).to_contain_text("Write what the picture should show.")
    expect(setting(page, "Strength")).to_have_value("1.5")
    expect(prompt(page)).to_have_value("   ")

    generate(page, "a second try")
    expect(picture(page)).to_have_attribute("alt", "a second try")


def test_words_are_never_taken_for_markup(page: Page, tiny_server: Server) -> None:
    hostile = "<img src=x onerror='window.hit=1'> ${window.hit=1} {{x}} `'\" شمس 🍎"
    open_page(page, tiny_server)
    generate(page, hostile)
    expect(stage(page).locator("h2")).to_have_text(hostile)
    stage(page).get_by_text("Details").click()
    expect(stage(page).locator("dd", has_text="onerror")).to_have_text(hostile)
    assert page.evaluate("window.hit") is None


def test_a_bug_is_told_with_its_number_in_the_log(page: Page, tiny_server: Server) -> None:
    open_page(page, tiny_server)
    page.get_by_role("button", name="More settings").click()
    page.get_by_label("Fail").check()
    generate(page, "a bug")
    expect(stage(page)).to_contain_text(re.compile(r"under [0-9a-f]{8}\."))
    number = re.search(r"under ([0-9a-f]{8})", stage(page).inner_text())
    assert number and f"internal error {number[1]}" in tiny_server.log.read_text()


def test_stop_ends_a_run_and_frees_the_lane(page: Page, tiny_server: Server) -> None:
    open_page(page, tiny_server)
    setting(page, "Steps").fill("100")
    generate(page, "a long one")
    expect(page.locator(".stage.running img.preview")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(stage(page)).to_contain_text("Stopped.")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()

    setting(page, "Steps").fill("2")
    generate(page, "a short one")
    # Were the long one still running, this would take ten seconds more.
    expect(picture(page)).to_have_attribute("alt", "a short one", timeout=7_000)


def test_who_waits_is_told_may_stop_and_inherits_a_closed_tab_s_turn(
    open_tab: Callable[..., Page], tiny_server: Server
) -> None:
    first, second = open_tab(), open_tab()
    open_page(first, tiny_server)
    setting(first, "Steps").fill("100")
    generate(first, "a long one")
    expect(first.locator(".stage.running img.preview")).to_be_visible()

    open_page(second, tiny_server)
    generate(second, "another")
    expect(stage(second)).to_contain_text("Waiting for its turn")
    second.get_by_role("button", name="Stop").click()
    expect(stage(second)).to_contain_text("Stopped.")

    generate(second)
    expect(stage(second)).to_contain_text("Waiting for its turn")
    first.close()
    expect(picture(second)).to_have_attribute("alt", "another", timeout=7_000)


def test_several_pictures_come_as_a_strip_to_choose_from(page: Page, tiny_server: Server) -> None:
    open_page(page, tiny_server)
    setting(page, "Images").fill("3")
    generate(page, "three of them")
    tiles = page.locator(".outcome .tiles button:visible")
    expect(tiles).to_have_count(3)
    first = picture(page).get_attribute("src")
    assert first
    tiles.nth(1).click()
    expect(tiles.nth(1)).to_have_attribute("aria-current", "true")
    expect(picture(page)).not_to_have_attribute("src", first)


def test_files_go_in_and_come_back_in_a_remix(page: Page, tiny_server: Server, tmp_path: Path) -> None:
    client = Client(tiny_server.url, verbose=False)
    made = [client.predict(prompt=words, api_name="/generate_tiny_paint")[0]["file"] for words in ("one", "two")]
    open_page(page, tiny_server)
    tab(page, "Tiny blend")
    generate(page)
    expect(stage(page)).to_contain_text("'First picture' is empty.")

    filled = page.locator(".inputs:visible img")
    for place in (1, 0):  # a filled one has no such input any more
        page.locator(".inputs:visible input[type=file]").nth(place).set_input_files(made[place])
        expect(filled).to_have_count(2 - place)
    generate(page)
    expect(picture(page)).to_be_visible()
    first = download(page, tmp_path / "first.png")

    page.reload()
    tab(page, "Gallery")
    page.get_by_role("button", name="Tiny blend, picture").first.click()
    stage(page).get_by_role("button", name="Remix").click()
    expect(filled).to_have_count(2)
    generate(page)
    expect(picture(page)).to_be_visible()
    assert download(page, tmp_path / "second.png") == first


def test_the_gallery_searches_shows_and_deletes(page: Page, tiny_server: Server) -> None:
    client = Client(tiny_server.url, verbose=False)
    client.predict(prompt="a very rare okapi", api_name="/generate_tiny_paint")
    client.predict(first_prompt="a whale", second_prompt="a bat", api_name="/generate_tiny_hum")
    open_page(page, tiny_server)
    tab(page, "Gallery")
    tiles = page.locator(".shelf .tiles button")
    page.get_by_label("sound", exact=True).check(force=True)
    expect(tiles.first).to_have_attribute("aria-label", "a whale → a bat, sound")
    tiles.first.click()
    expect(stage(page).locator("audio")).to_have_js_property("duration", 0.2)
    stage(page).get_by_role("button", name="Close").click()
    expect(page.locator(".opened")).to_be_hidden()

    page.get_by_label("all", exact=True).check(force=True)
    page.get_by_label("Search").fill("okapi RARE")
    expect(tiles).to_have_count(1)
    tiles.click()
    expect(stage(page)).to_be_focused()
    stage(page).get_by_text("Details").click()
    expect(stage(page).locator("dl")).to_contain_text("tiny-paint")
    expect(stage(page).locator("dl code")).to_have_attribute("title", re.compile("^[0-9a-f]{64}$"))

    stage(page).get_by_text("Delete", exact=True).click()
    stage(page).get_by_role("button", name="Yes, delete").click()
    expect(page.locator(".nothing")).to_have_text("Nothing found.")
    expect(page.locator(".opened")).to_be_hidden()


def test_a_file_deleted_by_hand_is_told_and_can_be_made_again(page: Page, tiny_server: Server) -> None:
    client = Client(tiny_server.url, verbose=False)
    [made] = client.predict(prompt="here today", seed=5, api_name="/generate_tiny_paint")
    data = Path(made["file"]).read_bytes()
    [stored] = [path for path in tiny_server.folder.glob("files/*/*.png") if path.read_bytes() == data]
    stored.unlink()
    open_page(page, tiny_server)
    tab(page, "Gallery")
    page.get_by_role("button", name="here today, picture").click()
    expect(stage(page)).to_contain_text("Its file was deleted.")
    stage(page).get_by_role("button", name="Remix").click()
    generate(page)
    expect(picture(page)).to_have_attribute("alt", "here today")
    assert stored.read_bytes() == data


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(open_tab: Callable[..., Page], tiny_server: Server, width: int, scheme: str) -> None:
    page = open_tab(viewport={"width": width, "height": 844}, color_scheme=scheme)
    open_page(page, tiny_server)
    assert_fits(page, width)
    assert_readable(page)
    generate(page, "w" * 150)
    expect(picture(page)).to_be_visible()
    stage(page).get_by_text("Details").click()
    assert_fits(page, width)
    tab(page, "Gallery")
    page.locator(".shelf .tiles button").first.click()
    expect(picture(page)).to_be_visible()
    assert_fits(page, width)
    assert_readable(page)


def assert_fits(page: Page, width: int) -> None:
    """No sideways scrolling, and nothing that a person could see ends outside the window."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """() => [...document.querySelectorAll("main *")]
            .filter((part) => part.checkVisibility({ visibilityProperty: true }) && !part.closest("[aria-hidden=true]"))
            .filter((part) => part.getBoundingClientRect().right > window.innerWidth + 1)
            .map((part) => `${part.tagName} ${part.className}`)"""
    )
    assert outside == []


def assert_readable(page: Page) -> None:
    """Every text has a contrast of at least 4.5 with what is behind it, as WCAG 2 (AA) asks."""
    faint = page.evaluate(
        """() => {
            const channels = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
            const linear = (value) => (value <= 10.3 ? value / 3295 : ((value / 255 + 0.055) / 1.055) ** 2.4);
            const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
            const behind = (part) => {
                for (; part; part = part.parentElement) {
                    const colour = channels(getComputedStyle(part).backgroundColor);
                    if (colour.length === 3 || colour[3] > 0.9) return colour;
                }
                return [255, 255, 255];
            };
            const contrast = (part) => {
                const pair = [channels(getComputedStyle(part).color), behind(part)].map(luminance);
                return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
            };
            const own = (part) => [...part.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
            return [...document.querySelectorAll("main *")]
                .filter((part) => own(part) && part.checkVisibility({ visibilityProperty: true }))
                .filter((part) => !part.closest("[aria-hidden=true]") && contrast(part) < 4.5)
                .map((part) => `${part.textContent.trim().slice(0, 40)}: ${contrast(part).toFixed(2)}`);
        }"""
    )
    assert faint == []
