"""The tables of one round: what each process draws goes into its rows, and a sum over processes completes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_guide.evaluation.loop import total_over_processes

__all__ = ["Tables"]


@dataclass
class Tables:
    """Rows of all n samples, zero where another process fills them in until `reduce`.

    Attributes:
        x: samples (n, *).
        value: of the objective (n,).
        condition: labels (n,).
        gradient: of the objective at each sample (n, *seen_shape), if it is taken there.
        target: y of each (n,).
        seen: sum (1, *seen_shape) of what the objective sees, otherwise.
        spent: samples drawn by this process, network calls and seconds, (3,).
    """

    x: Tensor
    value: Tensor
    condition: Tensor
    spent: Tensor
    gradient: Tensor | None = None
    target: Tensor | None = None
    seen: Tensor | None = None

    @classmethod
    def zeros(cls, count: int, x: Tensor, condition: Tensor) -> Tables:
        """Tables of `count` samples like `x` (B, *) with labels like `condition` (B,)."""
        spent = torch.zeros(3, dtype=torch.float64, device=x.device)
        return cls(x.new_zeros(count, *x.shape[1:]), x.new_zeros(count), condition.new_zeros(count), spent)

    def note(self, rows: Tensor, x: Tensor, condition: Tensor, value: Tensor) -> None:
        """Fills in the samples `rows` (B,)."""
        self.x[rows], self.condition[rows], self.value[rows] = x, condition, value

    def note_gradient(self, rows: Tensor, gradient: Tensor, target: Tensor) -> None:
        """Fills in their gradients (B, *seen_shape) and targets (B,)."""
        if self.gradient is None or self.target is None:
            self.gradient = gradient.new_zeros(len(self.x), *gradient.shape[1:])
            self.target = target.new_zeros(len(self.x))
        self.gradient[rows], self.target[rows] = gradient, target

    def add_seen(self, seen: Tensor) -> None:
        """Adds what the objective sees of some samples, (B, *seen_shape)."""
        self.seen = seen.sum(0, keepdim=True) + (0 if self.seen is None else self.seen)

    def spend(self, samples: int, calls: int, seconds: float) -> None:
        """Counts `samples` with `calls` network calls each."""
        self.spent += self.spent.new_tensor([samples, samples * calls, seconds])

    def reduce(self) -> None:
        """Sums over all processes, which all have drawn something."""
        for table in (self.x, self.value, self.condition, self.spent, self.gradient, self.target, self.seen):
            if table is not None:
                total_over_processes(table)

    def statistics(self) -> dict[str, float]:
        """Objective: mean, deviation, mean of the best four; `spread`: root mean squared distance to the mean."""
        value, x = self.value.double(), self.x.double()
        spread = (x - x.mean(0)).flatten(1).square().sum(1).mean().sqrt()
        return {
            "objective": float(value.mean()),
            "objective_std": float(value.std(unbiased=False)),
            "objective_best4": float(value.topk(min(4, len(value))).values.mean()),
            "spread": float(spread),
        }
