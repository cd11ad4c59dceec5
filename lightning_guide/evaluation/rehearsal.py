"""Rehearsal of an evaluation before a run begins: one step of one sample, and the steps that its sampler will take."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_guide.data import DataInterface
from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.sampling_loop import build_condition

__all__ = ["rehearse", "steps_of"]


def rehearse(
    evaluation: Evaluation, denoiser: Denoiser, data: DataInterface, device: torch.device, *, num_classes: int
) -> Tensor:
    """Return sample 0 of `evaluation` after one step under its resolved guidance, (1, *) in stored form.

    `num_classes` classes or prompts are those of the model under evaluation. Random states do not change.

    Raises:
        ValueError: if a reference, a label or a prompt is missing, or shapes do not fit.
    """
    # waits at the start alone, as all of a rehearsal: seeds are on the host
    index, label = (torch.as_tensor(each)[None].to(device) for each in evaluation.dataset(num_classes)[0])
    condition = build_condition(denoiser, label, data)
    seeds = evaluation.seeds(index.tolist())
    with torch.random.fork_rng(devices=[]):
        x = evaluation.initial(evaluation.sampler.initial(denoiser, seeds, device), seeds)
        trajectory = next(evaluation.sampler.steps(denoiser, x, seeds=seeds, condition=condition))
    return data.decode(trajectory.x)


def steps_of(evaluation: Evaluation, denoiser: Denoiser) -> list[Trajectory]:
    """Return the state at each step that the sampler will take, without samples."""
    levels = tuple(evaluation.sampler.levels(denoiser).tolist())
    seeds, count = evaluation.seeds([evaluation.first_index]), len(levels) - 1
    return [
        Trajectory(torch.empty(0), seeds, levels[i], levels[i + 1], step=i, steps=count, levels=levels)
        for i in range(count)
    ]
