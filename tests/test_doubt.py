"""When a reading is too uncertain to make something of it, and a question comes instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.controller.planner import KNOWN_MEDIA, Controller
from app.controller.request import ACTS, Request
from app.controller.rules import Scores
from benchmarks.controller import whole_registry
from models.request_head import RequestHead, load_request_head
from training.controller import LEAST, fitted_least

READ = Scores(
    {"text": 0.02, "image": 0.7, "audio": 0.4, "video": 0.02, "mesh": 0.02},
    {**dict.fromkeys(ACTS, 0.02), "new": 0.88},
)


class Fixed:
    name = "fixed"

    def __init__(self, scores: Scores) -> None:
        self.scores = scores

    def score(self, request: Request, media: Sequence[str]) -> Scores:
        return self.scores


def answer(scores: Scores, prompt: str = "please make me a bell") -> Any:
    return Controller(whole_registry(), Fixed(scores), lambda pipeline: 1.0).answer(Request.of(prompt))


def test_the_probability_of_a_reading_is_that_of_all_its_parts_given_that_something_is_wanted() -> None:
    something = 1 - 0.3 * 0.6 * 0.98**3
    assert READ.probability == pytest.approx(0.88 * 0.7 * 0.6 * 0.98**3 / something)
    talk = Scores(READ.outputs, {**dict.fromkeys(ACTS, 0.02), "chat": 0.88})
    assert talk.probability == pytest.approx(0.88 * 0.7 * 0.6 * 0.98**3)


@given(
    st.lists(st.floats(0, 1), min_size=5, max_size=5),
    st.sampled_from(ACTS),
)
def test_a_reading_has_a_probability_and_names_the_likeliest_media(probabilities: list[float], act: str) -> None:
    scores = Scores(dict(zip(KNOWN_MEDIA, probabilities, strict=True)), {**dict.fromkeys(ACTS, 0.0), act: 1.0})
    assert 0 <= scores.probability <= 1 + 1e-9
    left = max((p for medium, p in scores.outputs.items() if medium not in scores.wanted), default=0.0)
    assert all(scores.outputs[medium] >= left for medium in scores.wanted)


def test_something_new_is_the_likeliest_medium_where_none_is_likelier_than_not() -> None:
    shares = {"text": 0.05, "image": 0.4, "audio": 0.3, "video": 0.02, "mesh": 0.02}
    assert Scores(shares, READ.acts).wanted == ("image",)
    assert Scores(shares, {**dict.fromkeys(ACTS, 0.02), "edit": 0.88}).wanted == ()
    assert Scores(dict.fromkeys(shares, 0.05), READ.acts).wanted == ()  # nothing that is known
    assert answer(Scores(shares, READ.acts, least=0.3)).plan.steps[0].output == "image"
    assert answer(Scores(dict.fromkeys(shares, 0.05), READ.acts)).act == "ask"


def test_a_reading_in_doubt_becomes_a_question_whose_buttons_make_what_is_likeliest() -> None:
    assert answer(replace(READ, least=0.4)).plan.steps[0].output == "image"
    asked = answer(replace(READ, least=0.5))
    assert (asked.act, asked.outputs, asked.plan) == ("ask", (), None) and asked.sentence
    assert [(choice.label, choice.prompt) for choice in asked.choices] == [
        ("A picture", "a picture of a bell"),
        ("A sound", "a sound of a bell"),
    ]


def test_doubt_never_keeps_from_talking_or_from_going_back() -> None:
    for act in ("chat", "undo", "select", "ask"):
        acts = {**dict.fromkeys(ACTS, 0.1), act: 0.4}
        assert answer(Scores(READ.outputs, acts, least=0.99)).act in (act, "ask")
    assert answer(Scores(READ.outputs, {**dict.fromkeys(ACTS, 0.1), "chat": 0.4}, least=0.99)).act == "chat"


def row(prompt: str, act: str, *outputs: str) -> dict[str, Any]:
    return {"prompt": prompt, "inputs": [], "history": [], "act": act, "outputs": list(outputs)}


def logits(act: str, **outputs: float) -> torch.Tensor:
    wanted = [outputs.get(medium, -9.0) for medium in KNOWN_MEDIA]
    return torch.tensor([*wanted, *(9.0 if name == act else 0.0 for name in ACTS)])


def test_it_asks_from_where_questions_are_worth_more_than_what_would_be_made() -> None:
    head = RequestHead(4, KNOWN_MEDIA, ACTS)
    sure = [(row("draw a bell", "new", "image"), logits("new", image=9.0))] * 6
    unwanted = [(row("a bell for my sister", "chat", "text"), logits("new", image=0.1, audio=0.0))] * 3
    both = [*sure, *unwanted]
    least = fitted_least(head, torch.stack([one for _, one in both]), [one for one, _ in both])
    assert least > 0.5
    rows, only = [one for one, _ in sure], torch.stack([one for _, one in sure])
    assert fitted_least(head, only, rows) == LEAST[-1]  # all is sure: no question would be asked
    doubtful = [(row("a bell and a drum", "new", "image"), logits("new", image=0.3, audio=-0.3))] * 6
    rows, only = [one for one, _ in doubtful], torch.stack([one for _, one in doubtful])
    assert fitted_least(head, only, rows) < LEAST[-1]  # what is made is wanted: no question is worth it


def test_it_is_kept_beside_the_head(tmp_path: Path) -> None:
    RequestHead(4, KNOWN_MEDIA, ACTS, least=0.35).save(tmp_path)
    assert load_request_head(tmp_path).least == 0.35
