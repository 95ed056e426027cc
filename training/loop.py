"""The loop that every recipe shares: autocast to bf16 where that is faster, EMA, a metric log, resume.

A step's batch and noise depend on ``(seed, step)`` alone, so a run that was interrupted and resumed computes what an
uninterrupted one would have (on a GPU nearly: it adds in no fixed order). State goes to ``training/state/<name>/``
(ignored by git) every few minutes.
"""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.machine import choose_device, compute_dtype

STATE = Path(__file__).parent / "state"
DEVICE = choose_device("auto")  # of the modules that a recipe trains, and of what they are given
Metrics = dict[str, Tensor | float]


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, constant, then a linear fall to ``floor`` over the last ``cooldown`` share of ``steps``."""

    steps: int
    warmup: int = 200
    cooldown: float = 0.3
    floor: float = 0.02

    def factor(self, step: int) -> float:
        left = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return min(1.0, (step + 1) / self.warmup, self.floor + (1 - self.floor) * max(0.0, left))


class Ema:
    """Exponential moving average of a module's parameters, with the usual ramp-up ``(1 + n) / (10 + n)``."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        state = module.state_dict()
        averaged = [name for name, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.shadow[n] for n in averaged], [state[n] for n in averaged], 1 - decay)
        for name in state.keys() - set(averaged):
            self.shadow[name].copy_(state[name])


def shuffled_batches(count: int, batch_size: int, seed: int, first_step: int) -> Iterator[np.ndarray]:
    """Index batches of step ``first_step``, ``first_step + 1``, ...: whole shuffled epochs, the ragged end dropped."""
    per_epoch = count // batch_size
    step = first_step
    while True:
        epoch, within = divmod(step, per_epoch)
        order = np.random.default_rng((seed, epoch)).permutation(count)
        for index in range(within, per_epoch):
            yield order[index * batch_size : (index + 1) * batch_size]
            step += 1


def train(
    name: str,
    module: nn.Module,
    optimizers: list[Optimizer],
    schedule: Schedule,
    batches: Callable[[int], Iterator[np.ndarray]],
    loss_of: Callable[[np.ndarray, int], tuple[Tensor, Metrics]],
    evaluate: Callable[[int], Metrics],
    *,
    seed: int,
    ema_decay: float = 0.999,
    clip: float = 1.0,
    log_every: int = 50,
    evaluate_every: int = 1000,
    save_seconds: float = 180.0,
) -> dict[str, Tensor]:
    """Run ``schedule.steps`` optimizer steps and return the EMA weights.

    ``batches(step)`` yields index arrays from that step on; ``loss_of(indices, step)`` gives the loss and what to log;
    ``evaluate(step)`` is called while the module holds the EMA weights. SIGTERM saves the state, then ends the process.
    A state of a run that began with other weights is not gone on with: the process ends and says so.
    """
    folder = STATE / name
    folder.mkdir(parents=True, exist_ok=True)
    device = next(module.parameters()).device
    ema, begun = Ema(module, ema_decay), fingerprint(module)
    step = _resume(folder / "state.pt", begun, module, optimizers, ema)
    stop = False

    def request_stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, request_stop)
    stream = batches(step)
    started = saved = time.monotonic()
    first = step
    module.train()
    while step < schedule.steps and not stop:
        torch.manual_seed(seed * 1_000_003 + step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * schedule.factor(step)
        with autocast(device):
            loss, metrics = loss_of(next(stream), step)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{name}: the loss became {loss.item()} at step {step}; the last saved state is intact."
            )
        loss.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        ema.update(module, step)
        step += 1
        if step % log_every == 0:
            rate = (step - first) / (time.monotonic() - started)
            _log(folder, step, {"loss": loss, "grad_norm": norm, "steps_per_second": rate, **metrics})
        if step % evaluate_every == 0:
            _log(folder, step, _with_ema(module, ema, partial(evaluate, step)))
        if time.monotonic() - saved > save_seconds:
            _save(folder / "state.pt", begun, step, module, optimizers, ema)
            saved = time.monotonic()
    _save(folder / "state.pt", begun, step, module, optimizers, ema)
    if stop:
        raise SystemExit(f"{name}: stopped at step {step}; run the same command to go on.")
    return ema.shadow


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a device that multiplies it faster; elsewhere nothing changes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=compute_dtype(device) == torch.bfloat16)


def optimizer_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, object]]:
    """AdamW groups: weight decay on matrices only; ``peak_lr`` is what the schedule scales."""
    decayed = [p for p in module.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in module.parameters() if p.requires_grad and p.ndim < 2]
    return [
        {"params": decayed, "lr": lr, "peak_lr": lr, "weight_decay": weight_decay},
        {"params": others, "lr": lr, "peak_lr": lr, "weight_decay": 0.0},
    ]


def _with_ema(module: nn.Module, ema: Ema, call: Callable[[], Metrics]) -> Metrics:
    trained = {name: value.detach().clone() for name, value in module.state_dict().items()}
    module.load_state_dict(ema.shadow)
    module.eval()
    with torch.no_grad(), autocast(next(module.parameters()).device):
        metrics = call()
    module.load_state_dict(trained)
    module.train()
    return metrics


def fingerprint(module: nn.Module) -> str:
    """A checksum of all parameters and buffers."""
    digest = hashlib.sha256()
    for value in module.state_dict().values():
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _resume(path: Path, begun: str, module: nn.Module, optimizers: list[Optimizer], ema: Ema) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location=next(module.parameters()).device, weights_only=True)
    if state.get("begun", begun) != begun:
        raise SystemExit(f"{path} is of a run that began with other weights. Move it away to begin a new one.")
    module.load_state_dict(state["module"])
    ema.shadow = state["ema"]
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def _save(path: Path, begun: str, step: int, module: nn.Module, optimizers: list[Optimizer], ema: Ema) -> None:
    state = {
        "begun": begun,
        "step": step,
        "module": module.state_dict(),
        "ema": ema.shadow,
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _log(folder: Path, step: int, metrics: Metrics) -> None:
    row = {"step": step} | {key: round(torch.as_tensor(value).detach().item(), 5) for key, value in metrics.items()}
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(" ".join(f"{key} {value:g}" for key, value in row.items()), flush=True)
