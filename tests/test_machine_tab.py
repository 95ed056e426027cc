"""The Machine tab, its endpoints and its metrics, over a real manager with a tiny model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from app.studio import MachineState, Studio
from app.ui import machine_markup
from app.ui.api import free_endpoint, machine_endpoint
from app.ui.machine_markup import SHOWN_SECONDS, MemoryHistory, Sample, memory_plot, models_table
from app.ui.machine_tab import MachineTab
from app.ui.metrics import metrics_route
from models.accounts import Decision, ModelStatus, readable_bytes


@pytest.fixture
def loaded(tiny_studio: Studio) -> Studio:
    """A studio with its one model in memory, idle."""
    with tiny_studio.manager.lease("painter"):
        pass
    return tiny_studio


@pytest.fixture
def tab(tiny_studio: Studio) -> Iterator[MachineTab]:
    with gr.Blocks():
        yield MachineTab(tiny_studio)


def status(key: str = "painter", **changes: Any) -> ModelStatus:
    plain = ModelStatus((key,), "host", "float32", 27_648, False, (), 12.0, 0.1, False)
    return replace(plain, **changes)


def state_of(studio: Studio, *models: ModelStatus) -> MachineState:
    return replace(studio.machine(), models=list(models))


def test_a_model_in_memory_is_listed_until_it_is_freed(tab: MachineTab, loaded: Studio) -> None:
    [model] = loaded.machine().models
    shown = tab.look()
    table = shown[tab._models]
    for words in ("painter", model.precision, readable_bytes(model.bytes), "nobody", "0 s"):
        assert words in table
    assert "Loaded painter" in shown[tab._decisions]
    assert "for models" in shown[tab._line] and loaded.machine().device in shown[tab._line]

    after = tab._relieve(lambda: loaded.free("painter"))
    assert "No model is in memory" in after[tab._models] and loaded.machine().models == []
    assert f"Freed {readable_bytes(model.bytes)}." in after[tab._said]
    assert after[tab._decisions].index("Freed painter") < after[tab._decisions].index("Loaded painter")


def test_a_model_in_use_stays_and_says_so(tab: MachineTab, loaded: Studio) -> None:
    with loaded.manager.lease("painter"):
        table = tab.look()[tab._models]
        assert "MainThread" in table and re.search(r"<button[^>]*disabled", table)
        assert "in use" in tab._relieve(lambda: loaded.free("painter"))[tab._said]
        for free in (loaded.free, partial(loaded.free, keep_expected=True)):
            assert "so kept: painter" in tab._relieve(free)[tab._said]
        assert len(loaded.machine().models) == 1
    assert (
        "Freed" in tab._relieve(partial(loaded.free, keep_expected=True))[tab._said] and loaded.machine().models == []
    )


def test_what_a_waiting_request_needs_goes_only_with_all(loaded: Studio) -> None:
    loaded.manager.expect(["painter"])
    freed = loaded.free(keep_expected=True)
    assert (freed.bytes, freed.kept) == (0, ("painter",))
    assert loaded.machine().models[0].expected
    assert loaded.free().bytes > 0


def test_the_tab_looks_only_while_it_is_open(tab: MachineTab, loaded: Studio) -> None:
    assert not tab.timer.active
    opened = tab.open()
    assert opened[tab.timer].active and set(opened) == set(tab.opened) and "painter" in opened[tab._models]
    assert not tab.close()[tab.timer].active


def test_names_are_never_taken_for_markup(tiny_studio: Studio) -> None:
    hostile = '<img src=x onerror="hit()">'
    table = models_table(state_of(tiny_studio, status(hostile, precision="<b>", holders=("<i>",))))
    said = machine_markup.decisions([Decision("failed", hostile, note="<script>")])
    assert not re.search("<(img|b|i|script)[ >]", table + said + machine_markup.said(hostile))


def test_rows_keep_their_order_whatever_is_used(tiny_studio: Studio) -> None:
    one, two = status("a", idle_seconds=5), status("b", idle_seconds=1)
    names = [
        re.findall(r'data-entry="(\w)"', models_table(state_of(tiny_studio, *models)))
        for models in ((one, two), (two, one))
    ]
    assert names == [["a", "b"]] * 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"idle_seconds": 75.0}, "1 min"),
        ({"idle_seconds": 7300.0}, "2 h"),
        ({"loading": True, "tier": "disk"}, "on its way"),
        ({"tier": "pinned"}, "memory, pinned"),
        ({"expected": True}, "needed next"),
        ({"keys": ("painter", "twin")}, "painter, twin"),
    ],
)
def test_each_state_of_a_model_has_words(tiny_studio: Studio, changes: dict[str, Any], words: str) -> None:
    assert words in models_table(state_of(tiny_studio, status(**changes)))


def test_only_the_latest_decisions_are_told_newest_first() -> None:
    told = machine_markup.decisions([Decision("failed", f"model-{number}") for number in range(40)])
    assert re.findall(r"model-(\d+)", told) == [str(number) for number in range(39, 27, -1)]
    assert "Nothing was decided yet" in machine_markup.decisions([])


def points(plot: str, kind: str) -> list[tuple[str, float, float]]:
    [path] = re.findall(rf'<path class="{kind}" d="([^"]*)"', plot)
    return [(how, float(x), float(y)) for how, x, y in re.findall(r"([ML])(-?[\d.]+) (-?[\d.]+)", path)]


@given(
    st.lists(st.tuples(st.floats(0, 1000), *[st.integers(0, 10**13)] * 3), min_size=1, max_size=60),
    st.floats(0, SHOWN_SECONDS),
)
def test_whatever_memory_was_its_plot_stays_in_its_frame(looks: list[Any], later: float) -> None:
    samples = [Sample(*look) for look in sorted(looks)]
    now = samples[-1].time + later
    recent = [sample for sample in samples if now - sample.time <= SHOWN_SECONDS]
    plot = memory_plot(recent, now)
    for kind in ("program", "models"):
        drawn = points(plot, kind)
        assert len(drawn) == len(recent) and drawn[0][0] == "M"
        for _, x, y in drawn:
            assert -0.1 <= x <= machine_markup.WIDTH and -0.1 <= y <= machine_markup.HEIGHT
        assert [x for _, x, _ in drawn] == sorted(x for _, x, _ in drawn)
    assert readable_bytes(recent[-1].program) in plot


def test_a_plot_does_not_invent_what_nobody_saw() -> None:
    drawn = points(memory_plot([Sample(time, 10, 5, 100) for time in (0, 2, 4, 200, 202)], 202), "models")
    assert [how for how, _, _ in drawn] == ["M", "L", "L", "M", "L"]
    assert memory_plot([], 0.0) == ""


def test_the_history_is_bounded_and_shared_by_all_pages(tiny_studio: Studio) -> None:
    history, state = MemoryHistory(), tiny_studio.machine()
    for second in range(2000):
        for page in (0.0, 0.3):
            history.add(state, second + page)
    recent = history.recent(2000.0)
    assert len(recent) <= SHOWN_SECONDS + 1 and recent[-1].program == state.rss_bytes > 0
    assert len(history._samples) <= machine_markup.SAMPLES_KEPT


def test_the_endpoints_answer_in_json(loaded: Studio) -> None:
    machine, free = machine_endpoint(loaded), free_endpoint(loaded)
    told = json.loads(json.dumps(machine()))
    assert told["models"][0]["keys"] == ["painter"] and told["used_bytes"] == told["models"][0]["bytes"] > 0
    assert told["decisions"][-1]["sentence"].startswith("Loaded painter")
    assert told["metrics"]["misses"] == 1 and sum(told["metrics"]["bytes_moved"].values()) == told["used_bytes"]
    with loaded.manager.lease("painter"):
        assert free("", False)["kept"] == free("", True)["kept"] == ("painter",)
        with pytest.raises(gr.Error, match="in use"):
            free("painter", False)
    freed = json.loads(json.dumps(free("painter", False)))
    assert freed["bytes"] == told["used_bytes"] and sum(freed["after"].values()) == 0
    assert machine()["models"] == []


@pytest.mark.parametrize("key", ["nobody", "<b>", 5, {"x": 1}, "x" * 10_000])
def test_an_unknown_model_cannot_be_freed(loaded: Studio, key: Any) -> None:
    with pytest.raises(gr.Error) as refused:
        free_endpoint(loaded)(key, False)
    assert "no model called" in refused.value.message and "<" not in refused.value.message
    assert len(refused.value.message) < 500


def test_metrics_are_what_prometheus_reads(loaded: Studio) -> None:
    answer = metrics_route(loaded).endpoint(Request({"type": "http"}))
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = bytes(answer.body).decode().splitlines()
    for line in lines:
        assert re.fullmatch(r'# TYPE [a-z_]+ (counter|gauge)|[a-z_]+(\{[a-z_]+="[^"]*"\})? [0-9.e+-]+', line), line
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    held = loaded.machine().used_bytes
    assert int(values["synesthete_model_bytes"]) == held > 0 and values["synesthete_models_loaded"] == "1"
    assert int(values['synesthete_bytes_moved_total{tier="host"}']) == held
    assert int(values["synesthete_budget_bytes"]) == 10_000_000 and int(values["synesthete_rss_bytes"]) > 10_000_000
