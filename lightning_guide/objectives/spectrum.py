"""Singular values of linear measurements: A = U S V^T, and y = A x + noise n in the coordinates of both sides.

In z = V^T x and U^T y a measurement is s_i z_i + noise n_i: numbers that do not depend on each other. Coordinates with
s_i = 0, and what V leaves out, are not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_guide.utils.devices import to_device

__all__ = ["LinearProblem", "Spectrum"]

Factors = tuple[Tensor | None, Tensor | None]
"""Matrices that act on the rows and the columns of the last two axes; None is the identity."""

_SMALLEST = 1e-6
"""Singular values below this fraction of the largest count as 0: in float32 they would only amplify errors."""


@dataclass(frozen=True)
class Spectrum:
    """Thin singular value decomposition A = U S V^T of a linear operator on x (B, *shape).

    Attributes:
        values: s >= 0, of a shape (*k) that broadcasts over the coordinates (B, *k).
        left: factors of U^T.
        right: factors of V^T.
        shape: that of one x.
        flat: x and y are columns of numbers for the factors, not matrices.
    """

    values: Tensor
    left: Factors
    right: Factors
    shape: tuple[int, ...]
    flat: bool = False

    @classmethod
    def of_matrix(cls, A: Tensor, shape: tuple[int, ...]) -> Spectrum:
        """Return the spectrum of a matrix `A` (m, d) that acts on flattened x."""
        U, s, Vh = torch.linalg.svd(A, full_matrices=False)
        return cls(_cut(s)[:, None], (U.mT, None), (Vh, None), shape, flat=True)

    @classmethod
    def of_sides(cls, rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Spectrum:
        """Return the spectrum of x -> `rows` x `columns`^T, for each channel of images of `shape` (C, H, W)."""
        (Ur, sr, Vr), (Uc, sc, Vc) = (torch.linalg.svd(each, full_matrices=False) for each in (rows, columns))
        return cls(_cut(sr[:, None] * sc), (Ur.mT, Uc.mT), (Vr, Vc), shape)

    @classmethod
    def of_diagonal(cls, values: Tensor, shape: tuple[int, ...]) -> Spectrum:
        """Return the spectrum of x -> `values` x, all at least 0."""
        return cls(_cut(values), (None, None), (None, None), shape)

    def like(self, x: Tensor) -> Spectrum:
        """Return the same, with the device and the type of `x`."""

        def move(factors: Factors) -> Factors:
            rows, columns = (None if each is None else to_device(each.to(x.dtype), x.device) for each in factors)
            return rows, columns

        values = to_device(self.values.to(x.dtype), x.device)
        return replace(self, values=values, left=move(self.left), right=move(self.right))

    def coordinates(self, x: Tensor) -> Tensor:
        """Return z = V^T x (B, *k) of `x` (B, *shape)."""
        return self._product(x, self.right)

    def measured(self, y: Tensor) -> Tensor:
        """Return U^T y (B, *k) of measurements `y` (B, ...)."""
        return self._product(y, self.left)

    def image(self, z: Tensor) -> Tensor:
        """Return V z (B, *shape) of coordinates `z` (B, *k)."""
        rows, columns = (None if each is None else each.mT for each in self.right)
        return _apply(z, (rows, columns)).reshape(len(z), *self.shape)

    def _product(self, x: Tensor, factors: Factors) -> Tensor:
        return _apply(x.flatten(1)[..., None] if self.flat else x, factors)


def _apply(x: Tensor, factors: Factors) -> Tensor:
    rows, columns = factors
    x = x if rows is None else rows @ x
    return x if columns is None else x @ columns.mT


def _cut(values: Tensor) -> Tensor:
    return values.where(values > _SMALLEST * values.max(), 0)


@dataclass(frozen=True)
class LinearProblem:
    """Measurements y = A x + noise n of the samples of a trajectory, and the linear algebra that methods need.

    Attributes:
        operator: A, x (B, *) -> (B, ...).
        spectrum: of A.
        observed: y (B, ...).
        noise: standard deviation of the noise, sigma_y.
    """

    operator: Callable[[Tensor], Tensor]
    spectrum: Spectrum
    observed: Tensor
    noise: float

    @property
    def values(self) -> Tensor:
        """Singular values s."""
        return self.spectrum.values

    @property
    def inverse(self) -> Tensor:
        """1 / s, and 0 where s = 0: the pseudoinverse A^+ = V (1 / s) U^T."""
        return (1 / self.values).where(self.values > 0, 0)

    def residual(self, clean: Tensor) -> Tensor:
        """Return U^T (y - A x) (B, *k) of `clean` x (B, *)."""
        return self.spectrum.measured(self.observed) - self.values * self.spectrum.coordinates(clean)

    def solve(self, residual: Tensor, variance: Tensor) -> Tensor:
        """Return (variance A A^T + sigma_y^2 I)^-1 r in coordinates (B, *k), 0 where s = 0; `variance` () > 0."""
        return (residual / (variance * self.values**2 + self.noise**2)).where(self.values > 0, 0)

    def adjoint(self, coordinates: Tensor) -> Tensor:
        """Return A^T r (B, *) for U^T r (B, *k)."""
        return self.spectrum.image(self.values * coordinates)
