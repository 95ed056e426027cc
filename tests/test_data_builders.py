"""The builders of the training tables: names, licences, captions, pictures and shapes, without any package."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from training.data import (
    containers,
    emoji,
    fetch,
    licences,
    shapes,
    shapes_sharealike,
    sounds,
    stamps,
    surfaces,
    verify,
)
from training.data.__main__ import BUILDERS, DEFAULT
from training.data.common import SIZE, encode_webp, evenly_spread, on_white, package_folder, read_json

few = settings(max_examples=40)
PERMISSIVE, ATTRIBUTION, SHAREALIKE, GPL, OTHER = licences.FAMILIES


def write(path: Path, content: str | bytes | dict | list = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict | list):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ---- common -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 10), (10, 40), (300, 300), (1, 1)])
def test_on_white_centres_on_a_white_square(size: tuple[int, int]) -> None:
    square = np.asarray(on_white(Image.new("RGBA", size, (255, 0, 0, 255))))
    assert square.shape == (SIZE, SIZE, 3)
    assert tuple(square[SIZE // 2, SIZE // 2]) == (255, 0, 0)
    corner = (255, 255, 255) if size[0] != size[1] else (255, 0, 0)
    assert tuple(square[0, 0]) == tuple(square[-1, -1]) == corner


def test_on_white_leaves_no_dark_fringe() -> None:
    picture = np.zeros((256, 256, 4), np.uint8)  # transparent black around opaque white
    picture[64:192, 64:192] = 255
    assert np.asarray(on_white(Image.fromarray(picture))).min() == 255


@few
@given(st.lists(st.integers(), max_size=50, unique=True), st.integers(2, 20))
def test_evenly_spread_keeps_order_and_ends(items: list[int], most: int) -> None:
    spread = list(evenly_spread(items, most))
    assert len(spread) == min(len(items), most)
    assert spread == [item for item in items if item in spread]
    if items:
        assert (spread[0], spread[-1]) == (items[0], items[-1])


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="scratch"):
        package_folder(tmp_path, "scratch")


# ---- fetching ---------------------------------------------------------------------------------


def test_every_package_is_listed_for_the_tables_that_read_it() -> None:
    packages = fetch.read_packages(fetch.PACKAGES.read_text())
    assert len({package.source for package in packages}) == len(packages)
    of_table = {table: {p.source for p in packages if table in p.tables} for table in BUILDERS}
    rules = {source for entry in read_json(sounds.SOUND_MAP)["classes"].values() for source, _ in entry["rules"]}
    assert of_table["sounds"] == rules | set(sounds.SOUNDFONTS)
    assert {package for package, _ in emoji.STYLES.values()} < of_table["emoji"]
    assert of_table["shapes"] == {shapes.SOURCE}
    assert of_table["shapes-sharealike"] == set(shapes_sharealike.SOURCES)
    assert set(verify.CHECKS) == set(BUILDERS) == {*DEFAULT, "shapes-sharealike"}


def test_fetch_says_which_programs_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="apt-get"):
        fetch.fetch(tmp_path / "work", ["shapes"])
    assert not (tmp_path / "work").exists()


def test_npm_archives_lose_their_outer_folder(tmp_path: Path) -> None:
    write(tmp_path / "source/package/icons.json", {})
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        tar.add(tmp_path / "source/package", "package")
    (tmp_path / "unpacked").mkdir()
    fetch._unpack_npm(tmp_path / "a.tgz", tmp_path / "unpacked")
    assert (tmp_path / "unpacked/icons.json").is_file()


# ---- emoji ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "expected"), [("piñata", "pinata"), ("man’s shoe", "mans-shoe"), ("A: b!", "a-b")])
def test_slug(name: str, expected: str) -> None:
    assert emoji.slug(name) == expected


@few
@given(st.text())
def test_names_are_normalised_once_and_for_all(name: str) -> None:
    assert emoji.slug(emoji.slug(name)) == emoji.slug(name)
    assert emoji.squeeze(emoji.slug(name)) == emoji.squeeze(name.replace("’", "").replace("'", ""))


def test_concept_key_and_further_keywords() -> None:
    assert emoji.concept_key("2764-FE0F-200D-1F525") == "2764-200d-1f525"
    assert emoji.further_keywords([":)", "red_heart", "love"], ["love"]) == ["red heart"]


def test_icon_set_follows_aliases(tmp_path: Path) -> None:
    aliases = {"pup": {"parent": "hound"}, "hound": {"parent": "dog"}, "a": {"parent": "b"}, "b": {"parent": "a"}}
    write(tmp_path / "icons.json", {"icons": {"dog": {"body": "<g/>", "width": 8}}, "aliases": aliases, "height": 32})
    write(tmp_path / "chars.json", {"1F436-FE0F": "dog"})
    icons = emoji.IconSet(tmp_path)
    assert icons.name_of == {"1f436": "dog"}
    assert icons.svg("pup") == icons.svg("dog")
    assert 'width="8" height="32" viewBox="0 0 8 32"><g/></svg>' in (icons.svg("dog") or "")
    assert icons.svg("a") is None and icons.svg("cat") is None


def test_concepts_come_in_unicode_order_with_openmoji_last(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    groups = {"groups": {"0": "smileys", "2": "component", "9": "flags"}, "subgroups": {"4": "faces"}}
    write(packages / "emojibase-data/meta/groups.json", groups)
    entries = [
        {"hexcode": "1F1EB", "emoji": "🇫", "label": "F", "order": 1},
        {"hexcode": "1F3FB", "emoji": "🏻", "label": "light skin", "group": 2, "order": 2},
        {"hexcode": "1F1EB-1F1F7", "emoji": "🇫🇷", "label": "flag: France", "group": 9, "order": 9},
        {
            "hexcode": "2639-FE0F",
            "emoji": "☹️",
            "label": "frown",
            "group": 0,
            "subgroup": 4,
            "order": 3,
            "tags": ["sad"],
        },
    ]
    write(packages / "emojibase-data/en/data.json", entries)
    write(packages / "emojilib/dist/emoji-en-US.json", {"☹️": ["sad", "feels_bad", ":("]})
    annotations = {"annotations": {"annotations": {"☹": {"tts": ["frowning face"], "default": ["frown", "sad"]}}}}
    write(packages / "cldr-annotations-full/annotations/en/annotations.json", annotations)
    own = {"hexcode": "E001", "annotation": "solar panel", "tags": "sun, roof", "order": "7"}
    extras = [
        own | {"group": "extras-openmoji", "subgroups": "climate"},
        own | {"group": "extras-openmoji", "subgroups": "brand", "hexcode": "E002"},
        own | {"group": "extras-unicode", "subgroups": "arrows", "hexcode": "E003"},
        own | {"group": "smileys", "subgroups": "faces", "hexcode": "2639"},
    ]
    write(packages / "openmoji/data/openmoji.json", extras)
    frown, flag, panel = emoji.read_concepts(tmp_path)
    assert (frown.key, frown.caption, frown.label, frown.subgroup) == ("2639", "frowning face", "frown", "faces")
    assert (frown.keywords, frown.more_keywords) == (["sad", "frown"], ["feels bad"])
    assert flag.is_flag and not frown.is_flag
    assert (panel.caption, panel.emoji, panel.keywords) == ("solar panel", "", ["sun", "roof"])


# ---- licences ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("licence", "family"),
    [
        ("CC0-1.0", PERMISSIVE),
        ("public-domain", PERMISSIVE),
        ("Expat", PERMISSIVE),
        ("CC-BY-3.0", ATTRIBUTION),
        ("CC-BY-SA-4.0", SHAREALIKE),
        ("GPL-2+", GPL),
        ("GPL-2 or later", GPL),
        ("LGPL-2.1", GPL),
        ("GFDL-1.3", OTHER),
        ("something nobody has heard of", OTHER),
        (licences.UNKNOWN, OTHER),
        ("GPL-3+ or CC-BY-SA-3.0", SHAREALIKE),
        ("zlib and GPL-3+", GPL),
        ("MIT (parts public-domain or CC0)", PERMISSIVE),
    ],
)
def test_family(licence: str, family: str) -> None:
    assert licences.family(licence) == family


KNOWN = st.sampled_from(["MIT", "CC-BY-4.0", "CC-BY-SA-4.0", "GPL-3", "GFDL"])


@few
@given(KNOWN, KNOWN)
def test_or_is_a_choice_and_and_is_a_duty(first: str, second: str) -> None:
    ranks = sorted(licences.FAMILIES.index(licences.family(licence)) for licence in (first, second))
    assert licences.family(f"{first} or {second}") == licences.FAMILIES[ranks[0]]
    assert licences.family(f"{first} and {second}") == licences.FAMILIES[ranks[1]]


COPYRIGHT = """Format: machine-readable

