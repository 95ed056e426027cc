"""What every edit shares: one thing in, the same thing changed, or shown, out; no model, and nothing left to chance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Generic, TypeVar, cast

from pipelines.base import Event, Params, Pipeline, Produced, Runtime, provenance
from pipelines.media import Artifact

AnyArtifact = TypeVar("AnyArtifact", bound=Artifact)
AnyParams = TypeVar("AnyParams", bound=Params)


class Edit(Pipeline, Generic[AnyArtifact, AnyParams]):
    """A pipeline of one function, :meth:`change`. The seed changes nothing."""

    is_edit = True
    uses_chance = False
    models: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def change(self, given: AnyArtifact, params: AnyParams) -> AnyArtifact:
        """``given`` changed. Raises :class:`UserError` if that is impossible."""

    def run_batch(self, inputs: Sequence[Sequence[Artifact]], params: Params, runtime: Runtime) -> Iterator[Event]:
        for item in inputs:
            runtime.raise_if_cancelled()
            [given] = item
            changed = self.change(cast(AnyArtifact, given), cast(AnyParams, params))
            yield Produced(changed.with_provenance(provenance(self, item, params, runtime.models)))
