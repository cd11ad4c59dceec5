"""Which network made these features: a name with all settings that matter, and a hash of its weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lightning_guide.snapshots.file import checksum

__all__ = ["Identity", "weights_hash"]


@dataclass(frozen=True)
class Identity:
    """An extractor, as reports and stored statistics name it; numbers of different identities do not compare.

    Attributes:
        name: its class and the settings that change its features.
        weights: `weights_hash` of its network; "" without weights.
    """

    name: str
    weights: str = ""

    def __str__(self) -> str:
        return f"{self.name}, {f'weights {self.weights[:16]}' if self.weights else 'no weights'}"


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of all parameters and buffers of `module`; "" if it has none."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    return checksum(tensors, {}) if tensors else ""
