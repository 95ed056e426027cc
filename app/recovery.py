"""A pipeline's events, over again with less at once when memory runs out in the middle."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from models.errors import OutOfMemory
from models.loading import first_line, is_out_of_memory
from models.manager import ModelManager
from models.working_memory import Work
from pipelines.base import Params, Pipeline, Produced, Progress, Runtime
from pipelines.media import Artifact


def events_of(
    pipeline: Pipeline, inputs: Sequence[Artifact], params: Params, runtime: Runtime, manager: ModelManager
) -> Iterator[Progress | Produced]:
    """The events of a run, with a look at the user's wish to stop between them, even if the pipeline never looks.

    If an allocation fails, the run starts again: first with idle models dropped, then with smaller and smaller
    micro-batches, then in a lower precision if the settings leave the choice to us. The micro-batch that works is
    remembered for such runs. A run is deterministic, so what had been produced by then is not produced twice. Raises
    :class:`UserError` when all of that is of no use.
    """
    told, relieved = 0, False
    shape = pipeline.shape_of_work(inputs, params)
    work = Work(pipeline.name, shape, str(manager.dtype).removeprefix("torch."))
    models = pipeline.models_for(inputs, params)
    _require_published(models, manager)
    wanted = runtime.micro_batch
    runtime.micro_batch = manager.working_memory.micro_batch(work, wanted)
    while True:
        try:
            with manager.working(work, models):
                for number, event in _numbered(_checked(pipeline.run(inputs, params, runtime), runtime)):
                    if isinstance(event, Progress):
                        yield event
                    elif number > told:
                        told = number
                        yield event
            manager.working_memory.worked(work, runtime.micro_batch, wanted)
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            said, while_loading = first_line(error), isinstance(error, OutOfMemory)
        # Outside of the handler, where nothing holds what the failed run had in memory.
        things = min(runtime.micro_batch, shape[0])
        if not relieved:
            relieved = True
            manager.relieve(said)
        elif things > 1 and not while_loading:
            runtime.micro_batch = things // 2
        elif not manager.lower_precision(models):
            raise manager.out_of_memory(work, models)


def _require_published(models: Sequence[str], manager: ModelManager) -> None:
    """Raises :class:`UserError` for a model that nobody has published, before gigabytes are fetched of the others."""
    sources = (manager.specs[key].source for key in models if key in manager.specs)
    for source in sources:
        if not source.published:
            source.resolve(lambda share, said: None)


def _checked(stream: Iterator[Progress | Produced], runtime: Runtime) -> Iterator[Progress | Produced]:
    runtime.raise_if_cancelled()
    try:
        for event in stream:
            yield event
            runtime.raise_if_cancelled()
    finally:
        if isinstance(stream, Generator):
            stream.close()  # here and now, so that its leases end with the run


def _numbered(stream: Iterator[Progress | Produced]) -> Iterator[tuple[int, Progress | Produced]]:
    """Each event with the count of artifacts so far."""
    count = 0
    for event in stream:
        count += isinstance(event, Produced)
        yield count, event
