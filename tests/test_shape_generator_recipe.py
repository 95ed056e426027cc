"""The recipe of the shape generator: conditions, loss, measures, a whole run on tiny data."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.nets.shape_autoencoder import ShapeAutoencoder, ShapeAutoencoderConfig, load_shape_autoencoder
from models.nets.shape_generator import ShapeGenerator, load_shape_generator
from models.picture_text import PictureText, PictureTextConfig, load_picture_text
from pipelines.xbind.views import shaded
from tests.box_shapes import row, write_table
from tests.test_picture_text import untrained_backbone
from tests.test_shape_generator import Knowing, tiny, vectors
from tests.tiny_shapes import GENERATOR
from tests.tiny_sounds import WIDTH
from training import bridges, loop, picture_text, shapes
from training import shape_generator as recipe
from training.images import to_tensor
from training.publish import write_sums
from training.shape_generator import Evaluation, Examples, few, flow_errors, flow_loss, phrases_for, spread_times
from training.shapes import SIZE, Shape, load_shapes, split_of

GENERATOR_SHAPE = (3, 4, 4, 4)
AUTOENCODER = ShapeAutoencoderConfig(channels=4, plane=4, width=16, layers=1, heads=2, features=4, hidden=8)

# ------------------------------------------------------------------------------------------------------- conditions


def shape(row: int, name: str = "chair", others: tuple[str, ...] = ()) -> Shape:
    icon = np.zeros((8, 8, 3), np.uint8)
    return Shape(row, name, (name, *others), "", "", "", "", (1, 1, 1), icon, "train", b"", b"")


def examples() -> Examples:
    """Three shapes whose vectors are all different axes: which one a condition is can be told."""
    axes = torch.eye(64)
    return Examples(
        [shape(row) for row in range(3)],
        torch.arange(6.0).view(2, 3, 1, 1, 1, 1).expand(2, 3, 3, 4, 4, 4),
        axes[:24].view(2, 3, 4, 64),
        [axes[24:28], axes[28:30], axes[30:33]],
    )


def drawn(index: int, count: int = 600) -> np.ndarray:
    """How often each axis is drawn as the condition of an index."""
    latents, conditions = examples().draw(np.full(count, index), np.random.default_rng(0))
    assert (latents == index).all()
    return conditions.sum(0).numpy() / count


def test_a_condition_is_the_icon_a_view_or_words() -> None:
    shares = drawn(1)
    assert 0.25 < shares[4] < 0.35 and 0.25 < shares[5:8].sum() < 0.35 and (shares[5:8] > 0.05).all()
    assert 0.34 < shares[28:30].sum() < 0.46 and shares[[*range(4), *range(8, 28), *range(30, 64)]].sum() == 0


def test_in_a_mirror_pictures_are_mirrored_and_words_are_the_same() -> None:
    assert drawn(4)[16:20].sum() + drawn(4)[28:30].sum() == pytest.approx(1)


def test_a_name_is_said_more_often_than_what_else_it_is_called() -> None:
    shares = drawn(0)
    assert (shares[24:26] > 0.1).all() and (shares[26:28] > 0.02).all() and shares[26:28].sum() < 0.14


def test_a_shape_is_called_by_its_name_with_and_without_an_article_and_by_its_tags() -> None:
    assert phrases_for(shape(0, "oak chair", ("seat",))) == ["oak chair", "an oak chair", "seat"]


# -------------------------------------------------------------------------------------------------------------- loss


def test_the_velocity_of_training_is_that_of_sampling() -> None:
    model = Knowing(GENERATOR)
    model.answer = torch.randn(1, *model.latent_shape)
    for time in (0.0, 0.3, 0.99):
        noise = torch.randn(1, *model.latent_shape)
        error = flow_errors(model, model.answer, vectors(1), torch.tensor([time]), noise)
        assert error.shape == (1,) and error.item() == pytest.approx(0, abs=1e-5)


def test_times_are_spread_from_noise_to_shape_and_mostly_near_the_noise() -> None:
    for count in (1, 7, 32):
        for offset in (0.0, 0.5, 0.999999):
            times = spread_times(count, torch.tensor(offset))
            assert times.shape == (count,) and times.min() > 0 and times.max() < 1
            assert (times.diff() > 0).all()
    times = spread_times(1000, torch.tensor(0.5))
    assert times.median().item() == pytest.approx(0.25, abs=0.01)
    assert times.min() < 0.02 and times.max() > 0.85


def test_the_generator_learns_a_batch() -> None:
    torch.manual_seed(0)
    model = ShapeGenerator(GENERATOR)
    latents, conditions = torch.randn(4, *model.latent_shape).mul(0.2).add(1), vectors(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    values = []
    for _ in range(60):
        loss, _ = flow_loss(model, latents, conditions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[0] > 1.8 and np.mean(values[-10:]) < 1.2  # to guess nothing costs about 2


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_null_condition_learns_where_it_replaces_another(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "NULL_SHARE", share)
    model = tiny()
    losses = []
    for conditions in (vectors(3), -vectors(3)):
        torch.manual_seed(2)
        loss, _ = flow_loss(model, torch.ones(3, *model.latent_shape), conditions)
        losses.append(loss.item())
    loss.backward()
    assert (losses[0] == losses[1]) == (share == 1)
    assert bool(model.null_condition.grad is not None and model.null_condition.grad.any()) == (share == 1)


def test_few_are_taken_from_end_to_end() -> None:
    assert few(list(range(10)), 10) == list(range(10)) and few([1, 2], 5) == [1, 2]
    assert few(list(range(10)), 4) == [0, 3, 6, 9] and len(few(range(81), 40)) <= 40


# ------------------------------------------------------------------------------------------------------ whole recipe

NAMES = ("chair", "lamp", "sofa", "oven", "car", "bed", "rug", "vase", "door", "sink", "tree", "stool", "cup", "plant")


def write_chairs(folder: Path) -> None:
    """Seats with a back at their left: four, two of which have one name, to be trained on, and a held-out one."""
    seen, unseen = ([name for name in NAMES if (split_of(name) == "train") == trained] for trained in (True, False))
    rows = []
    for index, name in enumerate([*seen[:3], seen[0], unseen[0]]):
        occupied = np.zeros((SIZE, SIZE, SIZE), bool)  # up, away, right
        occupied[8:14, 20:44, 8:56] = occupied[8 : 56 - 9 * index, 20:44, 8:14] = True
        colors = np.broadcast_to(np.array([50 * index, 250 - 50 * index, 90], np.uint8), (*occupied.shape, 3))
        rows.append(row(occupied, colors, name=name, tags="Blend Swap, Seat"))
    write_table(folder, rows)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of five seats, frozen models of random weights, and a recipe that takes two steps with a tiny network."""
    encoder = Path("assets/weights/text-encoder-lite").resolve()
    write_chairs(tmp_path)
    weights = tmp_path / "assets" / "weights"
    weights.mkdir(parents=True)
    (weights / "text-encoder-lite").symlink_to(encoder)
    torch.manual_seed(0)
    space = PictureText(PictureTextConfig(width=WIDTH), untrained_backbone(), torch.randn(1000, 384))
    autoencoder = ShapeAutoencoder(AUTOENCODER)
    for name, model in (("picture-text", space), ("shape-autoencoder-permissive", autoencoder)):
        model.save_pretrained(weights / f"{name}-lite")
        write_sums(weights / f"{name}-lite")
    for module in (loop, bridges, picture_text, shapes, recipe):
        monkeypatch.setattr(module, "STATE", tmp_path / "state")
    for name, value in {
        "CONFIG": GENERATOR,
        "BATCH": 4,
        "SAMPLING_STEPS": 2,
        "NAMED": 2,
        "SHOWN": 1,
    }.items():
        monkeypatch.setattr(recipe, name, value)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_recipe_writes_a_generator_and_takes_latents_from_its_cache(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe", "--data", ".", "--steps", "2", "--permissive-only"])
    recipe.main()
    target = workplace / "assets" / "weights" / "shape-generator-permissive-lite"
    assert load_shape_generator(target).config == GENERATOR and (target / "SHA256SUMS").exists()

    table = load_shapes(workplace)
    space = picture_text_of(workplace)
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "shaded", None)  # nothing is drawn again
        parts = recipe.load_examples(table, space, workplace / "assets/weights/shape-autoencoder-permissive-lite")
    known, unknown = parts["train"], parts["heldout-name"]
    assert len(known.items) + len(unknown.items) == len(table.items) and len(unknown.items) == 1
    assert known.latents.shape == (2, len(known.items), 3, 4, 4, 4)
    assert known.pictures.shape == (2, len(known.items), 4, WIDTH)
    autoencoder = load_shape_autoencoder(workplace / "assets" / "weights" / "shape-autoencoder-permissive-lite")
    with torch.no_grad():
        grid = table.batch(unknown.items)
        torch.testing.assert_close(unknown.latents[0], autoencoder.encode(grid), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(unknown.latents[1], autoencoder.encode(grid.flip(2)), atol=1e-4, rtol=1e-4)
        pixels = to_tensor(unknown.items[0].icon[None].copy())
        torch.testing.assert_close(unknown.pictures[0, 0, 0], space.embed_pictures(pixels)[0], atol=1e-4, rtol=1e-4)
        front = shaded(grid[0], 0, recipe.ELEVATION, recipe.SIDE).flip(1).numpy()  # in a mirror
        seen = space.embed_pictures(to_tensor(front[None]))[0]
        torch.testing.assert_close(unknown.pictures[1, 0, 2], seen, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(unknown.pictures[0, 0, 2], unknown.pictures[1, 0, 2], atol=1e-3)
    assert not torch.equal(known.latents[0], known.latents[1])


def test_the_recipe_goes_on_from_weights_that_are_given(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ShapeGenerator(GENERATOR)
    for value in given.parameters():
        torch.nn.init.normal_(value, std=0.05)
    given.save_pretrained(workplace / "earlier")
    argv = ["recipe", "--data", ".", "--steps", "0", "--permissive-only", "--continue-from", "earlier"]
    monkeypatch.setattr(sys, "argv", argv)
    recipe.main()
    made = load_shape_generator(workplace / "assets" / "weights" / "shape-generator-permissive-lite").state_dict()
    for name, value in load_shape_generator(workplace / "earlier").state_dict().items():
        torch.testing.assert_close(made[name], value, atol=0.02 * float(value.abs().max()) + 1e-6, rtol=0)


def picture_text_of(workplace: Path) -> PictureText:
    return load_picture_text(workplace / "assets" / "weights" / "picture-text-lite")


class Remembering(ShapeGenerator):
    """Makes the latents that belong to a condition, or those of another."""

    def __init__(self, texts: Tensor, latents: Tensor) -> None:
        super().__init__(GENERATOR)
        self.texts, self.latents = texts, latents

    def sample(self, conditions: Tensor, steps: int, guidance: float, seeds: object) -> Tensor:
        return self.latents[(conditions @ self.texts.T).argmax(1)]


class Judge:
    """Tells the seats apart by the share of red in their colour, which is a fifth more from one to the next."""

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        inked = pixels.amin(1, keepdim=True) < -0.25  # not the soft edges
        red, green, _ = ((pixels + 1) * inked).sum((2, 3)).unbind(1)
        return F.one_hot((5 * red / (red + green)).round().long(), WIDTH).float()


def test_objects_are_recognised_by_what_they_look_like(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = load_shapes(workplace)
    items, texts = table.select("train")[:3], torch.eye(WIDTH)[:3]
    latents = torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, *GENERATOR_SHAPE)

    class Drawn(ShapeAutoencoder):
        """Reads from latents which of the seats they are."""

        def grid(self, latents: Tensor, resolution: int) -> Tensor:
            return table.batch([items[int(latents[0, 0, 0, 0, 0])]])

    pictures = texts[None, :, None].expand(2, -1, 4, -1)
    part = Examples(items, latents.expand(2, -1, -1, -1, -1, -1), pictures, [text.expand(2, -1) for text in texts])
    monkeypatch.setattr(recipe, "NAMED", 3)
    monkeypatch.setattr(recipe, "RANK", 1)  # of three names, five would be all
    monkeypatch.setattr(recipe, "SIDE", 32)
    found = []
    for made in (latents, latents[[0, 2, 1]], latents[[1, 2, 0]]):
        evaluation = Evaluation(
            Remembering(texts, made),
            Drawn(AUTOENCODER),
            Judge(),  # type: ignore[arg-type]
            {"train": part, "heldout-name": part},
            workplace,
        )
        metrics = evaluation(2)
        assert float(metrics["train_real"]) == float(metrics["train_retrieved"]) == 1
        found.append(float(metrics["heldout-name_generated"]))
    assert found == pytest.approx([1, 1 / 3, 0])
    assert (workplace / "heldout-name-step2.png").exists()
