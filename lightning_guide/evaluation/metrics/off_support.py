"""Distance of samples to the linear subspace of the real data, for data on or near a subspace.

Guo et al. 2024, https://arxiv.org/abs/2404.14743, section 6.1: the off/on-support ratio |x - P x| / |P x| with the
orthogonal projection P on the support.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.metrics.base import SampleMetric

__all__ = ["OffSupport"]


class OffSupport(SampleMetric):
    """Off-support distance: means of `off_ratio` |x - P x| / (|P x| + 1e-8), `off_norm` |x - P x|, `on_norm` |P x|.

    P projects on the leading `subspace` eigenvectors of E[x x^T] of the real data: exactly the support if the
    data lie on a linear subspace of that dimension.
    """

    basis: Tensor
    sums: Tensor

    def __init__(self, subspace: int) -> None:
        """Choose the dimension of the support, `subspace`.

        Raises:
            ValueError: if `subspace` is below 1.
        """
        super().__init__()
        if subspace < 1:
            raise ValueError(f"OffSupport needs subspace >= 1, got {subspace}")
        self.subspace = subspace
        self.register_buffer("basis", torch.empty(0, 0, dtype=torch.float64))
        self.add_sum("sums", 4)  # ratio, off, on, count

    def missing(self, sample: Batch | None, count: int, reference: Iterable[Batch]) -> Iterator[str]:
        """Yield what is missing, real examples included."""
        yield from super().missing(sample, count, reference)
        yield from self.too_few(reference, self.subspace)

    def prepare(self, reference: Iterable[Batch]) -> None:
        """Estimate the support.

        Raises:
            ValueError: if there are fewer coordinates or examples than dimensions of the subspace.
        """
        total, count = torch.zeros(()), 0
        for batch in reference:
            x = batch.x.flatten(1).double()
            total, count = x.T @ x + (total if count else 0), count + len(x)
        if min(count, len(total) if total.ndim else 0) < self.subspace:
            shape = f"{count} examples" + (f" of {len(total)} numbers" if total.ndim else "")
            raise ValueError(f"a support of dimension {self.subspace} cannot be found in {shape}")
        # waits before the first sample alone: torch reads whether it succeeded
        self.basis = torch.linalg.eigh(total / count).eigenvectors[:, -self.subspace :].to(self.basis.device)

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Add samples `x` (B, *).

        Raises:
            ValueError: if `prepare` was not called, or the samples have another shape than the real data.
        """
        self._check_prepared(bool(self.basis.numel()))
        rows = x.flatten(1).double()
        if rows.shape[1] != len(self.basis):
            raise ValueError(f"samples have {rows.shape[1]} numbers each, the real data {len(self.basis)}")
        basis = self.basis.to(rows.device)
        inside = rows @ basis @ basis.T
        on, off = inside.norm(dim=1), (rows - inside).norm(dim=1)
        self.sums += torch.stack([(off / (on + 1e-8)).sum(), off.sum(), on.sum(), off.new_full((), len(x))])

    def compute(self) -> dict[str, Tensor]:
        """Return the three means.

        Raises:
            ValueError: if there are no samples.
        """
        ratio, off, on, count = self.sums
        if not float(count):  # waits at the end of an evaluation
            raise ValueError("OffSupport has no samples")
        return {"off_ratio": ratio / count, "off_norm": off / count, "on_norm": on / count}
