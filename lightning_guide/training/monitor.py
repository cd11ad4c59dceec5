"""Training statistics: loss by noise level, held-out loss, and a guard against gradients that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_guide.data import Batch
from lightning_guide.denoiser import Denoiser
from lightning_guide.seeds import SampleSeeds
from lightning_guide.training.losses import LossTerms, TrainingLoss
from lightning_guide.training.sharding import is_sharded, local_tensor, true_on_all_shards
from lightning_guide.utils.devices import to_device
from lightning_guide.utils.distributed import all_reduce_sum
from lightning_guide.utils.terminal import counted

__all__ = ["GradientGuard", "HeldoutLoss", "NoiseLevelMeans", "TrainingDivergedError"]


class TrainingDivergedError(RuntimeError):
    """Error: training stopped after too many consecutive steps without finite gradients."""


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
        sums, counts = reduce(self.sums).tolist()  # waits at logged steps alone
        self.sums = None
        bounds = ["0", *[f"{edge:g}" for edge in self.edges], "inf"]
        report = {"loss": sum(sums) / max(sum(counts), 1)}
        for i, (total, count) in enumerate(zip(sums, counts, strict=True)):
            if count:
                report[f"loss_sigma_{bounds[i]}_to_{bounds[i + 1]}"] = total / count
        return report


class GradientGuard:
    """Guard that leaves out steps with gradients that are not finite, counts them, and stops a run of nothing else.

    A gradient tensor whose norm overflows counts as not finite: Adam's second moment would never recover from it. All
    ranks take the same decision: under DDP their gradients are equal, and for sharded weights the flags are reduced.

    The host does not wait for the device. A fused optimizer leaves out the step by the flag `found_inf`, as under
    `torch.amp.GradScaler`; the counts stay on the device, and the host reads them where the limit may be reached.

    Attributes:
        skipped: number of steps that were left out, ().
        bad_steps: number of those since the last good step, ().
    """

    def __init__(self, patience: int) -> None:
        """Configure `patience`: number of consecutive steps without finite gradients after which training stops.

        Raises:
            ValueError: if `patience` is below 1.
        """
        if patience < 1:
            raise ValueError(f"max_bad_steps must be at least 1, got {patience}")
        self.patience = patience
        self._asked: tuple[torch.optim.Optimizer, bool] | None = None  # whether this one takes a flag
        self.restore({})

    def restore(self, counts: Mapping[str, int]) -> None:
        """Set the counts, as `state` returned them; missing ones to 0."""
        bad_steps = counts.get("bad_steps", 0)
        self.skipped, self.bad_steps = torch.tensor([counts.get("skipped", 0), bad_steps], device="cpu").unbind()
        self._unread = self.patience - bad_steps  # steps until `bad_steps` may reach the limit

    def state(self) -> dict[str, int]:
        """Return the counts as numbers of the host."""
        # waits at a checkpoint
        return {"skipped": int(self.skipped), "bad_steps": int(self.bad_steps)}

    @torch.no_grad()
    def check(self, module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Let `optimizer` leave out its step number `step` unless all gradients of `module` are finite.

        Raises:
            TrainingDivergedError: after `patience` steps in a row whose gradients are not all finite.
        """
        gradients = local_tensor(p.grad for p in module.parameters() if p.grad is not None)
        if not gradients:
            return
        finite = torch.stack(torch._foreach_norm(gradients)).isfinite().all()
        bad = ~true_on_all_shards(finite, module)
        self.skipped = self.skipped + bad
        self.bad_steps = (self.bad_steps + bad) * bad
        self._unread -= 1
        if self._unread <= 0:
            count = int(self.bad_steps)  # waits, once in `patience` steps while all is well
            if count >= self.patience:
                raise TrainingDivergedError(
                    f"the gradients were not finite for {counted(count, 'step')} in a row; training stopped before "
                    f"step {step}, the weights are those after {counted(step - count + 1, 'step')}; lower the "
                    "learning rate or check the data"
                )
            self._unread = self.patience - count
        if self._asked is None or self._asked[0] is not optimizer:
            # after a checkpoint was loaded: settings of an older one may have undone `fused`
            fused = all(group.get("fused") for group in optimizer.param_groups)
            able = getattr(optimizer, "_step_supports_amp_scaling", False) and not is_sharded(module)
            self._asked = optimizer, fused and able
        if self._asked[1]:
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        elif bool(bad):  # waits: other optimizers, and those of shards, take no flag from the device
            for parameter in module.parameters():
                parameter.grad = None


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
        # waits at the end of a validation: the numbers are reported by the host
        *sums, count = all_reduce_sum(torch.cat([self.sums, self.count[None]])).tolist()
        if not count:
            return {}
        return {f"sigma_{sigma:g}": total / count for sigma, total in zip(self.sigmas, sums, strict=True)}
