"""Order of the training data: an endless stream of positions, as arithmetic on image counts without state.

Position k of the stream, counted in images from the start of the run over all processes, is element
`epoch_order(seed, k // n, n)[k % n]` of the n elements. The number of images seen thus suffices to resume exactly, for
any previous number of processes, workers or steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from lightning_guide.seeds import mix

__all__ = ["Stream", "epoch_order", "split_evenly"]


def epoch_order(seed: int, visit: int, count: int) -> Tensor:
    """Return the permutation (count,), int64, in which pass number `visit` over the data reads its elements.

    Examples:
        >>> epoch_order(0, 0, 4).sort().values.tolist()
        [0, 1, 2, 3]
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(mix(seed, "order", visit)))


def split_evenly(count: int, batch_size: int, *, rank: int = 0, world: int = 1) -> list[range]:
    """Split the elements range(rank, count, world) of one process into batches, without padding or omission.

    Examples:
        >>> split_evenly(7, 2, rank=0, world=2)
        [range(0, 4, 2), range(4, 8, 2)]
        >>> split_evenly(7, 2, rank=1, world=2)
        [range(1, 5, 2), range(5, 7, 2)]
    """
    mine = range(rank, count, world)
    return [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]


class Stream(Sampler[range]):
    """Endless batches of stream positions for one process.

    Batch b of process `rank` out of `world` holds the `batch_size` positions that begin at
    start + (b * world + rank) * batch_size. Together the processes read each position exactly once, and the next
    world * batch_size positions in every step, so the order of the data does not depend on their number.

    Examples:
        >>> from itertools import islice
        >>> list(islice(Stream(2, rank=1, world=2, start=lambda: 8), 2))
        [range(10, 12), range(14, 16)]
    """

    def __init__(self, batch_size: int, *, rank: int = 0, world: int = 1, start: Callable[[], int] = int) -> None:
        """Set `start`, a function of the images seen so far; it is called whenever iteration begins."""
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.start = start

    def __iter__(self) -> Iterator[range]:
        """Yield contiguous ranges of positions endlessly."""
        first = self.start() + self.rank * self.batch_size
        while True:
            yield range(first, first + self.batch_size)
            first += self.world * self.batch_size
