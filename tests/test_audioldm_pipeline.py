"""AudioLDM's pipeline on tiny untrained models; what it shares with the other two of sounds is tested there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import UserError
from models.manager import ModelManager
from pipelines.audioldm.pipeline import AudioLDM, nearest
from pipelines.base import CANDIDATES_APART, Progress, Runtime, installed_registry
from pipelines.media import Artifact, Audio, Text
from pipelines.sounds import SoundMaker, Wanted
from pipelines.spaces import sound_vector, words_vector
from tests.tiny_models import resident
from tests.tiny_sounds import events, picture, produced, sound_manager, tone

AUDIOLDM = AudioLDM()


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> ModelManager:
    return sound_manager(tmp_path_factory.mktemp("models"))


def samples(manager: ModelManager, given: Artifact, **params: Any) -> np.ndarray:
    return produced(manager, AUDIOLDM, given, **params)[0].samples


def test_the_condition_is_where_the_space_of_sounds_has_the_words(
    manager: ModelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Wanted] = []
    make = SoundMaker.make

    def noted(self: SoundMaker, wanted: Sequence[Wanted], steps: int, guidance: float) -> Any:
        asked.extend(wanted)
        return make(self, wanted, steps, guidance)

    monkeypatch.setattr(SoundMaker, "make", noted)
    produced(manager, AUDIOLDM, Text("rain on a roof"), num_sounds=2, candidates=2, seed=5)
    vector, _ = words_vector("sound-text", "rain on a roof", Runtime(manager))
    assert [one.seed for one in asked] == [5, 5 + CANDIDATES_APART, 6, 6 + CANDIDATES_APART]
    for one in asked:
        np.testing.assert_allclose(one.condition, vector[0], atol=1e-5)


def test_words_and_seeds_make_different_sounds_and_equal_ones_the_same(manager: ModelManager) -> None:
    rain = samples(manager, Text("rain"), seed=1)
    assert np.array_equal(rain, samples(manager, Text(" rain\n"), seed=1))
    assert not np.array_equal(rain, samples(manager, Text("rain"), seed=2))
    assert not np.array_equal(rain, samples(manager, Text("a dog"), seed=1))


def test_of_the_candidates_the_nearest_to_the_words_is_kept(manager: ModelManager) -> None:
    runtime = Runtime(manager)
    low, high, none = tone(200, 1), tone(3000, 1), Audio(np.zeros((1, 16_000), np.float32), 16_000)
    with runtime.lease("sound-text") as space:
        vectors = [sound_vector(space, sound, runtime) for sound in (low, high)]
    choices = [[low, high, none], [none, low, high]]
    assert [[kept is sound for sound in (low, high)] for kept in nearest(choices, vectors, runtime)] == [
        [True, False],
        [False, True],
    ]
    assert nearest([[none, none]], vectors[:1], runtime) == [none]


def test_a_variation_is_one_of_its_candidates(manager: ModelManager) -> None:
    alone = [samples(manager, Text("rain"), seed=1 + k * CANDIDATES_APART, candidates=1) for k in range(3)]
    kept = samples(manager, Text("rain"), seed=1, candidates=3)
    assert sum(np.allclose(kept, one, atol=1e-3) for one in alone) == 1


def test_it_leases_what_it_says_and_tells_what_it_asked_for(tmp_path: Path) -> None:
    manager = sound_manager(tmp_path)
    run = list(events(manager, AUDIOLDM, [Text("rain on a roof")], steps=2))
    assert set(resident(manager)) == set(AUDIOLDM.models_for([Text("rain")], AUDIOLDM.parse_params({})))
    assert 'Asked for "rain on a roof"' in {event.message for event in run if isinstance(event, Progress)}


def test_words_go_to_it_before_any_other_maker_of_sounds() -> None:
    for registry in (installed_registry("lite"), installed_registry("full")):
        assert next(pipeline for pipeline in registry if pipeline.accepts(["text"], "audio")).name == "audioldm"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (Text(" \n"), "The text is empty"),
        (Text("rain " * 20_000), "100,000 characters; 2,000 is the most"),
        (picture(0), "Words are needed here, not image"),
    ],
)
def test_what_says_nothing_is_refused_before_a_model_is_loaded(tmp_path: Path, given: Artifact, problem: str) -> None:
    manager = sound_manager(tmp_path)
    with pytest.raises(UserError, match=problem) as refusal:
        produced(manager, AUDIOLDM, given)
    assert "what to hear" in refusal.value.hint and not resident(manager)
