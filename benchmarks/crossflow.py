"""How good and how fast the lite CrossFlow is.

    python -m benchmarks.crossflow --data FOLDER

Prompts are the captions of pictures that the evaluator never saw (``training/evaluator.py``), so that the same
pictures give the ceiling; the same generated pictures against other prompts of the split give chance. Writes
``benchmarks/results/crossflow.json`` and prints its tables.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.settings import load_settings
from app.studio import build_manager
from benchmarks.report import save, table
from models.manager import ModelManager
from pipelines.base import Produced, Runtime
from pipelines.crossflow.pipeline import CrossFlow
from pipelines.media import Image, Text
from training.bridges import frechet_distance
from training.evaluator import Evaluator, all_concepts, is_reserved, load_evaluator, retrieval, sentence_table
from training.images import to_tensor
from training.pictures import Picture, Pictures, Split, data_folder, load_pictures
from training.recolour import COLOURS, dominant_hue, hue_distance

SPLITS: tuple[Split, ...] = ("train", "heldout-pair", "heldout-concept")
OBJECTS = ("apple", "car", "book", "heart", "balloon", "hat", "fish", "flower", "cup", "house")
HUES = {name: colour.hue for name, colour in COLOURS.items()}
SEEDS = 4  # of a prompt, for diversity
NOISES = 16  # that go round among the prompts
PARTS = ("quality", "colours", "speed")
GUIDANCE: float = CrossFlow.params_type.model_fields["guidance_scale"].default


def generate(
    manager: ModelManager, captions: Sequence[tuple[str, str | None]], first_seed: int = 0, **params: Any
) -> Tensor:
    """One picture a (prompt, style), (N, 3, 128, 128) in [-1, 1]; prompts of one style and seed are one batch.

    Seeds go round among the prompts: one noise for all would be good or bad luck for all of them.
    """
    pipeline, runtime = CrossFlow(), Runtime(manager)
    made: dict[int, np.ndarray] = {}
    seeds = [first_seed + i % NOISES for i in range(len(captions))]
    for style, seed in sorted(set(zip((style for _, style in captions), seeds, strict=True)), key=str):
        which = [i for i, caption in enumerate(captions) if (caption[1], seeds[i]) == (style, seed)]
        inputs = [[Text(captions[i][0])] for i in which]
        stream = pipeline.run_batch(inputs, pipeline.parse_params({"style": style, "seed": seed, **params}), runtime)
        artifacts = [event.artifact for event in stream if isinstance(event, Produced)]
        made |= {i: item.pixels for i, item in zip(which, artifacts, strict=True) if isinstance(item, Image)}
    return to_tensor(np.stack([made[i] for i in range(len(captions))]))


@torch.no_grad()
def quality(
    manager: ModelManager, pictures: Pictures, judge: Evaluator, count: int, guidance: float
) -> list[dict[str, Any]]:
    concepts = all_concepts(pictures)
    number = {concept: i for i, concept in enumerate(concepts)}
    known = judge.embed_concepts(sentence_table(concepts))
    rows = []
    for split in SPLITS:
        reserved = [item for item in pictures.select(split) if is_reserved(item)]
        chosen = spread(reserved, count)
        answers = torch.tensor([number[item.concept] for item in chosen])
        real = to_tensor(pictures.pixels[[item.row for item in chosen]])
        captions = [(item.concept, item.style) for item in chosen]
        samples = generate(manager, captions, guidance_scale=guidance)
        others = [generate(manager, captions[:24], 1000 * s, guidance_scale=guidance) for s in range(1, SEEDS)]
        shuffled = answers[torch.randperm(len(answers), generator=torch.Generator().manual_seed(0))]
        per_seed = torch.stack([judge.embed_pictures(batch) for batch in (samples[:24], *others)])
        (top1, top5), (real1, real5), (_, chance5) = (
            retrieval(judge, *pair)
            for pair in ((samples, known, answers), (real, known, answers), (samples, known, shuffled))
        )
        rows.append(
            {
                "split": split,
                "prompts": len(chosen),
                "concepts": len(concepts),
                "top1": top1,
                "top5": top5,
                "real_top1": real1,
                "real_top5": real5,
                "shuffled_top5": chance5,
                "chance_top5": 5 / len(concepts),
                "top5_of_ceiling": top5 / max(real5, 1e-9),
                "frechet": frechet_distance(judge.features(samples), judge.features(real)),
                "frechet_real_halves": frechet_distance(judge.features(real[::2]), judge.features(real[1::2])),
                "diversity": spread_over_seeds(per_seed),
            }
        )
        print(rows[-1], flush=True)
    return rows


def spread(items: list[Picture], count: int) -> list[Picture]:
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]


def spread_over_seeds(embedded: Tensor) -> float:
    """Mean cosine distance between pictures of one prompt under different seeds; ``embedded`` (seeds, N, D)."""
    similarity = torch.einsum("snd,tnd->nst", embedded, embedded)
    seeds = len(embedded)
    pairs = (similarity.sum((1, 2)) - seeds) / (seeds * (seeds - 1))
    return float(1 - pairs.mean())


def colours(manager: ModelManager, guidance: float) -> dict[str, float]:
    """Per colour and overall: share of "a {colour} {object}" whose dominant hue is nearest to the colour asked for."""
    prompts = [(f"a {colour} {thing}", None) for colour in HUES for thing in OBJECTS]
    samples = generate(manager, prompts, guidance_scale=guidance)
    pixels = samples.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    right = [
        hue_is_right(picture, colour)
        for picture, colour in zip(pixels, [c for c in HUES for _ in OBJECTS], strict=True)
    ]
    shares = {colour: float(np.mean(right[i * len(OBJECTS) : (i + 1) * len(OBJECTS)])) for i, colour in enumerate(HUES)}
    return {**shares, "overall": float(np.mean(right)), "chance": 1 / len(set(HUES.values()))}


def hue_is_right(pixels: np.ndarray, colour: str) -> bool:
    """Brown and orange share a hue, so each counts as right for the other's hue."""
    hue = dominant_hue(pixels)
    if hue is None:
        return False
    nearest = min(HUES, key=lambda name: float(hue_distance(hue, HUES[name])))
    return abs(HUES[nearest] - HUES[colour]) <= 5


