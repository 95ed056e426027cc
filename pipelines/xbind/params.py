"""The settings that both of XBind's pipelines have, of our own small models and of large published ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from pipelines.base import ADVANCED, Params
from pipelines.xbind.phases import Distillation, Phase
from pipelines.xbind.supervision import Weights


class ObjectParams(Params):
    preset: Literal["preview", "draft", "fine"] = Field(
        "preview", description="A preview comes first. draft and fine go on from it, and take much longer."
    )
    num_shapes: int = Field(1, ge=1, le=4, description="Variations to make at once, each from its own seed.")
    share: float = Field(
        0.5, ge=0, le=1, description="With words and an example: how far to go from the words to the example."
    )
    background: Literal["remove", "keep"] = Field(
        "remove", description="With a picture: whether its object is first cut out of a plain background."
    )
    size: float = Field(1.0, ge=0.01, le=100, description="Metres of its longest side.")
    num_faces: int = Field(
        20_000, ge=200, le=100_000, description="At most this many triangles.", json_schema_extra=ADVANCED
    )
    start: Literal["preview", "scratch"] = Field(
        "preview", description="Refining: from the preview, or from a grey ball.", json_schema_extra=ADVANCED
    )
    planar_weight: float = Field(
        1.0,
        ge=0,
        le=10,
        description="Refining: weight of how a view of what is asked for should look.",
        json_schema_extra=ADVANCED,
    )
    stereoscopic_weight: float = Field(
        1.0,
        ge=0,
        le=10,
        description="Refining: weight of how other sides should look, given one.",
        json_schema_extra=ADVANCED,
    )
    similarity_weight: float = Field(
        1.0, ge=0, le=10, description="Refining: weight of meaning what is asked for.", json_schema_extra=ADVANCED
    )
    coarse: Distillation = Field(
        "sds", description="Refining the coarse field: score or consistency distillation.", json_schema_extra=ADVANCED
    )
    geometry: Distillation = Field(
        "sds", description="Refining the geometry: score or consistency distillation.", json_schema_extra=ADVANCED
    )
    texture: Distillation = Field(
        "sds", description="Refining the texture: score or consistency distillation.", json_schema_extra=ADVANCED
    )

    @property
    def weights(self) -> Weights:
        return Weights(self.planar_weight, self.stereoscopic_weight, self.similarity_weight)

    @property
    def needs_preview(self) -> bool:
        return self.preset == "preview" or self.start == "preview"

    def phases(self, usual: tuple[Phase, Phase, Phase]) -> tuple[Phase, Phase, Phase]:
        """With the distillation that is asked for."""
        coarse, geometry, texture = usual
        return (
            replace(coarse, distillation=self.coarse),
            replace(geometry, distillation=self.geometry),
            replace(texture, distillation=self.texture),
        )
