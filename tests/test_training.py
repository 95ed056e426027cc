"""The training room's rules: the split, the captions, recolouring, exact resume."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.nets.crossflow import CrossFlow, StageConfig
from training import loop
from training.captions import Captioned, draw_caption
from training.crossflow import CONFIG, Trainee, crossflow_loss
from training.muon import Muon, orthogonalised
from training.pictures import concept_name, split_of
from training.recolour import COLOURS, dominant_hue, hue_distance, recolour, recoloured_concept


def test_the_split_holds_out_a_tenth_of_concepts_and_a_tenth_of_the_other_pairs() -> None:
    splits = [[split_of(f"concept {i}", style) for style in ("flat", "3d", "photo")] for i in range(4000)]
    concepts = [row[0] == "heldout-concept" for row in splits]
    assert 0.085 < np.mean(concepts) < 0.115
    pairs = [split == "heldout-pair" for row, held in zip(splits, concepts, strict=True) if not held for split in row]
    assert 0.085 < np.mean(pairs) < 0.115


@given(st.text(min_size=1), st.text(), st.text())
def test_a_held_out_concept_is_held_out_in_every_style(concept: str, one: str, other: str) -> None:
    held = "heldout-concept"
    assert (split_of(concept, one) == held) == (split_of(concept, other) == held)


@pytest.mark.parametrize("caption", ["An apple.", "apple", "The Apple", "an apple"])
def test_captions_of_one_concept_meet(caption: str) -> None:
    assert concept_name(caption) == "apple"


def test_captions_end_in_their_style_mostly() -> None:
    rng = np.random.default_rng(0)
    item = Captioned(0, "owl", "flat", ("bird", "wise"))
    drawn = [draw_caption(item, rng) for _ in range(2000)]
    assert 0.8 < np.mean([caption.endswith(", flat style") for caption in drawn]) < 0.9
    assert 0.35 < np.mean([caption.startswith(("a ", "an ")) for caption in drawn]) < 0.45
    assert 0.85 < np.mean(["owl" in caption for caption in drawn]) < 0.95
    assert "an owl, flat style" in drawn


def disc(rgb: tuple[int, int, int]) -> np.ndarray:
    """A coloured disc on white with a small black mark."""
    y, x = np.mgrid[:64, :64]
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[(y - 32) ** 2 + (x - 32) ** 2 < 400] = rgb
    pixels[30:34, 30:34] = 0
    return pixels


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("rgb", [(220, 40, 40), (30, 90, 220), (250, 210, 60)])
def test_recolouring_reaches_the_hue_and_leaves_the_rest(colour: str, rgb: tuple[int, int, int]) -> None:
    before = disc(rgb)
    hue = dominant_hue(before)
    assert hue is not None
    after = recolour(before, hue, COLOURS[colour])
    found = dominant_hue(after)
    assert found is not None and hue_distance(found, COLOURS[colour].hue) < 15
    assert np.array_equal(after[0, 0], [255, 255, 255]) and np.array_equal(after[32, 32], [0, 0, 0])


def test_grey_pictures_have_no_dominant_hue() -> None:
    assert dominant_hue(disc((120, 120, 120))) is None


@pytest.mark.parametrize(
    ("concept", "expected"), [("red heart", "blue heart"), ("apple", "blue apple"), ("green book", "blue book")]
)
def test_recoloured_names(concept: str, expected: str) -> None:
    assert recoloured_concept(concept, "blue") == expected


def train_line(folder: Path, steps: int, stop_at: int | None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Fit y = 3x by the shared loop; with ``stop_at`` the process is asked to end there, as by SIGTERM."""
    monkeypatch.setattr(loop, "STATE", folder)
    handlers: dict[int, Callable[[int, None], None]] = {}
    monkeypatch.setattr(signal, "signal", lambda number, handler: handlers.setdefault(number, handler))
    torch.manual_seed(0)
    module = nn.Linear(1, 1)

    def loss_of(indices: np.ndarray, step: int) -> tuple[Tensor, loop.Metrics]:
        if step == stop_at:
            handlers[signal.SIGTERM](15, None)
        x = torch.rand(len(indices), 1) + torch.from_numpy(indices)[:, None].float() / 100
        return (module(x).float() - 3 * x).square().mean(), {}

    def batches(step: int) -> Iterator[np.ndarray]:
        return loop.shuffled_batches(100, 8, 0, step)

    return loop.train(
        "line",
        module,
        [torch.optim.AdamW(loop.optimizer_groups(module, 0.05, 0.0))],
        loop.Schedule(steps, warmup=5),
        batches,
        loss_of,
        lambda step: {"step_seen": float(step)},
        seed=1,
        log_every=10,
        evaluate_every=20,
    )


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_line(tmp_path / "whole", 60, None, monkeypatch)
    with pytest.raises(SystemExit, match="stopped at step 31"):
        train_line(tmp_path / "parts", 60, 30, monkeypatch)
    resumed = train_line(tmp_path / "parts", 60, None, monkeypatch)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    rows = [json.loads(line) for line in (tmp_path / "parts" / "line" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [10, 20, 30, 40, 50, 60]
    assert rows[-2]["loss"] < rows[0]["loss"] / 5


def test_a_run_that_began_with_other_weights_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_line(tmp_path, 20, None, monkeypatch)
    state = torch.load(tmp_path / "line" / "state.pt", weights_only=True)
    torch.save(state | {"begun": loop.fingerprint(nn.Linear(2, 2))}, tmp_path / "line" / "state.pt")
    with pytest.raises(SystemExit, match=r"began with other weights\. Move it away"):
        train_line(tmp_path, 20, None, monkeypatch)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STATE", tmp_path)
    module = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="the loss became nan at step 0"):
        loop.train(
            "nan",
            module,
            [torch.optim.SGD([{"params": list(module.parameters()), "peak_lr": 0.1}], lr=0.1)],
            loop.Schedule(3),
            lambda step: loop.shuffled_batches(8, 4, 0, step),
            lambda *_: (module.weight.sum() * float("nan"), {}),
            lambda _: {},
            seed=0,
        )


@given(st.integers(1, 5), st.integers(0, 40))
def test_batches_from_a_later_step_are_the_same_batches(seed: int, start: int) -> None:
    whole = loop.shuffled_batches(50, 7, seed, 0)
    expected = [next(whole) for _ in range(start + 3)][start:]
    later = loop.shuffled_batches(50, 7, seed, start)
    assert all(np.array_equal(batch, next(later)) for batch in expected)


@pytest.mark.parametrize("shape", [(24, 64), (64, 24)])
def test_muon_steps_in_all_directions_alike(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    gradient = torch.randn(shape) * torch.logspace(0, -2, shape[1])
    values = torch.linalg.svdvals(orthogonalised(gradient, torch.float32))
    assert values.max() < 1.3 and values.min() > 0.3
    spread = torch.linalg.svdvals(gradient)
    assert spread.max() / spread.min() > 5 * values.max() / values.min()


def test_muon_fits_an_ill_conditioned_map_and_decays_unused_weights() -> None:
    torch.manual_seed(0)
    wanted = torch.randn(16, 16)
    inputs = torch.randn(256, 16) * torch.logspace(0, -1, 16)
    layer, unused = nn.Linear(16, 16, bias=False), nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([{"params": [layer.weight]}, {"params": [unused], "weight_decay": 0.1}], lr=0.1)
    losses, kept = [], 1.0
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 200)
        kept *= 1 - 0.1 * optimizer.param_groups[0]["lr"]
        loss = (layer(inputs) - inputs @ wanted.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        unused.grad = torch.zeros_like(unused)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 200
    torch.testing.assert_close(unused.detach(), torch.full((4, 4), kept))


def tiny_trainee() -> tuple[Trainee, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """A small model, and a batch of latents, token states, mask and equal captions."""
    torch.manual_seed(0)
    config = replace(
        CONFIG,
        text_width=32,
        compressed_width=None,
        encoder_heads=4,
        encoder_hidden=32,
        tokens=4,
        stages=(StageConfig("transformer", 8, 16, 16, 3, heads=2), StageConfig("convnext", 16, 8, 8, 1)),
    )
    batch = (torch.randn(6, 8, 16, 16), torch.randn(6, 4, 32), torch.ones(6, 4), torch.eye(6, dtype=torch.bool))
    return Trainee(CrossFlow(config)), batch


def test_the_text_encoder_learns_alone_first() -> None:
    model, batch = tiny_trainee()
    loss, metrics = crossflow_loss(model, *batch, encoder_only=True)
    loss.backward()
    assert "flow" not in metrics
    assert all(parameter.grad is None for parameter in model.flow.stages.parameters())
    assert all(parameter.grad is not None for parameter in model.flow.context_encoder.parameters())
    loss, metrics = crossflow_loss(model, *batch)
    loss.backward()
    assert "flow" in metrics and all(parameter.grad is not None for parameter in model.flow.stages.parameters())


def test_the_mean_of_z0_becomes_a_faint_picture() -> None:
    model, (latents, states, mask, same) = tiny_trainee()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss, _ = crossflow_loss(model, latents, states, mask, same, encoder_only=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    mean, _ = model.eval().flow.encode_text(states, mask)
    across = torch.corrcoef(torch.cat([mean.flatten(1), latents.flatten(1)]))[:6, 6:]
    assert across.diagonal().min() > 0.5 and across.argmax(1).tolist() == list(range(6))
