"""What the manager is told of a plan, so that the next models are there in time."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from app.controller.executor import execute
from app.studio import Studio
from pipelines.base import Params
from pipelines.media import Artifact, Audio, Image
from tests.tiny_models import wait_until
from tests.watched_pipelines import (
    APPLE,
    CHAIN,
    OBJECT,
    PEAR,
    SOUND,
    Attentive,
    Tone,
    Watched,
    bug,
    plan_of,
    run,
)


def test_the_next_models_come_in_while_a_step_computes(studio: Studio, manager: Attentive, tone: Tone) -> None:
    waited: list[bool] = []

    def until_the_carver_is_there() -> None:
        wait_until(lambda: any(row.key == "carver" and not row.loading for row in manager.status()))
        waited.append(any(row.key == "toner" and row.leases == 1 for row in manager.status()))

    tone.in_step = until_the_carver_is_there
    results = run(studio, CHAIN)
    assert set(results) == set("abc") and waited == [True] * 3
    assert manager.metrics.prefetch_hits >= 1


def test_the_manager_knows_the_running_step_and_those_to_come_and_no_others(
    studio: Studio, manager: Attentive, tone: Tone
) -> None:
    list(execute(studio, plan_of(APPLE), {}))
    manager.told = []
    list(execute(studio, plan_of(APPLE, SOUND, PEAR, OBJECT), {}))
    to_come = [("toner", "painter", "carver"), ("painter", "carver"), ("carver",)]
    assert list(dict.fromkeys(manager.told)) == [*to_come, ()]
    assert manager.told[-1] == () and () not in manager.told[:-1], "never in between"


def test_models_that_a_step_can_do_without_are_not_expected(
    studio: Studio, manager: Attentive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_name(self: Watched, inputs: Sequence[Artifact], params: Params) -> tuple[str, ...]:
        return tuple(key for key in self.models if key != "carver") if isinstance(inputs[0], Image) else self.models

    monkeypatch.setattr(Watched, "models_for", by_name)
    monkeypatch.setattr(Tone, "models", ("toner", "carver"))
    list(execute(studio, plan_of(APPLE, SOUND), {}))
    # Until there is a picture, the sound may need both.
    assert list(dict.fromkeys(manager.told)) == [("painter", "toner", "carver"), ("toner",), ()]


def test_models_of_skipped_steps_are_not_expected(studio: Studio, manager: Attentive, tone: Tone) -> None:
    tone.before_result = bug
    list(execute(studio, plan_of(APPLE, SOUND, OBJECT, PEAR), {}))
    assert ("toner", "carver", "painter") in manager.told
    assert manager.told[-2:] == [("painter",), ()]


def test_another_request_that_waits_comes_before_the_later_steps(
    studio: Studio, manager: Attentive, tone: Tone
) -> None:
    silence = Audio(np.zeros((1, 800), np.float32), 8000)
    other = threading.Thread(target=lambda: list(studio.run("carve", [silence], {})))

    def let_another_wait() -> None:
        if tone.steps == 1:
            other.start()
            wait_until(lambda: manager.told[-1] == ("toner", "carver", "painter"))

    tone.in_step = let_another_wait
    assert set(run(studio, plan_of(APPLE, SOUND, PEAR))) == set("abd")
    other.join(30)
    assert not other.is_alive()
