"""Licences that restrict what weights may be used for: asked for once, and remembered in the user's own folder."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from models.errors import UserError
from models.spec import ModelSpec


def licences_file() -> Path:
    """A JSON object: repository -> the texts of the licences that were accepted for it."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "synesthete" / "licences.json"


def is_accepted(spec: ModelSpec) -> bool:
    """Whether the model may be fetched: its licence restricts nothing, was accepted, or it is the user's own folder."""
    return not spec.restricted or all(spec.licence in _accepted().get(repo, []) for repo in spec.source.repos)


def require_licence(spec: ModelSpec) -> None:
    """Raises :class:`UserError`, with the command that accepts it, unless :func:`is_accepted`."""
    if not is_accepted(spec):
        raise UserError(
            f"The licence of '{spec.key}' ({', '.join(spec.source.repos)}) restricts its use: {spec.licence}.",
            f"If that suits you: python -m app models fetch {spec.key} --profile {spec.profile} --accept-licence",
        )


def accept_licence(spec: ModelSpec) -> None:
    """Remember that the user accepts this licence of its repositories. Raises :class:`UserError` if it cannot be."""
    if is_accepted(spec):
        return
    accepted = _accepted()
    for repo in spec.source.repos:
        accepted[repo] = [*dict.fromkeys([*accepted.get(repo, []), spec.licence])]
    path = licences_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with open(handle, "w", encoding="utf-8") as file:
                json.dump(accepted, file, indent=2, ensure_ascii=False)
                file.flush()
                os.fsync(handle)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(
            f"What you accept could not be written to '{path}': {error.strerror}.",
            "Set XDG_CONFIG_HOME to a folder that you may write to.",
        ) from error


def _accepted() -> dict[str, list[str]]:
    path = licences_file()
    try:
        accepted = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError) as error:
        raise _damaged(path) from error
    if not isinstance(accepted, dict) or not all(isinstance(texts, list) for texts in accepted.values()):
        raise _damaged(path)
    return accepted


def _damaged(path: Path) -> UserError:
    return UserError(f"'{path}' cannot be read.", "Delete it; what you accepted will be asked for again.")
