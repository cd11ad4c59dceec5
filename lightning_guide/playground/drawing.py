"""Samples drawn step by step under a `Setting`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_guide.data import DataInterface
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.sampling_loop import build_condition
from lightning_guide.guidance.base import LastPrediction
from lightning_guide.guidance.particles import ParticleSampler
from lightning_guide.inference import fuse_weights
from lightning_guide.modules.needs import count_labels
from lightning_guide.playground.setting import NAME, Setting
from lightning_guide.runs.models import RunModels
from lightning_guide.utils.explain import explain
from lightning_guide.utils.parser import ConfigError, Parser, one_sentence, update_paths

__all__ = ["Drawn", "draw"]

_BATCH = 16  # samples in one network call
_PREVIEWS = 8  # decoded states of one batch, besides the last


@dataclass(frozen=True)
class Drawn:
    """Samples so far: `x` in stored form (B, *), clean estimates until `finished`; what they cost.

    `step` of `steps` counts over all batches, `calls` are network calls a sample, `seconds` those of the sampler.
    """

    x: Tensor
    step: int
    steps: int
    calls: float
    seconds: float

    @property
    def finished(self) -> bool:
        """Whether all steps are made."""
        return self.step == self.steps


def draw(setting: Setting, models: RunModels, data: DataInterface) -> Iterator[Drawn]:
    """Draw the samples of `setting` of the main one of `models`, and yield clean estimates on the way.

    Raises:
        ValueError: if a setting does not fit the model.
    """
    evaluation, device = _build(setting), models.device
    observed = LastPrediction(fuse_weights(evaluation.resolve(models).eval()))
    dataset = evaluation.dataset(count_labels(lambda: data, models.main))
    rows = [dataset[i] for i in range(setting.count)]
    batches = [rows[first : first + _BATCH] for first in range(0, len(rows), _BATCH)]
    steps = len(evaluation.sampler.levels(observed)) - 1
    done: list[Tensor] = []
    calls, seconds = 0.0, 0.0
    for batch in batches:
        begin = time.perf_counter()
        seeds = evaluation.seeds([int(each.index) for each in batch])
        condition = build_condition(observed, torch.stack([each.condition for each in batch]), data)
        sampler = evaluation.sampler
        if isinstance(sampler, ParticleSampler):  # which of them remains is known only at the end
            walk = iter([sampler.sample(observed, seeds=seeds, condition=condition, device=device)])
        else:
            noise = sampler.initial(observed, seeds, device)
            walk = sampler.steps(observed, noise, seeds=seeds, condition=condition)
        for trajectory in walk:
            seconds, step = seconds + time.perf_counter() - begin, trajectory.step + 1
            if step < steps and step % max(1, steps // _PREVIEWS) == 0:
                shown = trajectory.x if observed.clean is None else observed.clean
                spent = calls + trajectory.evaluations * len(batch) / len(rows)
                x = torch.cat([*done, data.decode(shown).cpu()])
                yield Drawn(x, len(done) * steps + step, steps * len(batches), spent, seconds)
            begin = time.perf_counter()
        calls += trajectory.evaluations * len(batch) / len(rows)
        done.append(data.decode(trajectory.x).cpu())
    yield Drawn(torch.cat(done), steps * len(batches), steps * len(batches), calls, seconds)


def _build(setting: Setting) -> Evaluation:
    """Build the evaluation of `setting` as the command line builds it.

    Raises:
        ValueError: if a class or an argument is unknown, or refused.
    """
    parser = Parser()
    parser.add_argument("--evaluations", type=dict[str, Evaluation])
    written = update_paths({NAME: setting.evaluation})
    try:
        built: Evaluation = parser.instantiate(parser.parse_object({"evaluations": written})).evaluations[NAME]
    except ConfigError as error:
        at = ("model", "init_args", "evaluations")
        raise ValueError(explain(str(error), written, dict[str, Evaluation], at=at)) from None
    except ValueError as error:
        raise ValueError(one_sentence(str(error))) from None
    return built
