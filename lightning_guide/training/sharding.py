"""Weights sharded over processes (FSDP2), for networks too large to be held, with optimizer and averages, by each.

Zhao et al. 2023, https://arxiv.org/abs/2304.11277; `torch.distributed.fsdp.fully_shard`. Each process keeps some rows
of every weight; a block's weights are gathered when it runs. For everything here, what is not sharded is left as it is.
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
        """Shards the weights, once, if the strategy is one for sharding."""
        if self._trainer is None or not isinstance(self.trainer.strategy, ModelParallelStrategy):
            return
        if _mesh(self.denoiser) is None:
            self.denoiser.to(self.device)
            shard_(self.denoiser, init_device_mesh(self.device.type, (self.trainer.world_size,)))


def shard_(denoiser: Denoiser, mesh: DeviceMesh) -> None:
    """Shards the weights over the one axis of `mesh`, block by block, in place; scalars stay whole.

    All processes begin with the weights of the first. Blocks are what the lists of the network hold.
    """
    for tensor in [*denoiser.parameters(), *denoiser.buffers()]:
        torch.distributed.broadcast(tensor.data, 0)
    scalars = {parameter for parameter in denoiser.parameters() if parameter.ndim == 0}
    for container in reversed(list(denoiser.modules())):  # what lies inside comes first
        if isinstance(container, nn.ModuleList | nn.ModuleDict):
            for block in container.children():
                fully_shard(block, mesh=mesh, ignored_params=scalars)
    fully_shard(denoiser, mesh=mesh, ignored_params=scalars)


def local_tensor(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of each tensor, as views."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def _mesh(module: nn.Module) -> DeviceMesh | None:
    """Over which processes the weights are sharded, None if they are not."""
    return next((p.device_mesh for p in module.parameters() if isinstance(p, DTensor)), None)


@torch.no_grad()
def average_gradients_(module: nn.Module) -> None:
    """Averages over processes the gradients of what stayed whole in a sharded `module`; FSDP does it for the rest."""
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
    """Bools (*) that hold on every process; of what is not sharded all hold the same anyway."""
    if _mesh(module) is None:
        return flags
    numbers = flags.int()
    torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MIN)
    return numbers.bool()


def _gathered(tensor: Tensor) -> Tensor:
    """The whole tensor, on all processes; all have to ask."""
    return cast(Tensor, tensor.full_tensor()) if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def unsharded_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with whole tensors. Of a sharded one it is gathered, and is empty but on the first process."""
    state: dict[str, Tensor] = module.state_dict()
    if _mesh(module) is None:
        return state
    kept = {}
    for name, tensor in state.items():
        gathered = _gathered(tensor)
        if torch.distributed.get_rank() == 0:
            kept[name] = gathered.cpu()
    return kept


@torch.no_grad()
def load_unsharded_(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads whole tensors, of which each process has all and keeps its share."""
    mesh = _mesh(module)
    if mesh is None:
        module.load_state_dict(state)
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
    """A frozen float32 copy in eval mode, sharded as `denoiser` is."""
    mesh = _mesh(denoiser)
    if mesh is None:
        return copy.deepcopy(denoiser).float().eval().requires_grad_(False)
    second = _built_again(denoiser).float().eval().requires_grad_(False)
    shard_(second, mesh)
    targets, sources = (local_tensor(model.state_dict().values()) for model in (second, denoiser))
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
    return second


def _built_again(denoiser: Denoiser) -> Denoiser:
    """A model of the same recipe on the same device, not sharded, with fresh weights."""
    with torch.random.fork_rng(devices=[]):
        return cast(Denoiser, build(denoiser.recipe)).to(next(denoiser.parameters()).device)


@torch.no_grad()
def unshard(denoiser: Denoiser) -> Denoiser:
    """`denoiser` itself, or, if it is sharded, a frozen copy in eval mode that each process holds whole.

    So that processes may evaluate it at their own pace, each as often as it has samples to draw.
    """
    if _mesh(denoiser) is None:
        return denoiser
    single = _built_again(denoiser)
    single.load_state_dict({name: _gathered(tensor) for name, tensor in denoiser.state_dict().items()})
    return single.eval().requires_grad_(False)
