"""References to models: what a config can say before any model exists.

`Main` is the model under evaluation, `Snapshot` a model out of a run's snapshots. `Denoiser.resolve` replaces them by
real models when an evaluation begins.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_guide.denoiser import Denoiser, Models

__all__ = ["Main", "Reference", "Snapshot"]


class Reference(Denoiser):
    """A name for a denoiser that is not there yet."""

    def __getattr__(self, name: str) -> Any:
        """What only the model knows.

        Raises:
            ValueError: for its data_shape, num_classes and sigma_data.
        """
        if name in ("data_shape", "num_classes", "sigma_data"):
            raise ValueError(f"{type(self).__name__} is a reference without {name}; call resolve(models) first")
        return super().__getattr__(name)

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Never possible: a reference has to be resolved first.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{type(self).__name__} is a reference; call resolve(models) before sampling from it")


class Main(Reference):
    """The model under evaluation."""

    def resolve(self, models: Models) -> Denoiser:
        """That model."""
        return models.main


class Snapshot(Reference):
    """The average with `sigma_rel` after `images` of training, out of `run` (None: the run under evaluation)."""

    def __init__(self, images: int | float | str = "1/1", sigma_rel: float = 0.10, run: str | None = None) -> None:
        """`images`: a count, or a fraction of the planned run such as "1/16"; `sigma_rel`: length of the average."""
        super().__init__()
        self.images, self.sigma_rel, self.run = images, sigma_rel, run

    def resolve(self, models: Models) -> Denoiser:
        """The model, read or rebuilt from the snapshots."""
        return models.snapshot(run=self.run, images=self.images, sigma_rel=self.sigma_rel)
