"""Training-free guidance: any denoiser is steered by any differentiable loss of its clean estimate.

An *energy* says what is wanted, an *estimator* what it is expected to be given the noisy x, *moves* take gradients
and turn them by *step rules* into displacements, a *window* says when. The methods of the literature are settings of
these. Facts and equations: Shen et al. 2024, https://arxiv.org/abs/2403.12404; Ye et al. 2024 (TFG),
https://arxiv.org/abs/2409.15761.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

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
    """D + sum of the displacements of all `moves`, which start from the same D and share their random draws.

    The noise direction is either "kept", (x - D) / sigma of the prediction that is guided, so that the next state moves
    by exactly the displacement delta; or "implied" by the new estimate, (x - D - delta) / sigma, so that it moves by
    (1 - sigma' / sigma) delta in a first-order step. In the variance-preserving form of the papers a displacement of
    x_{t-1} is delta / sqrt(1 + sigma'^2), and one of the noise prediction -delta / sigma.

    In Heun's sampler a kept displacement is made once a step, with the prediction; the corrector reads nothing but the
    noise, and is not guided, nor paid for. With implied noise both stages are guided, each at its own level.

    One evaluation of `positive`, and one vector-Jacobian product for each move through the denoiser. Nested guidances
    act one after the other; a derivative taken from outside takes the displacement for a constant. Into
    `trajectory.diagnostics` go the estimated `loss` where it was first taken and the numbers of steps `taken` and
    `skipped` so far; a sample that has taken none is counted as `unguided` in the results of an evaluation.
    """

    def __init__(
        self,
        energy: Energy,
        moves: Sequence[Update],
        *,
        estimator: Estimator | None = None,
        window: SigmaWindow | None = None,
        noise: Literal["kept", "implied"] = "kept",
        guide_batch: int | None = None,
        positive: Denoiser | None = None,
    ) -> None:
        """Guides `positive` (default: the model under evaluation) by `energy`.

        Args:
            energy: the loss; it is what labels, if any, are for, beside the positive.
            moves: what to do with its gradient.
            estimator: of the loss; default: its value at D.
            window: when; default: always.
            noise: direction in which the sampler goes on, see above.
            guide_batch: rows (samples times copies) in one call of the energy; default: all.
            positive: the denoiser to guide, which may be a guidance.

        Raises:
            ValueError: if there is no move, `noise` is unknown, or `guide_batch` is less than 1.
        """
        super().__init__()
        if not moves or noise not in ("kept", "implied") or (guide_batch is not None and guide_batch < 1):
            expected = "at least one move, noise 'kept' or 'implied' and guide_batch >= 1"
            raise ValueError(f"{type(self).__name__} needs {expected}, got {len(moves)}, {noise!r} and {guide_batch}")
        self.energy = energy
        self.moves = list(moves)
        self.estimator, self.window = estimator or PlugIn(), window or SigmaWindow()
        self.noise, self.guide_batch = noise, guide_batch
        self.positive = positive if positive is not None else Main()

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Labels of the positive, or if it has none, those of the energy."""
        return self.positive.num_classes or self.energy.num_classes

    def start(self, trajectory: Trajectory) -> Predict:
        """The guided denoiser of one trajectory."""
        positive, loss = self.positive.start(trajectory), self.energy.start(trajectory)
        moves = [move.start() for move in self.moves]
        products = sum(move.through_denoiser for move in self.moves)

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            corrector = trajectory.stage == "corrector"
            if not self.window.opens(trajectory) or (corrector and self.noise == "kept"):
                return positive(x, sigma, condition_for(condition, self.positive))
            outside = torch.is_grad_enabled() and x.requires_grad  # someone differentiates through this guidance
            with torch.set_grad_enabled(outside or products > 0):
                at = x if outside else x.detach().requires_grad_(products > 0)
                prediction = positive(at, sigma, condition_for(condition, self.positive))

            def pull(gradient: Tensor) -> Tensor:
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
                landscape = LocalLoss(
                    prediction.clean.detach(),
                    StepContext(noise, level, trajectory.sigma_next, trajectory),
                    pull,
                    loss=loss,
                    condition=condition,
                    estimator=self.estimator,
                    guide_batch=self.guide_batch,
                )
                delta = torch.stack([move(landscape) for move in moves]).sum(0)
            report_diagnostics(trajectory, landscape.loss, landscape.taken, landscape.skipped)
            clean = prediction.clean if outside else landscape.clean
            if self.noise == "kept":
                return Prediction(clean + delta, prediction.direction(x, sigma) if outside else noise)
            implied = None if prediction.noise is None else noise - delta / expand(sigma, x)
            return Prediction(clean + delta, implied)

        return predict
