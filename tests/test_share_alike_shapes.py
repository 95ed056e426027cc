"""The share-alike table of shapes: mesh files, names, actors and karts, pictures, and what is left out."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests import box_shapes
from training.data import actors, shapes, shapes_sharealike, verify
from training.data.actors import Actors
from training.data.common import SIZE
from training.data.icons import draw_icon
from training.data.karts import ROOT, Karts
from training.data.meshes import read_pmd, read_spm
from training.data.shapes_sharealike import MOST, Model, Rules, choose, read_rules
from training.data.surfaces import Part, sample, voxelize

RED, BLUE = (1.0, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0, 1.0)
BOX = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
SIDES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
FACES = np.array([corner for a, b, c, d in SIDES for corner in ((a, b, c), (a, c, d))])


def pmd(vertices: np.ndarray, faces: np.ndarray, points: dict[str, tuple[float, ...]] | None = None) -> bytes:
    """A PMD file whose texture coordinates are x and y; ``points``: name -> translation and quaternion."""
    data = struct.pack("<4I", 4, 0, len(vertices), 1)
    for vertex in vertices:
        data += struct.pack("<8f", *vertex, 0, 1, 0, *vertex[:2]) + bytes([255] * 4) + bytes(16)
    data += struct.pack("<I", len(faces)) + np.asarray(faces, "<u2").tobytes()
    data += struct.pack("<I7f", 1, 0, 0, 5, 0, 0, 0, 1)  # a bone five ahead
    data += struct.pack("<I", len(points or {}))
    for name, state in (points or {}).items():
        bone = 0 if name == "on bone" else 255
        data += struct.pack("<I", len(name)) + name.encode() + struct.pack("<7fB", *state, bone)
    return b"PSMD" + data


def spm(texture: str = "", colored: bool = False, skinned: bool = False, count: int = 3) -> bytes:
    """An SPM file of one triangle over ``count`` vertices along x; every other vertex is half red if ``colored``."""
    data = b"SP" + bytes([1 << 3 | (1 if skinned else 2), 1 | (2 if colored else 0)]) + bytes(24)
    data += struct.pack("<HB", 1, len(texture)) + texture.encode() + b"\0"
    data += struct.pack("<HHIIH", 1, 1, count, 3, 0)
    for number in range(count):
        data += struct.pack("<3f", number, number % 2, 2) + bytes(4)
        if colored:
            data += bytes([0, 128, 0, 0]) if number % 2 else bytes([128])
        if texture:
            data += np.array([0.25, 0.5], "<f2").tobytes()
        data += bytes(16 if skinned else 0)
    return data + np.array([0, 1, 2], "<u2" if count > 255 else "u1").tobytes()


# ------------------------------------------------------------------------------------------------------------- meshes


def test_a_pmd_file_has_triangles_and_places() -> None:
    turned = (0.0, 2.0, 0.0, 0.0, np.sqrt(0.5), 0.0, np.sqrt(0.5))  # a quarter about y
    found = read_pmd(pmd(BOX, FACES, {"root": (0, 0, 0, 0, 0, 0, 1), "roof": turned, "on bone": turned}))
    assert np.array_equal(found.mesh.vertices, BOX) and np.array_equal(found.mesh.faces, FACES)
    assert found.mesh.uv is not None and np.array_equal(found.mesh.uv, BOX[:, :2])
    assert np.allclose(found.points["root"], np.eye(4))
    assert np.allclose(found.points["roof"] @ [1, 0, 0, 1], [0, 2, -1, 1], atol=1e-6)
    assert np.allclose(found.points["on bone"] @ [1, 0, 0, 1], [0, 2, 4, 1], atol=1e-6)


@pytest.mark.parametrize("colored", [False, True])
@pytest.mark.parametrize("skinned", [False, True])
@pytest.mark.parametrize("texture", ["", "wood.png"])
@pytest.mark.parametrize("count", [3, 300])
def test_an_spm_file_has_textured_pieces(texture: str, colored: bool, skinned: bool, count: int) -> None:
    [mesh] = read_spm(spm(texture, colored, skinned, count))
    assert mesh.texture == texture and mesh.faces.tolist() == [[0, 1, 2]]
    assert mesh.vertices[:3].tolist() == [[0, 0, 2], [1, 1, 2], [2, 0, 2]] and len(mesh.vertices) == count
    assert (mesh.uv is not None) == bool(texture)
    if mesh.uv is not None:
        assert mesh.uv[2].tolist() == [0.25, 0.5]
    if colored:
        assert mesh.colors is not None and mesh.colors[0].tolist() == [1, 1, 1]
        assert mesh.colors[1].tolist() == [128 / 255, 0, 0]


@pytest.mark.parametrize("whole", [pmd(BOX, FACES, {"root": (0, 0, 0, 0, 0, 0, 1)}), spm("a.png", True, True)])
def test_a_file_that_ends_too_early_is_said(whole: bytes) -> None:
    read = read_pmd if whole[:2] == b"PS" else read_spm
    for length in range(5, len(whole)):
        with pytest.raises(ValueError, match="too early"):
            read(whole[:length])


def test_other_files_are_refused() -> None:
    with pytest.raises(ValueError, match="no PMD"):
        read_pmd(b"PSMA" + bytes(40))
    with pytest.raises(ValueError, match="no SPM"):
        read_spm(b"PK" + bytes(40))
    with pytest.raises(ValueError, match="version 2"):
        read_pmd(b"PSMD" + struct.pack("<4I", 2, 0, 0, 0))
    with pytest.raises(ValueError, match="version 0"):
        read_spm(b"SP" + bytes(40))
    with pytest.raises(ValueError, match="vertex 9 of 8"):
        read_pmd(pmd(BOX, np.array([[0, 1, 9]])))
    with pytest.raises(ValueError, match="no faces"):
        read_pmd(pmd(BOX, FACES[:0]))


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("path", "name", "tags", "category"),
    [
        ("fauna/elephant_asian", "asian elephant", "", "Animals"),
        ("fauna/bear_white", "polar bear", "", "Animals"),
        ("fauna/wildebeest", "wildebeest", "", "Animals"),
        ("structures/romans/temple_vesta", "roman temple", "temple", "Buildings"),
        ("structures/han/wall_gate", "chinese city gate", "city gate", "Buildings"),
        ("structures/hellenes/trireme", "greek trireme", "trireme", "Ships"),
        ("flora/trees/cedar_atlas_dead", "dead cedar tree", "", "Plants"),
        ("props/units/shields/aspis_spart_c", "round bronze shield", "", "Weapons and tools"),
    ],
)
def test_names_of_actors(path: str, name: str, tags: str, category: str) -> None:
    assert read_rules("0ad-data").find(path) == (name, tags, category)


@pytest.mark.parametrize(
    "path",
    [
        "structures/fndn_4x4",
        "structures/destruct_rome_cc",
        "flora/trees/oak_top",
        "fauna/seagull_circle",
        "props/units/heads/head_celt",
        "props/structures/decals/dirt_3x3",
        "props/special/eyecandy/road_temperate_long",
        "structures/romans/wall_short",
        "particle/smoke",
        "an/unknown/path",
    ],
)
def test_what_has_no_name_of_its_own_is_left_out(path: str) -> None:
    assert read_rules("0ad-data").find(path) is None


@pytest.mark.parametrize("source", shapes_sharealike.SOURCES)
def test_every_rule_gives_a_clean_name(source: str) -> None:
    categories = set()
    for _, name, category in read_rules(source).rules:
        if name:
            filled = name.format(civ="roman", words="wooden")
            assert re.fullmatch(r"[a-z]+([ -][a-z]+)*", filled), name
            categories.add(category)
    assert len(categories) > 3 and all(category[0].isupper() for category in categories)


def test_the_first_rule_that_matches_counts() -> None:
    rules = Rules([("a/b_.*", None, ""), ("a/(?P<words>.*)", "big {words}", "Things")], {})
    assert rules.find("a/b_c") is None and rules.find("c") is None
    assert rules.find("a/old_hat") == ("big old hat", "", "Things")


# ------------------------------------------------------------------------------------------------------------- actors


def dds(color: tuple[int, int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (4, 4), color).save(buffer, "DDS")
    return buffer.getvalue()


def write_actors(folder: Path, actors_xml: dict[str, str], alpha: int = 255) -> Actors:
    """A package of these actors, with a mesh ``box.dae`` with a place ``roof`` two above, and a red texture."""
    path = folder / actors.ARCHIVE
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(actors.MESHES + "box.dae.cached.pmd", pmd(BOX, FACES, {"roof": (0, 2, 0.5, 0, 0, 0, 1)}))
        archive.writestr(actors.SKINS + "red.png.cached.dds", dds((255, 0, 0, alpha)))
        archive.writestr(
            actors.VARIANTS + "red.xml",
            '<variant><textures><texture file="red.png" name="baseTex"/></textures></variant>',
        )
        for name, groups in actors_xml.items():
            archive.writestr(f"{actors.ACTORS}{name}.xml", f"<actor>{groups}</actor>")
    return Actors(folder)


BODY = '<group><variant file="red.xml"><mesh>box.dae</mesh>{props}</variant></group>'
PROP = '<props><prop actor="{actor}.xml" attachpoint="{point}"/></props>'


def test_an_actor_is_put_together_of_variants_and_props(tmp_path: Path) -> None:
    found = write_actors(
        tmp_path,
        {
            "house": BODY.format(props=PROP.format(actor="chimney", point="roof")),
            "chimney": BODY.format(props=PROP.format(actor="particle/smoke", point="roof")),
            "bare": BODY.format(props=PROP.format(actor="chimney", point="nowhere")),
            "empty": "<group><variant/></group>",
            "particle/smoke": BODY.format(props=""),
        },
    )
    assert found.names() == ["bare", "chimney", "empty", "house", "particle/smoke"]
    body, chimney = found.parts("house")
    assert body.texture is not None and (body.texture == [255, 0, 0, 255]).all()
    assert body.corners.min((0, 1)).tolist() == [0, 0, -1]  # z is turned towards the viewer
    assert chimney.corners.min((0, 1)).tolist() == [0, 2, -1.5] and chimney.corners.max() == 3
    assert len(found.parts("bare")) == 1
    with pytest.raises(ValueError, match="no mesh"):
        found.parts("empty")


@pytest.mark.parametrize(("material", "seen"), [("player_trans_spec.xml", True), ("basic_trans_wind.xml", False)])
def test_only_materials_that_say_so_are_cut_out(tmp_path: Path, material: str, seen: bool) -> None:
    groups = BODY.format(props="") + f"<material>{material}</material>"
    parts = write_actors(tmp_path, {"tree": groups}, alpha=10).parts("tree")
    if seen:
        assert voxelize(*sample(parts)).occupied.any()
    else:
        with pytest.raises(ValueError, match="nothing of the model"):
            voxelize(*sample(parts))


def test_looks_are_variants_that_just_happen(tmp_path: Path) -> None:
    variants = [
        '<variant frequency="1"><mesh>box.dae</mesh></variant>',
        '<variant frequency="1"><mesh>b</mesh></variant>',
    ]
    found = write_actors(tmp_path, {"a": f"<group>{''.join(variants)}<variant><mesh>ruin</mesh></variant></group>"})
    root = found._xml(actors.ACTORS + "a.xml")
    assert [found.look(root, number).mesh for number in range(3)] == ["box.dae", "b", "box.dae"]
    assert found.looks("a") == 2


# -------------------------------------------------------------------------------------------------------------- karts

COPYRIGHT = """Format: machine-readable