def speed(manager: ModelManager, reference: ModelManager) -> list[dict[str, Any]]:
    """Seconds per picture, warm, in the precision that is the default, and in float32 as the named alternative."""
    rows = []
    for batch in (1, 8):
        for steps in (10, 25, 50):
            seconds = seconds_per_picture(manager, batch, steps)
            in_float32 = seconds_per_picture(reference, batch, steps)
            rows.append(
                {
                    "batch": batch,
                    "steps": steps,
                    "seconds": seconds,
                    "seconds_float32": in_float32,
                    "precision": manager.record("crossflow").precision,
                    "ratio": in_float32 / seconds,
                }
            )
            print(rows[-1], flush=True)
    return rows


def seconds_per_picture(manager: ModelManager, batch: int, steps: int) -> float:
    """The median of three runs after one that warms up."""
    pipeline, runtime = CrossFlow(), Runtime(manager)
    params = pipeline.parse_params({"num_images": batch, "num_inference_steps": steps})
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        list(pipeline.run([Text("a red apple")], params, runtime))
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:])) / batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of the picture tables")
    parser.add_argument("--count", type=int, default=120, help="prompts of a split")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    manager = build_manager(load_settings(profile="lite"))
    results: dict[str, Any] = {"guidance_scale": arguments.guidance}
    if "quality" in arguments.parts:
        pictures = load_pictures(data_folder(arguments.data))
        results["quality"] = quality(manager, pictures, load_evaluator(), arguments.count, arguments.guidance)
    if "colours" in arguments.parts:
        results["colours"] = [colours(manager, arguments.guidance)]
    if "speed" in arguments.parts:
        results["speed"] = speed(manager, build_manager(load_settings(profile="lite", precision="float32")))
    save("crossflow", results)
    for part in arguments.parts:
        rows = results[part]
        print(table(list(rows[0]), [list(row.values()) for row in rows]), "\n")


if __name__ == "__main__":
    main()
