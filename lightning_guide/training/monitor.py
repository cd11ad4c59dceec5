"""Training statistics: loss by noise level, held-out loss, and a guard against gradients that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_guide.data import Batch
from lightning_guide.denoiser import Denoiser
from lightning_guide.seeds import SampleSeeds
from lightning_guide.training.losses import LossTerms, TrainingLoss
from lightning_guide.training.sharding import local_tensor, true_on_all_shards
from lightning_guide.utils.devices import to_device
from lightning_guide.utils.distributed import all_reduce_sum
from lightning_guide.utils.terminal import counted

__all__ = ["GradientGuard", "HeldoutLoss", "NoiseLevelMeans", "TrainingDivergedError"]


class TrainingDivergedError(RuntimeError):
    """Error: training stopped after too many consecutive steps without a finite gradient."""


class NoiseLevelMeans:
    """Mean error in bins of noise level since the last report, without host synchronization until then."""

    def __init__(self, edges: Sequence[float]) -> None:
        """Configure the ascending noise levels `edges` (E,) of E + 1 bins, of which the outer ones are open."""
        if list(edges) != sorted(set(edges)):
            raise ValueError(f"noise-level bins need ascending edges, got {list(edges)}")
        self.edges = list(edges)
        self.sums: Tensor | None = None

    def update(self, terms: LossTerms) -> None:
        """Add the examples of one step."""
        error = terms.error.detach().double()
        bins = torch.bucketize(terms.sigma, to_device(torch.tensor(self.edges), error.device))
        if self.sums is None:
            self.sums = error.new_zeros(2, len(self.edges) + 1)
        self.sums[0].index_add_(0, bins, error)
        self.sums[1].index_add_(0, bins, torch.ones_like(error))

    def report(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the mean error overall and of each non-empty bin, and reset; `reduce` sums over all processes."""
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
    """Guard that zeroes and counts gradient elements that are not finite, and stops a run without finite gradients.

    An element whose square overflows counts as not finite: Adam's second moment would never recover from it. All ranks
    take the same decision: under DDP their gradients are equal, and for sharded weights the flags are reduced. Elements
    are counted in the share of this process.
    """

    def __init__(self, patience: int) -> None:
        """Configure `patience`: number of consecutive steps without a finite gradient after which training stops.

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
        """Zero non-finite elements of the gradients of `module` before optimizer step number `step`.

        Without a finite gradient tensor all gradients are set to None, so that the optimizer leaves the weights
        unchanged: with zeros its momentum would still move them.

        Raises:
            TrainingDivergedError: after `patience` steps in a row without a finite gradient tensor.
        """
        gradients = local_tensor(p.grad for p in module.parameters() if p.grad is not None)
        if not gradients:
            return
        finite = true_on_all_shards(torch.stack(torch._foreach_norm(gradients)).isfinite(), module)
        if bool(finite.all()):  # the one wait of a step: the optimizer must not run with such gradients
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
                f"the loss was not finite for {counted(self.bad_steps, 'step')} in a row; training stopped before "
                f"step {step}, the weights are those after {counted(step - self.bad_steps + 1, 'step')}; lower the "
                "learning rate or check the data"
            )


class HeldoutLoss:
    """Mean error of a denoiser on held-out data for each of a few noise levels."""

    def __init__(self, sigmas: Sequence[float], *, seed: int) -> None:
        """Configure the noise levels `sigmas` (S,); the noise of example i depends only on (seed, i)."""
        self.sigmas, self.seed = list(sigmas), seed
        self.reset(torch.device("cpu"))

    def reset(self, device: torch.device) -> None:
        """Reset the sums, on `device`."""
        self.sums = torch.zeros(len(self.sigmas), dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, loss: TrainingLoss, denoiser: Denoiser, batch: Batch, indices: Sequence[int]) -> None:
        """Add the examples `batch`, whose indices in the held-out data are `indices`."""
        noise = SampleSeeds(self.seed, indices).normal("heldout", batch.x.shape[1:], batch.x.device)
        for i, sigma in enumerate(self.sigmas):
            levels = torch.full((len(batch.x),), sigma, device=batch.x.device)
            self.sums[i] += loss.at(denoiser, batch.x, batch.condition, levels, noise).error.double().sum()
        self.count += len(batch.x)

    def compute(self) -> dict[str, float]:
        """Return the mean error by noise level over all processes; empty without examples."""
        *sums, count = all_reduce_sum(torch.cat([self.sums, self.count[None]])).tolist()
        if not count:
            return {}
        return {f"sigma_{sigma:g}": total / count for sigma, total in zip(self.sigmas, sums, strict=True)}
