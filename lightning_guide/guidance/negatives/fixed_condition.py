"""Negatives with another class or prompt than the samples: the same one for all, as a negative prompt.

Liu et al. 2022, "Compositional Visual Generation with Composable Diffusion Models", https://arxiv.org/abs/2206.01714:
negation. As negatives beside the unconditional model, and for `PerpendicularNegatives`.
"""

from __future__ import annotations

import torch

from lightning_guide.data import Prompts
from lightning_guide.denoiser import Denoiser, Models, Trajectory
from lightning_guide.guidance.branches import ConditionReplacement, Replace
from lightning_guide.utils.devices import to_device
from lightning_guide.utils.scalars import check_whole

__all__ = ["ListedCondition", "FixedCondition"]


class ListedCondition(ConditionReplacement):
    """Base of negatives D(x, sigma, c') with c' from a list: the classes of the model, or prompts."""

    def __init__(self, positive: Denoiser | None = None, *, prompts: Prompts | None = None) -> None:
        """Take classes of the model `positive`, default the one under evaluation, or rows of `prompts`.

        A model that takes embeddings needs `prompts` (P, L, C); default: those of the evaluation.
        """
        super().__init__(positive)
        self.prompts = prompts

    def resolve(self, models: Models) -> Denoiser:
        """Return a copy on real models, with the prompts of their evaluation unless others are given.

        Raises:
            ValueError: if the model has neither labels nor embeddings.
        """
        resolved = super().resolve(models)
        assert isinstance(resolved, ListedCondition)
        if resolved.positive.token_channels and resolved.prompts is None:
            resolved.prompts = models.prompts
        resolved.check()
        return resolved

    def check(self) -> None:
        """Check the list against the model.

        Raises:
            ValueError: if the model has neither labels nor embeddings.
        """
        if not self.conditional:
            who = type(self).__name__
            raise ValueError(
                f"{who} takes its condition from labels or prompts; this model has neither (num_classes=0)"
            )


class FixedCondition(ListedCondition):
    """D(x, sigma, c'), c' the class `number`, or the prompt of this number. One evaluation."""

    def __init__(self, number: int, positive: Denoiser | None = None, *, prompts: Prompts | None = None) -> None:
        """`number` from 0 on; `prompts` default to those of the evaluation, for models that read texts.

        Raises:
            ValueError: if `number` is no whole number from 0 on.
        """
        super().__init__(positive, prompts=prompts)
        self.number = check_whole(number, "the number of a class or prompt of FixedCondition", least=0)

    def check(self) -> None:
        """Check the number against the classes, or the prompts if they are known.

        Raises:
            ValueError: naming how many there are.
        """
        super().check()
        known = len(self.prompts) if self.prompts is not None else self.num_classes
        if (known or self.prompts is not None) and self.number >= known:
            what = "classes" if self.prompts is None else "prompts"
            raise ValueError(f"FixedCondition has the number {self.number}; there are {known} {what}, counted from 0")

    def start_condition(self, trajectory: Trajectory) -> Replace:
        """Return the function that gives all samples the one condition."""
        self.check()
        if not self.token_channels:
            return lambda x, condition: torch.full((len(x),), self.number, device=x.device)
        if self.prompts is None:
            raise ValueError(
                f"FixedCondition takes the prompt {self.number} of the evaluation, and there are none here; give the "
                "embeddings to take it from (prompts)"
            )
        tokens = self.prompts[torch.tensor([self.number])]
        return lambda x, condition: to_device(tokens, x.device).to(x).expand(len(x), -1, -1)
