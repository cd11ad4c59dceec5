"""Identity of a feature extractor: its name with all relevant settings, and a hash of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lightning_guide.snapshots.file import checksum

__all__ = ["Identity", "weights_hash"]


@dataclass(frozen=True)
class Identity:
    """Identity of an extractor in reports and stored statistics; results of different identities are not comparable.

    Attributes:
        name: class and the settings that change the features.
        weights: `weights_hash` of the network; "" without weights.
    """

    name: str
    weights: str = ""

    def __str__(self) -> str:
        return f"{self.name}, {f'weights {self.weights[:16]}' if self.weights else 'no weights'}"


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of name, type, shape and bytes of all tensors of a state dict; "" if it is empty."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    return checksum(tensors, {}) if tensors else ""
