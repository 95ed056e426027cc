"""How good the lite sound pipelines are, by a judge that no generator knows (``training/sound_judge.py``).

    python -m benchmarks.audio --data FOLDER [--rows "V2A generative" ...] [--count N] [--seeds N]

Queries are clips that neither the judge nor any generator has heard, their held-out pictures, and the names of their
classes. Every sound is brought to one loudness as the app does it, and padded to the judge's 4.096 s. Measures of
single sounds have the standard error over queries, each query's seeds averaged beforehand; Frechet distances have that
over seeds. They are measured from the other half of the reserved clips, so the row of real clips is the distance of two
real halves; they depend on the number of sounds, so photographs, which are fewer, have none. Relevance is the cosine of
the sound and of the class's name in CLAP-lite, which conditions one generator: it is no independent measure.

Rows go to ``benchmarks/results/audio.json`` one by one; those measured before stay.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from app.settings import load_settings
from app.studio import build_manager
from benchmarks.audio_rows import STEPS, Queries, Query, Row, load_queries, rows
from benchmarks.report import RESULTS, save, table
from models.errors import UserError
from models.manager import ModelManager
from models.mel import log_mel
from pipelines.base import Runtime, precision
from pipelines.media import Audio
from pipelines.sounds import finished
from training.bridges import frechet_distance
from training.pictures import data_folder
from training.sound_judge import SoundJudge, hits, judged, load_sound_judge
from training.sounds import SAMPLES, load_sounds

COUNT, SEEDS = 170, 3  # 510 sounds a row
SEEDS_APART = 1000  # from one query to the next
TIMED = 4  # sounds made alone, of which the first warms up
SHUFFLED, SHUFFLED_ROW = "shuffled", "V2A generative, pictures"
NOT_INDEPENDENT = "relevance (CLAP-lite, not independent)"
Measure = list[float] | None  # a mean and, if there are two values or more, its standard error


# ----------------------------------------------------------------------------------------------------------- measures


@dataclass(frozen=True)
class Heard:
    """What the judge hears in the sounds of Q queries by S seeds: ``features`` (Q, S, 256), ``logits`` (Q, S, K).

    ``answers`` (Q,): the classes that were asked for; ``vectors`` (Q, S, D) and ``words`` (Q, D): the sounds and the
    names of those classes in CLAP-lite, if that is there.
    """

    features: Tensor
    logits: Tensor
    answers: Tensor
    vectors: Tensor | None = None
    words: Tensor | None = None

    def shuffled(self) -> Heard:
        """The same sounds against what other queries asked for: what is right by chance."""
        half = len(self.answers) // 2  # neighbours are of one class
        words = None if self.words is None else self.words.roll(half, 0)
        return replace(self, answers=self.answers.roll(half), words=words)


def measures(heard: Heard, reference: Tensor | None) -> dict[str, Measure]:
    """``reference`` (R, 256): features of real sounds, none where a distance from them says nothing."""
    queries, seeds = heard.logits.shape[:2]
    answers, logits = heard.answers.repeat_interleave(seeds), heard.logits.flatten(0, 1)
    found: dict[str, Measure] = {
        f"top{first}": mean_and_error(hits(logits, answers, first).view(queries, seeds).mean(1)) for first in (1, 5)
    }
    found["frechet"] = None
    if reference is not None and queries > 1:
        distances = [frechet_distance(features, reference) for features in heard.features.unbind(1)]
        found["frechet"] = mean_and_error(torch.tensor(distances))
    found[NOT_INDEPENDENT] = None
    if heard.vectors is not None and heard.words is not None:
        found[NOT_INDEPENDENT] = mean_and_error((heard.vectors * heard.words[:, None]).sum(-1).mean(1))
    found["cosine_of_seeds"] = mean_and_error(seed_cosines(heard.features)) if seeds > 1 else None
    found["seeds_agree"] = mean_and_error(seed_agreement(heard.logits)) if seeds > 1 else None
    return found


def mean_and_error(values: Tensor) -> list[float]:
    """Of (N,) the mean and its standard error; of a single value only that."""
    numbers = values.double()
    mean = float(numbers.mean())
    return [mean, float(numbers.std() / math.sqrt(len(numbers)))] if len(numbers) > 1 else [mean]


def seed_cosines(features: Tensor) -> Tensor:
    """(Q, S, D) -> (Q,): mean cosine of all pairs of one query's sounds; 1 where all are alike."""
    unit = F.normalize(features.double(), dim=-1)
    return _over_pairs(unit @ unit.transpose(1, 2))


def seed_agreement(logits: Tensor) -> Tensor:
    """(Q, S, K) -> (Q,): share of pairs of one query's sounds that the judge calls the same."""
    named = logits.argmax(-1)
    return _over_pairs((named[:, :, None] == named[:, None, :]).double())


def _over_pairs(values: Tensor) -> Tensor:
    """(Q, S, S) -> (Q,): the mean off the diagonal."""
    seeds = values.shape[1]
    return (values.sum((1, 2)) - values.diagonal(dim1=1, dim2=2).sum(1)) / (seeds * (seeds - 1))


