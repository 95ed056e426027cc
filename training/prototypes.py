"""Recipe of ``assets/weights/controller-prototypes``: what reads requests where there is no language model.

    python -m training.prototypes

Sentence embeddings of generated instructions (``training/instructions``) are compared with learned prototypes; nouns
and templates of the validation rows never occur in training. On those rows the temperatures are fitted, and it is
decided how sure a reading has to be to overrule the rules.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from app.controller.planner import KNOWN_MEDIA as OUTPUTS
from app.controller.prototypes import KINDS, Prototypes, decided, features_of
from app.controller.request import ACTS
from app.controller.rules import Scores, rule_scores
from models.text_encoder import load_text_encoder
from training.controller import request_loss, request_of, understood
from training.instructions.rows import Row
from training.instructions.rows import rows as instructions
from training.publish import write_sums

WEIGHTS, ENCODER = Path("assets/weights/controller-prototypes"), Path("assets/weights/text-encoder-lite")
SEED, DRAWN, USED = 31, 16_000, {"train": 4_800, "validation": 1_200}
COUNT, STEPS, BATCH, PEAK_RATE = 256, 1_500, 256, 3e-3
UNSEEN, FORGOTTEN = 0.1, 0.5  # shares dropped in training of the features and of the likenesses
DOUBTED = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0)


def main() -> None:
    drawn = instructions(DRAWN, SEED)
    encoder = load_text_encoder(ENCODER)
    parts = {}
    for split, count in USED.items():
        rows = [row for row in drawn if row["split"] == split][:count]
        parts[split] = rows, features_of([request_of(row) for row in rows], encoder), *labels(rows)
    prototypes = taught(*parts["train"][1:])
    rows, features, outputs, acts = parts["validation"]
    with torch.no_grad():
        prototypes.head.calibrate(prototypes(features), outputs, acts)
    ruled = [rule_scores(request_of(row), OUTPUTS) for row in rows]
    read = [prototypes.read(one) for one in features]
    shares = {
        limit: exact([decided(*pair, limit) for pair in zip(ruled, read, strict=True)], rows) for limit in DOUBTED
    }
    prototypes.doubted = max(shares, key=lambda limit: (shares[limit], limit))
    prototypes.save(WEIGHTS)
    write_sums(WEIGHTS)
    print(json.dumps({"rules": exact(ruled, rows), "prototypes": exact(read, rows), "doubted": shares}))
    together = [decided(*pair, prototypes.doubted) for pair in zip(ruled, read, strict=True)]
    print(json.dumps({"chosen": prototypes.doubted, "acts": right_acts(together, rows)}))


def taught(features: Tensor, outputs: Tensor, acts: Tensor) -> Prototypes:
    """Prototypes that learned ``features`` (N, F) with their ``outputs`` (N, 5), 0 or 1, and ``acts`` (N,)."""
    torch.manual_seed(SEED)
    model = Prototypes(features.shape[1] - 2 * len(KINDS), COUNT, OUTPUTS, ACTS)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(features), (BATCH,))
        likeness = model.likeness(nn.functional.dropout(features[batch], UNSEEN))
        logits = model.head(nn.functional.dropout(likeness, FORGOTTEN))
        loss, _ = request_loss(logits, outputs[batch], acts[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    return model.eval().requires_grad_(False)


def exact(scores: Sequence[Scores], rows: Sequence[Row]) -> float:
    """Share of the rows whose set of outputs is met, by the media that the act leaves."""
    return _share([understood(one) == set(row["outputs"]) for one, row in zip(scores, rows, strict=True)])


def right_acts(scores: Sequence[Scores], rows: Sequence[Row]) -> float:
    return _share([one.act == row["act"] for one, row in zip(scores, rows, strict=True)])


def labels(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """What is wanted of each row (N, 5), 0 or 1, and the number of its act (N,)."""
    outputs = torch.tensor([[float(medium in row["outputs"]) for medium in OUTPUTS] for row in rows])
    return outputs, torch.tensor([ACTS.index(row["act"]) for row in rows])


def _share(right: Sequence[bool]) -> float:
    return round(float(np.mean(right)), 3)


if __name__ == "__main__":
    main()
