"""Models that do not learn any more: what depends on the weights alone is computed once, not at every call."""

from __future__ import annotations

import copy

from torch import nn

from lightning_guide.denoiser import Denoiser, Network

__all__ = ["fixed"]


def fixed(denoiser: Denoiser) -> Denoiser:
    """`denoiser` with every network in it replaced by `Network.fixed()`, each once; the original is left as it is.

    References have to be resolved before. What is shared stays shared.
    """
    made: dict[nn.Module, nn.Module] = {}

    def visit(module: nn.Module) -> nn.Module:
        if module not in made:
            if isinstance(module, Network):
                made[module] = module.fixed()
            elif any(isinstance(part, Network) for part in module.modules()):
                made[module] = shell = copy.copy(module)
                shell._modules = {name: None if m is None else visit(m) for name, m in module._modules.items()}
            else:
                made[module] = module
        return made[module]

    result = visit(denoiser)
    assert isinstance(result, Denoiser)
    return result
