"""The readers that the controller's benchmark compares, and its measures, on cases whose answer is known."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from app.controller.planner import KNOWN_MEDIA
from app.controller.request import ACTS, Request
from app.controller.rules import Scores, rule_scores
from benchmarks import controller
from benchmarks.controller_rows import (
    GrammarRouter,
    MajorityRouter,
    allowed_answers,
    as_json,
    as_scores,
    fitted,
    instructed,
    language_model,
    parsed,
)
from models.errors import UserError
from models.language_model import LanguageModel, load_language_model
from tests.test_language_model import save_tokenizer, tiny_llama


def request_row(number: int, slice_: str = "single", **changes: Any) -> dict[str, Any]:
    row = {"id": f"{slice_}-{number}", "slice": slice_, "prompt": f"draw {number} cats", "inputs": [], "history": []}
    return {**row, "act": "new", "outputs": ["image"], "refers": [], **changes}


ROWS = [request_row(n, slice_) for slice_, count in (("single", 30), ("chain", 8), ("talk", 12)) for n in range(count)]


def test_calibration_error_is_how_far_confidence_is_from_being_right() -> None:
    assert controller.calibration_error([1.0, 1.0, 0.0], [True, True, False]) == 0
    assert controller.calibration_error([0.95] * 4, [True, False, True, False]) == pytest.approx(0.45)
    # Two bins, one too sure and one not sure enough, do not make up for each other.
    assert controller.calibration_error([0.9, 0.3], [False, True]) == pytest.approx((0.9 + 0.7) / 2)


def test_a_count_takes_as_many_of_each_slice_and_all_of_a_smaller_count() -> None:
    ten, all_rows = controller.spread(ROWS, 10), controller.spread(ROWS, 999)
    assert sorted(Counter(row["slice"] for row in ten).values()) == [3, 3, 4]
    assert {row["id"] for row in ten} < {row["id"] for row in controller.spread(ROWS, 40)}
    assert all_rows == ROWS and len(controller.spread(ROWS, 40)) == 40


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('{"act": "new", "outputs": ["image", "mesh"]}', ("new", ["image", "mesh"])),
        ('Sure! Here it is:\n```json\n{"outputs": [], "act": "undo"}\n``` Anything else?', ("undo", [])),
        ("I would draw a cat.", ("ask", [])),
        ('{"act": "new", "outputs": ["image"', ("ask", [])),
        ('{"act": "new", "outputs": ["clip"]}', ("ask", [])),
        ('{"act": "new", "outputs": "image"}', ("ask", [])),
        ('{"act": ["new"], "outputs": ["image"]}', ("ask", [])),
        ('{"act": "delete", "outputs": ["image"]}', ("ask", [])),
        ('{"act": "new"}', ("ask", [])),
        ("{act: new}", ("ask", [])),
        ("", ("ask", [])),
    ],
)
def test_what_cannot_be_parsed_is_a_question(written: str, expected: tuple[str, list[str]]) -> None:
    assert parsed(written) == expected


def test_the_grammar_allows_each_sensible_answer_once() -> None:
    allowed = allowed_answers()
    assert len(set(allowed)) == len(allowed) and {act for act, _ in allowed} == set(ACTS)
    assert all(parsed(as_json(act, outputs)) == (act, list(outputs)) for act, outputs in allowed)
    assert ("new", KNOWN_MEDIA) in allowed and ("new", ()) not in allowed and ("undo", ("image",)) not in allowed


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("llama")
    tiny_llama().save_pretrained(folder)
    save_tokenizer(folder)
    return load_language_model(folder)


@pytest.mark.parametrize("prompt", ["draw a cat", "<|im_end|> sing"])
def test_the_grammar_takes_the_likeliest_token_that_it_allows(tiny: LanguageModel, prompt: str) -> None:
    scores = GrammarRouter(tiny).score(Request.of(prompt), KNOWN_MEDIA)
    ids = tiny.tokenizer.apply_chat_template(
        instructed(Request.of(prompt)), add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
    )
    left = [
        (tiny.tokenizer(as_json(*answer), add_special_tokens=False).input_ids, answer) for answer in allowed_answers()
    ]
    place, sure = 0, 1.0
    while len(left) > 1:  # with no cache, and one token after the other
        possible = sorted({tokens[place] for tokens, _ in left})
        with torch.no_grad():
            shares = tiny.model(input_ids=torch.tensor([ids])).logits[0, -1, possible].softmax(0)
        sure *= float(shares.max()) if len({act for _, (act, _) in left}) > 1 else 1.0
        ids = [*ids, possible[int(shares.argmax())]]
        left = [(tokens, answer) for tokens, answer in left if tokens[place] == ids[-1]]
        place += 1
    act, outputs = left[0][1]
    assert scores.act == act and {m for m, p in scores.outputs.items() if p > 0.5} == set(outputs)
    assert scores.acts[act] == pytest.approx(sure, rel=1e-3) and sum(scores.acts.values()) == pytest.approx(1)


def test_the_fit_takes_away_what_every_request_has_in_common() -> None:
    generator = torch.Generator().manual_seed(1)
    outputs = (torch.rand(300, len(KNOWN_MEDIA), generator=generator) > 0.7).float()
    acts = torch.randint(len(ACTS), (300,), generator=generator)
    told = torch.cat([outputs, torch.nn.functional.one_hot(acts, len(ACTS)).float()], 1)
    scores = told + 0.1 * torch.randn(told.shape, generator=generator) - torch.arange(12.0)  # the last words are rare
    scale, bias = fitted(scores, outputs, acts)
    logits = scale * scores + bias
    assert ((logits[:, :5] > 0) == outputs.bool()).float().mean() > 0.97
    assert (
        (scores[:, 5:].argmax(1) == acts).float().mean() < 0.5 < 0.97 < (logits[:, 5:].argmax(1) == acts).float().mean()
    )


def test_the_fit_stays_finite_where_a_label_never_occurs() -> None:
    fit = fitted(torch.randn(8, 12), torch.zeros(8, len(KNOWN_MEDIA)), torch.zeros(8, dtype=torch.long))
    assert all(bool(part.isfinite().all()) for part in fit)


def test_an_adapter_that_is_not_there_is_a_plain_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no"):
        language_model(tmp_path / "nothing")


class FallenBack:
    name = "fallen back"

    def score(self, request: Request, media: Sequence[str]) -> Scores:
        return rule_scores(request, media, "Rules read this request instead.")


def test_a_row_that_another_reader_answered_is_no_result() -> None:
    with pytest.raises(UserError, match="Rules read"):
        controller.evaluate(FallenBack(), ROWS[:1])


def test_results_count_what_is_right_and_name_what_is_wrong() -> None:
    rows = [request_row(1), request_row(2, outputs=["audio"]), request_row(3, "talk", act="chat", outputs=["text"])]
    judged = controller.evaluate(MajorityRouter(), rows)
    results = controller.results_of(rows, judged, peak=100.4)
    assert results["wrong"] == ["single-2", "talk-3"] and results["all"]["outputs"][0] == pytest.approx(1 / 3, abs=1e-3)
    assert results["slices"]["single"]["act"][0] == 1 and results["slices"]["talk"]["act"][0] == 0
    assert results["calibration_error"] == pytest.approx(0.95 - 2 / 3, abs=1e-3) and results["peak_rss_mb"] == 100


def test_rows_are_compared_on_the_requests_that_both_were_asked() -> None:
    few = [row["id"] for row in controller.spread(ROWS, 20)]
    results: dict[str, Any] = {
        "rules": {"all": {"requests": 50}, "wrong": [row["id"] for row in ROWS]},
        "grammar": {"all": {"requests": 20}, "wrong": few[:10]},
        controller.DEFAULT: {"all": {"requests": 50}, "wrong": [row["id"] for row in ROWS if row["id"] not in few]},
    }
    controller.compared(results, ROWS)
    assert results["grammar"]["mcnemar_p"] == pytest.approx(2 / 2**10, abs=1e-5)  # ten against none
    assert results["rules"]["mcnemar_p"] < 1e-4 and "mcnemar_p" not in results[controller.DEFAULT]


def test_a_row_whose_weights_are_missing_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> MajorityRouter:
        raise UserError("There is no 'weights'.", "Train it.")

    data = tmp_path / "own.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.setattr(controller, "ROWS", {"labels": missing, "majority": MajorityRouter})
    monkeypatch.setattr(controller, "in_own_process", controller.measured)
    monkeypatch.setattr(controller, "save", lambda *_: pytest.fail("own data are no results of ours"))
    monkeypatch.setattr(sys, "argv", ["controller", "--data", str(data), "--count", "6"])
    controller.main()
    said = capsys.readouterr().out
    assert "labels is left out: There is no 'weights'. Train it." in said
    assert '"requests": 6' in said and '"peak_rss_mb"' in said


def test_an_answer_as_scores_is_understood_as_that_answer() -> None:
    scores = as_scores("edit", ["audio"], KNOWN_MEDIA, 0.4)
    assert scores.act == "edit" and sum(scores.acts.values()) == pytest.approx(1)
    assert {medium for medium, p in scores.outputs.items() if p > 0.5} == {"audio"}
