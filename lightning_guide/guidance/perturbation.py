"""Perturbed networks as negatives: a module tree that shares the parameters, with named submodules replaced.

Nothing is hooked or switched: the positive network is unaffected, and any number of perturbations can exist at the same
time. The tree has its own modules from the root to the leaves, with their own attributes and copies of the buffers. It
shares the parameters, and thereby follows their changes, and nothing else.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_guide.compiled import Compiled
from lightning_guide.denoiser import Denoiser, Models, Predict, Trajectory
from lightning_guide.guidance.base import Guidance, Main
from lightning_guide.network import Network
from lightning_guide.utils.modules import ModuleReplacement, names_of_layers, rebuild_with
from lightning_guide.utils.recipe import HasRecipe

__all__ = [
    "BlockWrapper",
    "ModuleWrapper",
    "ChangedEmbedding",
    "ConditionPerturbation",
    "Perturbation",
    "Perturbed",
    "Replacement",
    "network_of",
]


class Perturbation(HasRecipe, ABC):
    """Base of replacements of certain submodules of a network; `Replacement` treats each submodule by itself.

    Attributes:
        kind: the kind of `Network.parts` that is replaced unless layers are named.
        layers: exact dotted names of submodules of the network, or patterns with ``*``; None: the network's default.
        static: whether the replaced submodules do the same in each call, without random draws or records; a compiled
            model compiles the copies with them, and runs all others as they are.
    """

    kind: str
    static: bool = False

    def __init__(self, *, layers: Sequence[str] | None = None) -> None:
        """`layers`: names or patterns of submodules; None: the network's default for this kind; []: no layer.

        Raises:
            ValueError: if `layers` is anything but a list of names.
        """
        if layers is not None and (isinstance(layers, str) or not all(isinstance(name, str) for name in layers)):
            raise ValueError(f"{type(self).__name__} needs a list of names or patterns of layers, got {layers!r}")
        self.layers = layers

    @abstractmethod
    def start(self, trajectory: Trajectory, names: Sequence[str]) -> Mapping[str, ModuleReplacement]:
        """Return the replacement of each of the submodules `names` along `trajectory`, with a new state."""

    def chosen(self, network: Network) -> list[str]:
        """Return the names of the submodules of `network` that are replaced; "" is the network itself.

        Raises:
            ValueError: if nothing matches, or the network has no such part by default.
        """
        if self.layers is not None:
            return names_of_layers(network, self.layers, type(self).__name__)
        if self.kind not in network.parts:
            raise ValueError(
                f"{type(self).__name__} acts on the {self.kind} of a network; {type(network).__name__} has no default "
                f"layers for it, only for {', '.join(sorted(network.parts)) or 'nothing'}; expected layers: [...]"
            )
        return names_of_layers(network, network.parts[self.kind], type(self).__name__)


class Replacement(Perturbation):
    """Base of perturbations that replace each submodule by itself."""

    def start(self, trajectory: Trajectory, names: Sequence[str]) -> Mapping[str, ModuleReplacement]:
        """Return `replace` for each."""
        return dict.fromkeys(names, lambda module: self.replace(module, trajectory))

    @abstractmethod
    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Return the replacement of `module` along `trajectory`, which also provides its random streams."""


