"""What runs took on this machine, by pipeline. What a plan is going to take is estimated from it."""

from __future__ import annotations

import logging
import math
import threading
from pathlib import Path
from statistics import median
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from models.errors import UserError
from pipelines.atomic import write_atomically

log = logging.getLogger(__name__)

RUNS_KEPT = 9

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Run = tuple[_Positive, _Positive, _Positive]  # its effort, that of the same run at default params, its seconds
_FILE = TypeAdapter(dict[str, list[_Run]])


class Durations:
    """The last runs of every pipeline, kept as JSON at ``path``. Thread-safe; of several processes the last one wins.

    A run's effort is :meth:`~pipelines.base.Pipeline.effort`, in the pipeline's own unit; its seconds are without what
    it waited for models.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._runs = _read(path)

    def note(self, pipeline: str, effort: float, usual_effort: float, seconds: float) -> None:
        """Keep what a run took; ``usual_effort``: what its effort would have been at default params.

        An effort of nothing tells nothing, and is left out.
        """
        if not all(0 < number < math.inf for number in (effort, usual_effort, seconds)):
            return
        with self._lock:
            runs = [*self._runs.get(pipeline, ()), (effort, usual_effort, seconds)]
            self._runs[pipeline] = runs[-RUNS_KEPT:]
            try:
                write_atomically(self.path, _FILE.dump_json(self._runs, indent=1))
            except UserError as error:
                log.warning("what runs take is not kept: %s", error)  # no reason to fail a run that is done

    def expected(self, pipeline: str, effort: float | None = None) -> float | None:
        """Seconds of a run of this effort, or of one at default params; ``None`` for a pipeline that never ran.

        The median over the runs kept, so that neither a first run's warming up nor a busy moment counts for much.
        """
        with self._lock:
            runs = list(self._runs.get(pipeline, ()))
        if not runs:
            return None
        if effort is None:
            effort = median(usual for _, usual, _ in runs)
        return effort * median(seconds / of_run for of_run, _, seconds in runs)


def _read(path: Path) -> dict[str, list[_Run]]:
    """What is kept at ``path``; nothing if it is missing or damaged: it is a convenience and comes again by itself."""
    try:
        return _FILE.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        log.warning("'%s' cannot be read, so what runs take is learnt anew: %s", path, error)
        return {}
