"""Replace submodules in a shallow clone of a module tree, which shares the parameters of the original."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

__all__ = [
    "ModuleReplacement",
    "shallow_clone",
    "map_modules",
    "matching_names",
    "names_of_layers",
    "nearest_layers",
    "persistent_buffers",
    "rebuild_with",
    "replace_modules",
    "require_weights",
]


SHOWN = 5  # names of layers in a message


# submodule -> the module that replaces it, which may keep the submodule and call it
ModuleReplacement = Callable[[nn.Module], nn.Module]


Module = TypeVar("Module", bound=nn.Module)


def shallow_clone(root: Module) -> Module:
    """Return a copy of the module tree `root` that shares its parameters; modules, containers and buffers are copied.

    A module that was compiled in place is not compiled in the copy: the compiled call would run the original.

    Raises:
        ValueError: if a module has a `forward` of its own, as offloading installs it: the copy would run the original.
    """
    copies: dict[nn.Module, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        if module not in copies:
            if "forward" in vars(module):
                raise ValueError(
                    f"a {type(module).__name__} has its forward replaced (by offloading hooks, for example), so that a "
                    "changed copy would run the original; expected offload: false, or a module without hooks"
                )
            copies[module] = shell = object.__new__(type(module))
            for name, value in vars(module).items():
                if name != "_compiled_call_impl":
                    shell.__dict__[name] = copy.copy(value) if isinstance(value, dict | list | set) else value
            shell._buffers.update((name, None if b is None else b.clone()) for name, b in module._buffers.items())
            shell._modules.update((name, None if m is None else copied(m)) for name, m in module._modules.items())
        return copies[module]

    tree = copied(root)
    assert isinstance(tree, type(root))
    return tree


def require_weights(module: nn.Module, who: str) -> None:
    """Refuse a `module` whose weights are offloaded, on the meta device, so that `who` would change nothing.

    Raises:
        ValueError: if a weight is.
    """
    if any(weight.is_meta for weight in module.parameters()):
        raise ValueError(f"{who} cannot change weights that are offloaded; expected offload: false")


def map_modules(root: nn.Module, change: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Return `root` with `change` applied to it and its submodules; None keeps a module and descends into it.

    A module with a changed submodule is copied; everything else, parameters included, is the original. Each module is
    changed once, so that shared modules stay shared.
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
    """Return the names of the submodules of `network` that match `pattern`, in which ``*`` matches any text.

    Of nested matches only the outermost is returned: ``blocks.*`` matches the blocks, not all their parts. `who`
    begins the error message.

    Raises:
        ValueError: if there is no match, with the nearest names that exist.
    """
    names = [name for name, _ in network.named_modules() if name]
    found = [name for name in names if (fnmatchcase(name, pattern) if "*" in pattern else name == pattern)]
    if not found:
        last = pattern.rpartition(".")[2]
        near = [name for name in names if name.rpartition(".")[2] == last] or names
        there = nearest_layers(near, pattern)
        raise ValueError(f"{who}: no layer of {type(network).__name__} is called {pattern!r}; there are {there}")
    return [name for name in found if not any(name.startswith(f"{outer}.") for outer in found)]


def nearest_layers(names: Sequence[str], like: str) -> str:
    """Return the few of `names` that are most similar to `like`, in their order, and how all are listed."""
    near = get_close_matches(like, names, SHOWN, cutoff=0.0)
    shown = ", ".join(name for name in names if name in near) or "none"
    more = len(names) - len(near)
    return f"{shown} and {more} more (docs/guidance.md shows how to list all)" if more else shown


def names_of_layers(network: nn.Module, patterns: Sequence[str], who: str) -> list[str]:
    """Return the names of the submodules that match any of `patterns` (see `matching_names`), each once."""
    return list(dict.fromkeys(name for pattern in patterns for name in matching_names(network, pattern, who)))


def persistent_buffers(module: nn.Module) -> list[str]:
    """Return the names of those buffers that the state dict of `module` holds."""
    state = module.state_dict()
    return [name for name, _ in module.named_buffers() if name in state]


def rebuild_with(root: Module, replacements: Sequence[tuple[str, ModuleReplacement]]) -> Module:
    """Return a `shallow_clone` of `root` with the submodules of these dotted names replaced.

    Inner submodules come first, so that the replacement of a block keeps those of its parts. Several replacements of
    one submodule are chained.
    """
    tree = shallow_clone(root)
    for name, replacement in sorted(replacements, key=lambda each: -each[0].count(".")):
        tree.set_submodule(name, replacement(tree.get_submodule(name)))
    return tree


def replace_modules(root: Module, modules: Mapping[str, nn.Module]) -> Module:
    """Return a `shallow_clone` of `root` with `modules` in place of the submodules of these dotted names."""

    def always(module: nn.Module) -> ModuleReplacement:
        return lambda _: module

    return rebuild_with(root, [(name, always(module)) for name, module in modules.items()])
