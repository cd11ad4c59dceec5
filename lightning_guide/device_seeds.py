"""Random numbers computed on the device, each a function of its place: a counter in the place of a state.

Philox-4x32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3",
https://doi.org/10.1145/2063384.2063405, in integer operations of torch, which are exact on every device.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_guide.seeds import SampleSeeds, mix
from lightning_guide.utils.devices import to_device

__all__ = ["DeviceSeeds", "Noise", "philox", "sample_seeds"]


Noise = Literal["host", "device"]
"""Where the random numbers of samples are computed."""

MASK = 0xFFFFFFFF
FACTORS = 0xD2511F53, 0xCD9E8D57
STEPS = 0x9E3779B9, 0xBB67AE85  # by which the two words of the key grow each round


def philox(counter: Sequence[Tensor | int], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Return the four words of Philox-4x32-10 as int64 in [0, 2^32).

    Args:
        counter: four words of 32 bits, int64 tensors that broadcast, or numbers; the first and the third are tensors.
        key: two words.

    Examples:
        >>> zero = torch.tensor(0)
        >>> [f"{int(word):08x}" for word in philox([zero] * 4, (0, 0))]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    a, b, c, d = counter
    for i in range(10):
        low, high = ((word + i * step) & MASK for word, step in zip(key, STEPS, strict=True))
        assert isinstance(a, Tensor) and isinstance(c, Tensor), "products are of tensors"
        (top_a, a), (top_c, c) = _product(a, FACTORS[0]), _product(c, FACTORS[1])
        a, b, c, d = top_c ^ b ^ low, c, top_a ^ d ^ high, a
    return a, b, c, d  # type: ignore[return-value]  # tensors from the first round on


def _product(a: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the high and the low word of the 64 bits of a product, by products below 2^49: int64 has a sign."""
    lower = a * (factor & 0xFFFF)
    upper = torch.add(lower >> 16, a, alpha=factor >> 16)
    return upper >> 16, torch.add(lower & 0xFFFF, upper & 0xFFFF, alpha=1 << 16)


class DeviceSeeds(SampleSeeds):
    """Random streams of samples whose numbers are computed on the device, without a loop over samples or a copy.

    The key of Philox is a hash of (seed, purpose); the counter is (block of four numbers, number of the draw, sample
    index). Bits are equal on all devices, so are integers and uniform numbers. Normal ones are Box and Muller's
    transform in float32, equal to about 1e-6, the difference of the devices' logarithms and cosines.

    Draws for all samples together (`shared`) and distributions that take generators (`generators`) stay on the host.

    Examples:
        >>> x = DeviceSeeds(7, range(4)).normal("initial", (3,))
        >>> tuple(x.shape), torch.equal(DeviceSeeds(7, [2]).normal("initial", (3,)), x[2:3])  # independent of the batch
        ((4, 3), True)
    """

    def __init__(self, seed: int, indices: Sequence[int] | Tensor) -> None:
        """Create the streams of the samples `indices` (B,) under `seed`."""
        super().__init__(seed, indices)
        self._drawn: Counter[str] = Counter()
        self._places: dict[torch.device, Tensor] = {}

    def normal(self, purpose: str, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Draw standard normal numbers `(B, *shape)`, float32, at most 6.8."""
        first, second, third, fourth = (word.float() for word in self._words(purpose, shape, device))
        u, angle = torch.stack([first, third], -1), torch.stack([second, fourth], -1)
        radius = (u * 2**-32 + 2**-33).log_().mul_(-2).sqrt_()  # u in (0, 1]
        angle = angle * (2 * math.pi * 2**-32)
        return self._shaped(torch.stack([radius * angle.cos(), radius * angle.sin()], -1), shape)

    def uniform(self, purpose: str, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Draw uniform numbers in [0, 1), `(B, *shape)`, float32, multiples of 2^-24."""
        words = torch.stack(self._words(purpose, shape, device), -1)
        return self._shaped((words >> 8).float().mul_(2**-24), shape)

    def integers(self, purpose: str, high: int, device: torch.device | str = "cpu") -> Tensor:
        """Draw integers in [0, high), `(B,)`, int64, of probabilities that differ by 2^-32; high < 2^31."""
        return (self._words(purpose, (), device)[0] * high >> 32)[:, 0]

    def _words(self, purpose: str, shape: Sequence[int], device: torch.device | str) -> tuple[Tensor, ...]:
        """Return the next four words `(B, blocks)` of `purpose`, enough for `shape`."""
        device = torch.device(device)
        if device not in self._places:
            self._places[device] = to_device(torch.tensor(self.indices, dtype=torch.int64)[:, None], device)
        indices, key = self._places[device], mix(self.seed, purpose)
        blocks = torch.arange(-(-math.prod(shape) // 4), device=device)
        counter = (blocks, self._drawn[purpose], indices & MASK, indices >> 32 & MASK)
        self._drawn[purpose] += 1
        return philox(counter, (key & MASK, key >> 32))

    def _shaped(self, numbers: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the first numbers of each sample as `(B, *shape)`."""
        return numbers.reshape(len(self), -1)[:, : math.prod(shape)].reshape(len(self), *shape)


def sample_seeds(noise: Noise, seed: int, indices: Sequence[int] | Tensor) -> SampleSeeds:
    """Return the streams of samples whose numbers are drawn on the "host" or on the "device".

    Raises:
        ValueError: for another place.
    """
    kinds = {"host": SampleSeeds, "device": DeviceSeeds}
    if noise not in kinds:
        raise ValueError(f"noise is drawn on {' or '.join(kinds)}, but got {noise!r}")
    return kinds[noise](seed, indices)
