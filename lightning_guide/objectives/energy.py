"""Base classes of energies, losses to be minimized, and of objectives, rewards to be maximized, in one hierarchy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Trajectory
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Energy", "Loss", "Objective", "check_objective", "check_shape"]


Loss = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""(clean points (R, *), their conditions (R,) or None, the numbers (R,) of their samples in the batch) -> loss (R,)."""


class Energy(HasRecipe, nn.Module, ABC):
    """Base of energies: losses of clean points, evaluated per sample, with likelihood exp(-loss).

    Training-free guidance minimizes the loss along a trajectory. Gradient guidance, look-ahead and fine-tuning maximize
    the objective f(x) = -loss(x), which every energy is that depends neither on a condition nor on a trajectory.

    Examples:
        >>> from lightning_guide.objectives import SquaredDistance
        >>> energy = SquaredDistance([3.0, 4.0], temperature=5.0)
        >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> energy(x)
        tensor([0.5000, 0.0000])
        >>> value, gradient = energy.value_and_gradient(x)
        >>> value[0], gradient[0]
        (tensor(-0.5000), tensor([0.1200, 0.1600]))

    Attributes:
        num_classes: number of labels of the condition, 0 if the energy does not depend on it.
    """

    num_classes: int = 0

    @abstractmethod
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the loss (B,) of clean points `x` (B, *) with labels `condition` (B,), differentiable in x."""

    def start(self, trajectory: Trajectory) -> Loss:
        """Return the loss along `trajectory`, for energies with data per sample; by default `forward`."""
        return lambda x, condition, number: self(x, condition)

    def value(self, x: Tensor) -> Tensor:
        """Return the objective f = -loss (B,) of `x` (B, *)."""
        return -self(x)

    def shaped_value(self, x: Tensor) -> Tensor:
        """Return f (B,) of `x` (B, *).

        Raises:
            ValueError: if it is not one number for each sample.
        """
        value, name = self.value(x), type(self).__name__
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(
                f"the objective {name} returned {what} for {len(x)} samples; expected one number each, ({len(x)},)"
            )
        return value

    def checked_value(self, x: Tensor) -> Tensor:
        """Return f (B,) of `x` (B, *), checked.

        Raises:
            ValueError: if it is not one finite number for each sample.
        """
        value, name = self.shaped_value(x), type(self).__name__
        bad = ~value.detach().isfinite()
        # waits once a batch of a round, not in a sampler: the error names what was found
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            found = float(value.detach()[first])
            raise ValueError(
                f"the objective {name} is {found} for {int(bad.sum())} of {len(x)} samples, first for number {first}; "
                "expected finite numbers"
            )
        return value

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return f (B,) and grad f (B, *) of `x` (B, *), by one backward pass.

        Raises:
            ValueError: as `checked_value`, or if f does not depend on x differentiably, or the gradient is not finite.
        """
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            value = self.checked_value(leaf)
            if not value.requires_grad:
                raise ValueError(
                    f"the objective {type(self).__name__} has no gradient: its result does not depend on x"
                )
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        if not bool(gradient.isfinite().all()):  # waits, as for the value
            raise ValueError(f"the gradient of the objective {type(self).__name__} is not finite for some samples")
        return value.detach(), gradient

    def curvature(self, x: Tensor, direction: Tensor) -> Tensor:
        """Return H v (1, *), the Hessian of f at one point `x` (1, *) times `direction` v (1, *); 0 if f is linear."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.checked_value(leaf).sum(), leaf, create_graph=True)
            if not gradient.requires_grad:
                return torch.zeros_like(x)
            (product,) = torch.autograd.grad(gradient, leaf, direction, allow_unused=True)
        return torch.zeros_like(x) if product is None else product


class Objective(Energy):
    """Base of energies that are written as an objective f(x) to be maximized, with loss -f(x).

    Examples:
        >>> from lightning_guide.objectives import Linear
        >>> objective = Linear([1.0, -1.0])
        >>> x = torch.tensor([[2.0, 0.5]])
        >>> objective.value(x), objective(x)
        (tensor([1.5000]), tensor([-1.5000]))
    """

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """Return f (B,) of denoiser inputs `x` (B, *), differentiable in x and independent between samples."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the loss -f (B,) of `x` (B, *), for any condition."""
        return -self.value(x)


def check_objective(energy: Energy) -> None:
    """Raise ValueError if `energy` depends on labels, which an objective does not have."""
    if energy.num_classes:
        name = type(energy).__name__
        raise ValueError(f"an objective has no labels, but {name} reads them: name one (label: 3)")


def check_shape(objective: Objective, expected: tuple[int, ...], x: Tensor) -> None:
    """Raise ValueError if samples `x` (B, *) do not have the shape `expected` by the parameters of `objective`."""
    if tuple(x.shape[1:]) != expected:
        raise ValueError(
            f"the objective {type(objective).__name__} takes x of shape {expected}, the samples have shape "
            f"{tuple(x.shape[1:])}"
        )
