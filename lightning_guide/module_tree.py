"""Trees of modules of their own around the parameters of others."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

__all__ = ["apart"]

Module = TypeVar("Module", bound=nn.Module)


def apart(root: Module) -> Module:
    """A module tree of its own around the parameters of `root`: modules, their containers and buffers are copies.

    A module that was compiled in place is not compiled in the copy, whose compiled call would reach the original.
    """
    copies: dict[nn.Module, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        if module not in copies:
            copies[module] = shell = object.__new__(type(module))
            for name, value in vars(module).items():
                if name != "_compiled_call_impl":
                    shell.__dict__[name] = value.copy() if isinstance(value, dict | list | set) else value
            shell._buffers.update((name, None if b is None else b.clone()) for name, b in module._buffers.items())
            shell._modules.update((name, None if m is None else copied(m)) for name, m in module._modules.items())
        return copies[module]

    tree = copied(root)
    assert isinstance(tree, type(root))
    return tree
