"""Fractal tree distribution: the 2D toy example of the autoguidance paper, with exact density and score.

Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", section 3 and the appendix on the
2D example, https://arxiv.org/abs/2406.02507. Each class, A and B, is a binary tree of 127 branches at the levels
k = 0 ... 6; each branch is a line of 8 Gaussians. With independent draws xi ~ N(0, 1), a branch that starts
at p in the direction d = (cos angle, sin angle) has

    length     l = 0.292 0.8^k (1 + 0.2 xi),      thickness  q = 0.2 0.8^k / l,      size z = 0.06 l scale,
    means      (p + f l d) scale,                  f = 8 fractions from 0.07 to 0.93,
    covariance (d d^T + q^2 (I - d d^T)) z z^T     (the last product element by element),
    weight     proportional to l 0.5^k,

and two children at its end, at the angles angle +- 0.7^k (1 + 0.2 xi). The scale, (1.3136, 1.3844), gives the
union of the classes mean 0 and standard deviation 0.5.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch

from lightning_guide.distributions.line_mixture import LineMixture
from lightning_guide.seeds import check_seed

__all__ = ["FractalTree"]


ORIGIN = np.array([0.0030, 0.0325])
ANGLES = {"A": math.pi / 4, "B": 5 * math.pi / 4}
SCALE = np.array([1.3136, 1.3844])
FRACTIONS = np.linspace(0.07, 0.93, 8)
LENGTH, SHRINK, WIDTH, SIZE, TURN, JITTER = 0.292, 0.8, 0.2, 0.06, 0.7, 0.2

Branch = tuple[np.ndarray, np.ndarray, np.ndarray, float]


class FractalTree(LineMixture):
    """Fractal tree: class "A" or "B" of the toy distribution, or both ("AB": the branches of A, then those of B).

    `LineMixture` defines the methods: `sample`, `log_density`, `score`, `denoise`, `responsibilities`.
    """

    def __init__(self, classes: Literal["A", "B", "AB"] = "A", *, seed: int = 2, depth: int = 7) -> None:
        """Grow the trees A and B, in this order, from the generator `seed`; `depth` levels give 2^depth - 1 branches.

        Raises:
            ValueError: if `classes` is not one of the three or `depth` is not positive.
        """
        if classes not in ("A", "B", "AB"):
            raise ValueError(f"FractalTree: classes must be 'A', 'B' or 'AB', got {classes!r}")
        if depth < 1:
            raise ValueError(f"FractalTree: depth must be at least 1, got {depth}")
        random = np.random.RandomState(check_seed(seed))
        grown = {name: _grow(random, ORIGIN, angle, 0, depth) for name, angle in ANGLES.items()}
        branches = [branch for name in classes for branch in grown[name]]
        starts, vectors, covariances, weights = zip(*branches, strict=True)
        super().__init__(
            torch.from_numpy(np.stack(starts)),
            torch.from_numpy(np.stack(vectors)),
            torch.from_numpy(np.stack(covariances)),
            torch.tensor(weights, dtype=torch.float64),
            torch.from_numpy(FRACTIONS),
        )


def _grow(random: np.random.RandomState, origin: np.ndarray, angle: float, level: int, depth: int) -> list[Branch]:
    """Return the branch at `origin` and its descendants, depth first: (start, vector, covariance, weight) each.

    A branch of the last level also draws the angles of children, although it has none: the published tree depends on
    these draws.
    """
    length = LENGTH * SHRINK**level * (1 + JITTER * random.randn())
    thickness = WIDTH * SHRINK**level / length
    direction = np.array([math.cos(angle), math.sin(angle)])
    along = np.outer(direction, direction)
    size = SIZE * length * SCALE
    covariance = (along + thickness**2 * (np.eye(2) - along)) * np.outer(size, size)
    branches: list[Branch] = [(origin * SCALE, direction * length * SCALE, covariance, length * 0.5**level)]
    for sign in (1, -1):
        turned = angle + sign * TURN**level * (1 + JITTER * random.randn())
        if level + 1 < depth:
            branches += _grow(random, origin + length * direction, turned, level + 1, depth)
    return branches
