"""Requests read by prototypes and rules, where there is no language model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertConfig, BertModel

from app.controller.planner import KNOWN_MEDIA
from app.controller.prototypes import (
    CONFIG,
    KINDS,
    SHIPPED,
    WEIGHTS,
    PrototypeRouter,
    Prototypes,
    decided,
    features_of,
    load_prototypes,
)
from app.controller.request import ACTS, Request
from app.controller.routers import RuleRouter
from app.controller.rules import Scores, rule_scores
from models.errors import UserError
from models.sources import ASSETS, Folder, Source
from models.text_encoder import TextEncoder, load_text_encoder
from tests.tiny_models import another_being_built
from training import prototypes as recipe
from training.controller import request_of
from training.instructions.rows import rows

ENCODER = ASSETS / "text-encoder-lite"
SINGLE = st.text(max_size=60)
SENTENCES = ("a cat", "let me hear what a very large bell in an old stone tower sounds like at noon", "hm", "undo that")


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return load_text_encoder(ENCODER)


def router_of(encoder: TextEncoder | UserError, source: Source = SHIPPED) -> PrototypeRouter:
    @contextmanager
    def lease() -> Iterator[TextEncoder]:
        if isinstance(encoder, UserError):
            raise encoder
        yield encoder

    return PrototypeRouter(lease, source)


def reading(act: str, *outputs: str, sure: float = 0.9) -> Scores:
    acts = {name: sure if name == act else (1 - sure) / (len(ACTS) - 1) for name in ACTS}
    return Scores({medium: sure if medium in outputs else 1 - sure for medium in KNOWN_MEDIA}, acts)


def test_more_unseen_wordings_are_understood_than_by_rules_alone(encoder: TextEncoder) -> None:
    unseen = [row for row in rows(1500, seed=77) if row["split"] == "validation"]
    shares = [
        recipe.exact([router.score(request_of(row), KNOWN_MEDIA) for row in unseen], unseen)
        for router in (router_of(encoder), RuleRouter())
    ]
    assert shares[0] > shares[1] + 0.04


def test_prototypes_are_whole_where_another_model_is_being_built(encoder: TextEncoder, tmp_path: Path) -> None:
    request = Request("what does rain sound like?")
    with another_being_built(tmp_path):
        read = router_of(encoder).score(request, KNOWN_MEDIA)
    assert read == router_of(encoder).score(request, KNOWN_MEDIA)


def test_rules_decide_what_is_named_and_prototypes_the_rest() -> None:
    named, unnamed = (
        Request.of("draw a picture of a cat"),
        Request.of("my cat has been so lazy since the weekend began"),
    )
    read = reading("new", "audio")
    assert decided(rule_scores(named, KNOWN_MEDIA), read, 1) == rule_scores(named, KNOWN_MEDIA)
    assert rule_scores(unnamed, KNOWN_MEDIA).outputs["audio"] < 0.5
    assert decided(rule_scores(unnamed, KNOWN_MEDIA), read, 1) == read


def test_a_reading_overrules_rules_only_where_it_is_sure_enough() -> None:
    ruled = rule_scores(Request.of("draw a picture of a cat"), KNOWN_MEDIA)
    assert decided(ruled, reading("chat", "text", sure=0.99), 0.9).act == "chat"
    assert decided(ruled, reading("chat", "text", sure=0.95), 0.9).act == "new"  # 0.95 of six parts is 0.74


@pytest.mark.parametrize(("prompt", "act"), [("go back to the cat", "select"), ("undo", "undo")])
def test_selecting_and_undoing_are_never_overruled(prompt: str, act: str) -> None:
    ruled = rule_scores(Request.of(prompt, history=[("image", "a cat"), ("image", "a dog")]), KNOWN_MEDIA)
    assert decided(ruled, reading("new", "mesh", sure=1.0), 0.1).act == act


def test_media_that_were_never_taught_are_left_to_the_rules(encoder: TextEncoder) -> None:
    media = (*KNOWN_MEDIA, "scent")
    assert router_of(encoder).score(Request.of("make a scent of roses"), media).outputs["scent"] > 0.9
    assert router_of(encoder).score(Request.of("so what do you think of me?"), media).outputs["scent"] < 0.5


@settings(max_examples=40)
@given(SINGLE, st.lists(st.sampled_from(KINDS), max_size=2), st.lists(st.tuples(st.sampled_from(KINDS), SINGLE)))
def test_any_request_has_probabilities(
    encoder: TextEncoder, prompt: str, uploads: list[str], history: list[tuple[str, str]]
) -> None:
    scores = router_of(encoder).score(Request.of(prompt, uploads, history), KNOWN_MEDIA)
    assert not scores.note and set(scores.outputs) == set(KNOWN_MEDIA) and set(scores.acts) == set(ACTS)
    assert all(0 <= p <= 1 for p in scores.outputs.values()) and sum(scores.acts.values()) == pytest.approx(1)


def test_features_keep_the_order_and_do_not_depend_on_the_batch(encoder: TextEncoder) -> None:
    requests = [Request.of(sentence) for sentence in SENTENCES]
    together = features_of(requests, encoder)
    alone = torch.cat([features_of([request], encoder) for request in requests])
    assert torch.allclose(together, alone, atol=1e-4) and not torch.allclose(together[0], together[1], atol=0.1)


def test_attachments_and_what_came_before_are_told_apart(encoder: TextEncoder) -> None:
    words = Request.of("make it move"), Request.of("make it move", ["image"])
    bare, attached, earlier = features_of([*words, Request.of("make it move", (), [("image", "a cat")])], encoder)
    place = encoder.model.config.hidden_size + KINDS.index("image")
    assert (attached - bare).nonzero().flatten().tolist() == [place]
    assert (earlier - bare).nonzero().flatten().tolist() == [place + len(KINDS)]


def test_a_request_of_any_length_is_read(encoder: TextEncoder) -> None:
    assert not router_of(encoder).score(Request.of("draw " + "a very long tail " * 9000), KNOWN_MEDIA).note


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(3)
    made = Prototypes(8, 5, KNOWN_MEDIA, ACTS, doubted=0.7)
    made.save(tmp_path)
    again = load_prototypes(tmp_path)
    features = torch.randn(4, 8 + 2 * len(KINDS))
    assert again.doubted == 0.7 and torch.allclose(again(features), made(features), atol=1e-2)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]"])
def test_damaged_prototypes_are_a_plain_error(
    tmp_path: Path, encoder: TextEncoder, name: str, content: bytes | None
) -> None:
    Prototypes(8, 5, KNOWN_MEDIA, ACTS).save(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="cannot be used"):
        load_prototypes(tmp_path)


def test_rules_read_and_say_so_where_something_is_missing(tmp_path: Path, encoder: TextEncoder) -> None:
    request = Request.of("draw a cat")
    no_room = UserError("There is no room for 'text-encoder'.", "Free something.")
    tiny = TextEncoder(
        AutoTokenizer.from_pretrained(ENCODER),
        BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)),
        masked=True,
        factor=1.0,
    )
    for router, problem in (
        (router_of(no_room), "There is no room"),
        (router_of(encoder, Folder(tmp_path / "nothing")), "are missing"),
        (router_of(tiny), "is another than"),
    ):
        scores = router.score(request, KNOWN_MEDIA)
        assert scores.outputs == rule_scores(request, KNOWN_MEDIA).outputs
        assert problem in scores.note and "Rules alone" in scores.note


def test_the_recipe_learns_what_can_be_learned_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "STEPS", 120)
    generator = torch.Generator().manual_seed(5)
    outputs = (torch.rand(400, len(KNOWN_MEDIA), generator=generator) > 0.5).float()
    acts = torch.randint(len(ACTS), (400,), generator=generator)
    told = torch.cat([outputs, torch.nn.functional.one_hot(acts, len(ACTS)), torch.zeros(400, 2 * len(KINDS))], 1) * 3
    first, second = (recipe.taught(told, outputs, acts) for _ in range(2))
    logits = first(told)
    assert ((logits[:, : len(KNOWN_MEDIA)] > 0) == outputs.bool()).float().mean() > 0.98
    assert (logits[:, len(KNOWN_MEDIA) :].argmax(1) == acts).float().mean() > 0.98
    assert torch.equal(logits, second(told))