Files: *
License: GPL-2+

Files: data/sounds/*
 data/other.wav
License: CC-BY-3.0

Files: data/sounds/bell.wav
License: CC0-1.0

Files: debian/*
License: MIT
"""


@pytest.mark.parametrize(
    ("path", "licence"),
    [
        ("usr/share/games/game/music.ogg", "GPL-2+"),
        ("usr/share/games/game/sounds/horn.ogg", "CC-BY-3.0"),
        ("usr/share/games/game/sounds/BELL.ogg", "CC0-1.0"),  # converted from .wav when packaged
        ("usr/share/games/game/other.wav", "CC-BY-3.0"),
    ],
)
def test_the_last_stanza_that_matches_wins(tmp_path: Path, path: str, licence: str) -> None:
    write(tmp_path / "game-data/usr/share/doc/game-data/copyright", COPYRIGHT)
    assert licences.licence_of(tmp_path / "game-data", path, {}) == licence


def test_the_holders_of_a_copyright_are_named(tmp_path: Path) -> None:
    text = COPYRIGHT.replace("License: CC-BY-3.0", "Copyright: 2001 One\n 2002 Another\nLicense: CC-BY-3.0")
    write(tmp_path / "game-data/usr/share/doc/game-data/copyright", text)
    assert licences.holders_of(tmp_path / "game-data", "data/sounds/horn.ogg") == "2001 One, 2002 Another"
    assert licences.holders_of(tmp_path / "game-data", "data/sounds/bell.ogg") == ""


def test_licences_read_by_hand_come_first(tmp_path: Path) -> None:
    write(tmp_path / "game-data/usr/share/doc/game-data/copyright", COPYRIGHT)
    by_hand = {"game-data:sounds/h": "MIT"}
    assert licences.licence_of(tmp_path / "game-data", "data/sounds/horn.ogg", by_hand) == "MIT"
    assert licences.licence_of(tmp_path / "game-data", "data/sounds/bell.ogg", by_hand) == "CC0-1.0"
    assert licences.licence_of(tmp_path / "other", "data/sounds/horn.ogg", by_hand) == licences.UNKNOWN
    assert not licences.is_free("Sampling-Plus-1.0") and licences.is_free("CC0-1.0")


# ---- stamps -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fireEngine2", "fire engine"), ("polar_bear-b", "polar bear"), ("cat - 12", "cat"), ("a__b", "a")],
)
def test_words(name: str, expected: str) -> None:
    assert stamps.words(name) == expected


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("apple", "an apple"),
        ("bus", "a bus"),
        ("glass", "a glass"),
        ("flowers", "flowers"),
        ("hair", "hair"),
        ("orange color", "orange paint"),
        ("seven", "the number seven"),
        ("cub", "a lion cub"),
    ],
)
def test_caption_wording(name: str, caption: str) -> None:
    assert stamps.caption_of(name) == caption


def test_tuxpaint_stamps_have_a_sentence_and_one_picture_each(tmp_path: Path) -> None:
    folder = tmp_path / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps/animals"
    for name in ("cat.png", "cat.svg", "cat.ogg", "cat_mirror.png", "dog.png", "dog_desc.ogg", "mute.png"):
        write(folder / name)
    write(folder / "cat.txt", "A cat.\nes.utf8=Un gato.")
    write(folder / "dog.txt", "A dog.")
    cat, dog = stamps.tuxpaint_stamps(tmp_path / "tuxpaint-stamps-default")
    assert (cat.id, cat.caption, cat.style, cat.group) == ("animals/cat", "A cat.", "drawing", "animals")
    assert (cat.has_sound, cat.has_voice, dog.has_sound, dog.has_voice) == (True, False, False, True)
    assert dog.style == "photo"


def test_gcompris_stamps_skip_parts_of_the_screen(tmp_path: Path) -> None:
    root = tmp_path / "gcompris-qt-data" / containers.PICTURES / "gcompris/src/activities"
    for name in ("lang/resource/words/apple.webp", "lang/resource/words/background.svg", "chess/resource/king.svg"):
        write(root / name)
    (apple,) = stamps.gcompris_stamps(tmp_path / "gcompris-qt-data")
    assert (apple.id, apple.caption, apple.group) == ("gcompris/lang/resource/words/apple", "an apple", "words")


def test_second_stamp_of_an_id_names_its_file_type() -> None:
    twins = [
        stamps.Stamp("scratch", "things/ball", Path(f"ball.{ending}"), "a ball", "things", "drawing")
        for ending in ("png", "gif")
    ]
    first, second = stamps.with_unique_ids(twins)
    assert (first.id, second.id) == ("things/ball", "things/ball-gif")
    assert first.name == second.name == "ball"


def test_fit_crops_to_what_is_drawn() -> None:
    picture = np.zeros((300, 500, 4), np.uint8)
    picture[100:120, 40:60] = (0, 0, 255, 255)
    square = stamps.fit(Image.fromarray(picture), is_scene=False)
    assert square is not None
    blue = np.asarray(square)[..., 0] < 128
    assert blue.mean() > 0.8 and not blue[0].any()
    assert stamps.fit(Image.new("RGBA", (9, 9)), is_scene=False) is None


def test_fit_takes_the_middle_of_a_scene_only() -> None:
    view = np.zeros((100, 300, 4), np.uint8)
    view[..., 3] = 255
    view[:, 100:200, 1] = np.linspace(80, 255, 100).astype(np.uint8)
    scene, thing = (stamps.fit(Image.fromarray(view), is_scene=is_scene) for is_scene in (True, False))
    assert scene is not None and thing is not None
    assert np.asarray(scene)[:, 5:-5, 1].min() > 60
    assert tuple(np.asarray(thing)[0, 0]) == (255, 255, 255)


# ---- shapes -----------------------------------------------------------------------------------


def test_parse_properties() -> None:
    text = "# comment = no\nname#1 = Ta\\u00e7a\nlong=a,\\\nb\n! also = no\nempty=\nurl: http://x=1"
    assert shapes.parse_properties(text) == {"name#1": "Taça", "long": "a,b", "empty": "", "url": "http://x=1"}


def test_catalogue_has_names_in_every_language(tmp_path: Path) -> None:
    entry = "license=CC0\nname#1=Chair\nwidth#1=50\nmodelRotation#1=1 0 0 0 0 1 0 -1 0\nmodel#1=/m/chair.obj\n"
    entry += "name#2=Door\nid#2=d\ndoorOrWindow#2=true"
    write(tmp_path / "Lib/sub/PluginFurnitureCatalog.properties", entry)
    write(tmp_path / "Lib/sub/PluginFurnitureCatalog_fr.properties", "name#1=Chaise")
    chair, door = shapes.read_catalogue(tmp_path / "Lib")
    assert (chair.id, chair.names, chair.licence, chair.size_cm) == ("Chair", {"fr": "Chaise"}, "CC0", (50, 0, 0))
    assert chair.model == tmp_path / "Lib/sub/m/chair.obj" and chair.rotation is not None
    assert (door.library, door.id, door.is_door_or_window, door.names) == ("Lib", "d", True, {})


def test_voxelize_averages_colours_and_leaves_glass_out() -> None:
    points = np.array([[0, 0, 0], [0, 0, 0], [2, 1, 0], [99, 99, 99]], float)
    colors = np.array([[1, 0, 0, 1], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0.1]])
    voxels = surfaces.voxelize(points, colors)
    z, y, x = np.nonzero(voxels.occupied.reshape((surfaces.RESOLUTION,) * 3))
    assert voxels.colors.tolist() == [[0.5, 0, 0.5], [0, 1, 0]]
    assert voxels.is_flat  # no depth
    assert x[1] - x[0] == pytest.approx(0.9 * 64, abs=1) and z[1] - z[0] == pytest.approx(0.45 * 64, abs=1)  # z is up
    assert y[0] == y[1]


# ---- verifying --------------------------------------------------------------------------------


def test_verify_names_what_is_wrong(tmp_path: Path) -> None:
    good = {"id": "a", "caption": "a cat", "image": encode_webp(Image.new("RGB", (SIZE, SIZE), "red"))}
    pq.write_table(pa.Table.from_pylist([good]), tmp_path / "stamps128.parquet")
    assert verify.verify(tmp_path, ["stamps"]) == []
    small = good | {"id": "b", "caption": "", "image": encode_webp(Image.new("RGB", (64, 64)))}
    pq.write_table(pa.Table.from_pylist([good, good, small]), tmp_path / "stamps128.parquet")
    problems = verify.verify(tmp_path, ["stamps"])
    assert len(problems) == 3
    assert [word in " ".join(problems) for word in ("a is there 2 times", "(64, 64)", "b has no caption")] == [True] * 3


def test_pictures_survive_encoding() -> None:
    again = Image.open(io.BytesIO(encode_webp(Image.new("RGB", (SIZE, SIZE), (200, 30, 60)))))
    assert np.abs(np.asarray(again).astype(int) - (200, 30, 60)).max() <= 4
