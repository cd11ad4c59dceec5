"""PLADIS: attention to texts is extrapolated from its dense map to a sparse one.

Kim and Sim 2025, "PLADIS: Pushing the Limits of Attention in Diffusion Models at Inference Time by Leveraging
Sparsity", https://arxiv.org/abs/2503.07677 (the abstract; equations as we know them). With logits z = q k^T / sqrt(d)

    A = softmax(z) + (w - 1) (entmax(z) - softmax(z)),  entmax with alpha = 1.5, or 2 (sparsemax)

The rows of entmax sum to 1, as those of softmax, and have zeros. Martins and Astudillo 2016,
https://arxiv.org/abs/1602.02068; Peters, Niculae and Martins 2019, https://arxiv.org/abs/1905.05702.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.attention import identity_values, text_readers
from lightning_guide.guidance.perturbation import Perturbed, Replacement
from lightning_guide.network import Network
from lightning_guide.networks.attention import Attend, TextReader

__all__ = ["PLADIS", "SparseTexts", "entmax"]


def entmax(z: Tensor, alpha: float = 1.5) -> Tensor:
    """Return p `(*, M)` = max((alpha - 1) z - t, 0)^(1 / (alpha - 1)) with t so that rows sum to 1; alpha 1.5 or 2.

    Exact: of sorted entries the first k are positive, and t follows from their mean and variance. `z` (*, M) is finite.
    p depends on differences of z alone. Gradients flow through t.

    Examples:
        >>> entmax(torch.tensor([[1.0, 0.5, -3.0]]), 2).tolist()
        [[0.75, 0.25, 0.0]]
        >>> [round(p, 4) for p in entmax(torch.tensor([2.0, 2.0, 0.0])).tolist()]
        [0.5, 0.5, 0.0]
    """
    z = (alpha - 1) * (z - z.amax(-1, keepdim=True))
    with torch.no_grad():
        first = z.sort(dim=-1, descending=True).values
        k = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
        total, squares = first.cumsum(-1), first.square().cumsum(-1)
        # the k-th entry is positive if at t equal to it the mass of the first k is below 1
        mass = total - k * first if alpha == 2 else squares - 2 * total * first + k * first.square()
        positive = z >= first.gather(-1, ((mass < 1).sum(-1, keepdim=True) - 1).clamp(min=0))
        count = positive.sum(-1, keepdim=True)
    mean = torch.where(positive, z, 0).sum(-1, keepdim=True) / count
    if alpha == 2:
        return (z - mean + 1 / count).clamp(min=0)
    spread = torch.where(positive, z - mean, 0).square().sum(-1, keepdim=True)
    return (z - mean + ((1 - spread) / count).sqrt()).clamp(min=0).square()


class _SparseReader(TextReader):
    """A reader whose attention has the extrapolated map."""

    def __init__(self, inner: Any, weight: float, alpha: float) -> None:
        super().__init__()
        self.inner, self.weight, self.alpha = inner, weight, alpha

    def forward(
        self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, own: int = 0
    ) -> Tensor:
        """Return A v `(B, heads, N, d)`."""

        def extrapolated(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            dense = attend(q, k, identity_values(v), mask)  # (B, heads, N, M)
            A = dense.to(torch.promote_types(dense.dtype, torch.float32))
            z = A.clamp(min=torch.finfo(A.dtype).tiny).log()  # the logits, except for a constant of each row
            return torch.lerp(A, entmax(z, self.alpha), self.weight - 1).to(v) @ v

        read: Tensor = self.inner(extrapolated, q, k, v, mask, own=own)
        return read

    def texts(self, q: Tensor, k: Tensor, v: Tensor, *, own: int) -> Tensor:
        """Return what texts read, as before."""
        read: Tensor = self.inner.texts(q, k, v, own=own)
        return read


class SparseTexts(Replacement):
    """All attention to texts with the map of the module's formula; w = 1 changes nothing, w = 2 is the sparse map.

    In joint attention these are the rows of the image, with the tokens of the image among their keys.
    """

    static = True

    def __init__(self, weight: float = 3.0, *, alpha: float = 1.5) -> None:
        """`weight` w is finite; `alpha` is 1.5, or 2, which is sparser.

        Raises:
            ValueError: if it is another number.
        """
        super().__init__()
        if not math.isfinite(weight) or alpha not in (1.5, 2):
            raise ValueError(f"PLADIS needs a finite weight and alpha 1.5 or 2, got {weight} and {alpha}")
        self.weight, self.alpha = weight, alpha

    def chosen(self, network: Network) -> list[str]:
        """Return all readers of texts.

        Raises:
            ValueError: if there is none.
        """
        return text_readers(network, type(self).__name__)

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Return the reader with the map."""
        return module if self.weight == 1 else _SparseReader(module, self.weight, self.alpha)


class PLADIS(Perturbed):
    """PLADIS: the model with `SparseTexts`. One evaluation, which computes maps; needs attention to texts.

    The paper's lambda is w - 1; lambda = 2 is the default w = 3.
    """

    def __init__(self, weight: float = 3.0, *, alpha: float = 1.5, positive: Denoiser | None = None) -> None:
        """`weight` and `alpha` as in `SparseTexts`."""
        super().__init__([SparseTexts(weight, alpha=alpha)], positive=positive)
