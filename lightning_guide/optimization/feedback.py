"""What the objective says of one round, and where that leads the next: the gradient g and the label y.

Guo et al. 2024, https://arxiv.org/abs/2404.14743, algorithm 1. g is taken at the mean of the round (the paper), or for
each sample at that sample (their published code), over all processes alike.
"""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_guide.denoiser import expand
from lightning_guide.guidance.gradient import GradientGuidance, Strength
from lightning_guide.objectives.objective import Objective
from lightning_guide.optimization.contraction import bound
from lightning_guide.optimization.round_buffers import RoundBuffers
from lightning_guide.optimization.targets import Target

__all__ = ["Feedback"]


class Feedback:
    """g and y of the next round.

    Attributes:
        gradient: g (1 or n, *seen_shape), None before the first round has ended.
        target: y (1 or n,).
        prior: samples (n, *) of the first round, which is unguided.
    """

    def __init__(self, objective: Objective, rule: Target, *, at: Literal["mean", "sample"], floor: float) -> None:
        """`objective` to be maximized, `rule` for y; gradients `at` the mean or each sample, as in `Rounds`.

        `floor`: where the norm of a gradient is that or less, the guidance before stays.
        """
        self.objective, self.rule, self.at, self.floor = objective, rule, at, floor
        self.gradient: Tensor | None = None
        self.target: Tensor | None = None
        self.prior: Tensor | None = None
        self._warned: set[str] = set()

    def lead(self, guidance: GradientGuidance, rows: Tensor) -> GradientGuidance:
        """`guidance` of the samples `rows` (B,) toward g and y; as it is until the first round has ended."""
        if self.gradient is None or self.target is None:
            return guidance
        mine = (rows if len(self.gradient) > 1 else rows[:1] * 0).cpu()
        return guidance.toward(self.gradient[mine].to(rows.device), self.target[mine].to(rows.device))

    def ask(self, tables: RoundBuffers, rows: Tensor, x: Tensor, condition: Tensor, seen: Tensor) -> None:
        """Writes the samples `rows` (B,) into `tables`, and what the objective says of `seen`, what it sees of them.

        Raises:
            ValueError: if the objective is not one finite number for each sample, or does not fit their shape.
        """
        if self.at == "sample":
            value, gradient = self.objective.value_and_gradient(seen)
            tables.note(rows, x, condition, value)
            tables.note_gradient(rows, gradient, self.rule.at((gradient * seen).flatten(1).sum(1), value))
        else:
            with torch.no_grad():
                value = self.objective.value(seen)
            tables.note(rows, x, condition, value)
            tables.add_seen(seen)

    def take(self, tables: RoundBuffers, number: int, strength: Strength) -> dict[str, float]:
        """Takes over g and y from the whole `tables` of round `number`; returns what there is to report.

        Raises:
            ValueError: as `ask`.
        """
        record: dict[str, float] = {}
        if self.at == "sample":
            assert tables.gradient is not None and tables.target is not None
            gradient, target = tables.gradient, tables.target
        else:
            assert tables.seen is not None
            mean = tables.seen / len(tables.x)
            at_mean, gradient = self.objective.value_and_gradient(mean)
            target = self.rule.at((gradient * mean).flatten(1).sum(1), at_mean)
            record["objective_of_mean"] = float(at_mean)
        record |= tables.statistics() | self._set(gradient.cpu(), target.cpu(), number)
        if self.prior is None:
            self.prior = tables.x.cpu()
        return record | self._contraction(tables.x, number, strength)

    def _set(self, gradient: Tensor, target: Tensor, number: int) -> dict[str, float]:
        """Takes over a new guidance; where the gradient vanishes the old one stays."""
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
        """The setting over its bound, after rounds 1, 2, 4, 8 ...; a warning if it is passed."""
        assert self.prior is not None and self.gradient is not None
        count = number + 1
        if count & (count - 1) or self.gradient.shape[1:] != self.prior.shape[1:]:
            return {}
        try:
            found = bound(self.objective, strength, self.rule, mean=x.mean(0, keepdim=True), prior=self.prior.to(x))
        except RuntimeError as error:
            rank_zero_info(f"round {number}: no bound is known, the objective has no curvature here ({error})")
            return {}
        if found is None:
            return {}
        if not found.value < found.limit:
            self._warn(
                "contraction",
                f"round {number}: {found.name} = {found.value:g} is too large for rounds to contract near their "
                f"present mean; expected less than {found.limit:.3g}, as the curvature of the objective has it; they "
                "may oscillate short of the optimum",
            )
        return {"contraction": found.value / found.limit}

    def _warn(self, what: str, message: str) -> None:
        """Warns once of each kind of thing."""
        if what not in self._warned:
            self._warned.add(what)
            rank_zero_warn(message)
