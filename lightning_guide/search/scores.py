"""Jackknife confidence intervals over blocks of samples, and the interface that draws and scores them.

With theta the number over all B blocks and theta_b that without block b, the variance of theta is
(B - 1) / B sum_b (theta_b - mean theta_b)^2 (Tukey 1958; Efron and Stein 1981,
https://doi.org/10.1214/aos/1176345462). It assumes no distribution of the samples, only that theta is smooth in them,
and it holds for a difference of two numbers over the same blocks: what both have in common drops out. Of many blocks
groups of neighbors are left out instead, so that metrics which cost a while are not computed a hundred times; to
first order the variance is the same, groups of unequal size included.

A `Scorer` draws blocks of samples at points of a space and scores any union of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import NamedTuple, TypeVar

from lightning_guide.search.space import Point

__all__ = ["ScoreBlock", "Estimate", "Scorer", "Scores", "difference", "jackknife", "leave_one_out", "student_quantile"]


GROUPS = 32  # at most: a half width is then right to 1 / sqrt(2 * 31) = 13 %


Item = TypeVar("Item")


@dataclass(frozen=True)
class Estimate:
    """A number and half the width of its interval; NaN where there is one block only."""

    value: float
    half_width: float

    def __str__(self) -> str:
        """value +- half_width."""
        return f"{self.value:.4g} +- {self.half_width:.2g}"


def leave_one_out(blocks: Sequence[Item]) -> list[list[Item]]:
    """`blocks` without each of them in turn, of more than 32 without each of 32 groups; none for a single block."""
    groups = min(len(blocks), GROUPS)
    if groups < 2:
        return []
    ends = [len(blocks) * i // groups for i in range(groups + 1)]
    return [[*blocks[:i], *blocks[j:]] for i, j in pairwise(ends)]


def jackknife(value: float, without: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """`value` over all blocks with its interval of `confidence`, from the values over each of `leave_one_out`."""
    count = len(without)
    if count < 2:
        return Estimate(value, math.nan)
    mean = math.fsum(without) / count
    variance = (count - 1) / count * math.fsum((each - mean) ** 2 for each in without)
    return Estimate(value, student_quantile((1 + confidence) / 2, count - 1) * math.sqrt(variance))


def student_quantile(p: float, freedom: int) -> float:
    """Quantile of Student's t with `freedom` degrees.

    Exact for 1 and 2 degrees, above those a series in 1 / freedom, right to 1 % at 3 degrees and to 0.1 % from 5 on for
    p = 0.975 (Abramowitz and Stegun 1964, formula 26.7.5).
    """
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    x = NormalDist().inv_cdf(p)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + sum(term / freedom ** (k + 1) for k, term in enumerate(terms))


class ScoreBlock(NamedTuple):
    """Sample number * size ... (number + 1) * size - 1 of a seed, the same ones at every point."""

    seed: int
    number: int


@dataclass(frozen=True)
class Scores:
    """Metrics over some blocks.

    Attributes:
        values: metric -> value over all of them.
        without: the same over each of `leave_one_out`: all but the first, all but the second, ...; empty for a single
        block.
    """

    values: Mapping[str, float]
    without: Sequence[Mapping[str, float]] = ()

    def estimate(self, metric: str) -> Estimate:
        """A metric with its interval."""
        return jackknife(self.values[metric], [each[metric] for each in self.without])


def difference(one: Scores, other: Scores, metric: str) -> Estimate:
    """`one` - `other`, both over the same blocks: paired, so that the common effect of the seeds cancels."""
    without = [a[metric] - b[metric] for a, b in zip(one.without, other.without, strict=True)]
    return jackknife(one.values[metric] - other.values[metric], without)


class Scorer(ABC):
    """Source of samples at points of a space, and of scores of any union of blocks."""

    size: int
    """Samples in a block."""

    @abstractmethod
    def drawn(self, point: Point) -> set[ScoreBlock]:
        """Blocks drawn so far."""

    @abstractmethod
    def draw(self, point: Point, blocks: Sequence[ScoreBlock]) -> None:
        """Draw those of `blocks` that are missing.

        Raises:
            ValueError: if the point cannot be drawn from.
        """

    @abstractmethod
    def scores(self, point: Point, blocks: Sequence[ScoreBlock], *, interval: bool = True) -> Scores:
        """Metrics over the union of `blocks`, all drawn; without `interval` over all of them alone.

        Raises:
            ValueError: if a metric cannot be computed from them.
        """

    def show_best(self, best: Mapping[str, tuple[Point, str]]) -> None:  # noqa: B027  # nothing by default
        """Show the best point so far and its score for each metric."""
