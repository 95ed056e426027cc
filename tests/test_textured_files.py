"""A GLB with a texture as a choice of format: of a file's name, and on the page."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app.studio import Studio
from app.ui import markup
from app.ui.downloads import download_route
from pipelines.media import Mesh, load_artifact
from tests.library_examples import made
from tests.test_mesh_files import painted


def test_a_name_chooses_the_texture_and_vertex_colours_stay_the_default(tmp_path: Path) -> None:
    mesh = painted(2).with_provenance(made())
    for name, kind in (("plain.glb", "vertex"), ("it.textured.glb", "texture"), ("IT.Textured.GLB", "texture")):
        mesh.save(tmp_path / name)
        again = load_artifact(tmp_path / name)
        assert isinstance(again, Mesh) and again.content_hash() == mesh.content_hash()
        assert again.provenance == mesh.provenance
        loaded: Any = trimesh.load(tmp_path / name, force="mesh")
        assert loaded.visual.kind == kind
    assert Mesh.suffixes[0] == ".glb"


def test_the_page_offers_it(tiny_studio: Studio) -> None:
    client = TestClient(Starlette(routes=[download_route(tiny_studio)]))
    entry = tiny_studio.library.add(painted(2).with_provenance(made()), "a ball")
    assert f"download/{entry.id}/textured.glb" in markup.downloads(entry, "action")
    answer = client.get(f"/download/{entry.id}/textured.glb")
    assert answer.status_code == 200 and "a-ball.textured.glb" in answer.headers["content-disposition"]
    loaded: Any = trimesh.load(io.BytesIO(answer.content), file_type="glb", force="mesh")
    assert loaded.visual.kind == "texture"
    assert np.asarray(loaded.visual.material.baseColorTexture).shape[2] == 3
