"""Inference-only copies of models with precomputed weights, and the detection of diverged samples."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_guide.compiled import Call, Compilation, Compiled, compiled_call, graphed_call
from lightning_guide.denoiser import Denoiser
from lightning_guide.network import Network
from lightning_guide.utils.modules import map_modules, shallow_clone

__all__ = ["check_graphs", "compile_networks", "fuse_weights", "is_diverged", "with_fixed_addresses"]


def fuse_weights(denoiser: Denoiser, *, compile: Compilation = False) -> Denoiser:
    """Return `denoiser` with every network in it replaced by `Network.fused()`; the original is not changed.

    References must be resolved before. Each network is replaced once, so that shared networks stay shared. `compile`
    compiles the models with these networks (`compile_networks`).

    Raises:
        ValueError: if there is nothing to compile, or "graphs" are asked for on another device than a GPU of CUDA.
    """
    result = map_modules(denoiser, lambda module: module.fused() if isinstance(module, Network) else None)
    assert isinstance(result, Denoiser)
    if not compile:
        return result
    if compile is True:
        return compile_networks(result, compiled_call())
    check_graphs(result)
    fixed = map_modules(result, lambda module: with_fixed_addresses(module) if isinstance(module, Network) else None)
    assert isinstance(fixed, Denoiser)
    return compile_networks(fixed, graphed_call())


def compile_networks(denoiser: Denoiser, call: Call) -> Denoiser:
    """Return `denoiser` with every model in it that has a network called through `call`; guidances stay as they are.

    Raises:
        ValueError: if there is no network.
    """

    def compiled(module: nn.Module) -> nn.Module | None:
        plain = isinstance(module, Denoiser) and type(module).start is Denoiser.start  # guidances have their own
        if not plain or not any(isinstance(part, Network) for part in module.modules()):
            return None
        return Compiled(module, call).train(module.training)  # type: ignore[arg-type]

    result = map_modules(denoiser, compiled)
    assert isinstance(result, Denoiser)
    if result is denoiser:
        raise ValueError(f"compile is for denoisers with a network; a {type(denoiser).__name__} has none")
    return result


def with_fixed_addresses(network: Network) -> Network:
    """Return a clone of `network` with frozen parameters in place of buffers, which copies of it then share.

    A CUDA graph reads its parameters where they were when it was recorded, and copies of a network have buffers of
    their own: each trajectory of a perturbed network would record it again.
    """
    tree = shallow_clone(network)
    for module in tree.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            delattr(module, name)
            module.register_parameter(name, nn.Parameter(buffer, requires_grad=False))
    return tree


def check_graphs(denoiser: Denoiser) -> None:
    """Refuse CUDA graphs of a `denoiser` elsewhere.

    Raises:
        ValueError: if a parameter is on another device.
    """
    devices = {parameter.device for parameter in denoiser.parameters()}
    other = next((device for device in devices if device.type != "cuda"), None)
    if other is not None:
        raise ValueError(f"compile: graphs is for GPUs of CUDA, but the model is on {other}; expected compile: true")


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
