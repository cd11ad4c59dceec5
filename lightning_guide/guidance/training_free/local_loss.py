"""The estimated loss around one prediction: its value and gradient at any clean point, and the way back to x."""

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
    """What moves see of one call of a guidance.

    Attributes:
        clean: D (B, *), detached.
        point: where the call is made.
        pull: gradient by D (B, *) -> gradient by x (B, *): the product with the transposed Jacobian of D.
        loss: the estimated loss where it was first taken (B,), None before.
        taken: how many steps each sample has taken so far (B,).
        skipped: how many it could not take (B,).
    """

    def __init__(
        self,
        clean: Tensor,
        point: StepContext,
        pull: Callable[[Tensor], Tensor],
        *,
        loss: Loss,
        condition: Tensor | None,
        estimator: Estimator,
        guide_batch: int | None,
    ) -> None:
        """`loss` of the energy under `condition` (B,), estimated by `estimator`, `guide_batch` rows in one call."""
        self.clean, self.point, self.pull = clean, point, pull
        self.loss: Tensor | None = None
        self.taken, self.skipped = torch.zeros(2, len(clean), dtype=torch.int64, device=clean.device)
        self._loss, self._condition, self._estimator, self._rows = loss, condition, estimator, guide_batch
        self._copies: Copies = estimator.draw(clean, point)

    @cached_property
    def here(self) -> tuple[Tensor, Tensor]:
        """Estimated loss (B,) and its gradient (B, *) at D; all moves share one evaluation."""
        return self._slope(self.clean)

    def at(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Estimated loss (B,) and its gradient (B, *) at `clean` (B, *), with the same draws at every point."""
        return self.here if clean is self.clean else self._slope(clean)

    def step(self, rule: Descend, loss: Tensor, gradient: Tensor) -> Tensor:
        """The displacement of `rule`, counted where it is impossible."""
        step, possible = finite_step(rule, loss, gradient, self.point)
        self.taken += possible
        self.skipped += ~possible
        return step

    def _slope(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = clean.detach().requires_grad_()
            points = self._copies(leaf)  # (n, B, *)
        flat = points.detach().flatten(0, 1)
        number = torch.arange(len(clean), device=clean.device).repeat(len(points))
        losses, slopes = [], []
        for rows in torch.arange(len(flat), device=clean.device).split(self._rows or len(flat)):
            row_losses, row_slopes = self._rowwise(flat[rows], number[rows])
            losses.append(row_losses)
            slopes.append(row_slopes)
        pooled, weights = self._estimator.pool(torch.cat(losses).unflatten(0, points.shape[:2]))
        self.loss = pooled if self.loss is None else self.loss
        seed = torch.cat(slopes).unflatten(0, points.shape[:2])
        seed = seed * weights.to(seed).reshape(*weights.shape, *[1] * (seed.ndim - 2))
        (gradient,) = torch.autograd.grad(points, leaf, seed)
        return pooled, gradient

    def _rowwise(self, x: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (R,) and gradient (R, *) of the energy for rows that belong to the samples `number` (R,)."""
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
            (slope,) = torch.autograd.grad(losses.sum(), x)
        return losses.detach(), slope


def finite_step(rule: Descend, loss: Tensor, gradient: Tensor, point: StepContext) -> tuple[Tensor, Tensor]:
    """The displacement (B, *) of `rule`, zero where it is impossible, and where it is possible (B,).

    It is impossible for a sample whose gradient is zero or, like its loss or the step itself, not finite.
    """
    finite = gradient.flatten(1).isfinite().all(1) & loss.isfinite()
    gradient, loss = gradient.where(expand(finite, gradient), 0), loss.where(finite, 0)
    step = rule(gradient, loss, point)
    possible = finite & (gradient != 0).flatten(1).any(1) & step.flatten(1).isfinite().all(1)
    return step.where(expand(possible, step), 0), possible


def report_diagnostics(trajectory: Trajectory, loss: Tensor | None, taken: Tensor, skipped: Tensor) -> None:
    """Notes among the diagnostics the `loss` (B,), and adds up how many steps each sample has `taken` and `skipped`."""
    told = trajectory.diagnostics
    if loss is not None:
        told["loss"] = loss
    told["taken"], told["skipped"] = taken + told.get("taken", 0), skipped + told.get("skipped", 0)
