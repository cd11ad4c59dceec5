"""Simulated data of the gradient-guidance paper: a Gaussian on a linear subspace, and the unit sphere."""

from __future__ import annotations

from datamodules.points import Points
from lightning_guide.subspace import Sphere, SubspaceGaussian

__all__ = ["SubspacePoints", "UnitBall"]


class SubspacePoints(Points):
    """x = A u with A (D, d) orthonormal and u ~ N(0, I_d); Guo et al. 2024, https://arxiv.org/abs/2404.14743."""

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
        """`dimension` D, `subspace` d; `subspace_seed` chooses A, `seed` the draws of training.

        Raises:
            ValueError: unless 1 <= d <= D, or as `Points`.
        """
        distribution = SubspaceGaussian(dimension, subspace, seed=subspace_seed)
        sizes = {"heldout_size": heldout_size, "training_size": training_size}
        super().__init__(distribution, batch_size=batch_size, seed=seed, **sizes)
        self.subspace = subspace


class UnitBall(Points):
    """x = z / |z| with z ~ N(0, I_D): the paper's data whose support is no subspace."""

    def __init__(
        self,
        *,
        dimension: int = 64,
        batch_size: int = 256,
        heldout_size: int = 4096,
        training_size: int = 65536,
        seed: int = 0,
    ) -> None:
        """`dimension` D; `seed` of the draws of training.

        Raises:
            ValueError: if D is below 1, or as `Points`.
        """
        sizes = {"heldout_size": heldout_size, "training_size": training_size}
        super().__init__(Sphere(dimension), batch_size=batch_size, seed=seed, **sizes)
