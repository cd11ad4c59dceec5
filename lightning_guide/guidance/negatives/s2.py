"""Stochastic self-guidance (S^2-Guidance): the negative skips random blocks, drawn anew in each step.

Chen et al. 2025, "S^2-Guidance: Stochastic Self Guidance for Training-Free Enhancement of Diffusion Models",
https://arxiv.org/abs/2508.12880.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.combinations.base import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.negatives.skip_layer import check_skippable, record_shapes
from lightning_guide.guidance.perturbation import BlockWrapper, Perturbation, Perturbed
from lightning_guide.guidance.schedules import StepWindow, WeightSchedule
from lightning_guide.network import Network
from lightning_guide.utils.modules import ModuleReplacement, names_of_layers

__all__ = ["StochasticSelfGuidance", "StochasticSkip"]


class _Draw:
    """The blocks skipped in the current step: `count` of `names`, the same for all samples and both stages."""

    def __init__(self, names: Sequence[str], count: int, trajectory: Trajectory) -> None:
        self.names, self.count, self.trajectory = names, count, trajectory
        self.step: int | None = None
        self.skipped: set[str] = set()

    def __call__(self) -> set[str]:
        step = self.trajectory.step
        if self.step != step:
            # one stream for each step, so that the draw does not depend on which steps were guided before
            generator = self.trajectory.seeds.shared(f"skipped blocks of step {step}")
            chosen = torch.randperm(len(self.names), generator=generator)[: self.count]
            self.step, self.skipped = step, {self.names[i] for i in chosen.tolist()}
        return self.skipped


class _SometimesSkipped(BlockWrapper):
    """A block, or its input in the steps that skip it."""

    def __init__(self, inner: nn.Module, name: str, draw: _Draw) -> None:
        super().__init__(inner)
        self.name, self.draw = name, draw

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.skip(arguments, named) if self.name in self.draw() else self.inner(*arguments, **named)


class StochasticSkip(Perturbation):
    """Each step skips a new random share of the blocks, one draw for all samples of a seed.

    Skipped are max(1, round(share n)) of the n candidate blocks; share = 0 changes nothing. By default the candidates
    are all blocks of the class of the network's default block that keep the shape, without the first.
    """

    kind = "block"

    def __init__(
        self, share: float = 0.1, *, layers: Sequence[str] | None = None, protected: Sequence[str] | None = None
    ) -> None:
        """`share` of the blocks, in [0, 1]; `layers`: candidate blocks, except those `protected`.

        `protected` holds names or patterns as well, and covers all submodules; None protects the first of `layers`.

        Raises:
            ValueError: if `share` is outside.
        """
        super().__init__(layers=layers)
        if not 0 <= share <= 1:
            raise ValueError(f"StochasticSkip needs a share of the blocks between 0 (off) and 1, got {share}")
        self.share, self.protected = share, protected

    def chosen(self, network: Network) -> list[str]:
        """Return the names of the candidate blocks of `network`.

        Raises:
            ValueError: if no block is left, a name matches nothing, or a named block does not keep the shape.
        """
        names = super().chosen(network)
        if self.layers is None:
            kinds = tuple({type(network.get_submodule(name)) for name in names})
            blocks = [name for name, module in network.named_modules() if isinstance(module, kinds)]
            names = [name for name, (inside, outside) in record_shapes(network, blocks).items() if inside == outside]
        else:
            check_skippable(network, names, type(self).__name__)
        who = type(self).__name__
        protected = names[:1] if self.protected is None else names_of_layers(network, self.protected, who)
        free = [name for name in names if not f"{name}.".startswith(tuple(f"{other}." for other in protected))]
        if not free:
            raise ValueError(
                f"{who} has no block to skip in {type(network).__name__}: {', '.join(names) or 'none'} keep the shape, "
                f"protected are {', '.join(protected) or 'none'}"
            )
        return free

    def start(self, trajectory: Trajectory, names: Sequence[str]) -> Mapping[str, ModuleReplacement]:
        """Return blocks that are skipped by one common draw in each step."""
        if self.share == 0:
            return dict.fromkeys(names, lambda module: module)
        draw = _Draw(names, max(1, round(self.share * len(names))), trajectory)
        return {name: partial(_SometimesSkipped, name=name, draw=draw) for name in names}


class StochasticSelfGuidance(Guided):
    """S^2-Guidance, D_skip + w (D - D_skip), D_skip with `StochasticSkip`. Two evaluations in the window, one outside.

    The paper's omega is w - 1. The paper adds a classifier-free term: `Guided` with two negatives.
    """

    def __init__(
        self,
        weight: float | WeightSchedule = 1.25,
        *,
        share: float = 0.1,
        layers: Sequence[str] | None = None,
        protected: Sequence[str] | None = None,
        window: tuple[float, float] = (0.1, 0.9),
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`share`, `layers` and `protected` as in `StochasticSkip`; `window` of steps, the paper's central 80 %."""
        negative = Perturbed([StochasticSkip(share, layers=layers, protected=protected)], positive=positive)
        super().__init__([negative], [weight], positive=positive, combination=StepWindow(*window, combination))
