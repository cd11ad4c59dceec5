"""Updates of the clean estimate: the gradient that is taken, and the displacement by a step along it."""

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

__all__ = ["AtClean", "Displace", "InLatent", "ThroughDenoiser", "Update"]


Displace = Callable[[LocalLoss], Tensor]
"""local loss -> displacement of its clean estimate (B, *)."""


class Update(HasRecipe, ABC):
    """Base of the updates.

    Attributes:
        through_denoiser: the update differentiates the denoiser, at the cost of one vector-Jacobian product.
        rule: of the steps.
    """

    rule: StepRule
    through_denoiser: ClassVar[bool] = False

    @abstractmethod
    def start(self) -> Displace:
        """Return the update along one trajectory, with a fresh state."""


class ThroughDenoiser(Update):
    """delta = rule(gradient of loss(D(x)) by x), with one vector-Jacobian product for any number of copies.

    For the exact denoiser the gradient is Cov[x_0 | x] / sigma^2 times that of the loss at D: directions off the data
    are removed from it. The state of the rule lasts as long as the trajectory.
    """

    through_denoiser = True

    def __init__(self, rule: StepRule) -> None:
        """`rule` gets the gradient by x, in variance-exploding coordinates."""
        self.rule = rule

    def start(self) -> Displace:
        """Return one descent for the trajectory."""
        rule = self.rule.start()

        def displace(local_loss: LocalLoss) -> Tensor:
            loss, gradient = local_loss.at_clean
            return local_loss.step(rule, loss, local_loss.vjp(gradient))

        return displace


class AtClean(Update):
    """delta_0 = 0, then `iterations` times delta += rule(gradient of the loss at D + delta). No derivative of D.

    Each call is a separate descent, with a fresh state of the rule.
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
        """Return the update, which has no state."""
        return self._displace

    def _displace(self, local_loss: LocalLoss) -> Tensor:
        rule, clean, delta = self.rule.start(), local_loss.clean, torch.zeros_like(local_loss.clean)
        for _ in range(self.iterations):
            delta = delta + local_loss.step(rule, *local_loss.at(clean))
            clean = local_loss.clean + delta
        return delta


class InLatent(Update):
    """z = encode(D), then `iterations` times z += rule(gradient of loss(decode(z))), as in MPGD-Z.

    delta = decode(z') - decode(z), so that the reconstruction error of the autoencoder does not enter D.
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
        """Return the update, which has no state."""
        return self._displace

    def _displace(self, local_loss: LocalLoss) -> Tensor:
        rule, z = self.rule.start(), self.autoencoder.encode(local_loss.clean).detach()
        before = self.autoencoder.decode(z)
        for _ in range(self.iterations):
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                decoded = self.autoencoder.decode(leaf)
            loss, slope = local_loss.at(decoded.detach())
            (gradient,) = torch.autograd.grad(decoded, leaf, slope)
            z = z + local_loss.step(rule, loss, gradient)
        return self.autoencoder.decode(z).detach() - before.detach()
