"""Compressed copies of a model as its guider, which costs no training and no second checkpoint.

Autoguidance needs a guider with the errors of the model, only larger (Karras et al. 2024,
https://arxiv.org/abs/2406.02507). Coarse weights are such a change: rounded to few bits, symmetric and for each output
channel (Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342), or with the smallest set to zero (Han et al. 2015,
https://arxiv.org/abs/1506.02626). Neither has been published as a guider. On CIFAR-10
at 8x8 pruning gains less than a third of what an earlier snapshot does, rounding nothing (docs/results.md).
"""

from __future__ import annotations

import copy
from abc import abstractmethod

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Models
from lightning_guide.guidance.base import Main, Reference
from lightning_guide.utils.modules import require_weights

__all__ = ["PrunedWeights", "QuantizedWeights"]


class _Compressed(Reference):
    """Base of copies of `model` with changed weights: all parameters of two and more axes; float32 is computed."""

    def __init__(self, model: Denoiser | None = None) -> None:
        super().__init__()
        self.model = model if model is not None else Main()

    @torch.no_grad()
    def resolve(self, models: Models) -> Denoiser:
        """Return the copy, a second set of weights in memory; the model itself stays as it is.

        Raises:
            ValueError: if the model has no weights, or they are offloaded.
        """
        compressed = copy.deepcopy(self.model.resolve(models))
        weights = [parameter for parameter in compressed.parameters() if parameter.ndim > 1]
        if not weights:
            raise ValueError(f"{type(self).__name__} changes weights; a {type(compressed).__name__} has none")
        require_weights(compressed, type(self).__name__)
        for weight in weights:
            weight.copy_(self.change(weight))
        return compressed

    @abstractmethod
    def change(self, weight: Tensor) -> Tensor:
        """Return the compressed `weight` (output channels, *)."""


class QuantizedWeights(_Compressed):
    """Weights rounded to `bits`: s round(w / s), s = max |w| / (2^(bits - 1) - 1) for each output channel.

    Examples:
        >>> QuantizedWeights(bits=3).change(torch.tensor([[0.9, -0.5, 0.1]]))  # multiples of 0.3
        tensor([[ 0.9000, -0.6000,  0.0000]])
    """

    def __init__(self, bits: int = 4, *, model: Denoiser | None = None) -> None:
        """Set the number of `bits`; `model`: default: the model under evaluation.

        Raises:
            ValueError: unless 2 <= bits <= 16.
        """
        super().__init__(model)
        if not 2 <= bits <= 16:
            raise ValueError(f"QuantizedWeights needs 2 to 16 bits, got {bits}")
        self.bits = bits

    def change(self, weight: Tensor) -> Tensor:
        """Return the rounded `weight`."""
        steps = 2 ** (self.bits - 1) - 1
        scale = weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.ndim - 1)) / steps
        return torch.where(scale > 0, (weight / scale).round() * scale, weight)


class PrunedWeights(_Compressed):
    """Weights of which the `fraction` with the smallest |w| of each layer are zero.

    Examples:
        >>> PrunedWeights(fraction=0.5).change(torch.tensor([[0.9, -0.5], [0.1, 0.6]]))
        tensor([[0.9000, 0.0000],
                [0.0000, 0.6000]])
    """

    def __init__(self, fraction: float = 0.2, *, model: Denoiser | None = None) -> None:
        """Set the `fraction` of weights; `model`: default: the model under evaluation.

        Raises:
            ValueError: unless 0 < fraction < 1.
        """
        super().__init__(model)
        if not 0 < fraction < 1:
            raise ValueError(f"PrunedWeights needs a fraction between 0 and 1, got {fraction}")
        self.fraction = fraction

    def change(self, weight: Tensor) -> Tensor:
        """Return the pruned `weight`."""
        count = round(self.fraction * weight.numel())
        smallest = weight.abs().flatten().argsort(stable=True)[:count]
        return weight.flatten().index_fill(0, smallest, 0.0).reshape(weight.shape)
