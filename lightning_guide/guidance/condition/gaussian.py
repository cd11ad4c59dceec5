"""Independent condition guidance for any condition: noise in the place of its embedding.

Sadat et al. 2024, "No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion Models",
https://arxiv.org/abs/2407.02687, section 3.
"""

from __future__ import annotations

from torch import Tensor, nn

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.condition.perturbation import ConditionPerturbation
from lightning_guide.guidance.embedding import ChangedEmbedding

__all__ = ["GaussianCondition"]


class GaussianCondition(ConditionPerturbation):
    """std(y) n in the place of the embedding y, n fresh at each call; std over the E numbers of each label or token.

    y is (B, E) of labels or (B, L, E) of tokens; where there is none, zeros stay zeros.

    The paper's variant for conditions that cannot be drawn: a negative `Perturbed([GaussianCondition()])`.
    """

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Noise of the size of the embedding."""

        def gaussian(y: Tensor) -> Tensor:
            n = trajectory.seeds.normal("gaussian condition", y.shape[1:], y.device).to(y.dtype)
            return y.std(dim=-1, keepdim=True, correction=0) * n

        return ChangedEmbedding(module, gaussian)
