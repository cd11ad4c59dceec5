"""Memory of samplers: the number of copies of x."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import Guided
from lightning_guide.samplers import DDIM, DPMSolver2M, Euler, Heun, Sampler, TimeTravel
from lightning_guide.seeds import SampleSeeds


class Copies(TorchDispatchMode):
    """Counts the live tensors of one size, except those that a network creates and frees in its forward pass."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.nbytes, self.peak, self.counting = nbytes, 0, True
        self.live: list[StorageWeakRef] = []

    def count(self, tensor: object) -> None:
        if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() == self.nbytes:
            self.live.append(StorageWeakRef(tensor.untyped_storage()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.counting:
            for leaf in tree_leaves(out):
                self.count(leaf)
            self.live = list({ref.cdata: ref for ref in self.live if not ref.expired()}.values())
            self.peak = max(self.peak, len(self.live))
        return out


class Light(Denoiser):
    """Network without activations other than its output."""

    data_shape, num_classes, sigma_data = (5, 7, 3), 0, 0.5

    def __init__(self, variance: float, copies: Copies) -> None:
        super().__init__()
        self.variance, self.copies = variance, [copies]

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        self.copies[0].counting = False
        out = x * (self.variance / (self.variance + sigma**2))
        self.copies[0].counting = True
        self.copies[0].count(out)
        return out


@pytest.mark.parametrize("negatives", [0, 1, 2])
@pytest.mark.parametrize(
    "sampler",
    [Euler(), Heun(), Heun(s_churn=40.0), DPMSolver2M(), DDIM(), TimeTravel(Heun(), 2), TimeTravel(DPMSolver2M(), 2)],
    ids=lambda s: type(s).__name__,
)
def test_memory_of_a_sampler(sampler: Sampler, negatives: int) -> None:
    """A sampler keeps at most 3 + negatives copies of x, besides the last output of a network."""
    copies = Copies(11 * 5 * 7 * 3 * 4)
    denoiser: Denoiser = Light(0.25, copies)
    if negatives:
        bad = [Light(0.3 + i, copies) for i in range(negatives)]
        denoiser = Guided(bad, [2.0, 1.5][:negatives], positive=denoiser)
    with copies:
        end = sampler.sample(denoiser, seeds=SampleSeeds(0, range(11)))
    assert bool(end.x.isfinite().all())
    assert 2 <= copies.peak <= 1 + 3 + negatives
    assert sum(not ref.expired() for ref in copies.live) == 1, "a tensor of the trajectory is still alive"
