"""Sampling without fresh noise (DDIM, arXiv 2010.02502) by the noise levels of diffusers' schedules."""

from __future__ import annotations

from diffusers import DDIMScheduler
from torch import Tensor


def noise_levels(schedule: DDIMScheduler, steps: int) -> tuple[Tensor, list[float]]:
    """Time steps, noisiest first, and the share of signal power (alpha bar) at each and after the last.

    A step of ours ends where the next begins. DDIMScheduler's own goes back ``1000 // steps``, which is elsewhere
    if time steps are spaced from the end and ``steps`` does not divide 1000.
    """
    counting = DDIMScheduler.from_config(schedule.config)  # it counts steps, so one for each run
    counting.set_timesteps(steps)
    shares = counting.alphas_cumprod[counting.timesteps].tolist()
    return counting.timesteps, [*shares, float(counting.final_alpha_cumprod)]


def clean_and_noise(schedule: DDIMScheduler, noisy: Tensor, prediction: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Of which ``noisy`` is made, by the prediction of a network, epsilon or velocity (arXiv 2202.00512)."""
    signal, noise = share**0.5, (1 - share) ** 0.5
    if schedule.config.prediction_type == "epsilon":
        return (noisy - noise * prediction) / signal, prediction
    return signal * noisy - noise * prediction, signal * prediction + noise * noisy


def mixed(clean: Tensor, noise: Tensor, share: float) -> Tensor:
    """What is as noisy as where signal has the ``share`` of the power."""
    return share**0.5 * clean + (1 - share) ** 0.5 * noise