# ------------------------------------------------------------------------------------------------------------- claims


@dataclass(frozen=True)
class Claim:
    """``measure`` of row ``more`` is above that of row ``less`` times ``factor``, less a ``margin``.

    ``beyond_error``: by more than two standard errors of the difference. Both rows are taken as independent, which is
    on the safe side, since they answer the same queries.
    """

    sentence: str
    measure: str
    more: str
    less: str
    factor: float = 1.0
    margin: float = 0.0
    beyond_error: bool = True

    def judge(self, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
        """Whether it ``holds``, and by how much; ``None`` while one of the rows lacks the measure."""
        more, less = (results.get(row, {}).get(self.measure) for row in (self.more, self.less))
        if not more or not less:
            return None
        gap = more[0] - self.factor * less[0] + self.margin
        error = math.hypot(*more[1:], *(self.factor * value for value in less[1:]))
        holds = gap > 2 * error if self.beyond_error else gap > 0
        return {"claim": self.sentence, "difference": gap, "error": error, "holds": holds}


_PICTURES, _WORDS = "CLIPSonic image query, pictures", "CLIPSonic prior, words"
# The lines of acceptance of the fact sheets (``clipsonic.md`` 8, ``v2a_mapper.md`` 8), then the papers' patterns.
CLAIMS = (
    Claim("CLIPSonic: a picture is a better query than words by the prior", "top1", _PICTURES, _WORDS),
    Claim("CLIPSonic: the prior beats zero-shot", "top1", _WORDS, "CLIPSonic zero-shot, words"),
    Claim(
        "CLIPSonic: a picture's sounds are within 15 points of voiced real clips",
        "top1",
        _PICTURES,
        "real clips, coded and voiced",
        margin=0.15,
        beyond_error=False,
    ),
    Claim(
        "V2A: within 15 points of the true sound vector",
        "top1",
        SHUFFLED_ROW,
        "true sound vector",
        margin=0.15,
        beyond_error=False,
    ),
    Claim("V2A: three times chance or more", "top1", SHUFFLED_ROW, SHUFFLED, factor=3.0, beyond_error=False),
    Claim("V2A: a mapper beats none", "top1", SHUFFLED_ROW, "no mapper, pictures"),
    Claim(
        "V2A paper: the generative mapper is nearer to real sounds",
        "frechet",
        "V2A regression, pictures",
        SHUFFLED_ROW,
    ),
    Claim("V2A paper: the regression is more relevant", "top1", "V2A regression, pictures", SHUFFLED_ROW),
    Claim("CLIPSonic: the prior beats the mean shift", "top1", _WORDS, "CLIPSonic mean shift, words"),
    Claim("CLIPSonic: the prior beats zero-shot with noise", "top1", _WORDS, "CLIPSonic zero-shot + noise, words"),
)


def judged_claims(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Those whose rows were measured."""
    return [found for claim in CLAIMS if (found := claim.judge(results)) is not None]


# -------------------------------------------------------------------------------------------------------- measurement


def missing(manager: ModelManager, keys: Sequence[str]) -> list[str]:
    """Those of ``keys`` that the profile does not have, or whose weights are not on this machine."""
    return [key for key in keys if key not in manager.specs or manager.specs[key].source.missing()]


def possible(manager: ModelManager, wanted: Sequence[Row]) -> list[Row]:
    """The rows whose weights are there; says in one line which are not, and what is left out for it."""
    left_out = {row.title: missing(manager, row.needs) for row in wanted}
    absent = sorted({key for keys in left_out.values() for key in keys})
    if absent:
        titles = "; ".join(title for title, keys in left_out.items() if keys)
        print(f"Missing weights: {', '.join(absent)}. Left out: {titles}.", flush=True)
    return [row for row in wanted if not left_out[row.title]]


def waveform_of(sound: Audio) -> Tensor:
    """(SAMPLES,): what the judge hears of it. Raises :class:`ValueError` if it is not 16 kHz mono."""
    if sound.sample_rate != 16_000 or len(sound.samples) != 1:
        raise ValueError(f"the judge hears 16 kHz mono, not {sound.sample_rate} Hz of {len(sound.samples)} channels")
    samples = torch.tensor(sound.samples[0, :SAMPLES])
    return F.pad(samples, (0, SAMPLES - len(samples)))


def at_one_loudness(waveforms: Tensor) -> Tensor:
    """(B, SAMPLES) as the app would bring them to people: real clips are judged at the loudness of generated ones."""
    return torch.stack([waveform_of(finished(one.numpy(), 16_000)) for one in waveforms])


def make_all(runtime: Runtime, row: Row, queries: Sequence[Query], seeds: int) -> Tensor:
    """Waveforms (Q, S, SAMPLES) of every query by ``seeds`` seeds, or by one where seeds change nothing."""
    count = seeds if row.seeded else 1
    made = []
    for query in queries:
        first = SEEDS_APART * query.number
        made.append(torch.stack([waveform_of(one) for one in row.make(runtime, query, range(first, first + count))]))
    return torch.stack(made)


def seconds_alone(runtime: Runtime, row: Row, queries: Sequence[Query]) -> float:
    """Median seconds of one warm sound made by itself."""
    seconds = []
    for turn in range(TIMED):
        started = time.perf_counter()
        row.make(runtime, queries[turn % len(queries)], [turn])
        seconds.append(time.perf_counter() - started)
    return float(torch.tensor(seconds[1:]).median())


@torch.no_grad()
def listen(manager: ModelManager, judge: SoundJudge, queries: Sequence[Query], waveforms: Tensor) -> Heard:
    """What is in ``waveforms`` (Q, S, SAMPLES); CLAP-lite's opinion too if it is there."""
    number = {name: index for index, name in enumerate(judge.classes)}
    answers = torch.tensor([number[query.item.name] for query in queries])
    shape = waveforms.shape[:2]
    features, logits = (part.unflatten(0, shape) for part in judged(judge, waveforms.flatten(0, 1)))
    if missing(manager, ("sound-text", "sentence-encoder")):
        return Heard(features, logits, answers)
    with ExitStack() as stack:
        space, encoder = (stack.enter_context(manager.lease(key)) for key in ("sound-text", "sentence-encoder"))
        stack.enter_context(precision(manager))
        parts = (part.to(manager.device) for part in waveforms.flatten(0, 1).split(32))
        vectors = torch.cat([space.embed_sounds(log_mel(part, space.mel)).cpu() for part in parts])
        names = [query.words for query in queries]
        sentences = [encoder.sentence_embeddings(names[i : i + 64]) for i in range(0, len(names), 64)]
        words = space.embed_sentences(torch.cat(sentences).to(manager.device)).cpu()
    return Heard(features, logits, answers, vectors.unflatten(0, shape), words)


def measure_row(
    manager: ModelManager, judge: SoundJudge, row: Row, queries: Queries, reference: Tensor, seeds: int
) -> dict[str, dict[str, Any]]:
    """One row by its title, and after :data:`SHUFFLED_ROW` also the shuffled one. ``reference`` (R, 256)."""
    chosen = queries.of(row.asked)
    if not chosen:
        print(f"{row.title} is left out: there are no {row.asked or 'clips'} to ask with.", flush=True)
        return {}
    runtime = Runtime(manager)
    manager.free()
    costs: dict[str, Any] = {"seconds": None, "weights_mb": None}
    if row.needs:
        costs["seconds"] = seconds_alone(runtime, row, chosen)
        costs["weights_mb"] = sum(status.bytes for status in manager.status()) / 1e6
    heard = listen(manager, judge, chosen, make_all(runtime, row, chosen, seeds))
    whole = chosen is queries.pictures
    found = {row.title: {"queries": len(chosen), **measures(heard, reference if whole else None), **costs}}
    if row.title == SHUFFLED_ROW:
        found[SHUFFLED] = {"queries": len(chosen), **measures(heard.shuffled(), None), **dict.fromkeys(costs)}
    return found


def show(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown tables of the rows and of the claims."""
    columns = list(next(iter(results.values())))
    lines = [[title, *(_shown(row.get(column)) for column in columns)] for title, row in results.items()]
    text = table(["row", *columns], lines)
    claims = [[found["claim"], found["difference"], found["error"], found["holds"]] for found in judged_claims(results)]
    return f"{text}\n\n{table(['claim', 'difference', 'standard error', 'holds'], claims)}" if claims else text


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return " ± ".join(f"{number:.3f}" for number in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    known = list(dict.fromkeys(row.name for row in rows()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the tables of sounds and pictures")
    parser.add_argument("--rows", nargs="+", choices=known, default=known, metavar="NAME")
    parser.add_argument("--count", type=int, default=COUNT, help="queries, at most")
    parser.add_argument("--seeds", type=int, default=SEEDS, choices=range(1, 9), help="sounds of each query")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of denoising")
    arguments = parser.parse_args()
    try:
        judge = load_sound_judge()
    except UserError as error:
        raise SystemExit(str(error)) from None
    manager = build_manager(load_settings(profile="lite"))
    chosen = possible(manager, [row for row in rows(arguments.steps) if row.name in arguments.rows])
    folder = data_folder(arguments.data)
    queries = load_queries(folder, load_sounds(folder), arguments.count)
    reference = judged(judge, at_one_loudness(queries.reference))[0]
    path = RESULTS / "audio.json"
    results = json.loads(path.read_text())["rows"] if path.exists() else {}
    for row in chosen:
        found = measure_row(manager, judge, row, queries, reference, arguments.seeds)
        results |= found
        save("audio", {"rows": results, "claims": judged_claims(results)})  # at once: the next row may take long
        for title, values in found.items():
            print(title, json.dumps(values), flush=True)
    if results:
        print(show(results))


if __name__ == "__main__":
    main()
