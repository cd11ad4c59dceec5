"""Independent condition guidance (ICG): the negative has an independent random label or prompt, or noise instead.

Sadat et al. 2024, "No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion Models",
https://arxiv.org/abs/2407.02687, section 3. For models trained without label dropout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from lightning_guide.data import Prompts
from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.branches import Replace
from lightning_guide.guidance.combinations.base import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.negatives.fixed_condition import ListedCondition
from lightning_guide.guidance.perturbation import ChangedEmbedding, ConditionPerturbation
from lightning_guide.guidance.schedules import WeightSchedule
from lightning_guide.utils.devices import to_device

__all__ = ["GaussianCondition", "IndependentConditionGuidance", "RandomCondition"]


class GaussianCondition(ConditionPerturbation):
    """ICG noise std(y) n instead of the embedding y, n drawn at each call; std over the E numbers of a label or token.

    y is (B, E) of labels or (B, L, E) of tokens; the zeros of missing ones stay zeros. This is the paper's variant for
    conditions that cannot be drawn: a negative `Perturbed([GaussianCondition()])`.
    """

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Return noise with the standard deviation of the embedding."""

        def gaussian(y: Tensor) -> Tensor:
            n = trajectory.seeds.normal("gaussian condition", y.shape[1:], y.device).to(y.dtype)
            return y.std(dim=-1, keepdim=True, correction=0) * n

        return ChangedEmbedding(module, gaussian)


class RandomCondition(ListedCondition):
    """D(x, sigma, c'), each sample's c' drawn uniformly at each call from all classes, or from prompts."""

    def start_condition(self, trajectory: Trajectory) -> Replace:
        """Return the function that draws conditions; a model without a condition is refused."""
        self.check()
        seeds, prompts = trajectory.seeds, self.prompts
        if not self.token_channels:
            return lambda x, condition: seeds.integers("random condition", self.num_classes, x.device)
        if prompts is None:
            raise ValueError(
                "ICG draws another prompt of the evaluation, and there are none here; give the embeddings to draw from "
                "(prompts), or take GaussianCondition, as configs/guidance/icg_gaussian.yaml does"
            )
        return lambda x, condition: to_device(prompts[seeds.integers("random condition", len(prompts))], x.device).to(x)

    def without_effect(self, steps: Sequence[Trajectory]) -> Iterator[str]:
        """Yield a sentence if there is only one class or prompt to draw."""
        if self.num_classes == 1:
            yield "ICG draws its random class from 1 class, which is that of the samples"
        if self.token_channels and self.prompts is not None and len(self.prompts) == 1:
            yield "ICG draws its random prompt from 1 prompt, which is that of the samples"


class IndependentConditionGuidance(Guided):
    """ICG, D(c') + w (D(c) - D(c')), c' a random class or prompt. Two evaluations; needs no training without condition.

    Published: w = 1.4 for DiT-XL/2, 1.25 for EDM2, where classifier-free guidance has 1.5 and 1.25.
    """

    def __init__(
        self,
        weight: float | WeightSchedule = 1.25,
        *,
        prompts: Prompts | None = None,
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`positive` is the model; `prompts` as of `RandomCondition`. Defaults: those of the evaluation."""
        super().__init__(
            [RandomCondition(positive, prompts=prompts)], [weight], positive=positive, combination=combination
        )
