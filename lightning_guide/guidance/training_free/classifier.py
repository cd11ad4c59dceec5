"""Classifier guidance (CG), Dhariwal and Nichol 2021, https://arxiv.org/abs/2105.05233, algorithm 2.

The classifier is trained on noisy x: the trained counterpart of training-free guidance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_guide.conditioning import LabelReader, condition_for
from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory, expand
from lightning_guide.guidance.base import Guidance, Main
from lightning_guide.guidance.training_free.local_loss import finite_step, report_diagnostics
from lightning_guide.guidance.training_free.schedules import PowerLaw, SigmaWindow, StepContext
from lightning_guide.guidance.training_free.step_rules import ConstantStep, StepRule
from lightning_guide.objectives.class_label import check_readable, label_loss

__all__ = ["ClassifierGuidance"]


class ClassifierGuidance(Guidance, LabelReader):
    """Classifier guidance (CG): D + weight sigma^2 grad_x ln p(y | x, sigma), the noise implied.

    Weight 1 is the posterior of y. In variance-preserving form eps - weight sqrt(1 - abar) grad ln p. No derivative of
    the denoiser. Published weights: 1 with a conditional model, 10 with an unconditional one (ImageNet, 256 pixels).
    Impossible steps are skipped and counted as in `EnergyGuidance`. Heun's corrector is guided as well, at its own
    level.
    """

    def __init__(
        self,
        classifier: nn.Module,
        weight: float = 1.0,
        *,
        label: int | None = None,
        rule: StepRule | None = None,
        window: SigmaWindow | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """Guide `positive` by `classifier`.

        Args:
            classifier: maps (x, sigma ()) to logits (B, K), with K in `num_classes` (`RunNetwork`).
            weight: factor of the gradient.
            label: y of all samples; None: the condition of each sample, -1 for unlabeled ones.
            rule: replaces the constant weight, for the gradient of -ln p by x; `AdamStep` makes it AdamCG.
            window: guided steps; default: all.
            positive: the denoiser to guide; default: the model under evaluation.
        """
        super().__init__()
        self.classifier, self.label = classifier, label
        self.rule = rule or ConstantStep(weight, schedule=PowerLaw(2))
        self.window = window or SigmaWindow()
        self.positive = positive if positive is not None else Main()

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of labels of the positive or, for an unconditional one, of the classifier."""
        labels = int(self.classifier.num_classes) if self.label is None else 0  # type: ignore[arg-type]
        return self.positive.num_classes or labels

    def check_condition(self, labels: Tensor) -> None:
        """Check the labels of samples, unless y is one for all.

        Raises:
            ValueError: if no sample has a label, or a class does not exist.
        """
        if self.label is None:
            check_readable(labels, int(self.classifier.num_classes))  # type: ignore[arg-type]

    def without_effect(self, steps: Sequence[Trajectory]) -> Iterator[str]:
        """Yield a sentence if no step is guided, or the weight is 0."""
        yield from self.window.never_opens(steps, type(self).__name__)
        if self.rule.is_off:
            yield f"{type(self).__name__} has the weight 0, which is off"

    def start(self, trajectory: Trajectory) -> Predict:
        """Return the guided denoiser of one trajectory."""
        positive, rule = self.positive.start(trajectory), self.rule.start()

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            prediction = positive(x, sigma, condition_for(condition, self.positive))
            if not self.window.opens(trajectory):
                return prediction
            with torch.enable_grad():
                at = x.detach().requires_grad_()
                loss = label_loss(self.classifier(at, sigma), self.label, condition)
                (gradient,) = torch.autograd.grad(loss.sum(), at)
            noise = prediction.direction(x, sigma)
            level = trajectory.sigma_next if trajectory.stage == "corrector" else trajectory.sigma
            context = StepContext(noise.detach(), level, trajectory.sigma_next, trajectory)
            delta, possible = finite_step(rule, loss.detach(), gradient, context)
            report_diagnostics(trajectory, loss.detach(), possible, ~possible)
            implied = None if prediction.noise is None else noise - delta / expand(sigma, x)
            return replace(prediction, clean=prediction.clean + delta, noise=implied)

        return predict
