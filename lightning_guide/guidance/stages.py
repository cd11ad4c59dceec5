"""A model and its perturbed copies in one call: they differ in some stages of the network, and share all others.

A positive and its perturbed copies see the same x, noise level and condition. In a network whose stages are known
(`Network.stages`), one batch holds the rows of all of them, and each stage treats them as it has to:

* before the first stage with a replaced module, the rows of a copy are those of the positive, and are not computed;
* in a stage with a replaced module, the copy has a stage of its own, which gets the rows of the copy alone;
* in all others its rows run with those of the positive, so that weights are read once.

In a U-Net that is perturbed in its middle the encoder runs for the positive, and the decoder once for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_guide.compiled import Compiled
from lightning_guide.conditioning import concatenate_conditions
from lightning_guide.denoiser import Denoiser, Prediction, Trajectory
from lightning_guide.guidance.perturbation import ModuleWrapper, Perturbed, network_of
from lightning_guide.network import Network
from lightning_guide.utils.modules import ModuleReplacement, names_of_layers, rebuild_with

__all__ = ["JointModel", "changed_stages", "stages_of"]

_WITHOUT_ROWS = ("image_rotary_emb",)  # arguments of stages: rotations of tokens (Flux), whose number may be any


class JointModel:
    """A model under several conditions, and perturbed copies of it, in one call with B rows for each of these branches.

    Attributes:
        copies: numbers of the perturbed copies that can take part, those that differ first in front.
    """

    def __init__(
        self, model: Denoiser, perturbed: Mapping[int, tuple[Sequence[str], Denoiser]], trajectory: Trajectory
    ) -> None:
        """`perturbed`: copies of `model` by number, each with the names of its replaced modules in the network."""
        self.trajectory = trajectory
        self.branches: list[int | None] = []  # of the call that runs: the number of a copy, None for the model itself
        self.samples = 0
        self.together = True
        first: dict[int, int] = {}
        stages: list[tuple[str, dict[int, nn.Module]]] = []
        if perturbed:
            path, network = network_of(model, Perturbed.__name__)
            stages = [(f"{path}.{name}", {}) for name in stages_of(network)]
            for i, (replaced, copy) in perturbed.items():
                for k in changed_stages(network, replaced):
                    first.setdefault(i, k)
                    name, changed = stages[k]
                    changed[i] = copy.get_submodule(name)
        self.copies = sorted(first, key=lambda i: first[i])

        def split(k: int) -> ModuleReplacement:
            later = {i for i in first if first[i] > k}
            return lambda stage: _Stage(stage, self, stages[k][1], later)

        replacements = [(name, split(k)) for k, (name, _) in enumerate(stages)]
        tree = rebuild_with(model, replacements) if first else model
        if any(isinstance(perturbed[i][1], Compiled) and perturbed[i][1].is_eager for i in first):
            assert isinstance(tree, Compiled)
            tree.run_eagerly()
        self.predict = tree.start(trajectory)

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        conditions: Sequence[Tensor | None],
        copies: Sequence[int],
        *,
        together: bool = True,
    ) -> list[Prediction]:
        """Return the predictions at `x` (B, *) under each of `conditions`, then those of `copies` under the first one.

        The one call counts as one for each. `copies` are in the order of the attribute. Unless `together`, each stage
        takes one branch after another, which needs less memory.
        """
        self.branches, self.samples, self.together = [None] * len(conditions) + list(copies), len(x), together
        count = len(self.branches)
        condition = concatenate_conditions([*conditions, *[conditions[0]] * len(copies)], len(x), x.device)
        sigmas = sigma if sigma.ndim == 0 else sigma.repeat(count)
        prediction = self.predict(torch.cat([x] * count), sigmas, condition)
        self.trajectory.evaluations += count - 1
        v = [None] * count if prediction.variance is None else prediction.variance.chunk(count)
        return [Prediction(*each) for each in zip(prediction.clean.chunk(count), [None] * count, v, strict=True)]


def stages_of(network: Network) -> list[str]:
    """Return the names of the stages of `network`, none of one that is compiled as a whole."""
    patterns = () if network._compiled_call_impl is not None else network.stages
    return names_of_layers(network, patterns, type(network).__name__)


def changed_stages(network: Network, replaced: Sequence[str]) -> list[int]:
    """Return the indices of the stages with modules of the names `replaced`; none if one of these is in no stage."""
    stages = stages_of(network)
    found = [next((k for k, stage in enumerate(stages) if f"{name}.".startswith(f"{stage}.")), -1) for name in replaced]
    return [] if -1 in found else sorted(set(found))


class _Stage(ModuleWrapper):
    """A stage of the model for the rows of all branches of a joint call.

    `changed` holds the stages of those copies in which it is another one, by number; in the copies `later` everything
    so far is as in the model.
    """

    def __init__(self, inner: nn.Module, joint: JointModel, changed: Mapping[int, nn.Module], later: set[int]) -> None:
        super().__init__(inner)
        self.joint, self.changed, self.later = joint, changed, later

    def forward(self, *arguments: Any, **named: Any) -> Any:
        B, branches = self.joint.samples, self.joint.branches
        calls: list[tuple[nn.Module, int]] = []
        for branch in branches:
            module = self.inner if branch is None else self.changed.get(branch, self.inner)
            if branch in self.later:  # these come last
                continue
            if calls and self.joint.together and calls[-1][0] is module:
                calls[-1] = module, calls[-1][1] + B
            else:
                calls.append((module, B))
        results: list[Any] = []
        start, total = 0, B * len(branches)
        for module, count in calls:
            cut = partial(_cut, total=total, rows=slice(start, start + count))
            results.append(module(*cut(arguments), **cut(named)))
            start += count
        same = (total - start) // B
        return _joined(results + [_cut(results[0], total=calls[0][1], rows=slice(B))] * same)


def _cut(value: Any, *, total: int, rows: slice) -> Any:
    """Return `rows` of the tensors in `value` that have `total` rows; others are the same for all samples."""
    if isinstance(value, tuple | list):
        return tuple(_cut(each, total=total, rows=rows) for each in value)
    if isinstance(value, dict):
        return {n: each if n in _WITHOUT_ROWS else _cut(each, total=total, rows=rows) for n, each in value.items()}
    return value[rows] if isinstance(value, Tensor) and value.shape[:1] == (total,) else value


def _joined(results: Sequence[Any]) -> Any:
    """Return the rows of all `results` of a stage, which are tensors or (nested) tuples."""
    if isinstance(results[0], tuple | list):
        return tuple(map(_joined, zip(*results, strict=True)))
    return torch.cat(list(results)) if isinstance(results[0], Tensor) and len(results) > 1 else results[0]
