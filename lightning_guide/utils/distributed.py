"""What the processes of a run have to do together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

__all__ = [
    "all_reduce_sum",
    "all_gather_objects",
    "true_on_all_ranks",
    "rank_and_world",
    "run_on_all_ranks",
    "total_over_processes",
]


Value = TypeVar("Value")


def _have_met() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank_and_world() -> tuple[int, int]:
    """The number of this process and how many there are; (0, 1) before they have come together."""
    if _have_met():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def all_gather_objects(here: Value) -> list[Value]:
    """`here` of every process, in order of rank; every process has to call this."""
    if not _have_met():
        return [here]
    found = [here] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, here)
    return found


def all_reduce_sum(here: Tensor) -> Tensor:
    """The sum of the tensors `here` of every process, in place; every process has to call this."""
    if _have_met():
        torch.distributed.all_reduce(here)
    return here


def true_on_all_ranks(here: bool) -> bool:
    """Whether `here` is true on all processes."""
    return all(all_gather_objects(here))


def run_on_all_ranks(act: Callable[[], None]) -> None:
    """`act` on all ranks; an error of one of them ends all, so that none waits for ever.

    Raises:
        ValueError: the first error, on ranks that had none of another type themselves.
    """
    error: str | None = None
    other: Exception | None = None
    try:
        act()
    except ValueError as mistake:
        error = str(mistake)
    except Exception as failure:  # a full disk, no memory on the device
        error, other = f"{type(failure).__name__}: {failure}", failure
    errors = all_gather_objects(error)
    if other is not None:
        raise other
    for message in errors:
        if message is not None:
            raise ValueError(message)


def total_over_processes(values: Tensor) -> Tensor:
    """Sum of `values` over all processes; `values` themselves where there is only one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values
