"""Recipe of ``assets/cortex/sim-v1.npz``: where on the model cortex the voxels of simulated brains lie.

    python -m training.brain_places

No subject has a folded surface, so this is all that there is to draw: of every place its area and the part of the
picture that it sees, and of every subject the places of its voxels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from training.brain_features import CELLS, CHANNELS, SEMANTIC, Features
from training.brain_simulator import AREAS, LEFT, VERSION, VOXELS, make_subject, model_cortex

FILE = Path("assets/cortex") / f"{VERSION}.npz"


def places() -> dict[str, Any]:
    """``areas``: names; of the P places ``area`` (P,) into them, ``x`` and ``y`` (P,) in degrees from the middle of the
    picture, right and up; ``left``: how many of them, the first ones, are in the left hemisphere; by subject the places
    (V,) of its voxels, in their order."""
    # Where voxels are does not depend on the pictures, so any will do.
    nothing = Features(np.zeros((1, SEMANTIC)), np.zeros((1, CHANNELS * CELLS**2)), np.array([0]))
    cortex = model_cortex()
    return {
        "areas": np.array([area.name for area in AREAS]),
        "area": cortex.area.astype(np.uint8),
        "x": cortex.x.astype(np.float16),
        "y": cortex.y.astype(np.float16),
        "left": np.array(LEFT, np.uint16),
        **{name: np.flatnonzero(make_subject(name, nothing).mask).astype(np.uint16) for name in VOXELS},
    }


def main() -> None:
    FILE.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(FILE, **places())


if __name__ == "__main__":
    main()
