"""Where the weights of a model lie, so that what was trained on top of it is stored without them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_guide.seeds import mix
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Origin", "fingerprint", "same_weights"]

_SCALE = 2**20
_TOLERANCE = 10  # 1e-5: rounding of a merged or rebuilt model stays below, another model of the same size far above
_SAMPLED = 256  # elements of each weight


class Origin(HasRecipe):
    """Name by which a model is loaded again, `lightning_guide.load(source, **options)`.

    Attributes:
        weights: its fingerprint when it was loaded, None if unknown.
    """

    weights: Tensor | None = None

    def __init__(self, source: str, options: Mapping[str, Any] | None = None) -> None:
        """Name a published model (KIND:PLACE) or the folder of a run, and the options of `load`."""
        self.source, self.options = source, dict(options or {})

    @classmethod
    def of(cls, model: nn.Module, source: str, **options: Any) -> Origin:
        """Return the origin of `model`, which was just loaded from there."""
        origin = cls(source, options)
        origin.weights = fingerprint(model)
        return origin

    def holds(self, model: nn.Module) -> bool:
        """Return whether `model` still has the weights that it was loaded with."""
        return self.weights is not None and same_weights(self.weights, fingerprint(model))

    def __str__(self) -> str:
        more = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.source} ({more})" if more else self.source


@torch.no_grad()
def fingerprint(model: nn.Module) -> Tensor:
    """Return integers (9,) that tell the weights of one model from those of another; see `same_weights`.

    With w up to 256 evenly spaced elements of each parameter and g_k signs, 2^20 (log2 |w|, <w, g_k> / |w| for k < 8).
    Compared to a hash they change little when weights change little, as by rounding on another machine.
    """
    sums, square = torch.zeros(8, dtype=torch.float64), 0.0
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().reshape(-1)
        chosen = torch.linspace(0, len(flat) - 1, min(len(flat), _SAMPLED), dtype=torch.float64).long()
        values = flat[chosen.to(flat.device)].double().cpu()
        generator = torch.Generator().manual_seed(mix("fingerprint", name))
        signs = 2 * torch.randint(2, (8, len(values)), generator=generator) - 1
        sums += signs.double() @ values
        square += float(values.square().sum())
    length = math.sqrt(square) or 1.0
    return torch.cat([torch.tensor([math.log2(length)], dtype=torch.float64), sums / length]).mul(_SCALE).round().long()


def same_weights(one: Tensor, other: Tensor) -> bool:
    """Return whether two fingerprints are of the same weights, up to a relative difference of about 1e-5."""
    return one.shape == other.shape and int((one.cpu() - other.cpu()).abs().max()) <= _TOLERANCE
