"""Packages of third parties, installed as an installer would leave them: code and a ``.dist-info`` on the path."""

from __future__ import annotations

import tomllib
from pathlib import Path

PACKAGES = Path(__file__).parent / "third_party"


def install(name: str, site: Path) -> list[str]:
    """Write the metadata of the package in ``third_party/NAME`` into ``site``; returns what has to be on the path."""
    source = PACKAGES / name
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    folder = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [line for group, points in groups for line in (f"[{group}]", *(f"{key} = {points[key]}" for key in points))]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return [str(site), str(source)]
