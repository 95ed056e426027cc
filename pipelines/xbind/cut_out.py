"""The object of a picture on white, as the generator has seen objects: by what stands out from the picture's borders.

A classical way for pictures with one object before a plain or softly shaded ground. What lies at the borders is a few
colours; all that is connected with the borders and near to these is ground. A picture where this finds no object, or
nothing but one, stays as it is.
"""

from __future__ import annotations

import numpy as np
from PIL import Image as PillowImage
from scipy import ndimage
from scipy.cluster.vq import kmeans2

from pipelines.media import Image

SIDE = 192  # pixels of the longer side in which the ground is looked for
BORDER = 0.03  # of the picture's sides
SHADES = 4  # colours of a ground
NEAREST, FARTHEST = 10.0, 40.0  # of 255: a ground's colour counts at least, at most this far around
SPREADS = 3.0  # deviations of the border's colours from their shade that still are this shade
SMALLEST, LARGEST = 0.02, 0.8  # of the picture: an object
WHITE = 240  # what is as light as this all around is on white already
MARGIN = 0.08  # around the object, of its longer side


def cut_out(picture: Image) -> Image:
    """The object on white, in a square, or the picture as it is where none is found."""
    small = _small(picture.pixels)
    border = _border(small)
    if (border >= WHITE).all(1).mean() > 0.95:
        return picture
    found = _object(small, border)
    if not SMALLEST <= found.mean() <= LARGEST:
        return picture
    height, width = picture.pixels.shape[:2]
    smooth = PillowImage.fromarray(found).convert("L").resize((width, height), PillowImage.Resampling.BILINEAR)
    share = np.asarray(smooth)[..., None] / 255
    return _square(picture.pixels * share + 255 * (1 - share), share[..., 0] > 0.5)


def things_in(picture: Image) -> int:
    """How many things stand apart before the ground; what has less than a tenth of the largest is none of its own."""
    small = _small(picture.pixels)
    found = _object(small, _border(small))
    return int(ndimage.label(found)[1]) if SMALLEST <= found.mean() <= LARGEST else 0


def _small(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) float, at most SIDE a side and a little smoothed."""
    height, width = pixels.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(PillowImage.fromarray(pixels).resize(size, PillowImage.Resampling.BOX), np.float64)
    return np.asarray(ndimage.gaussian_filter(small, (0.7, 0.7, 0)))


def _border(small: np.ndarray) -> np.ndarray:
    """The colours (N, 3) along the four sides."""
    rows, columns = (max(1, round(BORDER * side)) for side in small.shape[:2])
    sides = small[:rows], small[-rows:], small[:, :columns], small[:, -columns:]
    return np.concatenate([side.reshape(-1, 3) for side in sides])


def _object(small: np.ndarray, border: np.ndarray) -> np.ndarray:
    """Where the object is, (H, W) bool."""
    count = min(SHADES, len(np.unique(border.round(), axis=0)))
    shades, belongs = kmeans2(border, count, minit="++", seed=0)
    near = np.zeros(small.shape[:2], bool)
    for index in np.unique(belongs):
        own = border[belongs == index]
        reach = np.clip(SPREADS * (own - shades[index]).std(0).max(), NEAREST, FARTHEST)
        near |= np.abs(small - shades[index]).max(2) < reach
    parts, _ = ndimage.label(near)
    touching = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    ground = np.isin(parts, touching[touching > 0])
    opened = ndimage.binary_opening(~ndimage.binary_dilation(ground))  # less the rim, which is half ground
    pieces, count = ndimage.label(opened)
    if not count:
        return opened
    sizes = ndimage.sum_labels(opened, pieces, np.arange(1, count + 1))
    return np.isin(pieces, 1 + np.flatnonzero(sizes > 0.1 * sizes.max()))


def _square(pixels: np.ndarray, inside: np.ndarray) -> Image:
    """The part with the object, on white, in its middle."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return Image(pixels.round().astype(np.uint8))
    part = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = round(max(part.shape[:2]) * (1 + 2 * MARGIN))
    square = np.full((side, side, 3), 255.0)
    top, left = (side - part.shape[0]) // 2, (side - part.shape[1]) // 2
    square[top : top + part.shape[0], left : left + part.shape[1]] = part
    return Image(square.round().astype(np.uint8))
