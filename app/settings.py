"""Every setting in one typed place: a command-line flag beats the environment, which beats ``.env``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.catalog import catalog
from models.errors import UserError
from models.full_models import Pixels
from models.precision import Precision
from models.spec import ModelSpec

# Set when this module is imported, because both libraries read them once, when they are imported themselves.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # ours shows the same

PREFIX = "SYNESTHETE_"


def _is_space() -> bool:
    return bool(os.environ.get("SPACE_ID"))


def _default_host() -> str:
    """A Space is reached through a proxy, so it has to listen on every address; at home nobody else should get in."""
    return "0.0.0.0" if _is_space() else "127.0.0.1"


def _decoded(value: object) -> object:
    """A table given as text is JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise ValueError("Input should be valid JSON") from None


class Settings(BaseSettings):
    """What a person can set, each as the environment variable ``SYNESTHETE_<NAME>`` or a line of ``.env``."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True, allow_inf_nan=False
    )

    profile: Literal["lite", "full"] = Field(
        "lite", description="'lite' runs from this repository on a CPU; 'full' fetches the published models."
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="Where models run: auto, cpu, cuda or cuda:N."
    )
    memory_budget_gb: float | None = Field(
        None, gt=0, le=100_000, description="GB that models may hold at once; by default what is free, less a reserve."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8", "nf4"] = Field(
        "auto", description="How weights are held; 'auto' takes what this machine computes fastest at no visible loss."
    )
    model_precision: Annotated[dict[str, Precision], NoDecode, BeforeValidator(_decoded)] = Field(
        {}, description='Another precision for some models, as JSON: {"crossflow": "int8"}.'
    )
    unload_after_minutes: float | None = Field(
        None, gt=0, le=100_000, description="Minutes after which an unused model leaves memory; by default never."
    )
    local_weights: Annotated[dict[str, Path], NoDecode, BeforeValidator(_decoded)] = Field(
        {}, description='Folders to load models from instead, as JSON: {"crossflow": "/data/crossflow"}.'
    )
    crossflow_pixels: Annotated[Pixels, BeforeValidator(_decoded)] = Field(
        256, description="The side of CrossFlow's pictures in the full profile: 256 or 512."
    )
    language_model_url: str | None = Field(
        None, description="An OpenAI-compatible server, up to and with /v1, that reads requests and answers in words."
    )
    language_model_name: str = Field("default", min_length=1, description="What that server calls its model.")
    language_model_key: str = Field("", repr=False, description="The key that it wants, if it does.")
    output_folder: Path = Field(Path("outputs"), description="The folder of the gallery.")
    host: str = Field(default_factory=_default_host, min_length=1, description="The address to serve on.")
    port: int = Field(7860, ge=1, le=65535, description="The port to serve on.")
    shared: bool = Field(
        default_factory=_is_space,
        description="Strangers use one page, as on a Space: none may delete, free models or change the brain decoder.",
    )
    max_queue: int = Field(
        20, ge=1, le=10_000, description="Requests that may wait; further ones are told to come back."
    )
    max_upload_mb: int = Field(20, ge=1, le=10_000, description="The largest file that may be uploaded, in MB.")

    def catalog(self) -> dict[str, ModelSpec]:
        """The models of this profile. Raises :class:`UserError` for local weights of a model that is not in it."""
        return catalog(self.profile, self.local_weights, self.crossflow_pixels)


def load_settings(**overrides: Any) -> Settings:
    """The settings; an override of ``None`` counts as not given. Raises :class:`UserError` naming the first bad one."""
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        meaning = Settings.model_fields[name].description
        reason = first["msg"].removeprefix("Value error, ").lower()
        raise UserError(
            f"The setting '{name}' cannot be {str(first['input'])[:60]!r}: {reason}.",
            f"Its meaning: {meaning} It is set by --{name.replace('_', '-')}, {PREFIX}{name.upper()} or .env.",
        ) from None
