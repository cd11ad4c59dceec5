"""The base of guidances: denoisers made of denoisers, whose references to models are replaced when sampling begins."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Models, Trajectory
from lightning_guide.module_tree import exchanged
from lightning_guide.seeds import SampleSeeds

__all__ = ["Guidance"]


class Guidance(Denoiser):
    """Base of guidances: denoisers made of denoisers. Their shapes are those of `positive`."""

    positive: Denoiser

    @property
    def data_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of one x."""
        return self.positive.data_shape

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of labels."""
        return self.positive.num_classes

    @property
    def token_channels(self) -> int:  # type: ignore[override]
        """C of embeddings."""
        return self.positive.token_channels

    @property
    def sigma_data(self) -> float:  # type: ignore[override]
        """Standard deviation of the data."""
        return self.positive.sigma_data

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """The guided D (B, *) at one common `sigma` (), as the first step of a fresh trajectory.

        Raises:
            ValueError: if `sigma` holds different levels, since an interval is decided for all samples at once.
        """
        if sigma.numel() > 1 and bool((sigma != sigma.reshape(-1)[0]).any()):
            raise ValueError(f"{type(self).__name__} guides at one noise level at a time, got {sigma.numel()} of them")
        level = sigma.reshape(-1)[0]
        trajectory = Trajectory(x=x, seeds=SampleSeeds(0, range(len(x))), sigma=float(level))
        return self.start(trajectory)(x, level, condition).clean

    def resolve(self, models: Models) -> Denoiser:
        """A copy with every reference replaced by its model, all the way down."""
        resolved = copy.copy(self)
        resolved._modules = {
            name: None if child is None else exchanged(child, lambda part: _resolved(part, models))
            for name, child in self._modules.items()
        }
        return resolved


def _resolved(module: nn.Module, models: Models) -> nn.Module | None:
    """The resolution of a denoiser; None for any other module."""
    return module.resolve(models) if isinstance(module, Denoiser) else None
