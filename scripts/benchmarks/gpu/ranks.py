"""Two ranks of DistributedDataParallel train as one process does: by NCCL on two GPUs, by gloo on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from scripts.benchmarks.gpu.models import edm2, labels, randomized
from scripts.benchmarks.gpu.place import TINY, NotRunError, Place, Row, Size, at_most, float32_as

__all__ = ["check"]

STEPS, BATCH, RANKS = 2, 4, 2


def check(place: Place, size: Size) -> Iterator[Row]:
    """Yield the largest difference of the weights after two steps.

    Raises:
        NotRunError: if there are no two devices.
    """
    if place.device.type not in ("cuda", "cpu"):
        raise NotRunError("needs processes with devices of their own")
    if place.is_cuda and torch.cuda.device_count() < RANKS:
        raise NotRunError("needs two GPUs")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (place.device.type, folder), nprocs=RANKS)
        found = torch.load(Path(folder) / "weights.pt", weights_only=True)
    alone, start = trained(place.device, slice(None)), trained(place.device, slice(None), steps=0)
    yield at_most("two ranks against one process", apart(found, alone, start), 1e-3)


def apart(found: Tensor, expected: Tensor, start: Tensor) -> float:
    """Return the largest difference of weights over how far any of them moved from the `start`."""
    return float((found - expected).abs().max() / (expected - start).abs().max())


def trained(device: torch.device, rows: slice, *, steps: int = STEPS) -> Tensor:
    """Return the weights of a small model after steps on `rows` of the batches; under DDP if ranks are connected."""
    model = randomized(edm2(TINY)).train().requires_grad_(True).to(device)
    shared = dist.is_initialized()
    trains = DistributedDataParallel(model, [device] if device.type == "cuda" else None) if shared else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    with float32_as("ieee"):
        for _ in range(steps):
            x, sigma = torch.randn(BATCH, 3, 8, 8, generator=generator), torch.rand(BATCH, generator=generator) + 0.1
            given = [each[rows].to(device) for each in (x, sigma, labels(BATCH))]
            optimizer.zero_grad()
            trains(*given).square().mean().backward()
            optimizer.step()
    return torch.cat([parameter.detach().flatten().cpu() for parameter in model.parameters()])


def _rank(rank: int, kind: str, folder: str) -> None:
    """Train on this rank's half of the batches; rank 0 saves the weights."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", store=store, rank=rank, world_size=RANKS)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    half = BATCH // RANKS
    weights = trained(device, slice(rank * half, (rank + 1) * half))
    if rank == 0:
        torch.save(weights, Path(folder) / "weights.pt")
    dist.destroy_process_group()
