"""Linear inverse problems y = A x + noise: the measurements of samples, as an energy and as a linear problem."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.objectives.energy import Energy, Loss
from lightning_guide.objectives.operators import Operator
from lightning_guide.objectives.reference import references_for
from lightning_guide.objectives.spectrum import LinearProblem, Spectrum

__all__ = ["Measurement"]


class Measurement(Energy):
    """Measurement energy |y_i - A x|, not squared, with y_i = A t_i + noise n for the hidden example t_i of sample i.

    Example i is taken modulo the number of examples. The noise n of sample i depends only on (seed, i). With `squared`
    the loss is |y_i - A x|^2 / (2 noise^2), the negative log-likelihood. In place of hidden examples the y_i themselves
    may be given as `observed`.
    """

    def __init__(
        self,
        operator: Operator,
        truth: str | Sequence[float] | Tensor | None = None,
        *,
        observed: str | Sequence[float] | Tensor | None = None,
        noise: float = 0.05,
        squared: bool = False,
    ) -> None:
        """Choose the measurement.

        Args:
            operator: A.
            truth: hidden clean examples t (N, *), or a .npy file of them.
            observed: measurements y (N, ...), or a .npy file of them, in place of `truth`.
            noise: standard deviation of n.
            squared: use the negative log-likelihood.

        Raises:
            ValueError: if `noise` is negative, or zero with `squared`, or not one of `truth` and `observed` is given.
        """
        super().__init__()
        if not 0 <= noise < math.inf or (squared and noise == 0):
            raise ValueError(f"Measurement needs a finite noise >= 0, and > 0 for a squared loss, got {noise}")
        if (truth is None) == (observed is None):
            raise ValueError(
                f"Measurement needs either truth, the hidden examples, or observed, their measurements; got "
                f"{'neither' if truth is None else 'both'}"
            )
        self.operator, self.truth, self.observed = operator, truth, observed
        self.noise, self.squared = noise, squared
        self._spectra: dict[tuple[int, ...], Spectrum] = {}  # by the shape of x, since a decomposition may take seconds

    def observe(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """Return the hidden examples t (B, *) of the samples of `trajectory`, and their measurements y (B, ...).

        Raises:
            ValueError: if there are no hidden examples, or their shape is not that of x.
        """
        if self.truth is None:
            raise ValueError("this Measurement has no hidden examples, only what was observed of them")
        hidden = references_for(self.truth, trajectory)
        exact = self.operator(hidden)
        n = trajectory.seeds.normal_of(self, "measurement", exact.shape[1:], exact.device).to(exact)
        return hidden, exact + self.noise * n

    def measurements(self, trajectory: Trajectory) -> Tensor:
        """Return the measurements y (B, ...) of the samples of `trajectory`.

        Raises:
            ValueError: as `observe`, or if the measurements that were observed do not have the shape of A x.
        """
        if self.observed is None:
            return self.observe(trajectory)[1]
        return references_for(self.observed, trajectory, self.operator(trajectory.x), "measurements")

    def problem(self, trajectory: Trajectory) -> LinearProblem:
        """Return the linear problem of the samples of `trajectory`.

        Raises:
            ValueError: as `measurements` and `Operator.spectrum`, or if the operator is not linear.
        """
        x, y = trajectory.x, self.measurements(trajectory)
        if (shape := tuple(x.shape[1:])) not in self._spectra:
            self._spectra[shape] = self._decomposed(shape)
        return LinearProblem(self.operator, self._spectra[shape].like(x), y, self.noise)

    def _decomposed(self, shape: tuple[int, ...]) -> Spectrum:
        """Return the spectrum of the operator for x of `shape`, if it is linear."""
        spectrum = self.operator.spectrum(shape)
        first, second = torch.randn(2, 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        parts, whole = self.operator(first) - 2 * self.operator(second), self.operator(first - 2 * second)
        if not torch.allclose(parts, whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max())):
            raise ValueError(
                f"posterior sampling needs a linear measurement, but {type(self.operator).__name__} of a difference "
                "is not the difference of its values; guide by its energy, as DPS does"
            )
        return spectrum

    def start(self, trajectory: Trajectory) -> Loss:
        """Return the loss for the measurements of the samples of `trajectory`."""
        y = self.measurements(trajectory)
        return lambda x, condition, number: self._loss(x, y[number])

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Raise, since the measurements depend on the sample indices of a trajectory.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "Measurement needs a trajectory with the indices of the hidden examples; call start(trajectory)"
        )

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        residual = (y - self.operator(x)).flatten(1)
        return residual.square().sum(1) / (2 * self.noise**2) if self.squared else residual.norm(dim=1)
