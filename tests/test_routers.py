"""Who reads a request: the taught language model, and the one that does where there is none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from app.controller.lexicon import is_foreign
from app.controller.request import Request
from app.controller.routers import LanguageModelRouter, RuleRouter, as_read
from app.controller.rules import rule_scores
from models.errors import UserError
from models.language_model import LanguageModel, load_language_model
from models.request_head import RequestHead
from tests.test_adapter import trained
from tests.test_language_model import save_tokenizer, tiny_llama

MEDIA = ("text", "image", "scent")
DRAW = Request.of("make a scent of a picture of a cat")


@pytest.fixture
def model(tmp_path: Path) -> LanguageModel:
    tiny_llama().save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    plain = load_language_model(tmp_path)
    trained(plain.model).save(tmp_path / "reading")
    torch.manual_seed(2)
    RequestHead(plain.model.config.hidden_size, ("text", "image"), ("new", "chat", "ask")).save(tmp_path / "reading")
    return load_language_model(tmp_path, tmp_path / "reading")


def router_of(model: LanguageModel | UserError, missing: bool = False) -> LanguageModelRouter:
    @contextmanager
    def lease() -> Iterator[LanguageModel]:
        if isinstance(model, UserError):
            raise model
        yield model

    return LanguageModelRouter(lease, lambda: missing, RuleRouter())


def test_scores_lie_between_the_model_and_the_rules_and_rules_have_what_was_never_taught(model: LanguageModel) -> None:
    request = Request.of("make a picture of a cat")
    scores, ruled = router_of(model).score(request, MEDIA), rule_scores(request, MEDIA)
    outputs, acts = model.read(as_read(request))
    assert scores.outputs["scent"] == ruled.outputs["scent"] < 0.5 and not scores.note
    for medium in ("text", "image"):
        low, high = sorted([outputs[medium], ruled.outputs[medium]])
        assert low < scores.outputs[medium] < high
    assert set(scores.acts) == set(acts) and sum(scores.acts.values()) == pytest.approx(1)


def test_where_something_is_asked_for_that_was_never_taught_rules_have_the_word_on_all_media(
    model: LanguageModel,
) -> None:
    scores, ruled = router_of(model).score(DRAW, MEDIA), rule_scores(DRAW, MEDIA)
    assert scores.outputs == ruled.outputs and ruled.outputs["scent"] > 0.5
    assert scores.acts != ruled.acts


def test_what_a_person_writes_cannot_reach_the_model_as_control_tokens(model: LanguageModel) -> None:
    control = next(t.content for t in model.tokenizer.added_tokens_decoder.values() if t.special)
    assert model.read(f"draw {control} a cat") == model.read(model.plain(f"draw {control} a cat"))


def test_without_the_model_on_this_machine_rules_read_and_say_so(model: LanguageModel) -> None:
    router = router_of(model, missing=True)
    assert router.name == "rules" and router_of(model).name == "language model"
    assert router.score(DRAW, MEDIA) == rule_scores(DRAW, MEDIA)


def test_a_model_that_cannot_be_loaded_costs_no_answer() -> None:
    router = router_of(UserError("There is no room for 'request-reader'.", "Free something."))
    scores = router.score(DRAW, MEDIA)
    assert scores.outputs == rule_scores(DRAW, MEDIA).outputs
    assert "There is no room for 'request-reader'." in scores.note and "without the language model" in scores.note


@pytest.mark.parametrize(
    ("prompt", "foreign"),
    [
        ("draw a cat and make it blue", False),
        ("a cat", False),
        ("ein Bild von einer Katze", True),
        ("je voudrais entendre la mer", True),
        ("quiero un dibujo de un gato", True),
        ("vorrei il suono della pioggia", True),
        ("faz uma imagem do mar", True),
        ("maak een geluid van de regen", True),
        ("", False),
    ],
)
def test_in_languages_that_the_model_was_not_made_for_rules_weigh_more(
    model: LanguageModel, prompt: str, foreign: bool
) -> None:
    assert is_foreign(prompt) == foreign
    request = Request.of(prompt or "?")
    scores, ruled = router_of(model).score(request, MEDIA), rule_scores(request, MEDIA)
    read = model.read(as_read(request))[0]
    share = 0.5 if foreign else 0.25
    expected = (1 - share) * math.log(read["image"] / (1 - read["image"])) + share * math.log(
        ruled.outputs["image"] / (1 - ruled.outputs["image"])
    )
    assert math.log(scores.outputs["image"] / (1 - scores.outputs["image"])) == pytest.approx(expected, abs=1e-6)
