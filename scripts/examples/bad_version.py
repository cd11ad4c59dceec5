"""Autoguidance in one page: a distribution sharpened by a worse model of itself, without any training.

    python -m scripts.examples.bad_version

The good model is the exact denoiser of a mixture of three Gaussians, the bad one that of the same mixture with wider
components. Guidance with w > 1 moves samples toward the modes: their spread falls below that of the good model, and the
weights of the modes are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

import lightning_guide as lg
from scripts.lib.command_line import run_script

MEANS = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])


def mixture(std: float) -> lg.GaussianMixture:
    """Return the exact denoiser of the three Gaussians with a standard deviation."""
    return lg.GaussianMixture(MEANS, (std**2 * torch.eye(2)).expand(3, 2, 2))


def describe(x: Tensor) -> tuple[float, list[float]]:
    """Return the standard deviation of samples around the nearest mode, and the weights of the modes."""
    distances = torch.cdist(x, MEANS.to(x))
    nearest = distances.argmin(1)
    spread = float((distances.amin(1).square().mean() / 2).sqrt())
    return spread, [float((nearest == mode).float().mean()) for mode in range(3)]


def guide(weights: list[float] = [1.0, 1.5, 2.0, 3.0], *, count: int = 500, steps: int = 18) -> None:  # noqa: B006
    """Print spread and mode weights for each guidance weight.

    Args:
        weights: weights of autoguidance; 1 is off.
        count: samples for each weight.
        steps: steps of Heun's sampler.
    """
    good, bad = mixture(0.3), mixture(0.5)
    for weight in weights:
        guided = lg.Autoguidance(bad, weight=weight, positive=good)
        x = lg.sample(guided, lg.Heun(steps), count=count, seed=0)
        spread, shares = describe(x)
        print(f"w = {weight:g}: spread {spread:.3f}, modes {', '.join(f'{share:.2f}' for share in shares)}")


if __name__ == "__main__":
    run_script(guide)
