"""Models that do not learn any more: what depends on the weights alone is computed once, not at every call."""

from __future__ import annotations

import copy

from torch import nn

from lightning_guide.denoiser import Denoiser, Network
from lightning_guide.module_tree import apart

__all__ = ["fixed"]


def fixed(denoiser: Denoiser, *, compile: bool = False) -> Denoiser:
    """`denoiser` with every network in it replaced by `Network.fixed()`, each once; the original is left as it is.

    References have to be resolved before. What is shared stays shared. `compile` compiles these networks with
    `torch.compile`: networks of one kind share the code.

    Raises:
        ValueError: if there is nothing to compile.
    """
    made: dict[nn.Module, nn.Module] = {}

    def visit(module: nn.Module) -> nn.Module:
        if module not in made:
            if isinstance(module, Network):
                network = module.fixed()
                if compile:
                    network = apart(network)
                    network.compile()
                made[module] = network
            elif any(isinstance(part, Network) for part in module.modules()):
                made[module] = shell = copy.copy(module)
                shell._modules = {name: None if m is None else visit(m) for name, m in module._modules.items()}
            else:
                made[module] = module
        return made[module]

    result = visit(denoiser)
    assert isinstance(result, Denoiser)
    if compile and result is denoiser:
        raise ValueError(f"compile is for networks of Preconditioned denoisers; a {type(denoiser).__name__} has none")
    return result
