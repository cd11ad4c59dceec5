"""Feedback of one round for the next: the gradient g of the objective and the label y.

Guo et al. 2024, https://arxiv.org/abs/2404.14743, algorithm 1. g is taken at the mean of the round (the paper), or at
each sample (the published code), with the same result on any number of processes.
"""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_guide.denoiser import expand
from lightning_guide.guidance.gradient import GradientGuidance, Strength
from lightning_guide.objectives.energy import Energy
from lightning_guide.optimization.contraction import bound
from lightning_guide.optimization.round_buffers import RoundBuffers
from lightning_guide.optimization.targets import Target

__all__ = ["Feedback"]


class Feedback:
    """Gradient g and label y for the next round.

    Attributes:
        gradient: g (1 or n, *input_shape), None before the first round has ended.
        target: y (1 or n,).
        prior: samples (n, *) of the first round, which is unguided.
    """

    def __init__(self, objective: Energy, rule: Target, *, at: Literal["mean", "sample"], floor: float) -> None:
        """Maximize `objective` with the `rule` for y and gradients `at` the mean or each sample, as in `Rounds`.

        Where the norm of a gradient is `floor` or less, the previous guidance is kept.
        """
        self.objective, self.rule, self.at, self.floor = objective, rule, at, floor
        self.gradient: Tensor | None = None
        self.target: Tensor | None = None
        self.prior: Tensor | None = None
        self._warned: set[str] = set()

    def apply(self, guidance: GradientGuidance, rows: Tensor) -> GradientGuidance:
        """Return `guidance` with g and y of the samples `rows` (B,), unchanged until the first round has ended."""
        if self.gradient is None or self.target is None:
            return guidance
        # waits once a batch: gradients of rounds are kept on the host, as are checkpoints
        mine = (rows if len(self.gradient) > 1 else rows[:1] * 0).cpu()
        return guidance.toward(self.gradient[mine].to(rows.device), self.target[mine].to(rows.device))

    def evaluate(self, buffers: RoundBuffers, rows: Tensor, x: Tensor, condition: Tensor, inputs: Tensor) -> None:
        """Write the samples `rows` (B,) and the objective at its `inputs` (B, *input_shape) into `buffers`.

        Raises:
            ValueError: if the objective is not one finite number for each sample, or does not fit their shape.
        """
        if self.at == "sample":
            value, gradient = self.objective.value_and_gradient(inputs)
            buffers.write_samples(rows, x, condition, value)
            along = (gradient * inputs).flatten(1).sum(1)
            buffers.write_gradients(rows, gradient, self.rule.at_samples(rows, along, value))
        else:
            with torch.no_grad():
                value = self.objective.checked_value(inputs)
            buffers.write_samples(rows, x, condition, value)
            buffers.add_inputs(inputs)

    def update(self, buffers: RoundBuffers, number: int, strength: Strength) -> dict[str, float]:
        """Set g and y from the complete `buffers` of round `number`; return the numbers to report.

        Raises:
            ValueError: as `evaluate`.
        """
        record: dict[str, float] = {}
        if self.at == "sample":
            assert buffers.gradient is not None and buffers.target is not None
            gradient, target = buffers.gradient, buffers.target
        else:
            assert buffers.input_sum is not None
            mean = buffers.input_sum / len(buffers.x)
            at_mean, gradient = self.objective.value_and_gradient(mean)
            target = self.rule.at((gradient * mean).flatten(1).sum(1), at_mean)
            record["objective_of_mean"] = float(at_mean)  # waits once a round, as all below: the host keeps records
        if self.prior is None:
            self.prior = buffers.x.cpu()
        # waits once a round for each: they are kept by the host
        record |= buffers.statistics(self.prior, self.rule.groups(len(buffers.x)))
        record |= self._set(gradient.cpu(), target.cpu(), number)
        return record | self._contraction(buffers.x, number, strength)

    def _set(self, gradient: Tensor, target: Tensor, number: int) -> dict[str, float]:
        """Set g and y, except where the gradient vanishes."""
        norm = gradient.flatten(1).norm(dim=1)
        vanished = norm <= self.floor
        if bool(vanished.any()):
            self._warn(
                "vanished",
                f"round {number}: the gradient of the objective vanishes at {int(vanished.sum())} of {len(norm)} "
                "points; they keep the guidance they had (without one they are drawn unguided), and the number is "
                "logged as 'vanished'",
            )
            if self.gradient is not None and self.target is not None:
                gradient = torch.where(expand(vanished, gradient), self.gradient, gradient)
                target = torch.where(vanished, self.target, target)
        self.gradient, self.target = gradient, target
        return {"gradient_norm": float(norm.double().mean()), "vanished": float(vanished.sum())}

    def _contraction(self, x: Tensor, number: int, strength: Strength) -> dict[str, float]:
        """Return the setting over its bound, after rounds 1, 2, 4, 8 ...; warn above the bound."""
        assert self.prior is not None and self.gradient is not None
        count = number + 1
        if count & (count - 1) or self.gradient.shape[1:] != self.prior.shape[1:]:
            return {}
        try:
            # waits after rounds 1, 2, 4, 8, ... alone
            found = bound(self.objective, strength, self.rule, mean=x.mean(0, keepdim=True), prior=self.prior.to(x))
        except RuntimeError as error:
            rank_zero_info(f"round {number}: no bound, the objective has no curvature here ({error})")
            return {}
        if found is None:
            return {}
        if not found.value < found.limit:
            self._warn(
                "contraction",
                f"round {number}: {found.name} = {found.value:g} is too large for rounds to contract near their "
                f"present mean; expected less than {found.limit:.3g}, from the curvature of the objective; they may "
                "oscillate short of the optimum",
            )
        return {"contraction": found.value / found.limit}

    def _warn(self, kind: str, message: str) -> None:
        """Warn once per kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            rank_zero_warn(message)
