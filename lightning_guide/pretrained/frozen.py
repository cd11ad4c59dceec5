"""Base of objects with one pretrained network, loaded at first use and frozen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_guide.utils.needs import attempt

__all__ = ["FrozenNetwork"]


class FrozenNetwork(ABC):
    """Base of objects with one pretrained network, loaded at first use, in eval mode and without gradients.

    The network is not a submodule: no state dict, checkpoint, optimizer or recipe contains its weights, before or
    after they are loaded. It follows the device of its input.
    """

    _held: tuple[Any, ...] = ()  # a tuple, which nn.Module does not register

    @abstractmethod
    def _load(self) -> nn.Module:
        """Return the network with its weights, on the CPU."""

    def missing(self) -> Iterator[str]:
        """Yield why the network cannot be loaded; loads it, unless it is there."""
        if error := attempt(self.network):
            yield error

    def network(self, like: Tensor | torch.device | None = None) -> Any:
        """Return the network, moved to the device of `like`; None leaves it where it is.

        Raises:
            ValueError: if it cannot be loaded.
        """
        if not self._held:
            with torch.random.fork_rng(devices=[]):
                self._held = (self._load().eval().requires_grad_(False),)
        if like is not None:
            # waits for each weight, where it is first used on a device
            self._held[0].to(like.device if isinstance(like, Tensor) else like)
        return self._held[0]
