"""The shipped gallery in which decoded vectors are looked up, and how its recipe lays pictures out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from models.picture_text import load_picture_text
from pipelines.fmri.known_pictures import FOLDER, NEAREST, SIDE, KnownPictures, draw_neighbours, known_pictures
from training.images import to_tensor
from training.known_pictures import ACROSS, contact_sheet

EXAMPLES = Path("assets/examples/scans")


def test_each_picture_stands_beside_its_own_vector() -> None:
    known = known_pictures()
    rows = np.arange(0, len(known.names), 12)
    space = load_picture_text(Path("assets/weights/picture-text-lite"))
    with torch.no_grad():
        seen = space.embed_pictures(to_tensor(known.pixels[rows]))
    center = known.vectors.mean(0)
    likeness = F.normalize(seen - center, dim=1) @ F.normalize(known.vectors - center, dim=1).T
    own = likeness.argsort(1, descending=True)[:, :3].eq(torch.from_numpy(rows)[:, None]).any(1)
    assert own.float().mean() > 0.9, "small and packed as they are, nearly all are still nearest to themselves"


def test_the_gallery_is_small_and_holds_what_the_shipped_scans_answer_to() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2**20
    names = set(known_pictures().names)
    for path in EXAMPLES.glob("S*.npz"):
        assert path.stem.partition("-")[2].replace("-", " ") in names


def test_a_sheet_is_read_as_it_was_laid_out() -> None:
    shades = np.arange(ACROSS + 5, dtype=np.uint8) * 7
    sheet = np.asarray(contact_sheet(np.broadcast_to(shades[:, None, None, None], (len(shades), 128, 128, 3)).copy()))
    assert sheet.shape == (2 * SIDE, ACROSS * SIDE, 3)
    assert sheet[SIDE // 2, SIDE // 2 :: SIDE, 0].tolist() == shades[:ACROSS].tolist()
    assert sheet[SIDE + SIDE // 2, SIDE // 2 :: SIDE, 0].tolist() == [*shades[ACROSS:].tolist(), *[255] * (ACROSS - 5)]


def test_ranks_are_compared_with_the_same_ranks_of_nothing() -> None:
    vectors = torch.eye(256)[:8]
    known = KnownPictures(tuple("abcdefgh"), np.zeros((8, SIDE, SIDE, 3), np.uint8), vectors)
    semantic = (vectors[2] * 0.9 + vectors[5] * 0.4)[None]
    shuffled = torch.cat([vectors[:1].repeat(3, 1), (vectors[6] + vectors[7])[None] / 2**0.5])
    found = known.nearest(semantic, shuffled, torch.zeros(256))
    assert [neighbour.row for neighbour in found[:2]] == [2, 5] and len(found) == NEAREST
    length = float(semantic.norm())
    assert np.allclose([found[0].cosine, found[1].cosine], [0.9 / length, 0.4 / length], atol=1e-5)
    # The nearest is nearer than that of the last scan alone; the second than those of the first three.
    assert [found[0].above, found[1].above] == [0.25, 0.75]
    pixels = draw_neighbours(known, found, "S1, trial 1")
    assert pixels.shape[1] == 1200 and pixels.dtype == np.uint8