class Perturbed(Guidance):
    """The model with some of its submodules replaced, under the same condition. One evaluation.

    Nested perturbations add up: Perturbed([b], positive=Perturbed([a])) is Perturbed([a, b]). All names refer to the
    model at the bottom.
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
        self._chosen: list[tuple[Perturbation, list[str]]] | None = None

    def resolve(self, models: Models) -> Denoiser:
        """Return a copy on real models, with layers chosen once; those that do not exist are refused.

        Raises:
            ValueError: if the model does not have one network, or a layer does not exist.
        """
        resolved = super().resolve(models)
        assert isinstance(resolved, Perturbed)
        resolved._chosen = None
        resolved._chosen = resolved.layers()
        return resolved

    def model(self) -> Denoiser:
        """Return the model at the bottom."""
        return self.positive.model() if isinstance(self.positive, Perturbed) else self.positive

    def layers(self) -> list[tuple[Perturbation, list[str]]]:
        """Return each perturbation, nested ones first, with the names of the submodules that it replaces.

        Raises:
            ValueError: if the model does not have one network, or a layer does not exist.
        """
        if self._chosen is not None:
            return self._chosen
        _, network = network_of(self.model(), type(self).__name__)
        inner = self.positive.layers() if isinstance(self.positive, Perturbed) else []
        return inner + [(perturbation, perturbation.chosen(network)) for perturbation in self.perturbations]

    def without_effect(self, steps: Sequence[Trajectory]) -> Iterator[str]:
        """Yield a sentence for each perturbation that replaces no submodule, or each by itself."""
        _, network = network_of(self.model(), type(self).__name__)
        for perturbation, names in self.layers()[-len(self.perturbations) :]:
            started = perturbation.start(steps[0], names)
            if all(started[name](module) is module for name in names for module in [network.get_submodule(name)]):
                why = "its settings change nothing" if names else "it has no layers"
                yield f"{type(perturbation).__name__} leaves the model as it is: {why}"

    def start(self, trajectory: Trajectory) -> Predict:
        """Return the perturbed network of one trajectory."""
        return self.network(trajectory).start(trajectory)

    def network(self, trajectory: Trajectory) -> Denoiser:
        """Return the model with the replacements of `trajectory`; it shares the parameters and nothing else."""
        path, _ = network_of(self.model(), type(self).__name__)
        replacements: list[tuple[str, ModuleReplacement]] = []
        for perturbation, names in self.layers():
            started = perturbation.start(trajectory, names)
            replacements += [(name, started[name]) for name in names]
        named = [(f"{path}.{name}".removesuffix("."), replacement) for name, replacement in replacements]
        tree = rebuild_with(self.model(), named)
        if isinstance(tree, Compiled) and not all(perturbation.static for perturbation, _ in self.layers()):
            tree.run_eagerly()
        return tree


def network_of(denoiser: Denoiser, who: str) -> tuple[str, Network]:
    """Return the name and the module of the one network in `denoiser`, below whatever wraps it.

    So adapted models (`LowRank`), wrappers and models of other libraries have what a perturbation acts on.

    Raises:
        ValueError: if there is no network, or more than one; `who` begins the message.
    """
    found: list[tuple[str, Network]] = []
    for name, module in denoiser.named_modules():  # outer modules come first
        if isinstance(module, Network) and not any(name.startswith(f"{outer}.") for outer, _ in found):
            found.append((name, module))
    if len(found) != 1:
        kind = type(denoiser).__name__
        count = f"{len(found)} networks: {', '.join(name for name, _ in found)}" if found else "no network"
        raise ValueError(f"{who} acts on the network of a model; this {kind} has {count}")
    return found[0]


class ModuleWrapper(nn.Module):
    """Transparent wrapper of the module `inner`; missing attributes are those of `inner`.

    Networks read attributes of their blocks and embeddings, which must work on a replaced block as well.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        """Return a parameter or submodule of this module, or else an attribute of `inner`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class BlockWrapper(ModuleWrapper):
    """Wrapper of a block, whose tokens or feature maps come in as its first argument, and go out as its result.

    A block of two streams, as of joint attention, has the attribute `streams`: the names of its arguments that go out,
    in the order of its results; the last one is x.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        if not isinstance(inner, BlockWrapper):  # else those of the block inside
            self.names = tuple(inspect.signature(inner.forward).parameters)

    def passed(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Return the streams among the arguments of a call."""
        values = {**dict(zip(self.names, arguments, strict=False)), **named}
        return tuple(values[name] for name in getattr(self, "streams", self.names[:1]))

    def skip(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Return what comes in, as it would go out."""
        streams = self.passed(arguments, named)
        return streams if len(streams) > 1 else streams[0]

    def call_with(self, x: Tensor, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Return the result of the block for another `x`."""
        name = getattr(self, "streams", self.names[:1])[-1]
        if name in named:
            return self.inner(*arguments, **{**named, name: x})
        at = self.names.index(name)
        return self.inner(*arguments[:at], x, *arguments[at + 1 :], **named)


class ChangedEmbedding(ModuleWrapper):
    """change(e) of the embedding e (B, E), of a noise level or of labels, that `inner` computes."""

    def __init__(self, inner: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inner)
        self.change = change

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        """`(B, E)` of the embedding's input `x` (B, *); a module with more inputs is not an embedding."""
        if any(other is not None for other in (*others, *named.values())):
            kind = type(self.inner).__name__
            raise ValueError(f"noise on an embedding needs a layer of one input that returns (B, E); {kind} is not one")
        return self.change(self.inner(x, *others, **named))


class ConditionPerturbation(Replacement):
    """Base of replacements of the modules that embed labels, output (B, E), or tokens of texts, (B, L, E)."""

    kind = "label_embedding"

    def chosen(self, network: Network) -> list[str]:
        """Return the names of the embeddings of `network` that are replaced.

        Raises:
            ValueError: if the network has neither labels nor embeddings.
        """
        if not (network.num_classes or network.token_channels):
            raise ValueError(
                f"{type(self).__name__} acts on the embedding of labels or texts; this network has none (num_classes=0)"
            )
        return super().chosen(network)
