"""An object's picture on white: found before plain grounds, left alone where there is none."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from pipelines.media import Image
from pipelines.xbind.cut_out import cut_out, things_in

RED, SIDE = (200, 30, 40), 120


def picture(ground: np.ndarray, size: int = 40) -> Image:
    """A red square on it, with a hole in its middle through which the ground is seen."""
    pixels = np.clip(np.broadcast_to(ground, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    start = (SIDE - size) // 2
    pixels = pixels.copy()
    hole = pixels[SIDE // 2 - 3 : SIDE // 2 + 3, SIDE // 2 - 3 : SIDE // 2 + 3].copy()
    pixels[start : start + size, start : start + size] = RED
    pixels[SIDE // 2 - 3 : SIDE // 2 + 3, SIDE // 2 - 3 : SIDE // 2 + 3] = hole
    return Image(pixels)


def plain() -> np.ndarray:
    return np.array([60, 120, 90])


def floor() -> np.ndarray:
    return np.where(np.arange(SIDE)[:, None, None] < 70, [60, 120, 90], [30, 40, 160])


def grainy() -> np.ndarray:
    return np.array([90, 140, 120]) + np.random.default_rng(0).normal(0, 10, (SIDE, SIDE, 3))


@pytest.mark.parametrize("ground", [plain, floor, grainy], ids=lambda ground: ground.__name__)
def test_an_object_is_found_before_a_ground(ground: object) -> None:
    found = cut_out(picture(ground())).pixels  # type: ignore[operator]
    assert found.shape[0] == found.shape[1] and 40 <= len(found) <= 56
    red = np.abs(found.astype(int) - RED).max(2) < 40
    assert 1300 < red.sum() < 1600
    assert (found[[0, -1]] == 255).all() and (found[:, [0, -1]] == 255).all()
    assert ((found > 235).all(2) | red).mean() > 0.8


@pytest.mark.parametrize(
    "ground", [np.array([255, 255, 255]), np.array([248, 250, 246])], ids=["on white", "nearly on white"]
)
def test_what_is_on_white_stays(ground: np.ndarray) -> None:
    given = picture(ground)
    assert cut_out(given) is given


@pytest.mark.parametrize("size", [6, 118], ids=["a speck", "nothing else"])
def test_where_no_object_is_found_the_picture_stays(size: int) -> None:
    given = picture(plain(), size)
    assert cut_out(given) is given


def test_noise_and_tiny_pictures_stay_without_a_warning() -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pixels in (noise, noise[:1, :1], noise[:2, :90], np.zeros((5, 5, 3), np.uint8)):
            given = Image(pixels)
            assert cut_out(given) is given


def test_the_same_picture_gives_the_same_cut() -> None:
    one, other = (cut_out(picture(floor())).pixels for _ in range(2))
    np.testing.assert_array_equal(one, other)


def crowd(count: int, ground: int) -> Image:
    """Discs in rows of five."""
    rows, columns = np.mgrid[:400, :500]
    pixels = np.full((400, 500, 3), ground, np.uint8)
    for index in range(count):
        y, x = 50 + 100 * (index // 5), 50 + 100 * (index % 5)
        pixels[(rows - y) ** 2 + (columns - x) ** 2 < 33**2] = (200, 10 * index, 30)
    return Image(pixels)


@pytest.mark.parametrize("ground", [255, 120])
@pytest.mark.parametrize("count", [3, 6, 20])
def test_things_that_stand_apart_are_counted_before_and_after_the_cut(count: int, ground: int) -> None:
    picture = crowd(count, ground)
    assert things_in(picture) == things_in(cut_out(picture)) == count


def test_in_noise_there_is_no_thing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert things_in(Image(pixels)) <= 1
