"""A perturbed network as a negative: another module tree that shares the parameters and replaces named submodules.

Nothing is hooked and nothing is switched: the positive network never learns of it, and two perturbations can be alive
at once. Only the modules on the way from the root to a replaced one are copied, each a shell around the same
parameters, buffers and other children.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from lightning_guide.denoiser import Denoiser, Models, Network, Preconditioned, Predict, Trajectory
from lightning_guide.guidance.guided import Guidance
from lightning_guide.guidance.references import Main
from lightning_guide.recipe import Recorded

__all__ = ["Perturbation", "Perturbed", "matching", "replaced"]


class Perturbation(Recorded, ABC):
    """What takes the place of certain submodules of a network.

    Attributes:
        kind: the kind of `Network.parts` that is replaced unless layers are named.
        layers: exact dotted names of submodules of the network, or patterns with ``*``; None: the network's default.
    """

    kind: str

    def __init__(self, *, layers: Sequence[str] | None = None) -> None:
        """`layers`: names or patterns of submodules; None takes the network's default for this kind."""
        if isinstance(layers, str):
            raise ValueError(f"{type(self).__name__} needs a list of layers, got the string {layers!r}")
        self.layers = layers

    @abstractmethod
    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """What stands in for `module` along `trajectory`, which also gives it its random streams.

        Raises:
            ValueError: if it cannot stand in for such a module.
        """

    def chosen(self, network: Network) -> list[str]:
        """Names of the submodules of `network` that are replaced.

        Raises:
            ValueError: if nothing matches, or the network has no such part by default.
        """
        if self.layers is not None:
            return [name for pattern in self.layers for name in matching(network, pattern, type(self).__name__)]
        if self.kind not in network.parts:
            raise ValueError(
                f"{type(self).__name__} acts on the {self.kind} of a network; {type(network).__name__} names none "
                f"(it names {', '.join(sorted(network.parts)) or 'nothing'}); say which with layers: [...]"
            )
        return [name for pattern in network.parts[self.kind] for name in matching(network, pattern, self.kind)]


def matching(network: nn.Module, pattern: str, who: str) -> list[str]:
    """Names of the submodules of `network` that equal `pattern`, or match it where it holds a ``*``.

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
    return found


def replaced(root: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """`root` with the submodules of these dotted names exchanged, in a tree of its own around the same parameters."""
    shell = copy.copy(root)
    shell._modules = dict(root._modules)
    below: dict[str, dict[str, nn.Module]] = {}
    for name, module in modules.items():
        head, _, rest = name.partition(".")
        if rest:
            below.setdefault(head, {})[rest] = module
        else:
            shell._modules[head] = module
    for head, inner in below.items():
        child = shell._modules[head]
        assert child is not None
        shell._modules[head] = replaced(child, inner)
    return shell


class Perturbed(Guidance):
    """The model with some of its submodules replaced, under the same condition. One evaluation."""

    def __init__(self, perturbations: Sequence[Perturbation], *, positive: Denoiser | None = None) -> None:
        """`positive` is the model to perturb; default: the one under evaluation.

        Raises:
            ValueError: if there is nothing to replace.
        """
        super().__init__()
        if not perturbations:
            raise ValueError("Perturbed needs at least one perturbation, got none")
        self.perturbations = list(perturbations)
        self.positive = positive if positive is not None else Main()

    def resolve(self, models: Models) -> Denoiser:
        """As `Guidance.resolve`; layers that do not exist are refused here.

        Raises:
            ValueError: if the model is no network under EDM preconditioning, or a layer does not exist.
        """
        resolved = super().resolve(models)
        assert isinstance(resolved, Perturbed)
        resolved.layers()
        return resolved

    def layers(self) -> list[tuple[str, Perturbation]]:
        """(name, perturbation) of every submodule that is replaced; where two name one, the later has it all.

        Raises:
            ValueError: if the model is no network under EDM preconditioning, or a layer does not exist.
        """
        model = self.positive
        if not isinstance(model, Preconditioned):
            raise ValueError(f"Perturbed replaces layers of a Preconditioned network; got a {type(model).__name__}")
        return [(name, each) for each in self.perturbations for name in each.chosen(model.network)]

    def start(self, trajectory: Trajectory) -> Predict:
        """The perturbed network of one trajectory."""
        return self.network(trajectory).start(trajectory)

    def network(self, trajectory: Trajectory) -> Denoiser:
        """The model with the replacements of `trajectory`; it shares every parameter."""
        modules = {
            f"network.{name}": perturbation.replace(self.positive.get_submodule(f"network.{name}"), trajectory)
            for name, perturbation in self.layers()
        }
        perturbed = replaced(self.positive, modules)
        assert isinstance(perturbed, Denoiser)
        return perturbed
