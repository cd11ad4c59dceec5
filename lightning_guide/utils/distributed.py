"""Collective helpers for distributed runs; each works in a single process as well."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

__all__ = [
    "all_reduce_sum",
    "all_gather_objects",
    "true_on_all_ranks",
    "launched_processes",
    "rank_and_world",
    "run_on_all_ranks",
]


Value = TypeVar("Value")


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def launched_processes() -> Iterator[None]:
    """Join the processes of a launcher such as torchrun for the time of the context, if there are several."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or _is_distributed():
        yield
        return
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; (0, 1) before the process group is initialized."""
    if _is_distributed():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def all_gather_objects(here: Value) -> list[Value]:
    """Return the objects `here` of all ranks, in order of rank. Every rank must call this."""
    if not _is_distributed():
        return [here]
    found = [here] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, here)
    return found


def all_reduce_sum(here: Tensor) -> Tensor:
    """Return the sum of the tensors `here` over all ranks, computed in place. Every rank must call this."""
    if _is_distributed():
        torch.distributed.all_reduce(here)
    return here


def true_on_all_ranks(here: bool) -> bool:
    """Return whether `here` is true on all ranks. Every rank must call this."""
    return all(all_gather_objects(here))


def run_on_all_ranks(act: Callable[[], None]) -> None:
    """Run `act` on all ranks and raise the error of any rank on every rank, to prevent deadlocks.

    Raises:
        ValueError: the first error. A rank whose own error is of another type raises that error instead.
    """
    error: str | None = None
    other: Exception | None = None
    try:
        act()
    except ValueError as invalid:
        error = str(invalid)
    except Exception as failure:  # such as a full disk or exhausted device memory
        error, other = f"{type(failure).__name__}: {failure}", failure
    errors = all_gather_objects(error)
    if other is not None:
        raise other
    for message in errors:
        if message is not None:
            raise ValueError(message)
