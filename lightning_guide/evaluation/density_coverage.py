"""Density and coverage: fidelity and diversity by the same balls around real data alone.

Naeem et al. 2020, https://arxiv.org/abs/2002.09797, equations 5 and 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_guide.evaluation.features import FeatureExtractor
from lightning_guide.evaluation.precision_recall import NeighbourBalls

__all__ = ["DensityCoverage"]


class DensityCoverage(NeighbourBalls):
    """`density` and `coverage` of features, with balls around the real examples up to their k-th neighbour.

    Borders belong to the balls, as in `PrecisionRecall`. The authors' code leaves them out, which differs where samples
    are copies of real examples: they have density 1 there, (k + 1) / k here.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        k: int = 5,
        max_reference: int = 10_000,
        chunk: int = 1024,
        cache: str | None = None,
    ) -> None:
        """As `NeighbourBalls`; the paper recommends k = 5 and equal numbers of samples and real examples."""
        super().__init__(extractor, k=k, max_reference=max_reference, chunk=chunk, cache=cache)

    def compute(self) -> dict[str, Tensor]:
        """`density`: mean number of real balls a sample lies in, over k; `coverage`: share of balls with a sample.

        Raises:
            ValueError: if there are not more than k samples.
        """
        samples, real = self.centred(self.generated()), self.centred(self.reference)
        balls = torch.zeros((), dtype=torch.float64, device=samples.device)
        hit = torch.zeros(len(real), dtype=torch.bool, device=samples.device)
        for part in samples.split(self.chunk):
            inside = torch.cdist(part, real) <= self.reference_radii
            balls += inside.sum()
            hit |= inside.any(0)
        return {"density": balls / (self.k * len(samples)), "coverage": hit.to(torch.float64).mean()}
