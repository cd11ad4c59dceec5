"""Perturbed networks in two processes (DDP): gradients and samples equal those of one process."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_guide.guidance import Guided
from lightning_guide.guidance.negatives import (
    IdentityAttention,
    PerturbedAttentionGuidance,
    RandomMask,
)
from lightning_guide.guidance.negatives.tpg import ShuffledTokens
from lightning_guide.guidance.perturbation import Perturbed
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import Heun
from lightning_guide.seeds import SampleSeeds
from tests.processes import Processes
from tests.small_networks import LABELS, SIGMA, noisy_images, trajectory, transformer


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(noisy_images().double(), SIGMA, LABELS)


def guided_in_ddp(folder: str, world: int) -> None:
    """Gradients through guidance under DDP, with a perturbed network at the same time, and samples of this rank.

    Gradients are those of float64, where two orders of summation differ by some 1e-14, whatever the CPU.
    """
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=world)
    model = transformer(depth=2).double()
    perturbed = Perturbed([IdentityAttention()], positive=model).network(trajectory())
    wrapped = DistributedDataParallel(PerturbedAttentionGuidance(2.0, positive=model))
    share = slice(2 * rank, 2 * rank + 2)
    wrapped(noisy_images(4).double()[share], SIGMA, torch.arange(4)[share]).square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(1e-3 * parameter.grad if parameter.grad is not None else 0)
    seen = run(perturbed)
    samples = draw_samples(model.float(), range(2 * rank, 2 * rank + 2))
    torch.save({"gradients": gradients, "samples": samples, "perturbed": seen}, Path(folder) / f"seen-{rank}.pt")
    dist.destroy_process_group()


def draw_samples(model: Preconditioned, indices: range) -> Tensor:
    negatives = [Perturbed([each], positive=model) for each in (RandomMask(0.5), ShuffledTokens())]
    guided = Guided(negatives, [2.0, 1.5], positive=model)
    grid = KarrasGrid(3, sigma_min=0.1, sigma_max=5.0)
    return Heun(grid).sample(guided, seeds=SampleSeeds(0, indices), condition=torch.tensor([i % 4 for i in indices])).x


def test_two_processes_train_and_sample_as_one(processes: Processes, tmp_path: Path) -> None:
    call = ("tests.test_guidance_perturbation_ddp", "guided_in_ddp")
    processes.call_ranks(2, call, tmp_path / "log", folder=str(tmp_path), world=2)
    seen = [torch.load(tmp_path / f"seen-{rank}.pt", weights_only=True) for rank in range(2)]
    model = transformer(depth=2).double()
    PerturbedAttentionGuidance(2.0, positive=model)(
        noisy_images(4).double(), SIGMA, torch.arange(4)
    ).square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(seen[0]["gradients"][name], seen[1]["gradients"][name])
            largest = float(parameter.grad.abs().max())
            torch.testing.assert_close(seen[0]["gradients"][name], parameter.grad, rtol=0, atol=1e-11 * largest)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(1e-3 * parameter.grad if parameter.grad is not None else 0)
    torch.testing.assert_close(
        seen[0]["perturbed"], run(Perturbed([IdentityAttention()], positive=model)), rtol=0, atol=1e-11
    )
    together = torch.cat([each["samples"] for each in seen])
    torch.testing.assert_close(together, draw_samples(model.float(), range(4)), rtol=1e-3, atol=1e-3)
