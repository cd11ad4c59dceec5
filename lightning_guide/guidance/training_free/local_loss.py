"""Local loss of one guidance call: value and gradient at any clean point, with the vector-Jacobian product to x."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from lightning_guide.denoiser import Trajectory, expand
from lightning_guide.guidance.training_free.estimators import Copies, Estimator
from lightning_guide.guidance.training_free.schedules import StepContext
from lightning_guide.guidance.training_free.step_rules import Descend
from lightning_guide.objectives.energy import Loss

__all__ = ["LocalLoss", "finite_step", "report_diagnostics"]


class LocalLoss:
    """Estimated loss around the prediction of one guidance call, passed to updates.

    Attributes:
        clean: D (B, *), detached.
        context: step of the call.
        vjp: gradient by D (B, *) -> gradient by x (B, *), the product with the transposed Jacobian of D.
        loss: the estimated loss where it was first evaluated (B,), None before.
        taken: number of steps taken so far, per sample (B,).
        skipped: number of steps that were impossible, per sample (B,).
    """

    def __init__(
        self,
        clean: Tensor,
        context: StepContext,
        vjp: Callable[[Tensor], Tensor],
        *,
        loss: Loss,
        condition: Tensor | None,
        estimator: Estimator,
        guide_batch: int | None,
    ) -> None:
        """Estimate `loss` of the energy under `condition` (B,) by `estimator`, `guide_batch` rows in one call."""
        self.clean, self.context, self.vjp = clean, context, vjp
        self.loss: Tensor | None = None
        self.taken, self.skipped = torch.zeros(2, len(clean), dtype=torch.int64, device=clean.device)
        self._loss, self._condition, self._estimator, self._rows = loss, condition, estimator, guide_batch
        self._copies: Copies = estimator.draw(clean, context)

    @cached_property
    def at_clean(self) -> tuple[Tensor, Tensor]:
        """Estimated loss (B,) and its gradient (B, *) at D; all updates share one evaluation."""
        return self._value_and_gradient(self.clean)

    def at(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Return the estimated loss (B,) and its gradient (B, *) at `clean` (B, *), with the same draws everywhere."""
        return self.at_clean if clean is self.clean else self._value_and_gradient(clean)

    def step(self, rule: Descend, loss: Tensor, gradient: Tensor) -> Tensor:
        """Return the displacement of `rule` and count the steps taken and skipped."""
        step, possible = finite_step(rule, loss, gradient, self.context)
        self.taken += possible
        self.skipped += ~possible
        return step

    def _value_and_gradient(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = clean.detach().requires_grad_()
            points = self._copies(leaf)  # (n, B, *)
        flat = points.detach().flatten(0, 1)
        number = torch.arange(len(clean), device=clean.device).repeat(len(points))
        losses, gradients = [], []
        for rows in torch.arange(len(flat), device=clean.device).split(self._rows or len(flat)):
            row_losses, row_gradients = self._evaluate_rows(flat[rows], number[rows])
            losses.append(row_losses)
            gradients.append(row_gradients)
        pooled, weights = self._estimator.pool(torch.cat(losses).unflatten(0, points.shape[:2]))
        self.loss = pooled if self.loss is None else self.loss
        weighted = torch.cat(gradients).unflatten(0, points.shape[:2])
        weighted = weighted * weights.to(weighted).reshape(*weights.shape, *[1] * (weighted.ndim - 2))
        (gradient,) = torch.autograd.grad(points, leaf, weighted)
        return pooled, gradient

    def _evaluate_rows(self, x: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss (R,) and gradient (R, *) of the energy for rows that belong to the samples `number` (R,)."""
        condition = None if self._condition is None else self._condition[number]
        with torch.enable_grad():
            x = x.requires_grad_()
            losses = self._loss(x, condition, number)
            if losses.shape != (len(x),) or not losses.requires_grad:
                raise ValueError(
                    f"an energy returned a loss of shape {tuple(losses.shape)} for {len(x)} samples"
                    f"{'' if losses.requires_grad else ' that does not depend on them'}; "
                    f"expected shape ({len(x)},) and a gradient"
                )
            (gradient,) = torch.autograd.grad(losses.sum(), x)
        return losses.detach(), gradient


def finite_step(rule: Descend, loss: Tensor, gradient: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """Return the displacement (B, *) of `rule`, zero where it is impossible, and the mask (B,) of possible steps.

    A step is impossible for a sample whose gradient is zero, or whose gradient, loss or step is not finite.
    """
    finite = gradient.flatten(1).isfinite().all(1) & loss.isfinite()
    gradient, loss = gradient.where(expand(finite, gradient), 0), loss.where(finite, 0)
    step = rule(gradient, loss, context)
    possible = finite & (gradient != 0).flatten(1).any(1) & step.flatten(1).isfinite().all(1)
    return step.where(expand(possible, step), 0), possible


def report_diagnostics(trajectory: Trajectory, loss: Tensor | None, taken: Tensor, skipped: Tensor) -> None:
    """Write the `loss` (B,) into the diagnostics and add up the steps `taken` and `skipped` per sample."""
    diagnostics = trajectory.diagnostics
    if loss is not None:
        diagnostics["loss"] = loss
    diagnostics["taken"] = taken + diagnostics.get("taken", 0)
    diagnostics["skipped"] = skipped + diagnostics.get("skipped", 0)
