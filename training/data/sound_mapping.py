"""``sounds_mapping.json``: every sound with its captions, the pictures that show it, and its number of clips."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

# The class of the voices that read the stamps' sentences; the sound map has no rules for it.
SPEECH: Mapping[str, Any] = {
    "category": "speech",
    "captions": ["a voice speaking"],
    "emoji": ["🗣️"],
    "loop": False,
    "stamps": "zz",
}
ABOUT_STAMPS = " stamps: ids of stamps128.parquet that show it, those that come with the sound first."


def write_mapping(out: Path, sound_map: dict[str, Any]) -> None:
    """Write the mapping of the sounds that ``out``/sounds16k.parquet has."""
    clips = pq.read_table(out / "sounds16k.parquet", columns=["class", "kind", "stamp"]).to_pylist()
    counts = Counter(clip["class"] for clip in clips)
    recorded = Counter(clip["class"] for clip in clips if clip["kind"] == "recorded")
    own_stamps = defaultdict(set)
    for clip in clips:
        if clip["stamp"] and clip["class"] != "speech":
            own_stamps[clip["class"]].add(clip["stamp"])

    stamps = read_stamps(out / "stamps128.parquet")
    classes = {
        sound: {
            "category": entry["category"],
            "captions": entry["captions"],
            "emoji": entry["emoji"],
            "loop": entry["loop"],
            "clips": counts[sound],
            "recorded": recorded[sound],
            "stamps": stamps_of(sound, entry, own_stamps[sound], stamps),
        }
        for sound, entry in {**sound_map["classes"], "speech": SPEECH}.items()
        if counts[sound]
    }
    mapping = {"about": sound_map["about"] + ABOUT_STAMPS, "classes": classes}
    (out / "sounds_mapping.json").write_text(json.dumps(mapping, ensure_ascii=False, indent=1), encoding="utf8")


def read_stamps(path: Path) -> list[dict[str, str]]:
    """The ``id``, ``name`` and ``style`` of every stamp; none if the stamps are not built."""
    return pq.read_table(path, columns=["id", "name", "style"]).to_pylist() if path.exists() else []


def stamps_of(sound: str, entry: Mapping[str, Any], own: set[str], stamps: list[dict[str, str]]) -> list[str]:
    """Ids of the stamps that show a sound: its ``own`` first, then those whose name fits (letters never do)."""
    known = {stamp["id"] for stamp in stamps}
    pattern = entry.get("stamps") or rf"\b{re.escape(sound)}s?\b"
    fitting = [stamp["id"] for stamp in stamps if stamp["style"] != "letter" and re.search(pattern, stamp["name"])]
    return sorted(own & known) + [stamp_id for stamp_id in fitting if stamp_id not in own]
