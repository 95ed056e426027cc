"""Real, tiny pipelines: their weights are real files, verified and leased like every other's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import UserError
from pipelines.base import Event, Params, Pipeline, Produced, Progress, Route, Runtime, provenance
from pipelines.media import Artifact, Audio, Image, Text

PICTURE_SIZE = 16


class Painter(nn.Module):
    """Turns noise and a text's number into a picture by one linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.canvas = nn.Linear(8, PICTURE_SIZE * PICTURE_SIZE * 3)

    @torch.no_grad()
    def forward(self, noise: Tensor) -> np.ndarray:
        pixels = self.canvas(noise).sigmoid().view(PICTURE_SIZE, PICTURE_SIZE, 3) * 255
        return pixels.to(torch.uint8).numpy()


def load_painter(folder: Path) -> Painter:
    painter = Painter()
    painter.load_state_dict(load_file(folder / "model.safetensors"))
    return painter


def write_sums(folder: Path) -> None:
    """The folder's SHA256SUMS, as the command sha256sum would write it."""
    paths = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    (folder / "SHA256SUMS").write_text("".join(lines))


def _seeded(text: str, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {text}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))


class PaintParams(Params):
    steps: int = Field(3, ge=1, le=100, description="Brush strokes.")
    strength: float = Field(1.0, ge=0.0, le=2.0, description="How bright it is.")
    num_images: int = Field(1, ge=1, le=4, description="Pictures of one request.")
    note: str | None = Field(None, description="Words that change nothing.", json_schema_extra={"advanced": True})
    fail: bool = Field(False, description="Fail as a bug would.", json_schema_extra={"advanced": True})


class Paint(Pipeline):
    """Text to picture: deterministic in the text, the seed and the settings."""

    name = "tiny-paint"
    title = "Tiny painting"
    summary = "Paints a small pattern."
    routes = (Route(("text",), "image"),)
    params_type = PaintParams
    models = ("painter",)

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        assert isinstance(params, PaintParams)
        for item in inputs:
            [text] = item
            assert isinstance(text, Text)
            if not text.text.strip():
                raise UserError("The prompt is empty.", "Write what the picture should show.")
            with runtime.lease("painter") as painter:
                generator = _seeded(text.text, params.seed)
                for index in range(params.num_images):
                    noise = torch.randn(8, generator=generator)
                    for step in range(params.steps):
                        runtime.raise_if_cancelled()
                        preview = Image(painter(noise * (step + 1) / params.steps))
                        yield Progress(step + 1, params.steps, "Painting", preview)
                    if params.fail:
                        raise ZeroDivisionError("a bug")
                    made_by = provenance(self, item, params, runtime.models, index)
                    yield Produced(Image(painter(noise * params.strength), provenance=made_by))


class BlendParams(Params):
    share: float = Field(0.5, ge=0.0, le=1.0, description="How much of the second.")


class Blend(Pipeline):
    """Two pictures to one: inputs that are files."""

    name = "tiny-blend"
    title = "Tiny blend"
    summary = "Mixes two pictures."
    routes = (Route(("image", "image"), "image"),)
    params_type = BlendParams
    models = ()

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        assert isinstance(params, BlendParams)
        for item in inputs:
            first, second = item
            assert isinstance(first, Image) and isinstance(second, Image)
            mixed = first.pixels * (1 - params.share) + second.pixels * params.share
            yield Produced(Image(mixed.astype(np.uint8), provenance=provenance(self, item, params, runtime.models)))


class Hum(Pipeline):
    """Two texts to a sound and its picture: a route of several texts, and a run that makes two media."""

    name = "tiny-hum"
    title = "Tiny hum"
    summary = "Hums two words."
    routes = (Route(("text", "text"), "audio"), Route(("text", "text"), "image"))
    params_type = Params
    models = ()

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        for item in inputs:
            pitches = [200 + len(text.text) for text in item if isinstance(text, Text)]
            time = np.arange(800, dtype=np.float32) / 8000
            samples = np.concatenate([0.5 * np.sin(2 * np.pi * pitch * time) for pitch in pitches])[None]
            made_by = provenance(self, item, params, runtime.models)
            yield Produced(Audio(samples.astype(np.float32), 8000, provenance=made_by))
            wave = np.repeat((samples[:, :PICTURE_SIZE, None] * 255 + 128).astype(np.uint8), 3, axis=2)
            yield Produced(Image(wave, provenance=provenance(self, item, params, runtime.models, 1)))