Files: *
Copyright: 2006-2022 Everybody
License: GPL-3+

Files: data/library/carrot/*
Copyright: 2011 One Person
 2012 Another
License: CC-BY-SA-4.0

Files: data/textures/free.png
Copyright: 2010 One Person
License: CC0
"""


def test_a_kart_is_used_if_its_textures_may_be(tmp_path: Path) -> None:
    root = tmp_path / "supertuxkart-data" / ROOT
    for folder in ("library/carrot", "library/turnip", "textures"):
        (root / folder).mkdir(parents=True)
    for name in ("free.png", "gpl.png"):
        Image.new("RGBA", (2, 2), (0, 0, 255, 0)).save(root / "textures" / name)
    (root / "library/carrot/good.spm").write_bytes(spm("free.png", colored=True))
    (root / "library/carrot/bad.spm").write_bytes(spm("gpl.png"))
    (root / "library/turnip/own.spm").write_bytes(spm())
    document = tmp_path / "supertuxkart-data/usr/share/doc/supertuxkart-data/copyright"
    document.parent.mkdir(parents=True)
    document.write_text(COPYRIGHT)
    karts = Karts(tmp_path / "supertuxkart-data")
    good, bad, own = "library/carrot/good", "library/carrot/bad", "library/turnip/own"
    assert karts.names() == [bad, good, own]
    assert karts.licence(good) == "CC-BY-SA-4.0 and CC0" and karts.creator(good) == "2011 One Person, 2012 Another"
    assert karts.licence(bad) is None and karts.licence(own) is None
    [part] = karts.parts(good)
    assert part.corners[0].tolist() == [[0, 0, -2], [1, 1, -2], [2, 0, -2]]
    assert part.texture is not None and (part.texture == [0, 0, 255, 255]).all()  # no material cuts it out
    assert part.tint is not None and part.tint[0, 1].tolist() == [128 / 255, 0, 0]


# -------------------------------------------------------------------------------------------------------------- table


def box(color: tuple[float, ...], low: tuple[float, ...] = (0, 0, 0), size: float = 1) -> Part:
    return Part((BOX * size + low)[FACES], color=color)


def test_an_icon_shows_what_is_nearest_in_the_light() -> None:
    icon = np.asarray(draw_icon([box(RED), box(BLUE, (0.4, 0.4, -3), 0.2)])).astype(int)
    assert icon.shape == (SIZE, SIZE, 3) and (icon[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    red = (icon[..., 0] > 100) & (icon[..., 1:].max(-1) < 60)
    blue = (icon[..., 2] > 100) & (icon[..., :2].max(-1) < 60)
    assert red.mean() > 0.1 and 0 < blue.mean() < red.mean() / 4
    assert len(np.unique(icon[red][:, 0])) > 1  # its sides are not equally bright
    hidden = np.asarray(draw_icon([box(RED), box(BLUE, (0.4, 0.4, 0.4), 0.2)])).astype(int)
    assert not ((hidden[..., 2] > 100) & (hidden[..., 0] < 60)).any()
    with pytest.raises(ValueError, match="nothing of the model"):
        draw_icon([box((1, 0, 0, 0.1))])


def table_row(
    name: str, mask: bytes = b"a", rgb: bytes = b"r", flat: bool = False, voxels: int = 999
) -> dict[str, Any]:
    return {"name": name, "mask": mask, "rgb": rgb, "flat": flat, "voxels": voxels}


def test_what_is_flat_tiny_or_there_already_is_left_out() -> None:
    rows = [
        table_row("horse"),
        table_row("horse", rgb=b"s"),  # the same horse in another colour
        table_row("white horse", rgb=b"s"),
        table_row("stallion"),  # the same in all
        table_row("rug", b"b", flat=True),
        table_row("crumb", b"c", voxels=9),
        *(table_row("tree", bytes([number])) for number in range(MOST + 2)),
    ]
    assert [found["name"] for found in choose(rows)] == ["horse", "white horse"] + ["tree"] * MOST


def test_a_row_has_the_columns_of_the_other_table(tmp_path: Path) -> None:
    write_actors(tmp_path / "packages/0ad-data", {"fauna/cow": BODY.format(props="")})
    model = Model("0ad-data", "fauna/cow", 0, "cow", "", "Animals", "Somebody", "CC-BY-SA-3.0")
    found = shapes_sharealike.row(tmp_path, model)
    assert found is not None and list(found) == list(box_shapes.box_row((5, 5, 5), (9, 9, 9)))
    assert found["size_cm"] == [100, 100, 100] and found["id"] == "fauna/cow#0"
    pq.write_table(pa.Table.from_pylist([found]), tmp_path / shapes_sharealike.TABLE)
    assert verify.verify(tmp_path, ["shapes-sharealike"]) == []
    gpl = found | {"id": "b", "licence": "GPL-2", "creator": ""}
    pq.write_table(pa.Table.from_pylist([found, found, gpl]), tmp_path / shapes_sharealike.TABLE)
    problems = " ".join(verify.verify(tmp_path, ["shapes-sharealike"]))
    assert all(part in problems for part in ("is there 2 times", "under the licence GPL-2", "nobody is named"))


def test_a_broken_model_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = write_actors(tmp_path / "packages/0ad-data", {"fauna/cow": BODY.format(props="")})
    with zipfile.ZipFile(found.archive.filename or "", "a") as archive:
        archive.writestr(
            f"{actors.ACTORS}fauna/ox.xml", "<actor><group><variant><mesh>cut</mesh></variant></group></actor>"
        )
        archive.writestr(actors.MESHES + "cut.cached.pmd", pmd(BOX, FACES)[:100])
    shapes_sharealike._opened.cache_clear()
    for name in ("fauna/ox", "fauna/not there"):
        model = Model("0ad-data", name, 0, "ox", "", "Animals", "Somebody", "CC-BY-SA-3.0")
        assert shapes_sharealike.row(tmp_path, model) is None
        assert name in caplog.text


def test_the_table_is_built_of_what_the_rules_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["fauna/cow", "fauna/seagull_circle", "structures/romans/temple"]
    write_actors(tmp_path / "packages/0ad-data", {name: BODY.format(props="") for name in names})
    monkeypatch.setattr(shapes_sharealike, "SOURCES", ("0ad-data",))
    shapes_sharealike.build(tmp_path, tmp_path)
    rows = pq.read_table(tmp_path / shapes_sharealike.TABLE).to_pylist()
    assert [row["name"] for row in rows] == ["cow"]  # the temple is the very same box
    assert rows[0]["creator"] == "Wildfire Games" and json.loads(rows[0]["names"]) == {}


def test_files_that_trimesh_reads_become_parts(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "box.obj")
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    [part] = shapes.read_parts(tmp_path / "box.obj", quarter)
    assert np.ptp(part.corners, (0, 1)).tolist() == [2, 1, 3]
    places, colors = sample([part], 5000)
    assert len(places) == len(colors) == 5000 and np.allclose(abs(places).max(0), [1, 0.5, 1.5], atol=0.01)
