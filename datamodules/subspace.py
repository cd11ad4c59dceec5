"""Simulated data of the gradient-guidance paper: a Gaussian on a linear subspace."""

from __future__ import annotations

from datamodules.points import Points
from lightning_guide.toys.subspace import SubspaceGaussian

__all__ = ["SubspacePoints"]


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
