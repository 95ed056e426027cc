"""Where the command line writes: OUT is a file, or a folder for whatever comes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.errors import UserError
from pipelines.artifact import suffix_of
from pipelines.atomic import plain_folder_errors
from pipelines.base import Pipeline, Registry, Route
from pipelines.media import Artifact, known_media

NAME_LENGTH = 60


@dataclass(frozen=True)
class Target:
    """``path`` with the media that its ``suffix`` can hold; no suffix for a folder, which holds any."""

    path: Path
    suffix: str
    media: tuple[str, ...]

    @classmethod
    def parse(cls, out: str) -> Target:
        """A folder if it is one, ends in a slash or has no ending. Raises :class:`UserError` for an unknown ending."""
        path = Path(out)
        if path.is_dir() or out.endswith(("/", os.sep)) or not path.suffix:
            return cls(path, "", tuple(kind.medium for kind in known_media()))
        suffix = suffix_of(path, [suffix for kind in known_media() for suffix in kind.suffixes])
        if suffix is None:
            known = ", ".join(suffix for kind in known_media() for suffix in kind.suffixes)
            raise UserError(
                f"Files that end in '{path.suffix[:20]}' cannot be written.",
                f"Use one of {known}; or end the name in '/' if it is a folder.",
            )
        return cls(path, suffix, tuple(kind.medium for kind in known_media() if suffix in kind.suffixes))

    def check(self) -> None:
        """Raises :class:`UserError` if nothing can be written there, before any work is done for it."""
        folder = self.path.parent if self.suffix else self.path
        while not self.suffix and not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise UserError(f"The folder '{folder}' does not exist.", "Create it, or choose another one.")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(
                f"Nothing can be written in the folder '{folder}'.", "Choose a folder that you may write to."
            )

    def save(self, artifacts: Sequence[Artifact], title: str) -> list[Path]:
        """Write each artifact as a whole file; returns where. A file's name gets -1, -2, ... if there are several."""
        if not self.suffix:
            with plain_folder_errors(self.path / "file"):
                self.path.mkdir(parents=True, exist_ok=True)
        paths = self._paths(artifacts, title)
        for path, artifact in zip(paths, artifacts, strict=True):
            artifact.save(path)
        return paths

    def _paths(self, artifacts: Sequence[Artifact], title: str) -> list[Path]:
        if not self.suffix:
            # Named by content, so that another seed never overwrites an earlier result.
            slug = re.sub(r"[^\w]+", "-", title.lower())[:NAME_LENGTH].strip("-") or "result"
            return [self.path / f"{slug}-{item.content_hash()[:8]}{item.kept_as}" for item in artifacts]
        if len(artifacts) == 1:
            return [self.path]
        stem = self.path.name[: -len(self.suffix)]
        return [self.path.with_name(f"{stem}-{number + 1}{self.suffix}") for number in range(len(artifacts))]


def choose_route(registry: Registry, name: str | None, media: Sequence[str], target: Target) -> tuple[Pipeline, Route]:
    """The first way from ``media`` to what the target can hold, among those of the pipeline ``name`` if it is given.

    Otherwise no edit is guessed, but for those that lead to another medium. Raises :class:`UserError` if there is none.
    """
    pipelines = [registry.get(name)] if name else list(registry)
    routes = [
        (pipeline, route)
        for pipeline in pipelines
        for route in pipeline.routes
        if name or not pipeline.is_edit or route.output not in route.inputs
    ]
    for pipeline, route in routes:
        if sorted(route.inputs) == sorted(media) and route.output in target.media:
            return pipeline, route
    given = " + ".join(media) or "nothing"
    wanted = f"a '{target.suffix}' file" if target.suffix else "anything"
    ways = ", ".join(f"{' + '.join(route.inputs)} -> {route.output} ({pipeline.name})" for pipeline, route in routes)
    raise UserError(
        f"'{name}' does not turn {given} into {wanted}." if name else f"Nothing here turns {given} into {wanted}.",
        f"What can be done: {ways}.",
    )
