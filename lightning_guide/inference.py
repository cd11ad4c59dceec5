"""Models that do not learn any more: what depends on the weights alone is computed once, not at every call.

Samples that a guidance drove out of all bounds.
"""

from __future__ import annotations

from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser
from lightning_guide.preconditioning import Network
from lightning_guide.utils.modules import map_modules, shallow_clone

__all__ = ["is_diverged", "fuse_weights"]


def fuse_weights(denoiser: Denoiser, *, compile: bool = False) -> Denoiser:
    """`denoiser` with every network in it replaced by `Network.fixed()`, each once; the original is left as it is.

    References have to be resolved before. What is shared stays shared. `compile` compiles these networks with
    `torch.compile`: networks of one kind share the code.

    Raises:
        ValueError: if there is nothing to compile.
    """

    def prepared(module: nn.Module) -> nn.Module | None:
        if not isinstance(module, Network):
            return None
        network = module.fixed()
        if compile:
            network = shallow_clone(network)
            network.compile()
        return network

    result = map_modules(denoiser, prepared)
    assert isinstance(result, Denoiser)
    if compile and result is denoiser:
        raise ValueError(f"compile is for networks of Preconditioned denoisers; a {type(denoiser).__name__} has none")
    return result


_LIMIT = 100.0


def is_diverged(x: Tensor, sigma_data: float) -> Tensor:
    """Which of the samples `x` (B, *) are not finite or reach beyond 100 standard deviations of the data; bool (B,)."""
    largest = x.flatten(1).abs().amax(1)
    return ~(largest <= _LIMIT * sigma_data)  # true for NaN, too
