"""Any network the user has: its class by name, its weights in a file, the size and scale of its pictures.

So face parsing or sketch networks, which no package here provides, guide and judge (`NetworkDistance`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from lightning_guide.foreign.weight_file import read_weights
from lightning_guide.guidance.energy.energies.networks import GuideNetwork
from lightning_guide.shown import shown

__all__ = ["NamedNetwork"]


class NamedNetwork(GuideNetwork):
    """network((picture - mean) / std) for pictures in [0, 1], resized to `size`; the first answer if there are several.

    `name` is imported: name only code that you trust. The weights are read as tensors alone.
    """

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        size: int | None = None,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        output: int = 0,
    ) -> None:
        """Names a network.

        Args:
            name: `package.module.Class` of an `nn.Module`, or of a function that makes one.
            weights: file of its state dict (safetensors, or torch without pickles); None leaves them random.
            options: keyword arguments of the class.
            size: side of its square pictures, bicubic and antialiased; None: as they are.
            mean: for each channel or for all; with the defaults the network sees [-1, 1].
            std: likewise.
            output: which one of several answers.
        """
        super().__init__()
        self.name, self.weights, self.options = name, weights, dict(options or {})
        self.size, self.mean, self.std, self.output = size, list(mean), list(std), output

    def _load(self) -> nn.Module:
        module, _, attribute = self.name.rpartition(".")
        try:
            make = getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"there is no network {self.name!r}: {error}; expected package.module.Class") from None
        network = make(**self.options)
        if not isinstance(network, nn.Module):
            raise ValueError(f"{self.name} makes a {type(network).__name__}; expected an nn.Module")
        if self.weights is not None:
            read_weights(network, self.weights)
        return network

    def _apply_to(self, x: Tensor, *others: Tensor) -> Tensor:
        size = None if self.size is None else (self.size, self.size)
        answer = self.network(x.device)(shown((x + 1) / 2, mean=self.mean, std=self.std, size=size))
        found: Tensor = answer if isinstance(answer, Tensor) else answer[self.output]
        return found
