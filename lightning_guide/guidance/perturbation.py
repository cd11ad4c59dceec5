"""A perturbed network as a negative: another module tree that shares the parameters and replaces named submodules.

Nothing is hooked and nothing is switched: the positive network never learns of it, and any number of perturbations can
be alive at once. The tree is the negative's own from the root to the leaves, with its own attributes and copies of the
buffers; it shares the parameters, so that it follows them, and nothing else.

A module around another one, for networks that read attributes of their blocks and embeddings.

An embedding, of a noise level or of labels, that is changed on its way into the network.

The base of what changes the embedding of the condition on its way into the network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Models, Predict, Trajectory
from lightning_guide.guidance.base import Guidance, Main
from lightning_guide.preconditioning import Network, Preconditioned
from lightning_guide.utils.modules import ModuleReplacement, names_of_layers, rebuild_with
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["ModuleWrapper", "ChangedEmbedding", "ConditionPerturbation", "Perturbation", "Perturbed", "Replacement"]


class Perturbation(HasRecipe, ABC):
    """What takes the place of certain submodules of a network; of each by itself: `Replacement`.

    Attributes:
        kind: the kind of `Network.parts` that is replaced unless layers are named.
        layers: exact dotted names of submodules of the network, or patterns with ``*``; None: the network's default.
    """

    kind: str

    def __init__(self, *, layers: Sequence[str] | None = None) -> None:
        """`layers`: names or patterns of submodules; None takes the network's default for this kind, [] nothing.

        Raises:
            ValueError: if `layers` is anything but a list of names.
        """
        if layers is not None and (isinstance(layers, str) or not all(isinstance(name, str) for name in layers)):
            raise ValueError(f"{type(self).__name__} needs a list of names or patterns of layers, got {layers!r}")
        self.layers = layers

    @abstractmethod
    def start(self, trajectory: Trajectory, names: Sequence[str]) -> Mapping[str, ModuleReplacement]:
        """What stands in for each of the submodules `names` along `trajectory`, with a fresh state.

        Raises:
            ValueError: if nothing can stand in for such a module.
        """

    def chosen(self, network: Network) -> list[str]:
        """Names of the submodules of `network` that are replaced.

        Raises:
            ValueError: if nothing matches, or the network has no such part by default.
        """
        if self.layers is not None:
            return names_of_layers(network, self.layers, type(self).__name__)
        if self.kind not in network.parts:
            raise ValueError(
                f"{type(self).__name__} acts on the {self.kind} of a network; {type(network).__name__} names none "
                f"(it names {', '.join(sorted(network.parts)) or 'nothing'}); say which with layers: [...]"
            )
        return names_of_layers(network, network.parts[self.kind], type(self).__name__)


class Replacement(Perturbation):
    """A perturbation that takes the place of each submodule by itself."""

    def start(self, trajectory: Trajectory, names: Sequence[str]) -> Mapping[str, ModuleReplacement]:
        """What `replace` makes of each."""
        return dict.fromkeys(names, lambda module: self.replace(module, trajectory))

    @abstractmethod
    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """What stands in for `module` along `trajectory`, which also gives it its random streams.

        Raises:
            ValueError: if it cannot stand in for such a module.
        """


class Perturbed(Guidance):
    """The model with some of its submodules replaced, under the same condition. One evaluation.

    Nested ones add up: Perturbed([b], positive=Perturbed([a])) is Perturbed([a, b]). All names are those of the model.
    """

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

    def model(self) -> Preconditioned:
        """The model at the bottom.

        Raises:
            ValueError: if it is no network under EDM preconditioning.
        """
        if isinstance(self.positive, Perturbed):
            return self.positive.model()
        if not isinstance(self.positive, Preconditioned):
            kind = type(self.positive).__name__
            raise ValueError(f"Perturbed replaces layers of a Preconditioned network; got a {kind}")
        return self.positive

    def layers(self) -> list[tuple[Perturbation, list[str]]]:
        """Each perturbation, those of nested ones first, with the names of the submodules that it replaces.

        Raises:
            ValueError: if the model is no network under EDM preconditioning, or a layer does not exist.
        """
        network = self.model().network
        inner = self.positive.layers() if isinstance(self.positive, Perturbed) else []
        return inner + [(perturbation, perturbation.chosen(network)) for perturbation in self.perturbations]

    def start(self, trajectory: Trajectory) -> Predict:
        """The perturbed network of one trajectory."""
        return self.network(trajectory).start(trajectory)

    def network(self, trajectory: Trajectory) -> Preconditioned:
        """The model with the replacements of `trajectory`; it shares the parameters, and nothing else."""
        replacements: list[tuple[str, ModuleReplacement]] = []
        for perturbation, names in self.layers():
            started = perturbation.start(trajectory, names)
            replacements += [(f"network.{name}", started[name]) for name in names]
        return rebuild_with(self.model(), replacements)


class ModuleWrapper(nn.Module):
    """Base of stand-ins that pass for the module `inner`: what they do not have themselves is its attribute."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        """A parameter or submodule of this module, or else an attribute of the inner one."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class ChangedEmbedding(ModuleWrapper):
    """change(e) for the embedding e (B, E) that the inner module makes of its input."""

    def __init__(self, inner: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inner)
        self.change = change

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """`(B, E)` of the embedding's input `x` (B, *).

        Raises:
            ValueError: if the inner module takes more than that, which no embedding does.
        """
        if others:
            kind = type(self.inner).__name__
            raise ValueError(f"noise on an embedding needs a layer of one input that returns (B, E); a {kind} is none")
        return self.change(self.inner(x))


class ConditionPerturbation(Replacement):
    """Takes the place of the modules that embed labels, output (B, E), or the tokens of texts, (B, L, E)."""

    kind = "label_embedding"

    def chosen(self, network: Network) -> list[str]:
        """As `Perturbation.chosen`.

        Raises:
            ValueError: if the network has neither labels nor embeddings.
        """
        if not (network.num_classes or network.token_channels):
            raise ValueError(
                f"{type(self).__name__} acts on the embedding of labels or texts; this network has none (num_classes=0)"
            )
        return super().chosen(network)
