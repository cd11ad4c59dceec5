"""A perturbed network starts where it differs: what runs before its first replaced module is taken from the positive.

A positive and its perturbed copy see the same x, noise level and condition, so that all stages before the first
replaced module give the same results. In a U-Net perturbed in its middle these are the whole encoder. The networks
name their stages in the order in which they run (`Network.stages`). The positive keeps their results while it is
evaluated, and the copy returns them instead of computing them again; a stage whose result only the next one reads is
left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Predict, Trajectory
from lightning_guide.guidance.perturbation import BlockWrapper, ModuleWrapper, Perturbed, network_of
from lightning_guide.network import Network
from lightning_guide.utils.modules import ModuleReplacement, names_of_layers, rebuild_with

__all__ = ["SharedStages"]


class SharedStages:
    """Results of the stages of one call of the positive, for the perturbed copies of its network."""

    def __init__(self) -> None:
        self.mode: Literal["keep", "recall"] | None = None
        self.results: dict[str, Any] = {}
        self.names: set[str] = set()
        self.point: tuple[Tensor, Tensor] | None = None

    def start(self, negative: Perturbed, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, Predict]:
        """Return a copy of `model`, the positive of `negative`, that keeps results for it; and the negative, started.

        They are used inside of `kept` and `recalled`. `model` itself is returned if there is nothing to share.
        """
        path, network = network_of(negative.model(), type(negative).__name__)
        layers = negative.layers()
        equal, left_out = stages_before(network, [name for _, names in layers for name in names])
        new = [name for name in equal if name not in self.names]
        self.names |= set(new)
        keeping = [(f"{path}.{name}", self._wrapped(_Kept, name)) for name in new]
        others = [(name, self._wrapped(_Recalled, name)) for name in equal]
        others += [(name, lambda stage: _LeftOut(stage, self)) for name in left_out]
        perturbed = negative.network(trajectory, layers, others).start(trajectory)
        return (rebuild_with(model, keeping) if keeping else model), perturbed

    def _wrapped(self, kind: type[_Stage], name: str) -> ModuleReplacement:
        return lambda stage: kind(stage, self, name)

    def forget(self) -> None:
        """Drop all results."""
        self.results.clear()
        self.point = None

    @contextmanager
    def kept(self, x: Tensor, sigma: Tensor) -> Iterator[None]:
        """Keep what the positive computes at this point, unless gradients are needed."""
        self.forget()
        if not self.names or torch.is_grad_enabled():
            yield
            return
        self.mode = "keep"
        try:
            yield
        finally:
            self.mode = None
        self.point = x, sigma

    @contextmanager
    def recalled(self, x: Tensor, sigma: Tensor) -> Iterator[None]:
        """Recall it for a perturbed copy at the same point; at another one the copy computes everything."""
        same = self.point is not None and self.point[0] is x and self.point[1] is sigma
        self.mode = "recall" if same and not torch.is_grad_enabled() else None
        try:
            yield
        finally:
            self.mode = None


def stages_before(network: Network, replaced: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the stages before the first of the submodules `replaced`: those with results to keep, and the others.

    Both are empty if nothing can be shared: a replaced module is in no stage, or the network is compiled as a whole.
    """
    groups = [names_of_layers(network, [pattern], type(network).__name__) for pattern in network.stages]
    stages = [name for group in groups for name in group]
    if network._compiled_call_impl is not None or not all(any(_has(s, name) for s in stages) for name in replaced):
        return [], []
    kept: list[str] = []
    left_out: list[str] = []
    for group in groups:
        equal = list(takewhile(lambda stage: not any(_has(stage, name) for name in replaced), group))
        kept += equal[-1:]
        left_out += equal[:-1]
        if len(equal) < len(group):
            break
    return kept, left_out


def _has(stage: str, name: str) -> bool:
    """Return whether the module `name` is the `stage` or a part of it."""
    return name == stage or name.startswith(f"{stage}.")


class _Stage(ModuleWrapper):
    """Base of a stage whose result is kept or recalled."""

    def __init__(self, inner: nn.Module, shared: SharedStages, name: str) -> None:
        super().__init__(inner)
        self.shared, self.name = shared, name


class _Kept(_Stage):
    """A stage of the positive."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        result = self.inner(*arguments, **named)
        if self.shared.mode == "keep":
            self.shared.results[self.name] = result
        return result


class _Recalled(_Stage):
    """The same stage of a perturbed copy."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        if self.shared.mode != "recall":
            return self.inner(*arguments, **named)
        rows = next(len(each) for each in (*arguments, *named.values()) if isinstance(each, Tensor))
        return _first(rows, self.shared.results[self.name])


class _LeftOut(BlockWrapper):
    """A stage of a perturbed copy whose result nothing reads, since a later one is recalled."""

    def __init__(self, inner: nn.Module, shared: SharedStages) -> None:
        super().__init__(inner)
        self.shared = shared

    def forward(self, *arguments: Any, **named: Any) -> Any:
        if self.shared.mode != "recall":
            return self.inner(*arguments, **named)
        return self.skip(arguments, named)


def _first(rows: int, result: Any) -> Any:
    """Return the first `rows` samples, those of the positive in a joint batch, of tensors or (nested) tuples."""
    if isinstance(result, tuple | list):
        return tuple(_first(rows, each) for each in result)
    return result[:rows] if isinstance(result, Tensor) else result
