"""Monge inception distance (MIND), a sliced Wasserstein distance of features."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.evaluation.metrics.features import FeatureMetric

__all__ = ["MIND", "squared_wasserstein"]


def squared_wasserstein(a: Tensor, b: Tensor) -> Tensor:
    """Return W_2^2 (P,) between the points of each row of `a` (P, N) and of `b` (P, M), both sorted in each row.

    On a line it is the integral over u in (0, 1) of the squared difference of the quantile functions, which are
    constant between the multiples of 1 / N and of 1 / M; N and M may differ.

    Examples:
        >>> squared_wasserstein(torch.tensor([[0.0, 4.0]]), torch.tensor([[0.0, 0.0, 3.0, 4.0]]))
        tensor([0.2500])
    """
    n, m = a.shape[1], b.shape[1]
    steps = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()  # multiples of 1 / (N M)
    shares = torch.diff(steps, prepend=steps.new_zeros(1)).to(a) / (n * m)
    rows, columns = (((steps - 1) // other).to(a.device) for other in (m, n))
    return (a[:, rows] - b[:, columns]).square() @ shares


class MIND(FeatureMetric):
    r"""Monge inception distance `mind` = 3 F E_u W_2^2(u . x, u . y), over random directions u on the unit sphere.

    Berthet et al. 2026, https://arxiv.org/abs/2605.06797. Lower is better. For equal covariances it is three times the
    Frechet distance. The abstract was read: a sliced Wasserstein distance of Inception features. The factor 3 F, with F
    the number of features, and the 1000 directions are those of other implementations, and were not compared with the
    paper. Sets of unequal size are compared exactly, by their quantile functions. The directions are always the same.
    """

    reference_sorted: Tensor

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        directions: int = 1000,
        max_reference: int = 10_000,
        chunk: int = 64,
        cache: str | None = None,
    ) -> None:
        """Take the arguments of `FeatureMetric`, the number of `directions`, and how many at a time, `chunk`.

        Raises:
            ValueError: unless both are positive.
        """
        super().__init__(extractor, max_reference=max_reference, cache=cache)
        if directions < 1 or chunk < 1:
            raise ValueError(f"MIND needs directions >= 1 and chunk >= 1, got {directions} and {chunk}")
        self.directions, self.chunk = directions, chunk
        self.register_buffer("reference_sorted", torch.empty(0, 0, dtype=torch.float64), persistent=False)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Extract the features of (a subset of) the real data and sort their projections.

        Raises:
            ValueError: if there are no examples.
        """
        super().prepare(reference)
        features = self.reference.to(torch.float64)
        sorted_rows = [(part @ features.mT).sort(dim=1).values for part in self._parts(features)]
        self.reference_sorted = torch.cat(sorted_rows)

    def compute(self) -> dict[str, Tensor]:
        """Return `mind`.

        Raises:
            ValueError: if there are no samples.
        """
        samples = self.generated().to(torch.float64)
        squares = [
            squared_wasserstein((part @ samples.mT).sort(dim=1).values, real)
            for part, real in zip(self._parts(samples), self.reference_sorted.split(self.chunk), strict=True)
        ]
        return {"mind": 3 * samples.shape[1] * torch.cat(squares).mean()}

    def _parts(self, features: Tensor) -> tuple[Tensor, ...]:
        """Return the directions, unit rows (P, F), in chunks."""
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(self.directions, features.shape[1], generator=generator, dtype=torch.float64)
        return torch.nn.functional.normalize(rows, dim=1).to(features.device).split(self.chunk)
