"""Skip-layer guidance: some blocks of the negative are replaced by the identity.

The reference sampler of Stable Diffusion 3.5 (blocks 7, 8 and 9 of 24, in the steps from 1 % to 20 %); for video Hyung
et al. 2024, "Spatiotemporal Skip Guidance", https://arxiv.org/abs/2411.18664. Only blocks that keep the shape of their
input can be skipped; they are found by running the network once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.combinations.base import Combination
from lightning_guide.guidance.guided import Guided
from lightning_guide.guidance.perturbation import BlockWrapper, Perturbed, Replacement
from lightning_guide.guidance.schedules import StepWindow, WeightSchedule
from lightning_guide.network import Network
from lightning_guide.utils.modules import rebuild_with

__all__ = ["Shapes", "SkipBlocks", "SkipLayerGuidance", "check_skippable", "record_shapes"]


Shapes = tuple[tuple[int, ...] | None, ...]
"""Shape of each stream of a block; None for a stream that it does not return."""


class _ShapeRecorder(BlockWrapper):
    """A block that records the shapes of its input and output."""

    def __init__(self, inner: nn.Module, recorded: dict[str, tuple[Shapes, Shapes]], name: str) -> None:
        super().__init__(inner)
        self.recorded, self.name = recorded, name

    def forward(self, *arguments: Any, **named: Any) -> Any:
        x, y = self.passed(arguments, named), self.inner(*arguments, **named)
        self.recorded[self.name] = (_shapes(x), _shapes(y if isinstance(y, tuple) else (y,)))
        return y


def _shapes(streams: Sequence[Tensor | None]) -> Shapes:
    return tuple(None if each is None else tuple(each.shape) for each in streams)


@torch.no_grad()
def record_shapes(network: Network, names: Sequence[str]) -> dict[str, tuple[Shapes, Shapes]]:
    """Return the shapes of what comes in and what goes out of each of the submodules `names`, for one sample.

    This costs one evaluation of a single sample, in a clone of the network.
    """
    recorded: dict[str, tuple[Shapes, Shapes]] = {}
    replacements = [(name, lambda block, name=name: _ShapeRecorder(block, recorded, name)) for name in names]
    tree = rebuild_with(network, replacements).eval()
    like = next(network.parameters())
    label = torch.zeros(1, dtype=torch.long, device=like.device) if network.num_classes else None
    tree(like.new_zeros(1, *network.data_shape), like.new_zeros(1), tree.embed(label, 1))
    return recorded


def check_skippable(network: Network, names: Sequence[str], who: str) -> None:
    """Refuse submodules `names` that change the shape of their input, or are never called, naming the first."""
    recorded = record_shapes(network, names) if names else {}
    if idle := [name for name in names if name not in recorded]:
        raise ValueError(f"{who} cannot skip {idle[0]}: {type(network).__name__} never calls it, but parts of it")
    for name, (inside, outside) in recorded.items():
        if inside != outside:
            before, after = (" and ".join(map(str, shapes)) for shapes in (inside, outside))
            raise ValueError(f"{who} cannot skip {name}: it turns {before} into {after}, which needs the block")


class _Skipped(BlockWrapper):
    """A skipped block: its input."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.skip(arguments, named)


class SkipBlocks(Replacement):
    """block(x, ...) = x for the chosen blocks; an empty list of layers changes nothing."""

    kind = "block"
    static = True

    def chosen(self, network: Network) -> list[str]:
        """Return the names of the blocks of `network` that are skipped.

        Raises:
            ValueError: if a block changes the shape of its input.
        """
        names = super().chosen(network)
        check_skippable(network, names, type(self).__name__)
        return names

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        """Return the identity."""
        return _Skipped(module)


class SkipLayerGuidance(Guided):
    """Skip-layer guidance, D_skip + w (D - D_skip). Two evaluations in the window, one outside.

    D_skip lacks the chosen blocks. Stable Diffusion 3.5 adds 2.5 times the difference, w = 3.5, in the window
    (0.01, 0.2).
    """

    def __init__(
        self,
        weight: float | WeightSchedule = 2.0,
        *,
        layers: Sequence[str] | None = None,
        window: tuple[float, float] = (0.0, 1.0),
        positive: Denoiser | None = None,
        combination: Combination | None = None,
    ) -> None:
        """`layers`: blocks that keep the shape; `window` of steps, see `StepWindow`."""
        negative = Perturbed([SkipBlocks(layers=layers)], positive=positive)
        super().__init__([negative], [weight], positive=positive, combination=StepWindow(*window, combination))
