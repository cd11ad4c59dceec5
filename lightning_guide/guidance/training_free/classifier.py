"""Classifier guidance, by a classifier of noisy x: the trained counterpart of everything training-free.

Dhariwal and Nichol 2021, https://arxiv.org/abs/2105.05233, algorithm 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_guide.conditioning import condition_for
from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory, expand
from lightning_guide.guidance.base import Guidance, Main
from lightning_guide.guidance.training_free.local_loss import finite_step, report_diagnostics
from lightning_guide.guidance.training_free.schedules import PowerLaw, SigmaWindow, StepContext
from lightning_guide.guidance.training_free.step_rules import ConstantStep, StepRule
from lightning_guide.objectives.class_label import label_loss

__all__ = ["ClassifierGuidance"]


class ClassifierGuidance(Guidance):
    """D + weight sigma^2 grad_x ln p(y | x, sigma), the noise implied: weight 1 is the posterior of y.

    In variance-preserving form eps - weight sqrt(1 - abar) grad ln p. No derivative of the denoiser. Published weights:
    1 with a conditional model, 10 with an unconditional one (ImageNet, 256 pixels). Impossible steps are skipped and
    counted as in `EnergyGuidance`, and at Heun's corrector it guides as well, at the level there.
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
        """`classifier` maps (x, sigma ()) to logits (B, K) and says K in `num_classes` (`RunNetwork`).

        `label` y of all samples; None: the condition of each sample, -1 for no wish. `rule` takes the place of the
        constant weight, for the gradient of -ln p by x (`Adam` makes AdamCG of it).
        """
        super().__init__()
        self.classifier, self.label = classifier, label
        self.rule = rule or ConstantStep(weight, schedule=PowerLaw(2))
        self.window = window or SigmaWindow()
        self.positive = positive if positive is not None else Main()

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Labels of the positive, or if it has none, those of the classifier."""
        wanted = int(self.classifier.num_classes) if self.label is None else 0  # type: ignore[arg-type]
        return self.positive.num_classes or wanted

    def start(self, trajectory: Trajectory) -> Predict:
        """The guided denoiser of one trajectory."""
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
            point = StepContext(noise.detach(), level, trajectory.sigma_next, trajectory)
            delta, possible = finite_step(rule, loss.detach(), gradient, point)
            report_diagnostics(trajectory, loss.detach(), possible, ~possible)
            implied = None if prediction.noise is None else noise - delta / expand(sigma, x)
            return Prediction(prediction.clean + delta, implied)

        return predict
