"""Base of objectives f(x), to be maximized, with value, gradient and curvature; conversions from and to energies."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lightning_guide.objectives.energy import Energy
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["NegativeEnergy", "NegativeReward", "Objective"]


class Objective(HasRecipe, nn.Module, ABC):
    """Base of objectives f(x) (B,) of denoiser inputs x (B, *), differentiable in x, independent between samples."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return f (B,) of `x` (B, *); implemented by subclasses."""

    def value(self, x: Tensor) -> Tensor:
        """Return f (B,) of `x` (B, *), checked.

        Raises:
            ValueError: if it is not one finite number for each sample.
        """
        value = self(x)
        name = type(self).__name__
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(
                f"the objective {name} returned {what} for {len(x)} samples; expected one number each, ({len(x)},)"
            )
        bad = ~value.detach().isfinite()
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            raise ValueError(
                f"the objective {name} is {float(value[first])} for {int(bad.sum())} of {len(x)} samples, first for "
                f"number {first}; expected finite numbers"
            )
        return value

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return f (B,) and grad f (B, *) of `x` (B, *), by one backward pass.

        Raises:
            ValueError: as `value`, or if f does not depend on x differentiably, or the gradient is not finite.
        """
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            value = self.value(leaf)
            if not value.requires_grad:
                raise ValueError(
                    f"the objective {type(self).__name__} has no gradient: its result does not depend on x"
                )
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        if not bool(gradient.isfinite().all()):
            raise ValueError(f"the gradient of the objective {type(self).__name__} is not finite for some samples")
        return value.detach(), gradient

    def curvature(self, x: Tensor, direction: Tensor) -> Tensor:
        """Return H v (1, *), the Hessian of f at one point `x` (1, *) times `direction` v (1, *); 0 if f is linear."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.value(leaf).sum(), leaf, create_graph=True)
            if not gradient.requires_grad:
                return torch.zeros_like(x)
            (product,) = torch.autograd.grad(gradient, leaf, direction, allow_unused=True)
        return torch.zeros_like(x) if product is None else product


def check_shape(objective: Objective, expected: tuple[int, ...], x: Tensor) -> None:
    """Raise ValueError if samples `x` (B, *) do not have the shape `expected` by the parameters of `objective`."""
    if tuple(x.shape[1:]) != expected:
        raise ValueError(
            f"the objective {type(objective).__name__} takes x of shape {expected}, the samples have shape "
            f"{tuple(x.shape[1:])}"
        )


class NegativeReward(Energy):
    """loss = -weight f(x): the distribution of the model tilted by exp(weight f)."""

    def __init__(self, reward: Objective, *, weight: float = 1.0) -> None:
        """`reward` f, an objective of gradient guidance; `weight` is the inverse of a temperature."""
        super().__init__()
        self.reward, self.weight = reward, weight

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The loss (B,) of `x` (B, *), whatever the condition; values that are not finite are skipped by the caller."""
        value: Tensor = self.reward(x)
        return -self.weight * value


class NegativeEnergy(Objective):
    """f = -loss(x), without a condition."""

    def __init__(self, energy: Energy) -> None:
        """`energy` of training-free guidance, one that reads neither condition nor trajectory.

        Raises:
            ValueError: if it takes its label from the condition.
        """
        super().__init__()
        if energy.num_classes:
            reader = type(energy).__name__
            raise ValueError(f"an objective has no labels, but {reader} reads them: name one (label: 3)")
        self.energy = energy

    def forward(self, x: Tensor) -> Tensor:
        """f (B,) of `x` (B, *).

        Raises:
            ValueError: if the loss needs a trajectory, as that of a `Measurement`.
        """
        return -self.energy(x)
