"""Endless draws from a distribution that can be sampled exactly: `Points`, and `SubspacePoints`."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from datamodules.base import DiffusionData
from datamodules.examples import TensorExamples
from lightning_guide.data import Batch
from lightning_guide.distributions.subspace import SubspaceGaussian
from lightning_guide.seeds import mix

__all__ = ["Points", "SubspacePoints"]


class Points(DiffusionData):
    """Draws from a distribution, without labels and without encoding.

    Training is endless and never repeats: the batch at stream position p is drawn by a generator seeded by
    (seed, "train", p), where p counts images over all processes. The held-out set and the finite set of `training` and
    `reference` are drawn once and are the same for every seed, so that runs are comparable.
    """

    num_classes = 0

    def __init__(
        self,
        distribution: nn.Module,
        *,
        batch_size: int = 4096,
        heldout_size: int = 16384,
        training_size: int = 16384,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        """Draw from `distribution`, which has a method `sample(n, generator)` -> (x (n, *data_shape), anything).

        `training_size` draws represent the endless training data where a finite set is needed.

        Raises:
            ValueError: if `distribution` cannot be sampled or a size is below 1.
        """
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        if not callable(getattr(distribution, "sample", None)):
            raise ValueError(
                f"distribution is a {type(distribution).__name__}, which has no method sample(n, generator); expected "
                "for example lightning_guide.distributions.gaussian_mixture.GaussianMixture"
            )
        if min(heldout_size, training_size) < 1:
            raise ValueError(f"heldout_size is {heldout_size}, training_size {training_size}; expected at least 1")
        self.distribution = distribution
        self.heldout_size = heldout_size
        self.training_size = training_size
        self.data_shape = tuple(_draw(distribution, 1, 0).shape[1:])

    def encode(self, raw: Tensor) -> Tensor:
        """Return the points themselves, float32."""
        return raw.to(torch.float32)

    def decode(self, x: Tensor) -> Tensor:
        """Return the points themselves, float32."""
        return x.to(torch.float32)

    def training(self) -> TensorExamples:
        """Return `training_size` fixed draws."""
        return self._finite["training"]

    def heldout(self) -> TensorExamples:
        """Return `heldout_size` fixed draws, independent of those of `training`."""
        return self._finite["heldout"]

    def visits(self) -> Dataset[Batch]:
        """Return the endless stream of fresh draws."""
        return _Draws(self.distribution, self.seed)

    @cached_property
    def _finite(self) -> dict[str, TensorExamples]:
        """Training and held-out set."""
        sizes = {"training": self.training_size, "heldout": self.heldout_size}
        return {
            name: TensorExamples(_draw(self.distribution, size, mix("points", name))) for name, size in sizes.items()
        }


class _Draws(Dataset[Batch]):
    """Dataset whose item `range(...)` is a batch of fresh draws at these stream positions."""

    def __init__(self, distribution: nn.Module, seed: int) -> None:
        self.distribution = distribution
        self.seed = seed

    def __getitem__(self, positions: range) -> Batch:
        return Batch(_draw(self.distribution, len(positions), mix(self.seed, "train", positions.start)))


@torch.no_grad()
def _draw(distribution: Any, count: int, seed: int) -> Tensor:
    """Return `count` draws (count, *data_shape), float32, by a generator seeded by `seed`."""
    x, _ = distribution.sample(count, torch.Generator().manual_seed(seed))
    return x.to(torch.float32)


class SubspacePoints(Points):
    """Gaussian on a linear subspace: x = A u, A (D, d) orthonormal, u ~ N(0, I_d); https://arxiv.org/abs/2404.14743."""

    def __init__(
        self,
        *,
        dimension: int = 64,
        subspace: int = 16,
        subspace_seed: int = 0,
        batch_size: int = 256,
        heldout_size: int = 4096,
        training_size: int = 65536,
        seed: int = 0,
    ) -> None:
        """Set `dimension` D and `subspace` d; `subspace_seed` determines A, `seed` the training draws.

        Raises:
            ValueError: unless 1 <= d <= D, or as `Points`.
        """
        distribution = SubspaceGaussian(dimension, subspace, seed=subspace_seed)
        sizes = {"heldout_size": heldout_size, "training_size": training_size}
        super().__init__(distribution, batch_size=batch_size, seed=seed, **sizes)
        self.subspace = subspace
