"""Many ranks in one process: threads, each with its own rank of one process group."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.testing._internal.distributed import multi_threaded_pg as threads

__all__ = ["on_thread_ranks"]

Value = TypeVar("Value")


def on_thread_ranks(world: int, act: Callable[[int], Value]) -> list[Value]:
    """Return `act(rank)` of each of `world` ranks; collective operations of torch.distributed work between them."""
    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    threads._install_threaded_pg()
    store = dist.HashStore()

    def run(rank: int) -> Value:
        dist.init_process_group("threaded", rank=rank, world_size=world, store=store, timeout=timedelta(seconds=120))
        try:
            return act(rank)
        except BaseException as error:
            threads.ProcessLocalGroup.exception_handle(error)  # wakes the others, which wait for this rank
            raise
        finally:
            dist.destroy_process_group()

    try:
        with ThreadPoolExecutor(world) as pool:
            futures = [pool.submit(run, rank) for rank in range(world)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in sorted(errors, key=lambda each: isinstance(each, SystemExit)):  # ranks woken by another's error
            raise error
        return [future.result() for future in futures]
    finally:
        threads.ProcessLocalGroup.reset()
        threads._uninstall_threaded_pg()
        torch._C._distributed_c10d._set_thread_isolation_mode(False)
