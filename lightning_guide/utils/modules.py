"""Trees of modules in which submodules are replaced, around the same parameters: the original is left as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

__all__ = [
    "ModuleReplacement",
    "shallow_clone",
    "map_modules",
    "matching_names",
    "names_of_layers",
    "rebuild_with",
    "replace_modules",
]


ModuleReplacement = Callable[[nn.Module], nn.Module]


"""submodule -> the module that replaces it, which may keep the submodule and call it."""


Module = TypeVar("Module", bound=nn.Module)


def shallow_clone(root: Module) -> Module:
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


def map_modules(root: nn.Module, change: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """`root` with what `change` makes of its submodules, and of itself; None: that module stays, and so on inside it.

    What holds something new is a copy of its own; all else, parameters included, is the original. Each module is
    changed once, so that what is shared stays shared.
    """
    found: dict[nn.Module, nn.Module] = {}

    def visit(module: nn.Module) -> nn.Module:
        if module not in found:
            new = change(module)
            if new is None:
                children = {name: None if child is None else visit(child) for name, child in module._modules.items()}
                new = module
                if any(children[name] is not child for name, child in module._modules.items()):
                    new = copy.copy(module)
                    new._modules = children
            found[module] = new
        return found[module]

    return visit(root)


def matching_names(network: nn.Module, pattern: str, who: str) -> list[str]:
    """Names of the submodules of `network` that equal `pattern`, or match it where it holds a ``*``.

    A ``*`` stands for any text. Of matches that lie inside one another only the outermost counts: ``blocks.*`` names
    the blocks, not all their parts.

    Raises:
        ValueError: if there is none, with the names that exist.
    """
    names = [name for name, _ in network.named_modules() if name]
    found = [name for name in names if (fnmatchcase(name, pattern) if "*" in pattern else name == pattern)]
    if not found:
        last = pattern.rpartition(".")[2]
        near = [name for name in names if name.rpartition(".")[2] == last] or names
        raise ValueError(
            f"{who}: no layer of {type(network).__name__} is called {pattern!r}; there are {', '.join(near)}"
        )
    return [name for name in found if not any(name.startswith(f"{outer}.") for outer in found)]


def names_of_layers(network: nn.Module, patterns: Sequence[str], who: str) -> list[str]:
    """Names of the submodules that `patterns` match (see `matching_names`), each once."""
    return list(dict.fromkeys(name for pattern in patterns for name in matching_names(network, pattern, who)))


def rebuild_with(root: Module, replacements: Sequence[tuple[str, ModuleReplacement]]) -> Module:
    """Return `root` as a `shallow_clone` with the submodules of these dotted names replaced.

    What lies inside comes first, so that the replacement of a block keeps those of its parts; of several for one
    submodule each is made of the one before.
    """
    tree = shallow_clone(root)
    for name, replacement in sorted(replacements, key=lambda each: -each[0].count(".")):
        tree.set_submodule(name, replacement(tree.get_submodule(name)))
    return tree


def replace_modules(root: Module, modules: Mapping[str, nn.Module]) -> Module:
    """`root` in a tree of its own (`shallow_clone`), with the submodules of these dotted names exchanged."""

    def always(module: nn.Module) -> ModuleReplacement:
        return lambda _: module

    return rebuild_with(root, [(name, always(module)) for name, module in modules.items()])
