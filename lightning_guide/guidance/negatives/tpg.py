"""Token perturbation guidance (TPG): the tokens of the negative are shuffled.

Rajabi et al. 2025, "Token Perturbation Guidance for Diffusion Models", https://arxiv.org/abs/2506.10036.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.combinations.base import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.perturbation import BlockWrapper, Perturbed, Replacement
from lightning_guide.guidance.schedules import WeightSchedule
from lightning_guide.utils.devices import to_device

__all__ = ["ShuffledTokens", "TokenPerturbationGuidance"]


class _Shuffled(BlockWrapper):
    """A block whose input tokens are shuffled."""

    def __init__(self, inner: nn.Module, shuffle: ShuffledTokens, trajectory: Trajectory) -> None:
        super().__init__(inner)
        self.shuffle, self.trajectory = shuffle, trajectory

    def forward(self, *arguments: Any, **named: Any) -> Any:
        x = self.passed(arguments, named)[-1]
        if x.ndim not in (3, 4):
            raise ValueError(
                f"TPG shuffles tokens (B, N, C) or the positions of feature maps (B, C, H, W); "
                f"this block receives x of shape {tuple(x.shape)}"
            )
        count = x.shape[1] if x.ndim == 3 else x.shape[2] * x.shape[3]
        order = to_device(self.shuffle.order(count, self.trajectory), x.device)
        x = x[:, order] if x.ndim == 3 else x.flatten(2)[..., order].reshape(x.shape)
        return self.call_with(x, arguments, named)


class ShuffledTokens(Replacement):
    """block(x P, ...) with a random permutation P of the tokens or positions, which is not undone after the block.

    In blocks of joint attention, tokens of texts keep their order.

    A permutation is drawn for each block and call. All samples of a seed share it, as in the paper: it takes one gather
    for the batch, and no sample depends on the other samples of its batch.
    """

    kind = "block"

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Return the block with shuffled input tokens."""
        return _Shuffled(module, self, trajectory)

    def order(self, count: int, trajectory: Trajectory) -> Tensor:
        """Return the next permutation `(count,)` of 0 ... count - 1."""
        return torch.randperm(count, generator=trajectory.seeds.shared("token order"))


class TokenPerturbationGuidance(Guided):
    """TPG, D_tpg + w (D - D_tpg), D_tpg with shuffled tokens in the chosen blocks. Two evaluations.

    The paper's s is w - 1 (s = 3).
    """

    def __init__(
        self,
        weight: float | WeightSchedule = 2.0,
        *,
        layers: Sequence[str] | None = None,
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`layers`: blocks by name or pattern; None: the default of the architecture."""
        negative = Perturbed([ShuffledTokens(layers=layers)], positive=positive)
        super().__init__([negative], [weight], positive=positive, combination=combination)
