"""Random streams that are functions of names and numbers, never of a global state.

Sampling: sample i of an evaluation depends on (seed, i, purpose) alone, not on its batch or the number of processes.
Training: the draws of a step depend on (seed, images seen, rank).
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_guide.utils.devices import to_device
from lightning_guide.utils.scalars import check_whole

__all__ = ["SampleSeeds", "check_seed", "mix"]


def mix(*parts: int | str) -> int:
    """Hash the parts to 63 bits, identically on every machine and Python version.

    Examples:
        >>> mix(0, "noise", 7) == mix(0, "noise", 7), mix(0, "noise", 7) == mix(0, "noise", 8)
        (True, False)

    Raises:
        TypeError: if a part is neither a string nor an integer (of any library).
    """
    plain = tuple(part if isinstance(part, str) else operator.index(part) for part in parts)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def check_seed(seed: int) -> int:
    """Return `seed`.

    Raises:
        ValueError: if it is no whole number, or negative.
    """
    return check_whole(seed, "the seed", least=0)


class SampleSeeds:
    """Random streams of a batch of samples, one for each (seed, sample index, purpose).

    Numbers are drawn on the CPU and moved, so that a sample is the same on every device. A stream keeps its position:
    two calls with the same purpose give successive draws. Purposes index independent streams: the noise of a
    stochastic sampler does not depend on whether a guidance draws random labels.

    Torch's CPU generators keep 32 bits of a seed. The samples of one (seed, purpose) therefore have seeds that differ
    by construction: with a hash of 32 bits, two of 50,000 samples would share their noise in one of four evaluations.

    Examples:
        >>> x = SampleSeeds(7, range(4)).normal("initial", (3,))
        >>> tuple(x.shape), torch.equal(SampleSeeds(7, [2]).normal("initial", (3,)), x[2:3])  # independent of the batch
        ((4, 3), True)
        >>> seeds = SampleSeeds(7, range(4))
        >>> labels = seeds.integers("labels", 10)
        >>> torch.equal(seeds.normal("initial", (3,)), x)  # and of draws for other purposes
        True
    """

    def __init__(self, seed: int, indices: Sequence[int] | Tensor) -> None:
        """Create the streams of the samples `indices` (B,) under `seed`.

        Raises:
            ValueError: as `check_seed`.
        """
        self.seed = check_seed(seed)
        self.indices = [int(index) for index in indices]
        self._streams: dict[str, list[torch.Generator]] = {}
        self._shared: dict[str, torch.Generator] = {}
        self._kept: dict[object, Tensor] = {}
        self._originals: tuple[SampleSeeds, int] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def samples(self) -> list[int]:
        """Indices of the samples (B,), for what belongs to them: copies have that of their original."""
        if self._originals is None:
            return self.indices
        seeds, count = self._originals
        return [index for index in seeds.samples for _ in range(count)]

    def repeated(self, count: int, purpose: str) -> SampleSeeds:
        """Return the streams of `count` copies of each sample, in its place: their own, except for `normal_of`."""
        copies = type(self)(
            mix(self.seed, purpose), [index * count + k for index in self.indices for k in range(count)]
        )
        copies._originals = self, count
        return copies

    def generators(self, purpose: str) -> list[torch.Generator]:
        """Return the B CPU generators of one purpose, at their current positions."""
        if purpose not in self._streams:
            # multiplication by an odd number and exclusive or are both bijective on 32 bits
            key = mix(self.seed, purpose)
            seeds = [(index * 0x9E3779B1 ^ key) % 2**32 for index in self.indices]
            self._streams[purpose] = [torch.Generator().manual_seed(seed) for seed in seeds]
        return self._streams[purpose]

    def shared(self, purpose: str) -> torch.Generator:
        """Return a CPU generator for draws shared by all samples of the seed, independent of the batch."""
        if purpose not in self._shared:
            self._shared[purpose] = torch.Generator().manual_seed(mix(self.seed, purpose, "shared"))
        return self._shared[purpose]

    def normal(self, purpose: str, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Draw standard normal numbers `(B, *shape)`, float32."""
        out = torch.empty(len(self), *shape, dtype=torch.float32)
        for row, generator in zip(out, self.generators(purpose), strict=True):
            row.normal_(generator=generator)
        return to_device(out, device)

    def normal_of(
        self, owner: object, purpose: str, shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return standard normal numbers as `normal`, drawn once for each `owner`: the same in its later calls."""
        if self._originals is not None:
            seeds, count = self._originals
            return seeds.normal_of(owner, purpose, shape, device).repeat_interleave(count, 0)
        if owner not in self._kept:
            self._kept[owner] = self.normal(purpose, shape, device)
        return self._kept[owner]

    def uniform(self, purpose: str, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Draw uniform numbers in [0, 1), `(B, *shape)`, float32."""
        out = torch.empty(len(self), *shape, dtype=torch.float32)
        for row, generator in zip(out, self.generators(purpose), strict=True):
            row.uniform_(generator=generator)
        return to_device(out, device)

    def integers(self, purpose: str, high: int, device: torch.device | str = "cpu") -> Tensor:
        """Draw uniform integers in [0, high), `(B,)`, int64."""
        draws = [torch.randint(high, (), generator=generator) for generator in self.generators(purpose)]
        return to_device(torch.stack(draws), device)
