"""Weights sharded over processes (FSDP2), for networks whose weights, optimizer and averages exceed one process.

Zhao et al. 2023, https://arxiv.org/abs/2304.11277; `torch.distributed.fsdp.fully_shard`. Each process keeps some rows
of every weight; a block's weights are gathered when it runs. All functions accept unsharded modules as well.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import cast

import lightning.pytorch as pl
import torch
import torch.distributed
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.utils.recipe import build

__all__ = [
    "ShardedTraining",
    "true_on_all_shards",
    "average_gradients_",
    "is_sharded",
    "load_unsharded_",
    "local_tensor",
    "shard_",
    "clone_sharded",
    "unshard",
    "unsharded_state",
]


class ShardedTraining(pl.LightningModule):
    """Base of modules whose `denoiser` is sharded over all processes under `ModelParallelStrategy`."""

    denoiser: Denoiser

    def configure_model(self) -> None:
        """Shard the weights, once, if the strategy is a `ModelParallelStrategy`."""
        if self._trainer is None or not isinstance(self.trainer.strategy, ModelParallelStrategy):
            return
        if _mesh(self.denoiser) is None:
            self.denoiser.to(self.device)
            shard_(self.denoiser, init_device_mesh(self.device.type, (self.trainer.world_size,)))
            # Lightning looks for every parameter in a checkpoint, also for those that a state dict leaves out
            self.strict_loading = self.denoiser.state_dict().keys() >= {n for n, _ in self.denoiser.named_parameters()}


def shard_(denoiser: Denoiser, mesh: DeviceMesh) -> None:
    """Shard the weights over the single axis of `mesh`, block by block, in place; scalars stay unsharded.

    All processes start from the weights of rank 0. Blocks are the elements of the network's module lists and dicts.
    """
    for tensor in [*denoiser.parameters(), *denoiser.buffers()]:
        torch.distributed.broadcast(tensor.data, 0)
    scalars = {parameter for parameter in denoiser.parameters() if parameter.ndim == 0}
    for name, container in reversed(list(denoiser.named_modules())):  # inner blocks first
        if isinstance(container, nn.ModuleList | nn.ModuleDict) and "parametrizations" not in name.split("."):
            for block in container.children():
                fully_shard(block, mesh=mesh, ignored_params=scalars)
    fully_shard(denoiser, mesh=mesh, ignored_params=scalars)


def local_tensor(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the shard of each tensor on this process, as a view."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def _mesh(module: nn.Module) -> DeviceMesh | None:
    """Return the device mesh over which the weights are sharded, or None."""
    return next((p.device_mesh for p in module.parameters() if isinstance(p, DTensor)), None)


def is_sharded(module: nn.Module) -> bool:
    """Return whether the weights are sharded."""
    return _mesh(module) is not None


@torch.no_grad()
def average_gradients_(module: nn.Module) -> None:
    """Average the gradients of unsharded weights in a sharded `module` over processes; FSDP averages the others."""
    if _mesh(module) is None:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None and not isinstance(p.grad, DTensor)]
    if gradients:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def true_on_all_shards(flags: Tensor, module: nn.Module) -> Tensor:
    """Return which `flags` (*) are true on every process; unchanged if unsharded, where all processes agree."""
    if _mesh(module) is None:
        return flags
    numbers = flags.int()
    torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MIN)
    return numbers.bool()


def _gather(tensor: Tensor) -> Tensor:
    """Return the full tensor on all processes (a collective call)."""
    return cast(Tensor, tensor.full_tensor()) if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def unsharded_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with full tensors; that of a sharded module is gathered, and empty except on rank 0."""
    state: dict[str, Tensor] = module.state_dict()
    if _mesh(module) is None:
        return state
    kept = {}
    for name, tensor in state.items():
        gathered = _gather(tensor)
        if torch.distributed.get_rank() == 0:
            kept[name] = gathered.cpu()
    return kept


@torch.no_grad()
def load_unsharded_(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load full tensors, which every process holds, and keep the shard of this process."""
    mesh = _mesh(module)
    if mesh is None:
        module.load_state_dict(state)  # a wait for each tensor, when it is restored from the host
        return
    for name, tensor in module.state_dict().items():
        given = state[name].to(tensor.device)
        if isinstance(tensor, DTensor):
            share = distribute_tensor(given, mesh, tensor.placements, src_data_rank=None)
            tensor.to_local().copy_(share.to_local())
        else:
            tensor.copy_(given)


@torch.no_grad()
def clone_sharded(denoiser: Denoiser) -> Denoiser:
    """Return a frozen copy in eval mode, float32, sharded like `denoiser`.

    Without shards it shares the weights of `denoiser` that are not trained, in their precision.
    """
    mesh = _mesh(denoiser)
    if mesh is None:
        shared = {id(parameter): parameter for parameter in denoiser.parameters() if not parameter.requires_grad}
        copied = copy.deepcopy(denoiser, dict(shared))
        if not shared:
            copied.float()
        for parameter in copied.parameters():
            if id(parameter) not in shared:
                parameter.data = parameter.data.float()
        return copied.eval().requires_grad_(False)
    second = _rebuild(denoiser).float().eval().requires_grad_(False)
    shard_(second, mesh)
    targets, sources = (local_tensor(model.state_dict().values()) for model in (second, denoiser))
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
    return second


def _rebuild(denoiser: Denoiser) -> Denoiser:
    """Return an unsharded model of the same recipe on the same device, with new weights."""
    with torch.random.fork_rng(devices=[]):
        return cast(Denoiser, build(denoiser.recipe)).to(next(denoiser.parameters()).device)


@torch.no_grad()
def unshard(denoiser: Denoiser) -> Denoiser:
    """Return `denoiser` itself, or, if it is sharded, a frozen unsharded copy in eval mode on each process.

    Processes can then evaluate it independently, each for its own number of samples.
    """
    if _mesh(denoiser) is None:
        return denoiser
    single = _rebuild(denoiser)
    single.load_state_dict({name: _gather(tensor) for name, tensor in denoiser.state_dict().items()})
    return single.eval().requires_grad_(False)
