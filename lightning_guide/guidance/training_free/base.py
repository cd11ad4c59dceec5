"""Training-free guidance: any denoiser is guided by any differentiable loss of its clean estimate.

An *energy* is the loss. An *estimator* evaluates its expectation given the noisy x. *Updates* take gradients and turn
them into displacements by *step rules*. A *window* selects the steps. The methods of the literature are settings of
these. Facts and equations: Shen et al. 2024, https://arxiv.org/abs/2403.12404; Ye et al. 2024 (TFG),
https://arxiv.org/abs/2409.15761.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_guide.conditioning import condition_for
from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory, expand
from lightning_guide.guidance.base import Guidance, Main
from lightning_guide.guidance.training_free.estimators import Estimator, PlugIn
from lightning_guide.guidance.training_free.local_loss import LocalLoss, report_diagnostics
from lightning_guide.guidance.training_free.schedules import SigmaWindow, StepContext
from lightning_guide.guidance.training_free.updates import Update
from lightning_guide.objectives.energy import Energy

__all__ = ["EnergyGuidance"]


class EnergyGuidance(Guidance):
    """D + sum of the displacements of all updates, which start from the same D and share their random draws.

    The noise direction is either "kept", (x - D) / sigma of the guided prediction, so that the next state moves
    by exactly the displacement delta; or "implied" by the new estimate, (x - D - delta) / sigma, so that it moves by
    (1 - sigma' / sigma) delta in a first-order step. In the variance-preserving form of the papers a displacement of
    x_{t-1} is delta / sqrt(1 + sigma'^2), and one of the noise prediction -delta / sigma.

    In Heun's sampler a kept displacement is made once a step, with the prediction; the corrector reads only the noise
    and is neither guided nor counted in NFE. With implied noise both stages are guided, each at its own level.

    Cost: one evaluation of `positive`, and one vector-Jacobian product for each update through the denoiser. Nested
    guidances act one after the other. A derivative taken from outside treats the displacement as a constant.
    `trajectory.diagnostics` receives the estimated `loss` where it was first evaluated and the numbers of steps `taken`
    and `skipped` so far; a sample without any step taken is counted as `unguided` in the results of an evaluation.
    """

    def __init__(
        self,
        energy: Energy,
        updates: Sequence[Update],
        *,
        estimator: Estimator | None = None,
        window: SigmaWindow | None = None,
        noise: Literal["kept", "implied"] = "kept",
        guide_batch: int | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """Guide `positive` by `energy`.

        Args:
            energy: the loss; the labels, if any, are its condition and that of the positive.
            updates: steps along the gradient of the loss.
            estimator: of the loss; default: its value at D.
            window: guided steps; default: all.
            noise: noise direction of the prediction, see above.
            guide_batch: rows (samples times copies) in one call of the energy; default: all.
            positive: the denoiser to guide, which may be a guidance; default: the model under evaluation.

        Raises:
            ValueError: if `updates` is empty, `noise` is unknown, or `guide_batch` is less than 1.
        """
        super().__init__()
        if not updates or noise not in ("kept", "implied") or (guide_batch is not None and guide_batch < 1):
            expected = "at least one update, noise 'kept' or 'implied' and guide_batch >= 1"
            raise ValueError(f"{type(self).__name__} needs {expected}, got {len(updates)}, {noise!r} and {guide_batch}")
        self.energy = energy
        self.updates = list(updates)
        parts = (part for update in updates for part in vars(update).values())
        self.networks = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))  # they move with this one
        self.estimator, self.window = estimator or PlugIn(), window or SigmaWindow()
        self.noise, self.guide_batch = noise, guide_batch
        self.positive = positive if positive is not None else Main()

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of labels of the positive or, for an unconditional one, of the energy."""
        return self.positive.num_classes or self.energy.num_classes

    def without_effect(self, steps: Sequence[Trajectory]) -> Iterator[str]:
        """Yield a sentence if no step is guided, or all rates are 0."""
        yield from self.window.never_opens(steps, type(self).__name__)
        if all(update.rule.is_off for update in self.updates):
            yield f"{type(self).__name__} has the rate 0, which is off"

    def start(self, trajectory: Trajectory) -> Predict:
        """Return the guided denoiser of one trajectory."""
        positive, loss = self.positive.start(trajectory), self.energy.start(trajectory)
        updates = [update.start() for update in self.updates]
        products = sum(update.through_denoiser for update in self.updates)

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            corrector = trajectory.stage == "corrector"
            if not self.window.opens(trajectory) or (corrector and self.noise == "kept"):
                return positive(x, sigma, condition_for(condition, self.positive))
            outside = torch.is_grad_enabled() and x.requires_grad  # the caller differentiates through this guidance
            with torch.set_grad_enabled(outside or products > 0):
                at = x if outside else x.detach().requires_grad_(products > 0)
                prediction = positive(at, sigma, condition_for(condition, self.positive))

            def vjp(gradient: Tensor) -> Tensor:
                (product,) = torch.autograd.grad(
                    prediction.clean,
                    at,
                    gradient,
                    retain_graph=outside or products > 1,
                    allow_unused=True,
                    materialize_grads=True,
                )
                return product

            with torch.no_grad():
                noise = prediction.direction(x, sigma).detach()
                level = trajectory.sigma_next if corrector else trajectory.sigma
                local_loss = LocalLoss(
                    prediction.clean.detach(),
                    StepContext(noise, level, trajectory.sigma_next, trajectory),
                    vjp,
                    loss=loss,
                    condition=condition,
                    estimator=self.estimator,
                    guide_batch=self.guide_batch,
                )
                delta = torch.stack([update(local_loss) for update in updates]).sum(0)
            report_diagnostics(trajectory, local_loss.loss, local_loss.taken, local_loss.skipped)
            clean = prediction.clean if outside else local_loss.clean
            if self.noise == "kept":
                noise = prediction.direction(x, sigma) if outside else noise
                return replace(prediction, clean=clean + delta, noise=noise)
            implied = None if prediction.noise is None else noise - delta / expand(sigma, x)
            return replace(prediction, clean=clean + delta, noise=implied)

        return predict
