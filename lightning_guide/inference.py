"""Inference-only copies of models with precomputed weights, and the detection of diverged samples."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser
from lightning_guide.network import Network
from lightning_guide.utils.modules import map_modules, shallow_clone

__all__ = ["is_diverged", "fuse_weights"]


def fuse_weights(denoiser: Denoiser, *, compile: bool = False) -> Denoiser:
    """Return `denoiser` with every network in it replaced by `Network.fused()`; the original is not changed.

    References must be resolved before. Each network is replaced once, so that shared networks stay shared. `compile`
    compiles these networks with `torch.compile`; networks of one kind share the code.

    Raises:
        ValueError: if there is nothing to compile.
    """

    def fuse(module: nn.Module) -> nn.Module | None:
        if not isinstance(module, Network):
            return None
        network = module.fused()
        if compile:
            network = shallow_clone(network)
            network.compile()
        return network

    result = map_modules(denoiser, fuse)
    assert isinstance(result, Denoiser)
    if compile and result is denoiser:
        raise ValueError(f"compile is for denoisers with a network; a {type(denoiser).__name__} has none")
    return result


_MAX_DEVIATIONS = 100.0


def is_diverged(x: Tensor, sigma_data: float) -> Tensor:
    """Return which samples of `x` (B, *) are not finite or exceed 100 standard deviations of the data; bool (B,).

    Examples:
        >>> import torch
        >>> is_diverged(torch.tensor([[0.0], [60.0], [float("nan")]]), 0.5).tolist()
        [False, True, True]
    """
    largest = x.flatten(1).abs().amax(1)
    return ~(largest <= _MAX_DEVIATIONS * sigma_data)  # true for NaN, too
