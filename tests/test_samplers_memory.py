"""How many copies of x a sampler keeps alive."""

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
    """Counts the live tensors of one size; what a network makes and drops on its way is not looked at."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.nbytes, self.peak, self.looking = nbytes, 0, True
        self.live: list[StorageWeakRef] = []

    def look(self, tensor: object) -> None:
        if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() == self.nbytes:
            self.live.append(StorageWeakRef(tensor.untyped_storage()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.looking:
            for leaf in tree_leaves(out):
                self.look(leaf)
            self.live = list({ref.cdata: ref for ref in self.live if not ref.expired()}.values())
            self.peak = max(self.peak, len(self.live))
        return out


class Light(Denoiser):
    """A network whose activations are its output."""

    data_shape, num_classes, sigma_data = (5, 7, 3), 0, 0.5

    def __init__(self, variance: float, copies: Copies) -> None:
        super().__init__()
        self.variance, self.copies = variance, [copies]

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        self.copies[0].looking = False
        out = x * (self.variance / (self.variance + sigma**2))
        self.copies[0].looking = True
        self.copies[0].look(out)
        return out


@pytest.mark.parametrize("negatives", [0, 1, 2])
@pytest.mark.parametrize(
    "sampler",
    [Euler(), Heun(), Heun(s_churn=40.0), DPMSolver2M(), DDIM(), TimeTravel(Heun(), 2), TimeTravel(DPMSolver2M(), 2)],
    ids=lambda s: type(s).__name__,
)
def test_memory_of_a_sampler(sampler: Sampler, negatives: int) -> None:
    """At most 3 + negatives copies of x at any time, besides the one that a network has just returned."""
    copies = Copies(11 * 5 * 7 * 3 * 4)
    denoiser: Denoiser = Light(0.25, copies)
    if negatives:
        bad = [Light(0.3 + i, copies) for i in range(negatives)]
        denoiser = Guided(bad, [2.0, 1.5][:negatives], positive=denoiser)
    with copies:
        end = sampler.sample(denoiser, seeds=SampleSeeds(0, range(11)))
    assert bool(end.x.isfinite().all())
    assert 2 <= copies.peak <= 1 + 3 + negatives
    assert sum(not ref.expired() for ref in copies.live) == 1, "something of the trajectory outlives it"
