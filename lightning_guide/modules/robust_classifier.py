"""Training of a classifier against L2 attacks: the robust guide, and the judge, of the experiments on alignment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.data import Batch
from lightning_guide.modules.classifier import ClassifierModule
from lightning_guide.networks.classifier import Classifier

__all__ = ["RobustClassifierModule", "attacked"]


def attacked(network: nn.Module, x: Tensor, labels: Tensor, *, radius: float = 2.0, times: int = 3) -> Tensor:
    """x + delta with |delta| <= radius: projected ascent of the cross-entropy in `times` steps of radius / 2.

    Madry et al. 2018, https://arxiv.org/abs/1706.06083, in the L2 norm, from delta = 0; `x` (B, *), `labels` (B,).
    """
    delta = torch.zeros_like(x)
    for _ in range(times):
        with torch.enable_grad():
            delta.requires_grad_()
            (g,) = torch.autograd.grad(F.cross_entropy(network(x + delta), labels), delta)
        delta = delta.detach() + radius / 2 * F.normalize(g.flatten(1), dim=1).reshape(x.shape)
        delta = delta * (radius / delta.flatten(1).norm(dim=1).clamp(min=radius)).reshape(-1, *[1] * (x.ndim - 1))
    return x + delta


class RobustClassifierModule(ClassifierModule):
    """`ClassifierModule` on attacked pictures. Its held-out numbers are those of pictures that are left alone."""

    def __init__(self, network: Classifier, *, radius: float = 2.0, attacks: int = 3, **options: Any) -> None:
        """Configures training.

        Args:
            network: the classifier.
            radius: of the L2 ball around each picture, in units of encoded pictures.
            attacks: steps of the attack; each costs a forward and a backward pass.
            options: as for `ClassifierModule`.

        Raises:
            ValueError: unless `radius` > 0 and `attacks` >= 1, or as `ClassifierModule`.
        """
        super().__init__(network, **options)
        if not radius > 0 or attacks < 1:
            raise ValueError(f"RobustClassifierModule needs radius > 0 and attacks >= 1, got {radius} and {attacks}")
        self.radius, self.attacks = radius, attacks

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean cross-entropy () of the attacked batch."""
        x, labels = self._labelled(batch)
        x = attacked(self.network, x, labels, radius=self.radius, times=self.attacks)
        return super().loss(batch._replace(x=x), generator)
