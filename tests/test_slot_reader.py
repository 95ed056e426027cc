"""The slot reader: which words of a request are for which maker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.assistant import Assistant
from app.controller.goals import new_goals, with_details
from app.controller.planner import KNOWN_MEDIA as MEDIA
from app.controller.planner import Controller
from app.controller.request import Request
from app.controller.rules import Scores
from app.controller.slots import Clause
from app.settings import load_settings
from app.studio import Studio, build_manager
from benchmarks.controller import whole_registry
from models.errors import UserError
from models.slot_reader import MAX_TOKENS, SlotReader, load_slot_reader, words_of
from models.sources import ASSETS
from models.text_encoder import load_text_encoder
from pipelines.base import installed_registry
from training.instructions.fill import spans_of, unmarked, wanted
from training.slot_reader import belonging, joined, tags_of


def offsets_of(prompt: str) -> list[tuple[int, int]]:
    """One token a word."""
    places, start = [], 0
    for word in prompt.split():
        start = prompt.index(word, start)
        places.append((start, start + len(word)))
        start += len(word)
    return places


def tagged(prompt: str, chosen: str) -> str:
    """``chosen``: 1 for a word that belongs, 0 for one that does not."""
    return words_of(prompt, offsets_of(prompt), [float(one) for one in chosen])


def test_words_are_copied_without_the_marks_around_them() -> None:
    assert tagged("please draw a red apple!", "00111") == "a red apple"
    assert tagged("A Fox, quick", "110") == "A Fox"
    assert tagged("nothing of that", "000") == ""


def test_a_mark_at_its_end_is_no_part_of_a_word() -> None:
    assert words_of("a fox. rain", [(0, 1), (2, 5), (5, 6), (7, 11)], [0.9, 0.9, 0.0, 0.0]) == "a fox"
    assert words_of("a jack-o'-lantern", [(0, 1), (2, 6), (6, 7), (7, 8), (8, 10), (10, 17)], [1, 1, 1, 1, 1, 1]) == (
        "a jack-o'-lantern"
    )


def test_a_word_or_two_between_belong_as_well_but_not_across_a_comma() -> None:
    assert tagged("a bell in the tower", "11001") == "a bell in the tower"
    assert tagged("a bell far up in the tower", "1100001") == "a bell, tower"
    assert tagged("a bell, and tower", "1101") == "a bell, tower"


def test_what_is_said_twice_is_said_once() -> None:
    assert tagged("a bell as a sound. a bell", "1100011") == "a bell"


def test_a_word_of_several_tokens_goes_by_their_mean() -> None:
    assert words_of("cacophony now", [(0, 4), (4, 9), (10, 13)], [0.9, 0.3, 0.0]) == "cacophony"
    assert words_of("cacophony now", [(0, 4), (4, 9), (10, 13)], [0.4, 0.3, 0.9]) == "now"


@given(st.text(max_size=80), st.integers(0, 2**32 - 1))
def test_any_text_gives_words_of_itself(prompt: str, bits: int) -> None:
    prompt = Request.of(prompt).prompt
    offsets = offsets_of(prompt)
    said = words_of(prompt, offsets, [float(bits >> (i % 32) & 1) for i in range(len(offsets))])
    assert all(part in prompt for part in said.split(", "))


def test_the_marks_of_a_template_say_where_words_stand_and_what_they_have_to_be() -> None:
    marked = f"see {wanted('a fox', ('seen',))} and hear {wanted(wanted('rain', ('sound',)) + ' on tin')}."
    assert unmarked(marked) == "see a fox and hear rain on tin."
    assert spans_of(marked) == [(4, 9, ("seen",)), (19, 30, ("sound",))]


def row(prompt: str, outputs: list[str], edges: list[str], *spans: tuple[str, str]) -> dict[str, object]:
    placed = [[prompt.index(words), prompt.index(words) + len(words), kinds.split()] for words, kinds in spans]
    return {"prompt": prompt, "outputs": outputs, "edges": edges, "spans": placed}


def test_nouns_go_to_the_medium_that_they_were_asked_to_suit() -> None:
    both = row(
        "hear a bell, print a mug",
        ["audio", "mesh"],
        ["text>audio", "text>mesh"],
        ("a bell", "sound"),
        ("a mug", "thing"),
    )
    assert belonging(both) == {"audio": [(5, 11)], "mesh": [(19, 24)]}
    one = row("a bell to see and hear", ["image", "audio"], ["text>image", "text>audio"], ("a bell", "seen sound"))
    assert belonging(one) == {"image": [(0, 6)], "audio": [(0, 6)]}
    chain = row("draw a bell, then its sound", ["image", "audio"], ["text>image", "image>audio"], ("a bell", "seen"))
    assert belonging(chain) == {"image": [(5, 11)]}


def test_nothing_is_learnt_where_it_is_in_doubt() -> None:
    either = row("a fox and a cow", ["image", "audio"], ["text>image", "text>audio"], ("a fox", ""), ("a cow", ""))
    assert belonging(either) == {}
    assert belonging(row("hello", ["image"], ["text>image"])) == {}


def test_nouns_of_one_picture_are_one_stretch_unless_much_stands_between() -> None:
    assert joined("a lamb chasing a cow", [(0, 6), (15, 20)]) == [(0, 20)]
    assert joined("a lamb, a cow", [(0, 6), (8, 13)]) == [(0, 6), (8, 13)]
    assert tags_of([(0, 0), (0, 1), (2, 6), (7, 9)], {"audio": [(0, 6)]})[:, MEDIA.index("audio")].tolist() == [
        0,
        1,
        1,
        0,
    ]


def test_a_reader_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reader = SlotReader(MEDIA, 384, 32, 2, 2).eval()
    reader.save(tmp_path)
    states, mask, wanted = torch.randn(2, 7, 384), torch.ones(2, 7), torch.eye(5)[:2]
    assert torch.allclose(load_slot_reader(tmp_path)(states, mask, wanted), reader(states, mask, wanted), atol=1e-2)


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    reader = SlotReader(MEDIA, 384, 32, 2, 2).eval()
    states = torch.randn(1, 5, 384)
    padded = torch.cat([states, torch.randn(1, 3, 384)], 1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])
    wanted = torch.eye(5)[1:2]
    assert torch.allclose(reader(states, mask[:, :5], wanted), reader(padded, mask, wanted)[:, :5], atol=1e-5)


class WantedRouter:
    name = "wanted"

    def __init__(self, *media: str) -> None:
        self.wanted = media

    def score(self, request: Request, media: object) -> Scores:
        return Scores({m: float(m in self.wanted) for m in ("text", "image", "audio", "video", "mesh")}, {"new": 1.0})


def test_the_makers_get_the_words_that_were_read_and_the_rules_words_where_none_were() -> None:
    request = Request.of("a picture of a fox and a sound of a bell")
    goals = new_goals(request, ("image", "audio"), whole_registry(), {"image": "a fox", "audio": ""})
    assert [(goal.output, goal.sources) for goal in goals] == [("image", ("text:a fox",)), ("audio", ("text:a bell",))]


def test_words_in_quotes_are_taken_as_they_are() -> None:
    request = Request.of('draw "the sound of silence" please')
    assert new_goals(request, ("image",), whole_registry(), {"image": "silence"})[0].sources == (
        "text:the sound of silence",
    )


def test_a_reader_that_cannot_be_had_leaves_the_words_to_the_rules_and_says_so() -> None:
    def full(prompt: str, wanted: Sequence[str]) -> Mapping[str, str]:
        raise UserError("There is no room for 'slot-reader'.", "Free something.")

    controller = Controller(whole_registry(), WantedRouter("image"), lambda pipeline: 1.0, full)
    answer = controller.answer(Request.of("draw a red apple"))
    assert answer.plan is not None and answer.plan.steps[0].inputs == ("text:a red apple",)
    assert any("no room for 'slot-reader'" in warning for warning in answer.warnings)


@pytest.mark.parametrize(
    ("prompt", "medium", "words"),
    [
        ("i bet u can immortalise a farmhouse in a painting", "image", {"farmhouse"}),
        ("be so kind as to doodle a snowy village", "image", {"snowy", "village"}),
        ("request: sound effect / a choir singing in a cathedral", "audio", {"choir", "singing", "cathedral"}),
        ("right then, treasure chest stl", "mesh", {"treasure", "chest"}),
    ],
)
def test_the_shipped_reader_leaves_out_what_asks(prompt: str, medium: str, words: set[str]) -> None:
    encoder, reader = load_text_encoder(ASSETS / "text-encoder-lite"), load_slot_reader(ASSETS / "slot-reader-lite")
    said = set(reader.read(prompt, [medium], encoder)[medium].split())
    assert words <= said <= words | {"a", "in"}


def test_beyond_what_it_can_read_it_says_nothing() -> None:
    encoder, reader = load_text_encoder(ASSETS / "text-encoder-lite"), load_slot_reader(ASSETS / "slot-reader-lite")
    assert reader.read("draw a fox " * MAX_TOKENS, ["image"], encoder) == {}
    assert reader.read("make a scent of pine forest", ["scent"], encoder) == {"scent": "pine forest"}


def test_details_behind_what_was_read_are_kept_but_no_word_that_hangs_in_the_air() -> None:
    parts = [Clause("paint a fox with a red scarf as a picture", "a fox with a red scarf")]
    assert with_details("a fox", parts) == "a fox with a red scarf"
    assert with_details("a wolf", parts) == "a wolf" and with_details("", parts) == ""
    goals = new_goals(
        Request.of("put a farmhouse in a painting"), ("image",), whole_registry(), {"image": "farmhouse in"}
    )
    assert goals[0].sources == ("text:farmhouse",)


@pytest.mark.parametrize("precision", ["auto", "float16", "int8"])
def test_the_app_reads_words_in_whatever_precision_its_manager_holds_models(tmp_path: Path, precision: str) -> None:
    settings = load_settings(output_folder=tmp_path, precision=precision)
    assistant = Assistant(Studio(settings, installed_registry(), build_manager(settings)))
    words = assistant.controller.slots("i bet u can immortalise a farmhouse in a painting", ["image"])
    assert words["image"].removesuffix(" in") == "a farmhouse"
