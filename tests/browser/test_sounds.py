"""Sounds in a real browser: played, searched through, looped, taken home in three formats, and made anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

from app.library import Library
from pipelines.media import Audio, Video, load_artifact
from tests.browser.servers import Server
from tests.browser.test_ask import open_ask, say, turn
from tests.browser.test_page import assert_fits, assert_readable, generate, stage, tab
from tests.media_examples import made

SECONDS = 4.0


def tone(seconds: float = SECONDS) -> Audio:
    """Louder and louder."""
    time = np.arange(round(16_000 * seconds)) / 16_000
    wave = np.sin(2 * np.pi * 220 * time) * np.linspace(0, 0.8, len(time))
    return Audio(np.stack([wave, wave / 2]).astype(np.float32), 16_000)


@pytest.fixture(scope="module")
def gallery(tiny_server: Server) -> Iterator[Library]:
    library = Library(tiny_server.folder)
    yield library
    library.close()


def open_in_gallery(page: Page, server: Server, name: str) -> Locator:
    """The player of what is called so there, if it is a sound."""
    page.goto(server.url)
    tab(page, "Gallery")
    page.get_by_role("button", name=name).first.click()
    expect(stage(page)).to_be_focused()
    return stage(page).locator("sound-player")


def time_of(player: Locator) -> float:
    return float(player.locator("audio").evaluate("audio => audio.currentTime"))


def test_a_sound_plays_is_searched_and_looped_by_the_keyboard(
    page: Page, tiny_server: Server, gallery: Library
) -> None:
    gallery.add(tone().with_provenance(made(pipeline="tiny-hum")), "a rising tone")
    player = open_in_gallery(page, tiny_server, "a rising tone, sound")
    audio, position = player.locator("audio"), player.get_by_role("slider", name="Position")
    expect(player).to_have_attribute("aria-label", "a rising tone")
    expect(audio).to_have_js_property("duration", SECONDS)
    expect(player.locator(".time")).to_have_text("0:00 / 0:04")
    expect(audio).to_be_hidden()

    play = player.get_by_role("button", name="Play")
    play.focus()
    page.keyboard.press("Enter")
    expect(player.get_by_role("button", name="Pause")).to_be_focused()
    page.wait_for_function("() => document.querySelector('.opened audio').currentTime > 0.3")
    page.keyboard.press("Enter")
    expect(play).to_be_visible()
    paused_at = time_of(player)
    page.wait_for_timeout(300)
    assert time_of(player) == paused_at

    position.focus()
    for key, expected in (("End", 4.0), ("Home", 0.0), ("PageUp", 0.4), ("ArrowRight", 0.44), ("ArrowLeft", 0.4)):
        page.keyboard.press(key)
        assert time_of(player) == pytest.approx(expected, abs=0.001), key
    box = position.bounding_box()
    assert box is not None
    position.click(position={"x": box["width"] / 2, "y": 10})
    assert time_of(player) == pytest.approx(2.0, abs=0.05)
    expect(player.locator(".time")).to_have_text("0:02 / 0:04")
    expect(position).to_have_attribute("aria-valuetext", "0:02 of 0:04")
    played = player.locator(".wave").evaluate("wave => parseFloat(wave.style.getPropertyValue('--played'))")
    assert played == pytest.approx(50, abs=1.5)

    loop = player.get_by_role("button", name="Loop")
    expect(loop).to_have_attribute("aria-pressed", "false")
    loop.press("Space")
    expect(loop).to_have_attribute("aria-pressed", "true")
    expect(audio).to_have_js_property("loop", True)
    loop.press("Space")
    expect(audio).to_have_js_property("loop", False)


def test_the_waveform_is_the_sound_s(page: Page, tiny_server: Server, gallery: Library) -> None:
    gallery.add(tone().with_provenance(made(pipeline="tiny-hum")), "another rising tone")
    player = open_in_gallery(page, tiny_server, "another rising tone, sound")
    heights = player.locator(".all path").evaluate("path => path.getAttribute('d').match(/v[0-9.]+/g)")
    sizes = [float(height[1:]) for height in heights]
    assert len(sizes) == 160 and sizes == sorted(sizes) and sizes[0] <= 2 and sizes[-1] == 80


def test_a_sound_comes_in_three_formats(page: Page, tiny_server: Server, gallery: Library, tmp_path: Path) -> None:
    entry = gallery.add(tone().with_provenance(made(pipeline="tiny-hum")), "a tone to take home")
    open_in_gallery(page, tiny_server, "a tone to take home, sound")
    for known_as, tolerance in (("WAV", 0.0), ("FLAC", 0.0), ("OGG", 0.05)):
        with page.expect_download() as caught:
            stage(page).get_by_role("link", name=f"Download as {known_as}").click()
        name = f"a-tone-to-take-home.{known_as.lower()}"
        assert caught.value.suggested_filename == name
        caught.value.save_as(tmp_path / name)
        loaded = load_artifact(tmp_path / name)
        assert isinstance(loaded, Audio) and loaded.provenance == entry.provenance
        assert np.abs(loaded.samples - tone().samples).max() <= tolerance


def test_a_variation_has_the_same_words_and_another_seed(page: Page, tiny_server: Server) -> None:
    page.goto(tiny_server.url)
    tab(page, "Studio")
    tab(page, "Tiny hum")
    page.get_by_label("First prompt").fill("a bee")
    page.get_by_label("Second prompt").fill("a wasp")
    generate(page)
    expect(stage(page).locator("h2")).to_have_text("a bee → a wasp")
    expect(stage(page).get_by_role("button", name="Play")).to_be_visible()
    seed = page.get_by_label("Seed", exact=True).filter(visible=True).input_value()
    page.reload()
    tab(page, "Gallery")
    page.get_by_role("button", name="a bee → a wasp, sound").first.click()
    stage(page).get_by_role("button", name="Variation").click()
    expect(page.get_by_label("Second prompt")).to_have_value("a wasp")
    fresh = page.get_by_label("Seed", exact=True).filter(visible=True)
    expect(fresh).not_to_have_value(seed)
    generate(page)
    expect(stage(page).get_by_role("button", name="Play")).to_be_visible()
    chosen = fresh.input_value()
    stage(page).get_by_text("Details").click()
    expect(stage(page).locator("dl")).to_contain_text(chosen)


def test_what_a_person_does_to_a_player_outlasts_what_comes_after(page: Page, tiny_server: Server) -> None:
    open_ask(page, tiny_server)
    say(page, "draw a bell")
    expect(turn(page, 1).locator(".piece img")).to_be_visible()
    say(page, "make a sound of it")
    player = turn(page, 2).locator("sound-player")
    run = turn(page, 2).get_by_role("button", name="Run")
    expect(player.or_(run)).to_be_visible()
    if run.is_visible():
        run.click()
    expect(player).to_be_visible()
    player.get_by_role("button", name="Loop").click()
    player.get_by_role("button", name="Play").click()
    say(page, "draw a drum")
    expect(turn(page, 3).locator(".piece img")).to_be_visible()
    expect(player.get_by_role("button", name="Loop")).to_have_attribute("aria-pressed", "true")
    expect(player.locator("audio")).to_have_js_property("loop", True)
    expect(player.get_by_role("button", name="Pause")).to_be_visible()
    expect(player.locator("audio")).to_be_hidden()


def test_one_after_another_is_opened_and_only_one_plays(page: Page, tiny_server: Server, gallery: Library) -> None:
    for title, seconds in (("a first tone", 4.0), ("a second tone", 3.0)):
        gallery.add(tone(seconds).with_provenance(made(pipeline="tiny-hum")), title)
    player = open_in_gallery(page, tiny_server, "a first tone, sound")
    player.get_by_role("button", name="Play").click()
    page.wait_for_function("() => document.querySelector('.opened audio').currentTime > 0.1")
    page.get_by_role("button", name="a second tone, sound").click()
    expect(player).to_have_attribute("aria-label", "a second tone")
    expect(player.get_by_role("button", name="Play")).to_be_visible()
    expect(player.locator(".time")).to_have_text("0:00 / 0:03")
    expect(page.locator(".opened .object")).to_be_hidden()  # the place of 3-D objects

    page.evaluate("document.body.append(document.querySelector('.opened sound-player').cloneNode(true))")
    players = page.locator("sound-player:visible")
    players.nth(0).get_by_role("button", name="Play").click()
    page.wait_for_function("() => !document.querySelector('.opened audio').paused")
    players.nth(1).get_by_role("button", name="Play").click()
    expect(players.nth(1).get_by_role("button", name="Pause")).to_be_visible()
    expect(players.nth(0).get_by_role("button", name="Play")).to_be_visible()


def test_a_clip_plays_with_its_sound(page: Page, tiny_server: Server, gallery: Library) -> None:
    frames = np.repeat(np.linspace(0, 250, 24).astype(np.uint8), 64 * 64 * 3).reshape(24, 64, 64, 3)
    gallery.add(Video(frames, 12.0, tone(2.0), provenance=made(pipeline="tiny-hum")), "a clip with a tone")
    open_in_gallery(page, tiny_server, "a clip with a tone, clip")
    clip = stage(page).locator("video")
    clip.evaluate("clip => { clip.muted = false; clip.volume = 1; clip.currentTime = 0; return clip.play(); }")
    page.wait_for_function("() => document.querySelector('.opened video').webkitAudioDecodedByteCount > 0")
    page.wait_for_function("() => document.querySelector('.opened video').currentTime > 0.2")
    assert clip.evaluate("clip => !clip.muted && clip.error === null")


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_it_fits_and_can_be_read(
    open_tab: Callable[..., Page], tiny_server: Server, gallery: Library, width: int, scheme: str
) -> None:
    gallery.add(tone().with_provenance(made(pipeline="tiny-hum")), "w" * 150)
    page = open_tab(viewport={"width": width, "height": 844}, color_scheme=scheme)
    player = open_in_gallery(page, tiny_server, "w" * 150)
    expect(player).to_be_visible()
    player.get_by_role("button", name="Loop").click()
    assert_fits(page, width)
    assert_readable(page)
    inside = player.bounding_box()
    assert inside is not None
    for part in (".wave", "input", ".play", ".time", ".loop"):
        box = player.locator(part).bounding_box()
        assert box is not None and box["x"] >= inside["x"] and box["x"] + box["width"] <= inside["x"] + inside["width"]
