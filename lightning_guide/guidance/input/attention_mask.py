r"""Where the network looks: a mask out of the self-attention of the positive pass itself.

Hong et al. 2022, https://arxiv.org/abs/2210.00939: of A = softmax(q k^T / sqrt(d)) `(B, heads, N, N)`, the mean over
heads, summed over queries, is the attention that each key receives, 1 on average; M = (that > psi).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.attention.core import AttentionPerturbation
from lightning_guide.guidance.input.masks import Mask, MaskAt
from lightning_guide.guidance.perturbed import Perturbed

__all__ = ["AttentionMask"]


class _Note:
    """What tokens of a layer received at the last evaluation, `received` (B, 1, h, w); copies of a tree share it."""

    received: Tensor


class _Observed(nn.Module):
    """An attention core that also writes down what each token receives; its result is the core's own."""

    def __init__(self, core: nn.Module, note: _Note) -> None:
        super().__init__()
        self.core, self.note = core, note

    def forward(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int] | None) -> Tensor:
        if grid is None:
            raise ValueError("AttentionMask needs attention over a 2D token grid; this network has none")
        scores = q @ k.mT / math.sqrt(q.shape[-1])  # (B, heads, N, N)
        dtype = torch.promote_types(scores.dtype, torch.float32)
        self.note.received = scores.softmax(dim=-1, dtype=dtype).mean(dim=1).sum(dim=1).unflatten(1, (1, *grid))
        return self.core(q, k, v, grid)


class ObservedAttention(AttentionPerturbation):
    """Attention cores that also compute their map, softmax written out, for one trajectory."""

    def __init__(self, *, layers: Sequence[str] | None) -> None:
        super().__init__(layers=layers)
        self.notes: list[_Note] = []

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        self.notes.append(_Note())
        return _Observed(module, self.notes[-1])


class AttentionMask(Mask):
    """M = (attention received > psi), on the token grid, enlarged to the picture by nearest neighbours.

    Costs one attention map (B, heads, N, N) in each layer observed, and no evaluation. With several layers the
    attention received is averaged over them.
    """

    def __init__(self, *, layers: Sequence[str] | None = None, psi: float = 1.0) -> None:
        """`layers`: attention cores by name or pattern, None: the network's default; `psi`: 1 in the paper.

        Raises:
            ValueError: if there is no layer, or `psi` is not a number.
        """
        if layers is not None and not layers:
            raise ValueError("AttentionMask needs one layer or more to look at, got layers: []; null is the default")
        if math.isnan(psi):
            raise ValueError("AttentionMask needs a number psi, 1 in the paper, got nan")
        self.layers, self.psi = layers, psi

    def check(self, model: Denoiser) -> None:
        """The layers must exist.

        Raises:
            ValueError: if they do not, or `model` is no network under EDM preconditioning.
        """
        Perturbed([ObservedAttention(layers=self.layers)], positive=model).layers()

    def attach(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, MaskAt]:
        """`model` with observed attention, and the mask of the evaluation before.

        Raises:
            ValueError: as `check`.
        """
        observation = ObservedAttention(layers=self.layers)
        observed = Perturbed([observation], positive=model).network(trajectory)

        def mask(clean: Tensor) -> Tensor:
            size = tuple(clean.shape[2:])
            received = [F.interpolate(note.received, size, mode="nearest-exact") for note in observation.notes]
            return (torch.stack(received).mean(0) > self.psi).to(clean)

        return observed, mask
