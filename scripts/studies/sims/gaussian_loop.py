"""Self-consuming loops of one-dimensional Gaussians.

A generation draws n points from its predecessor and fits mean and variance by maximum likelihood. SIMS (Alemohammad et
al. 2024, https://arxiv.org/abs/2408.16333) also fits an auxiliary to n_s points of the new fit and extrapolates away
from it; the guided flow of two Gaussians gives V = V_base^(1 + omega) V_aux^(-omega) exactly, and for nearly equal
variances the mean m_base - omega (m_aux - m_base).

A fit shrinks, E ln V_fit = ln V + psi((n - 1) / 2) - ln(n / 2) ~ ln V - 2 / n, and so does the auxiliary's: omega =
n_s / n cancels this bias to first order. SIMS does not cancel the random walk of ln V, whose steps it makes longer.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fitted", "self_consuming"]

Gaussians = tuple[Tensor, Tensor]  # means and variances, each (replicas,), float64


def fitted(source: Gaussians, count: int, generator: torch.Generator, *, real: Tensor | None = None) -> Gaussians:
    """Fit Gaussians to `count` points drawn from each of `source`, and to its points `real` (R, n)."""
    mean, variance = source
    draws = torch.randn(len(mean), count, generator=generator, dtype=torch.float64)
    points = mean[:, None] + variance.sqrt()[:, None] * draws  # (R, count)
    if real is not None:
        points = torch.cat([real, points], 1)
    return points.mean(1), points.var(1, correction=0)


def self_consuming(
    generations: int,
    replicas: int,
    generator: torch.Generator,
    *,
    count: int = 100,
    omega: float = 0.0,
    augmented: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return means and variances (generations + 1, replicas), float64, of loops that begin at N(0, 1).

    Args:
        generations: number of generations after the true distribution.
        replicas: independent loops.
        generator: generator of all draws.
        count: points n drawn from the predecessor, and n_s drawn from the base for an auxiliary.
        omega: strength of SIMS; 0 is the standard loop.
        augmented: fit every generation also to the same `count` points of the true distribution.

    Raises:
        ValueError: if a number is too small.
    """
    if generations < 1 or replicas < 1 or count < 2:
        raise ValueError(
            f"a loop needs generations >= 1, replicas >= 1 and count >= 2, got {generations}, {replicas} and {count}"
        )
    model: Gaussians = torch.zeros(replicas, dtype=torch.float64), torch.ones(replicas, dtype=torch.float64)
    real = torch.randn(replicas, count, generator=generator, dtype=torch.float64) if augmented else None
    history = [model]
    for _ in range(generations):
        mean, variance = fitted(model, count, generator, real=real)
        if omega:
            aux_mean, aux_variance = fitted((mean, variance), count, generator)
            mean = mean - omega * (aux_mean - mean)
            variance = variance ** (1 + omega) * aux_variance**-omega
        model = mean, variance
        history.append(model)
    means, variances = zip(*history, strict=True)
    return torch.stack(means), torch.stack(variances)
