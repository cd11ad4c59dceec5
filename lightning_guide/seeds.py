"""Seeds: every random draw is a function of names and numbers, never of a global state.

Sampling: sample i of an evaluation depends on (seed, i, purpose) alone, not on the batch it travels in nor on
the number of processes. Training: a step's draws depend on (seed, images seen, rank).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["SampleSeeds", "mix"]


def mix(*parts: int | str) -> int:
    """Hash of the parts to 63 bits, the same on every machine and Python version.

    >>> mix(0, "noise", 7) == mix(0, "noise", 7), mix(0, "noise", 7) == mix(0, "noise", 8)
    (True, False)
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class SampleSeeds:
    """The random streams of a batch of samples, one for each (seed, sample index, purpose).

    Streams are drawn on the CPU and moved, so that a sample is the same on every device. A stream remembers
    its position: two calls with the same purpose give successive draws. Purposes never disturb each other: the
    noise of a stochastic sampler is the same whether or not a guidance draws random labels on the way.
    """

    def __init__(self, seed: int, indices: Sequence[int] | Tensor) -> None:
        """Streams of the samples `indices` (B,) under `seed`."""
        self.seed = int(seed)
        self.indices = [int(index) for index in indices]
        self._streams: dict[str, list[torch.Generator]] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def generators(self, purpose: str) -> list[torch.Generator]:
        """The B CPU generators of one purpose, at their current positions."""
        if purpose not in self._streams:
            self._streams[purpose] = [
                torch.Generator().manual_seed(mix(self.seed, index, purpose)) for index in self.indices
            ]
        return self._streams[purpose]

    def normal(self, purpose: str, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Standard normal draws `(B, *shape)`, float32."""
        out = torch.empty(len(self), *shape)
        for row, generator in zip(out, self.generators(purpose), strict=True):
            row.normal_(generator=generator)
        return out.to(device)

    def uniform(self, purpose: str, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Uniform draws on [0, 1), `(B, *shape)`, float32."""
        out = torch.empty(len(self), *shape)
        for row, generator in zip(out, self.generators(purpose), strict=True):
            row.uniform_(generator=generator)
        return out.to(device)

    def integers(self, purpose: str, high: int, device: torch.device | str = "cpu") -> Tensor:
        """Uniform integers in [0, high), `(B,)`, int64."""
        draws = [torch.randint(high, (), generator=generator) for generator in self.generators(purpose)]
        return torch.stack(draws).to(device)
