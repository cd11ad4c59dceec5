"""What a training step says about itself: loss by noise level, gradients that were not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_guide.training.losses import LossTerms
from lightning_guide.training.sharding import local_tensor, true_on_all_shards

__all__ = ["GradientGuard", "NoiseLevelMeans", "TrainingDivergedError"]


class TrainingDivergedError(RuntimeError):
    """Training was stopped because nothing finite was left to learn from."""


class NoiseLevelMeans:
    """Mean error in bins of noise level since the last report; costs no host synchronisation until then."""

    def __init__(self, edges: Sequence[float]) -> None:
        """`edges` (E,) ascending noise levels; E + 1 bins, the outer ones open."""
        if list(edges) != sorted(set(edges)):
            raise ValueError(f"noise-level bins need ascending edges, got {list(edges)}")
        self.edges = list(edges)
        self.sums: Tensor | None = None

    def update(self, terms: LossTerms) -> None:
        """Adds the examples of one step."""
        error = terms.error.detach().double()
        bins = torch.bucketize(terms.sigma, torch.tensor(self.edges, device=error.device))
        if self.sums is None:
            self.sums = error.new_zeros(2, len(self.edges) + 1)
        self.sums[0].index_add_(0, bins, error)
        self.sums[1].index_add_(0, bins, torch.ones_like(error))

    def report(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Mean error overall and of each bin that saw an example; starts anew.

        `reduce` sums a tensor over all processes.
        """
        if self.sums is None:
            return {}
        sums, counts = reduce(self.sums).tolist()
        self.sums = None
        bounds = ["0", *[f"{edge:g}" for edge in self.edges], "inf"]
        report = {"loss": sum(sums) / max(sum(counts), 1)}
        for i, (total, count) in enumerate(zip(sums, counts, strict=True)):
            if count:
                report[f"loss_sigma_{bounds[i]}_to_{bounds[i + 1]}"] = total / count
        return report


class GradientGuard:
    """Sets gradient elements that are not finite to zero, counts them, and stops a run that has nothing else left.

    An element whose square overflows counts as not finite: Adam's second moment would never recover from it. Under DDP
    gradients are equal on all ranks when this runs, and of sharded ones they hear of each other, so all decide alike;
    what is counted is in this process's share.
    """

    def __init__(self, patience: int) -> None:
        """`patience`: number of consecutive steps without any finite gradient after which training stops.

        Raises:
            ValueError: if `patience` is below 1.
        """
        if patience < 1:
            raise ValueError(f"max_bad_steps must be at least 1, got {patience}")
        self.patience = patience
        self.zeroed = 0
        self.bad_steps = 0

    @torch.no_grad()
    def sanitize(self, module: nn.Module, step: int) -> None:
        """Works on the gradients of `module` before optimizer step number `step`.

        Without one finite gradient tensor they are taken away, so that the optimizer leaves the weights alone: zeros
        would still move them by its momentum.

        Raises:
            TrainingDivergedError: after `patience` steps in a row without one finite gradient tensor.
        """
        gradients = local_tensor(p.grad for p in module.parameters() if p.grad is not None)
        if not gradients:
            return
        finite = true_on_all_shards(torch.stack(torch._foreach_norm(gradients)).isfinite(), module)
        if bool(finite.all()):
            self.bad_steps = 0
            return
        self.bad_steps = 0 if bool(finite.any()) else self.bad_steps + 1
        for gradient in gradients:
            bad = ~gradient.square().isfinite()
            self.zeroed += int(bad.sum())
            gradient.masked_fill_(bad, 0.0)
        if self.bad_steps:
            for parameter in module.parameters():
                parameter.grad = None
        if self.bad_steps >= self.patience:
            raise TrainingDivergedError(
                f"the loss was not finite for {self.bad_steps} steps in a row; training stopped before step {step}, "
                f"the weights are those after {step - self.bad_steps + 1} steps; lower the learning rate or check the "
                "data"
            )
