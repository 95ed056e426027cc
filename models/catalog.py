"""Which models there are in each profile, by key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from models.errors import UserError
from models.full_models import Pixels, full_models
from models.lite_models import lite_models
from models.request_models import request_models
from models.sources import Bundled, Folder
from models.spec import ModelSpec, Profile, bytes_in_memory


def catalog(
    profile: Profile, local_weights: Mapping[str, Path] | None = None, pixels: Pixels = 256
) -> dict[str, ModelSpec]:
    """The models of a profile by key; those named in ``local_weights`` come from that folder instead.

    ``pixels``: the side of the full profile's pictures.

    Raises :class:`UserError` if ``local_weights`` names a model that is not in the profile.
    """
    specs = {
        spec.key: spec
        for spec in (*(lite_models() if profile == "lite" else full_models(pixels)), *request_models(profile))
    }
    for key, folder in (local_weights or {}).items():
        if key not in specs:
            raise UserError(
                f"There is no model called {key[:60]!r} to load from '{folder}'.", f"There is: {', '.join(specs)}."
            )
        specs[key] = replace(specs[key], source=Folder(folder), bytes=bytes_in_memory(folder), note="")
    return specs


def shipped() -> dict[str, ModelSpec]:
    """The lite models whose weights are in this repository."""
    return {key: spec for key, spec in catalog("lite").items() if isinstance(spec.source, Bundled)}
