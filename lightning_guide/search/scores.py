"""What a search needs of whoever draws its samples: scores of points over blocks of samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lightning_guide.search.estimate import Estimate, jackknife
from lightning_guide.search.space import Place

__all__ = ["Block", "Scorer", "Scores", "difference"]


class Block(NamedTuple):
    """Samples number * size ... (number + 1) * size - 1 of a seed, the same ones at every point."""

    seed: int
    number: int


@dataclass(frozen=True)
class Scores:
    """Metrics over some blocks.

    Attributes:
        values: metric -> value over all of them.
        without: the same over each of `left_out`: all but the first, all but the second, ...; empty for a single block.
    """

    values: Mapping[str, float]
    without: Sequence[Mapping[str, float]] = ()

    def estimate(self, metric: str) -> Estimate:
        """A metric with its interval."""
        return jackknife(self.values[metric], [each[metric] for each in self.without])


def difference(one: Scores, other: Scores, metric: str) -> Estimate:
    """`one` - `other`, both over the same blocks: paired, so that what the seeds do to both drops out."""
    without = [a[metric] - b[metric] for a, b in zip(one.without, other.without, strict=True)]
    return jackknife(one.values[metric] - other.values[metric], without)


class Scorer(ABC):
    """Draws blocks of samples at points of a space, and scores any union of them."""

    size: int
    """Samples in a block."""

    @abstractmethod
    def drawn(self, place: Place) -> set[Block]:
        """Blocks that are there."""

    @abstractmethod
    def draw(self, place: Place, blocks: Sequence[Block]) -> None:
        """Draws those of `blocks` that are not there yet.

        Raises:
            ValueError: if the point cannot be drawn from.
        """

    @abstractmethod
    def scores(self, place: Place, blocks: Sequence[Block], *, interval: bool = True) -> Scores:
        """Metrics over the union of `blocks`, all drawn; without `interval` over all of them alone.

        Raises:
            ValueError: if a metric cannot be computed from them.
        """
