"""Moves: which gradient is taken, and how a step along it displaces the clean estimate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from lightning_guide.guidance.training_free.local_loss import LocalLoss
from lightning_guide.guidance.training_free.step_rules import StepRule
from lightning_guide.pretrained.autoencoders import Autoencoder
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["AtClean", "Displace", "InLatent", "Update", "ThroughDenoiser"]


Displace = Callable[[LocalLoss], Tensor]


"""landscape -> displacement of its clean estimate (B, *)."""


class Update(HasRecipe, ABC):
    """Base of the moves.

    Attributes:
        through_denoiser: the move differentiates the denoiser, at the cost of one vector-Jacobian product.
    """

    through_denoiser: ClassVar[bool] = False

    @abstractmethod
    def start(self) -> Displace:
        """The move along one trajectory, with a fresh state."""


class ThroughDenoiser(Update):
    """delta = rule(gradient of loss(D(x)) by x): one vector-Jacobian product, whatever the number of copies.

    For the exact denoiser the gradient is Cov[x_0 | x] / sigma^2 times that of the loss at D: what the data forbid is
    taken out of it. The state of the rule lives as long as the trajectory.
    """

    through_denoiser = True

    def __init__(self, rule: StepRule) -> None:
        """`rule` gets the gradient by x, in variance-exploding coordinates."""
        self.rule = rule

    def start(self) -> Displace:
        """One descent for the trajectory."""
        rule = self.rule.start()

        def displace(landscape: LocalLoss) -> Tensor:
            loss, gradient = landscape.here
            return landscape.step(rule, loss, landscape.pull(gradient))

        return displace


class AtClean(Update):
    """delta_0 = 0, then `iterations` times delta += rule(gradient of the loss at D + delta). No derivative of D.

    Each call is a descent of its own, with a fresh state of the rule.
    """

    def __init__(self, rule: StepRule, iterations: int = 1) -> None:
        """`rule` gets the gradient by the clean estimate; `iterations` may be 0.

        Raises:
            ValueError: if `iterations` is negative.
        """
        if iterations < 0:
            raise ValueError(f"AtClean needs iterations >= 0, got {iterations}")
        self.rule, self.iterations = rule, iterations

    def start(self) -> Displace:
        """No state."""
        return self._displace

    def _displace(self, landscape: LocalLoss) -> Tensor:
        rule, clean, delta = self.rule.start(), landscape.clean, torch.zeros_like(landscape.clean)
        for _ in range(self.iterations):
            delta = delta + landscape.step(rule, *landscape.at(clean))
            clean = landscape.clean + delta
        return delta


class InLatent(Update):
    """z = encode(D), then `iterations` times z += rule(gradient of loss(decode(z))): MPGD-Z.

    delta = decode(z') - decode(z), so that what the autoencoder loses of D stays in it.
    """

    def __init__(self, autoencoder: Autoencoder, rule: StepRule, iterations: int = 1) -> None:
        """`rule` gets the gradient by z.

        Raises:
            ValueError: if `iterations` is less than 1.
        """
        if iterations < 1:
            raise ValueError(f"InLatent needs iterations >= 1, got {iterations}")
        self.autoencoder, self.rule, self.iterations = autoencoder, rule, iterations

    def start(self) -> Displace:
        """No state."""
        return self._displace

    def _displace(self, landscape: LocalLoss) -> Tensor:
        rule, z = self.rule.start(), self.autoencoder.encode(landscape.clean).detach()
        before = self.autoencoder.decode(z)
        for _ in range(self.iterations):
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                decoded = self.autoencoder.decode(leaf)
            loss, slope = landscape.at(decoded.detach())
            (gradient,) = torch.autograd.grad(decoded, leaf, slope)
            z = z + landscape.step(rule, loss, gradient)
        return self.autoencoder.decode(z).detach() - before.detach()
