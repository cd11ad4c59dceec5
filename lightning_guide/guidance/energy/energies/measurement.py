"""Inverse problems: samples that agree with a noisy linear measurement of a hidden picture."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.energy.energies.energy import Energy, Loss
from lightning_guide.guidance.energy.energies.operators import Operator
from lightning_guide.guidance.energy.energies.stored import stored_for

__all__ = ["Measurement"]


class Measurement(Energy):
    """|y_i - A x|, not squared, with y_i = A t_i + noise n: sample i hides the example t_i, i modulo their number.

    The noise n of sample i depends on (seed, i) alone, as everything about it. With `squared` the loss is
    |y_i - A x|^2 / (2 noise^2), the negative log-likelihood.
    """

    def __init__(
        self,
        operator: Operator,
        truth: str | Sequence[float] | Tensor,
        *,
        noise: float = 0.05,
        squared: bool = False,
    ) -> None:
        """`truth`: hidden clean examples (N, *) or a .npy file of them; `noise`: standard deviation of n.

        Raises:
            ValueError: if `noise` is negative, or zero where it divides.
        """
        super().__init__()
        if noise < 0 or (squared and noise == 0):
            raise ValueError(f"Measurement needs noise >= 0, and > 0 for a squared loss, got {noise}")
        self.operator, self.truth, self.noise, self.squared = operator, truth, noise, squared

    def observe(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """The hidden examples t (B, *) of the samples of `trajectory`, and their measurements y (B, ...)."""
        hidden = stored_for(self.truth, trajectory)
        exact = self.operator(hidden)
        n = trajectory.seeds.normal("measurement", exact.shape[1:], exact.device).to(exact)
        return hidden, exact + self.noise * n

    def start(self, trajectory: Trajectory) -> Loss:
        """The loss against the measurements of these samples."""
        y = self.observe(trajectory)[1]
        return lambda x, condition, number: self._loss(x, y[number])

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Only a trajectory knows which samples these are.

        Raises:
            ValueError: always.
        """
        raise ValueError("Measurement needs a trajectory, which knows the hidden examples; call start(trajectory)")

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        rest = (y - self.operator(x)).flatten(1)
        return rest.square().sum(1) / (2 * self.noise**2) if self.squared else rest.norm(dim=1)
